"""The published probe: its update against torch's AdamW, and a problem it must solve."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sparse_vis.evals.classes import linear_published as lp
from sparse_vis.evals.dataset import Data, Part
from sparse_vis.evals.encoders import raw_pixels
from sparse_vis.evals.maps.published_images import adamw, centre_cuts
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.evals.task import Bench
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress
from tests.evals.pictures import Pictures


def coloured(count, seed):
    """Noisy pictures whose mean colour tells one of 6 classes, wherever one looks."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, count)
    colour = np.array(
        [[60, 60, 180], [60, 180, 60], [180, 60, 60], [60, 180, 180], [180, 60, 180], [90, 90, 90]]
    )
    images = colour[labels][:, None, None] + rng.normal(0, 60, (count, 12, 12, 3))
    return np.clip(images, 0, 255).astype(np.uint8), labels


@jax.jit
def encode(images):
    """Two tokens of colour and its square: the upper and the lower half."""
    images = images / np.float32(255)
    halves = images.reshape(len(images), 2, -1, 3)
    return jnp.concatenate([halves.mean(axis=2), (halves**2).mean(axis=2)], axis=-1)


def test_probe_learns_and_is_reproducible():
    images, labels = coloured(96, 0)
    test, test_labels = coloured(90, 1)
    tokens, test, seen = encode(images), encode(test), []

    def train(epoch):
        seen.append(epoch)
        return [(tokens[i : i + 48], labels[i : i + 48]) for i in (0, 48)]

    def probe(test_labels):
        halves = [(test[:50], test_labels[:50]), (test[50:], test_labels[50:])]
        protocol = lp.LinearProtocol(learning_rate=0.03, batch_size=48, epochs=20)
        return lp.published_linear(train, halves, classes=6, protocol=protocol)

    result, losses = probe(test_labels)
    assert seen == list(range(20)) and len(losses) == 20
    assert result["accuracy"] > 0.95 and result["accuracy"] <= result["top5"]
    assert losses[-1] < 0.3 * losses[0]
    assert probe(test_labels) == (result, losses)
    wrong, same = probe((test_labels + 1) % 6)
    assert same == losses and wrong["accuracy"] < 0.1


def test_parts_of_any_size_become_the_optimizers_batches():
    images, labels = coloured(25, 4)
    tokens = encode(images)

    def steps(*borders):
        parts = [(tokens[i:j], labels[i:j]) for i, j in itertools.pairwise(borders)]
        return list(lp._steps(parts, 10))

    whole, parts = steps(0, 25), steps(0, 3, 4, 22, 25)
    assert [len(y) for _, y in parts] == [10, 10, 5]
    for (x, y), (other, other_y) in zip(whole, parts, strict=True):
        np.testing.assert_allclose(x, other, atol=1e-6)
        np.testing.assert_array_equal(y, other_y)
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), labels)


@pytest.mark.parametrize("clip", [5.0, 0.05])  # as released, and one that every gradient exceeds
def test_updates_equal_torch(clip):
    rng = np.random.default_rng(2)
    tokens = jnp.asarray(rng.normal(size=(3, 7, 2, 5)), jnp.float32)
    labels = rng.integers(0, 4, (3, 7))
    head, protocol = lp.Head(4), lp.LinearProtocol(dtype="float32", clip=clip)
    params = head.init(jax.random.key(0), tokens[0])["params"]
    norm, linear = torch.nn.LayerNorm(5), torch.nn.Linear(5, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(np.asarray(params["Dense_0"]["kernel"]).T))
        linear.bias.copy_(torch.tensor(np.asarray(params["Dense_0"]["bias"])))
    theirs = torch.optim.AdamW([*norm.parameters(), *linear.parameters()], lr=1e-3, weight_decay=1e-4)
    state = adamw(protocol).init(params)
    for x, y in zip(tokens, labels, strict=True):
        params, state, loss = lp._update(params, state, x, y, head, protocol)
        expected = torch.nn.functional.cross_entropy(
            linear(norm(torch.tensor(np.asarray(x)).mean(1))), torch.tensor(y)
        )
        theirs.zero_grad()
        expected.backward()
        torch.nn.utils.clip_grad_norm_([*norm.parameters(), *linear.parameters()], clip)
        theirs.step()
        assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(params["Dense_0"]["kernel"], linear.weight.detach().numpy().T, atol=1e-6)
    np.testing.assert_allclose(params["LayerNorm_0"]["scale"], norm.weight.detach().numpy(), atol=1e-6)


def test_mixed_computation_rounds_the_linear_map_alone():
    tokens = jnp.asarray(np.random.default_rng(3).normal(size=(6, 2, 8)), jnp.float32)
    variables = lp.Head(4, "bfloat16").init(jax.random.key(0), tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact, mixed = (lp.Head(4, dtype).apply(variables, tokens) for dtype in ("float32", "bfloat16"))
    assert mixed.dtype == jnp.float32 and 0 < np.abs(exact - mixed).max() < 0.03
    x = np.asarray(tokens.mean(1))
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    weights = variables["params"]["Dense_0"]
    rounded = [np.asarray(jnp.asarray(a, "bfloat16"), np.float32) for a in (x, weights["kernel"])]
    np.testing.assert_allclose(mixed, rounded[0] @ rounded[1] + weights["bias"], atol=0.01)


def test_progress_counts_the_images_without_a_class_too():
    images, labels = coloured(7, 5)
    labels[[1, 6]] = -1
    part, rows = Part(Pictures(images, labels), np.arange(7), 12, 12, threads=1), np.arange(7)
    data, networks = Data({"train": part}, ("train", "train"), 6, {}), Networks("", "", "", 1)
    bench = Bench(raw_pixels(), data, networks, 3, 0, {})
    progress = Progress("probe", len(part))
    found = list(lp._labelled(bench, part, centre_cuts(part), rows, progress))
    np.testing.assert_array_equal(np.concatenate([y for _, y in found]), labels[labels >= 0])
    assert progress.done == 7


def test_bad_input_is_named():
    images, labels = coloured(4, 3)
    protocol = lp.LinearProtocol(epochs=1)

    def probe(train):
        return lp.published_linear(lambda epoch: train, [], classes=6, protocol=protocol)

    with pytest.raises(UserError, match="no training batches"):
        probe([])
    with pytest.raises(UserError, match="train labels go from 0 to 6"):
        probe([(encode(images), np.array([0, 1, 2, 6]))])
    with pytest.raises(UserError, match="no test batches"):
        probe([(encode(images), labels)])
