"""Segmentation against scikit-learn, torch, hand-made cases, and a problem that factors must solve."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from sparse_vis.config.defaults import default_config
from sparse_vis.data import decode
from sparse_vis.data.sources import FolderSource
from sparse_vis.evals.dataset import Data, Part
from sparse_vis.evals.features import Encoder
from sparse_vis.evals.maps import segmentation as seg
from sparse_vis.evals.maps.label_maps import IGNORE
from sparse_vis.evals.maps.published_images import adamw
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.evals.task import Bench
from sparse_vis.runtime.errors import UserError


@pytest.mark.fast
def test_confusion_and_miou_equal_sklearn():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, (3, 8, 9)).astype(np.uint8)
    predicted = np.where(rng.random(true.shape) < 0.6, true, rng.integers(0, 5, true.shape))
    true[rng.random(true.shape) < 0.2] = IGNORE
    kept = true != IGNORE
    matrix = seg.confusion(predicted, true, 5)
    np.testing.assert_array_equal(matrix, confusion_matrix(true[kept], predicted[kept], labels=range(5)))
    mean, iou = seg.mean_iou(matrix)
    np.testing.assert_allclose(iou, jaccard_score(true[kept], predicted[kept], average=None), rtol=1e-12)
    assert mean == pytest.approx(jaccard_score(true[kept], predicted[kept], average="macro"), rel=1e-12)


@pytest.mark.fast
def test_miou_by_hand():
    true, predicted = np.array([0, 0, 1, 255, 0]), np.array([0, 2, 1, 3, 0])
    mean, iou = seg.mean_iou(seg.confusion(predicted, true, 5))
    # Class 2 was only predicted: IoU 0, it counts. Classes 3 (on an ignored pixel) and 4 do not occur.
    np.testing.assert_allclose(iou, [2 / 3, 1, 0, np.nan, np.nan])
    assert mean == pytest.approx(5 / 9)
    assert np.isnan(seg.mean_iou(np.zeros((3, 3), np.int64))[0])


@pytest.mark.fast
def test_batch_scores_by_hand():
    true = np.array([[[0, 0, 1, 255]], [[255, 255, 255, 255]], [[2, 2, 1, 1]], [[1, 1, 255, 1]]])
    predicted = np.array([[[0, 1, 1, 3]], [[0, 0, 0, 0]], [[2, 2, 1, 1]], [[1, 1, 0, 1]]])
    # One image a batch: IoU ½ and ½ (accuracy ⅔), none, 1 and 1, 1. Classes that do not occur do not count.
    assert seg.batch_scores(predicted, true, 4, 1) == pytest.approx(
        {"macro_jaccard": 2.5 / 3, "accuracy": (2 / 3 + 2) / 3}
    )
    # Three together: class 0 ½, class 1 ¾, class 2 1; then the last alone. Both batches count alike.
    assert seg.batch_scores(predicted, true, 4, 3) == pytest.approx(
        {"macro_jaccard": (0.75 + 1) / 2, "accuracy": (6 / 7 + 1) / 2}
    )
    assert np.isnan(list(seg.batch_scores(predicted[1:2], true[1:2], 4, 1).values())).all()


def test_the_published_head_is_torchs():
    """BatchNorm (running statistics too), 1x1 convolution, loss at the logits, clip, AdamW: three steps."""
    rng = np.random.default_rng(4)
    grid, classes, width, smooth = (3, 2), 4, 5, 1
    # Rate, decay and clip such that three steps show them; test_published_images.py has the released ones.
    changed = dict(dtype="float32", clip=0.3, learning_rate=0.01, weight_decay=0.1)
    probe = seg.Probe(grid, classes, dataclasses.replace(seg.PUBLISHED, **changed))
    norm, linear = torch.nn.BatchNorm2d(width), torch.nn.Conv2d(width, classes, 1)
    parameters = [*norm.parameters(), *linear.parameters()]
    theirs = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
    for step in range(3):
        x = rng.normal(1, 2, (3, 6, width)).astype(np.float32)
        labels = rng.choice([0, 1, 2, 3, 255], (3, 10, 7)).astype(np.uint8)
        if step == 0:
            labels[1] = 255
            probe.learn(seg.HeadInput(x), labels)  # makes the weights, which torch takes over
            weights = probe.variables["params"]["Dense_0"]
            with torch.no_grad():
                linear.weight.copy_(torch.tensor(np.array(weights["kernel"]).T[..., None, None]))
                linear.bias.copy_(torch.tensor(np.array(weights["bias"])))
            fresh = jax.tree.map(jnp.zeros_like, probe.variables["batch_stats"])
            fresh["BatchNorm_0"]["var"] += 1
            scale = {"BatchNorm_0": {"scale": jnp.ones(width), "bias": jnp.zeros(width)}}
            params = probe.variables["params"] | scale
            probe.variables = {"params": params, "batch_stats": fresh}
            probe._state = adamw(probe.protocol).init(params)
        loss = probe.learn(seg.HeadInput(x), labels)
        image = torch.tensor(x).permute(0, 2, 1).reshape(3, width, *grid)
        y = torch.tensor(labels[:, None].astype(np.float32))
        y = torch.nn.functional.interpolate(y, grid, mode="nearest")[:, 0].long()
        logits = linear(norm(image))
        keep = (y != 255)[:, None]
        p = torch.softmax(logits, 1) * keep
        one_hot = (y[:, None] == torch.arange(classes)[:, None, None]) * keep
        sums = [(p * one_hot).sum((0, 2, 3)), (p + one_hot).sum((0, 2, 3))]
        dice = 1 - ((2 * sums[0] + smooth) / (sums[1] + smooth)).mean()
        expected = torch.nn.functional.cross_entropy(logits, y, ignore_index=255) + dice
        theirs.zero_grad()
        expected.backward()
        assert float(torch.nn.utils.clip_grad_norm_(parameters, 0.3)) > 0.3
        theirs.step()
        assert loss == pytest.approx(expected.item(), abs=1e-5)
    statistics = probe.variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], norm.running_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], norm.running_var, rtol=1e-5)
    kernel = linear.weight.detach().numpy()[..., 0, 0].T
    np.testing.assert_allclose(probe.variables["params"]["Dense_0"]["kernel"], kernel, atol=1e-5)
    norm.eval(), linear.eval()
    found = linear(norm(image)).argmax(1)
    np.testing.assert_array_equal(probe.predict(seg.HeadInput(x), grid), found)


def test_loss_equals_torch():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 5, 6, 4)).astype(np.float32) * 3
    labels = rng.integers(0, 4, (2, 5, 6))
    labels[:, 1:3] = IGNORE
    x, y = torch.tensor(logits).permute(0, 3, 1, 2), torch.tensor(labels)
    entropy = torch.nn.functional.cross_entropy(x, y, ignore_index=255)
    assert float(seg.segmentation_loss(jnp.asarray(logits), jnp.asarray(labels), 0.0)) == pytest.approx(
        float(entropy), rel=1e-6
    )
    keep = y != 255
    p = torch.softmax(x, 1).permute(0, 2, 3, 1)[keep].double()
    one_hot = torch.nn.functional.one_hot(y[keep], 4).double()
    scores = [
        (2 * (p[:, c] * one_hot[:, c]).sum() + 1) / (p[:, c].sum() + one_hot[:, c].sum() + 1)
        for c in range(4)
    ]
    expected = float(entropy) + 0.5 * (1 - float(sum(scores)) / 4)
    got = seg.segmentation_loss(jnp.asarray(logits), jnp.asarray(labels), 0.5)
    assert float(got) == pytest.approx(expected, rel=1e-6)


@pytest.mark.fast
@pytest.mark.parametrize("size", [(12, 10), (7, 9), (3, 2)])
def test_interpolation_equals_torch(size):
    logits = np.random.default_rng(2).normal(size=(2, 6, 4)).astype(np.float32)
    image = torch.tensor(logits).reshape(2, 3, 2, 4).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(image, size, mode="bilinear", align_corners=False)
    got = seg.pixel_logits(jnp.asarray(logits), None, (3, 2), size)
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.fast
def test_the_most_likely_class_is_torchs_at_any_size_by_one_program():
    scores = np.random.default_rng(3).normal(size=(3, 2, 5)).astype(np.float32)
    image = torch.tensor(scores).permute(2, 0, 1)[None]
    seg._tile.clear_cache()
    for size in ((9, 14), (4, 300), (3, 2)):
        expected = torch.nn.functional.interpolate(image, size, mode="bilinear", align_corners=False)
        np.testing.assert_array_equal(seg.most_likely(jnp.asarray(scores), size), expected.argmax(1)[0])
    assert seg._tile._cache_size() == 1


def test_an_image_is_decoded_once_an_epoch_and_maps_of_all_sizes_share_a_program(tmp_path, monkeypatch):
    """Two epochs on three images, and a test on two; every image and label map has its own size."""
    for part, sizes in (("train", [(20, 24), (32, 20), (21, 21)]), ("test", [(20, 30), (150, 140)])):
        for i, size in enumerate(sizes):
            classes = np.zeros(size, np.uint8)
            classes[:, : size[1] // 2] = 1
            pixels = np.stack([250 * classes, 80 - 60 * classes, 0 * classes], axis=-1)
            for kind, array in (("images", pixels), ("maps", classes)):
                (tmp_path / kind / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / kind / part / f"{i}.png")
    parts = {}
    for name, count in (("train", 3), ("test", 2)):
        source = FolderSource(tmp_path / "images" / name)
        parts[name] = Part(source, np.arange(count), 16, 18, 1, tmp_path / "maps" / name, 2)

    def colours(images, wanted):
        return {"dense": images.reshape(len(images), 4, 4, 4, 4, 3).mean((2, 4)).reshape(-1, 16, 3)}

    read, decoded = decode._read_pixels, []
    monkeypatch.setattr(decode, "_read_pixels", lambda *given: decoded.append(given) or read(*given))
    seg._tile.clear_cache()
    config = default_config()
    config.eval.segmentation.update(epochs=2, batch=2)
    encoder, data = Encoder("colours", ("dense",), colours), Data(parts, ("train", "test"), 0, {})
    bench = Bench(encoder, data, Networks("", "", "", 2), batch=2, seed=0, reducers={})
    found = seg.SEGMENTATION.measure(bench, config)
    assert len(decoded) == 2 * 3 + 2
    assert seg._tile._cache_size() == 1
    assert set(found.metrics) == {"U, published", "U, linear"}


@pytest.mark.fast
def test_factors_spread_probabilities():
    # Two tokens, each sure of its class; a patch that is 70 % token 0 is class 0 with probability 0.7.
    logits = jnp.array([[[20.0, 0.0], [0.0, 20.0]]])
    L = jnp.array([[[0.7, 0.3], [0.1, 0.9]]])
    got = np.exp(seg.pixel_logits(logits, L, (1, 2), (1, 4)))
    at = np.array([0.7, 0.55, 0.25, 0.1])  # pixel centres at -1/4, 1/4, 3/4 and 5/4 patches, edges held
    np.testing.assert_allclose(got[0, 0], np.stack([at, 1 - at], -1), atol=1e-5)


def toy(count, seed):
    """Images of 4x4 patches of 3x3 pixels: each of 3 tokens has its class in S and its region in L."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, (count, 4, 4))
    kinds = np.stack([rng.permutation(3) for _ in range(count)])  # class of each token
    S = np.eye(3)[kinds] * 2 - 1 + 0.3 * rng.normal(size=(count, 3, 3))
    mine = true[:, :, :, None] == kinds[:, None, None, :]
    L = (mine * 0.85 + 0.05).reshape(count, 16, 3)
    labels = true.repeat(3, axis=1).repeat(3, axis=2).astype(np.uint8)
    # Interpolation blurs borders between patches, so only the pixel at the centre of a patch is judged.
    judged = np.full_like(labels, IGNORE)
    judged[:, 1::3, 1::3] = labels[:, 1::3, 1::3]
    return {"sparse": S.astype(np.float32), "spatial": L.astype(np.float32)}, judged


