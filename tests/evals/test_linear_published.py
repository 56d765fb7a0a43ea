"""The published probe: its update against torch's AdamW, its crops, and a problem it must solve."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sparse_vis.errors import UserError
from sparse_vis.evals import linear_published as lp
from sparse_vis.types import Batch


def batch_of(images, start=0):
    count, height, width = images.shape[:3]
    sides = np.full(count, height, np.int32), np.full(count, width, np.int32)
    return Batch(images, *sides, np.arange(start, start + count, dtype=np.uint32))


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
    halves = images.reshape(len(images), 2, -1, 3)
    return jnp.concatenate([halves.mean(axis=2), (halves**2).mean(axis=2)], axis=-1)


def test_probe_learns_and_is_reproducible():
    images, labels = coloured(96, 0)
    test, test_labels = coloured(90, 1)
    seen = []

    def train(epoch):
        seen.append(epoch)
        return [(batch_of(images[i : i + 48], i), labels[i : i + 48]) for i in (0, 48)]

    def probe(test_images, test_labels):
        halves = [(test_images[:50], test_labels[:50]), (test_images[50:], test_labels[50:])]
        protocol = lp.Protocol(learning_rate=0.03, batch_size=48, epochs=20, size=8)
        return lp.published_linear(encode, train, halves, classes=6, protocol=protocol)

    result = probe(test, test_labels)
    assert seen == list(range(20)) and len(result.losses) == 20
    assert result.accuracy > 0.95 and result.accuracy <= result.top5
    assert result.losses[-1] < 0.3 * result.losses[0]
    assert probe((test / 255).astype(np.float32), test_labels) == result  # floats in [0, 1] are the same
    wrong = probe(test, (test_labels + 1) % 6)
    assert wrong.losses == result.losses and wrong.accuracy < 0.1


def test_parts_of_any_size_become_the_optimizers_batches():
    images, labels = coloured(25, 4)
    protocol, key = lp.Protocol(batch_size=10, size=8), jax.random.key(3)

    def steps(*borders):
        parts = [(batch_of(images[i:j], i), labels[i:j]) for i, j in itertools.pairwise(borders)]
        return list(lp._steps(encode, key, parts, protocol))

    whole, parts = steps(0, 25), steps(0, 3, 4, 22, 25)
    assert [len(y) for _, y in parts] == [10, 10, 5]
    for (x, y), (other, other_y) in zip(whole, parts, strict=True):
        np.testing.assert_allclose(x, other, atol=1e-6)
        np.testing.assert_array_equal(y, other_y)
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), labels)


def test_updates_equal_torch():
    rng = np.random.default_rng(2)
    tokens = jnp.asarray(rng.normal(size=(3, 7, 2, 5)), jnp.float32)
    labels = rng.integers(0, 4, (3, 7))
    head, protocol = lp.Head(4), lp.Protocol()
    params = head.init(jax.random.key(0), tokens[0])["params"]
    norm, linear = torch.nn.LayerNorm(5), torch.nn.Linear(5, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(np.asarray(params["Dense_0"]["kernel"]).T))
        linear.bias.copy_(torch.tensor(np.asarray(params["Dense_0"]["bias"])))
    theirs = torch.optim.AdamW([*norm.parameters(), *linear.parameters()], lr=1e-3, weight_decay=1e-4)
    state = lp._optimizer(protocol).init(params)
    for x, y in zip(tokens, labels, strict=True):
        params, state, loss = lp._update(params, state, x, y, head, protocol)
        expected = torch.nn.functional.cross_entropy(
            linear(norm(torch.tensor(np.asarray(x)).mean(1))), torch.tensor(y)
        )
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(params["Dense_0"]["kernel"], linear.weight.detach().numpy().T, atol=1e-6)
    np.testing.assert_allclose(params["LayerNorm_0"]["scale"], norm.weight.detach().numpy(), atol=1e-6)


def test_crops_change_with_the_epoch_and_follow_the_image():
    images = np.tile(np.arange(0, 240, 20, dtype=np.uint8)[None, None, :, None], (40, 12, 1, 3))
    keys = [jax.random.fold_in(jax.random.key(0), epoch) for epoch in (0, 1)]
    crops = [np.asarray(lp.random_crops(key, batch_of(images), 8, (0.2, 1.0))) for key in keys]
    assert crops[0].shape == (40, 8, 8, 3) and crops[0].min() >= 0 and crops[0].max() <= 1
    assert (np.abs(crops[0] - crops[1]).max(axis=(1, 2, 3)) > 0.01).mean() > 0.9
    part = np.asarray(lp.random_crops(keys[0], batch_of(images[:10], 30), 8, (0.2, 1.0)))
    np.testing.assert_allclose(part, crops[0][30:], atol=1e-6)  # by index, not by place in the batch
    flipped = (crops[0][:, 0, 0, 0] > crops[0][:, 0, -1, 0]).mean()
    assert 0.25 < flipped < 0.75


def test_bad_input_is_named():
    images, labels = coloured(4, 3)
    protocol = lp.Protocol(epochs=1, size=8)

    def probe(train):
        return lp.published_linear(encode, lambda epoch: train, [], classes=6, protocol=protocol)

    with pytest.raises(UserError, match="no training batches"):
        probe([])
    with pytest.raises(UserError, match="train labels go from 0 to 6"):
        probe([(batch_of(images), np.array([0, 1, 2, 6]))])
    with pytest.raises(UserError, match="no test batches"):
        probe([(batch_of(images), labels)])