@pytest.mark.parametrize("protocol", [seg.PUBLISHED, seg.LINEAR])
def test_head_learns_classes_from_the_factors_alone(protocol):
    train, labels = toy(24, 0)
    test, test_labels = toy(24, 1)
    # Few steps here, so a larger rate than published.
    quick = dataclasses.replace(protocol, learning_rate=0.03, dtype="float32")
    if protocol.at == "logits":  # of a 3x3 patch the first pixel is the nearest
        labels = labels[:, 1::3, 1::3].repeat(3, axis=1).repeat(3, axis=2)
    tokens, held_out = seg.variants(train)["SL"], seg.variants(test)["SL"]
    probe = seg.Probe((4, 4), 3, quick)
    losses = [probe.learn(tokens, labels) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    matrices = probe.judge(held_out, test_labels)
    np.testing.assert_array_equal(matrices.sum(axis=(1, 2)), (test_labels != IGNORE).sum(axis=(1, 2)))
    assert seg.mean_iou(matrices.sum(axis=0))[0] > 0.9
    # Tokens without their places say nothing: the same head on a flat L is at chance.
    matrices = probe.judge(seg.HeadInput(held_out.x, np.full_like(held_out.L, 1 / 3)), test_labels)
    assert seg.mean_iou(matrices.sum(axis=0))[0] < 0.4


@pytest.mark.fast
def test_variants_follow_what_the_encoder_gives():
    train, _ = toy(2, 2)
    found = seg.variants(train | {"dense": np.ones((2, 16, 5))})
    assert list(found) == ["U", "Z", "SL"]
    np.testing.assert_allclose(
        found["Z"].x, np.einsum("bnr,brd->bnd", train["spatial"], train["sparse"]), rtol=1e-5
    )
    assert found["U"].L is None and found["Z"].L is None
    assert list(seg.variants({"dense": train["sparse"]})) == ["U"]


@pytest.mark.fast
def test_bad_input_is_named():
    tokens = seg.HeadInput(np.zeros((2, 6, 3), np.float32))
    with pytest.raises(UserError, match="patches do not fit 2 label maps and the grid 2x2"):
        seg.Probe((2, 2), 3).learn(tokens, np.zeros((2, 4, 4), int))
    with pytest.raises(UserError, match="labels go from 0 to 3; with 3 classes"):
        seg.Probe((2, 3), 3).learn(tokens, np.array([[[0, 3]]] * 2))
    with pytest.raises(UserError, match="no training batches"):
        seg.Probe((2, 3), 3).judge(tokens, np.zeros((2, 4, 4), int))
