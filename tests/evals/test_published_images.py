"""Random crops and test squares of a part: what decides them, and what stays together."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sparse_vis.config.defaults import default_config
from sparse_vis.evals.classes.linear_published import LinearProtocol
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.maps.published_images import (
    centre_cuts,
    departures,
    epoch,
    label,
    random_cuts,
    squares,
)
from sparse_vis.evals.tasks import TASKS
from sparse_vis.views.crops import UNIFORMS, box_of
from tests.evals.pictures import Pictures

pytestmark = pytest.mark.fast


def part_of(images, labels=None, indices=None):
    rows = np.arange(len(images)) if indices is None else np.asarray(indices)
    return Part(Pictures(images, labels), rows, 14, 16, threads=2)


def crops(part, *key, batch=4, rows=None):
    rows = np.arange(len(part)) if rows is None else rows
    found = squares(part, random_cuts(14, (0.2, 1.0), *key), rows, batch, label)
    return np.concatenate([images for images, _ in found])


def test_crops_follow_seed_epoch_and_image():
    images = np.random.default_rng(0).integers(0, 256, (9, 20, 30, 3), dtype=np.uint8)
    part = part_of(images)
    first = crops(part, 3, 0)
    assert first.shape == (9, 14, 14, 3) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1
    np.testing.assert_array_equal(first, crops(part, 3, 0, batch=5))
    np.testing.assert_array_equal(first[[7, 2]], crops(part, 3, 0, rows=np.array([7, 2])))
    for other in (crops(part, 3, 1), crops(part, 4, 0)):
        assert (np.abs(first - other).max((1, 2, 3)) > 0.01).all()


def test_crops_have_the_published_areas_places_and_flips():
    # The pixel says where it lies; red grows to the right, green downwards.
    y, x = np.mgrid[:100, :140]
    image = np.stack([x, y, 0 * x], -1).astype(np.uint8)
    cuts = [random_cuts(14, (0.25, 1.0), 0, 0)(100, 140, number) for number in range(150)]
    area = np.array([cut.box[2] * cut.box[3] for cut in cuts]) / image[..., 0].size
    assert 0.24 < area.min() < 0.3 and 0.8 < area.max() <= 1
    assert 0.35 < np.mean([cut.flip for cut in cuts]) < 0.65
    for cut in cuts[:20]:
        top, left, height, width = cut.box
        assert 0.74 < width / height < 1.35 and top + height <= 100 and left + width <= 140
        found = cut.image(image) * 255
        across, down = found[0, :, 0], found[:, 0, 1]
        ends = (left + width - 1, left) if cut.flip else (left, left + width - 1)
        np.testing.assert_allclose([across[0], across[-1]], ends, atol=0.01)
        np.testing.assert_allclose([down[0], down[-1]], [top, top + height - 1], atol=0.01)
        np.testing.assert_array_equal(cut.labels(np.uint8(x))[0], cut.labels(np.uint8(x))[-1])


def test_boxes_in_numpy_are_those_of_training():
    rng = np.random.default_rng(1)
    for height, width in ((50, 80), (9, 200), (3, 3)):
        for _ in range(5):
            uniform = rng.random(UNIFORMS, np.float32)
            ours = box_of(uniform, height, width, (0.36, 1.0), (3 / 4, 4 / 3))
            sides = jnp.int32(height), jnp.int32(width)
            theirs = jax.jit(box_of, static_argnums=(3, 4))(uniform, *sides, (0.36, 1.0), (3 / 4, 4 / 3))
            assert [int(a) for a in ours] == [int(a) for a in theirs]


def test_squares_keep_order_labels_and_the_centre():
    images = np.zeros((3, 16, 20, 3), np.uint8)
    images[:, 8, 10] = np.array([10, 20, 30])[:, None]
    part = part_of(images, np.array([2, 0, 1]), indices=[2, 0, 1])
    parts = list(squares(part, centre_cuts(part), np.array([1, 0, 2]), 2, label))
    assert [labels for _, labels in parts] == [[2, 1], [0]]  # records 0, 2 and 1
    found = np.concatenate([found for found, _ in parts])
    np.testing.assert_allclose(found[:, 7, 7, 0] * 255, [10, 30, 20], rtol=1e-5)  # 16x20: cut, not resized
    assert len(found[0]) == 14


def test_other_tasks_can_see_the_same_pixels():
    images = np.random.default_rng(2).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    part = dataclasses.replace(part_of(images), resize="published")
    x = torch.tensor(images).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, (16, 24), mode="bicubic", align_corners=True).clamp(0, 255)
    expected = x[..., 1:15, 5:19].permute(0, 2, 3, 1).numpy()
    found = np.concatenate([records.image for records in part.batches(2)])
    assert found.dtype == np.uint8 and np.abs(found - expected).max() < 0.501
    smooth = np.concatenate([records.image for records in part_of(images).batches(2)])
    assert np.abs(smooth - expected).max() > 10


def test_a_share_is_held_out():
    part = part_of(np.zeros((50, 4, 4, 3), np.uint8), indices=range(50))
    kept = part.without(0.1, seed=3)
    assert len(kept) == 45 and len({*kept.indices}) == 45 and (np.diff(kept.indices) > 0).all()
    np.testing.assert_array_equal(kept.indices, part.without(0.1, seed=3).indices)
    assert {*kept.indices} != {*part.without(0.1, seed=4).indices}
    assert len(part.without(0.0, seed=3)) == 50 and len(part.only(slice(5)).without(0.1, seed=3)) == 5
    orders = [epoch(kept, (0.2, 1.0), 0, number)[1] for number in (0, 1)]
    assert sorted(orders[0]) == list(range(45)) and list(orders[0]) != list(orders[1])


def test_departures_are_named():
    assert departures(LinearProtocol()) == {}
    assert departures(LinearProtocol(dtype="float32", epochs=3)) == {
        "dtype": {"released": "bfloat16", "here": "float32"}, "epochs": {"released": 30, "here": 3},
    }  # fmt: skip


def test_what_runs_by_default_is_released_but_for_what_the_record_names():
    """Every constant of docs/method.md section 8; what differs is under departures."""
    config = default_config()
    common = dict(weight_decay=1e-4, clip=5.0, schedule="constant", betas=(0.9, 0.999), eps=1e-8)
    own = {
        "linear_published": dict(
            learning_rate=1e-3, batch_size=2048, epochs=30, validation=0.1, size=224, scale=(0.2, 1.0)
        ),
        "reconstruction_probe": dict(
            learning_rate=1e-4, batch_size=128, epochs=20, validation=0.1, scale=(0.36, 1.0), width=512,
            layers=6, heads=8, mlp_dim=2048,
        ),
    }  # fmt: skip
    departures = {"dtype": {"released": "bfloat16", "here": "float32"}}
    vq = {"target": {"released": "vq", "here": "pixel"}}
    for name, constants in own.items():
        found = TASKS[name].protocol(config)
        assert {key: found[key] for key in common | constants} == common | constants
        assert found["departures"] == departures | (vq if name == "reconstruction_probe" else {})
        assert "no antialiasing" in found["images"]["resize"] and found["images"]["flip"] == 0.5
    found = TASKS["segmentation"].protocol(config)
    head = dict(weight_decay=1e-4, clip=5.0, learning_rate=1e-4, batch=2048, epochs=80, scale=(0.25, 1.0))
    head |= dict(batch_norm=True, dice=1.0, at="logits")
    assert {key: found["heads"]["published"][key] for key in head} == head
    assert found["departures"] == departures and found["ignore"] == 255 and found["dice_smooth"] == 1
    config.eval.dtype = "bfloat16"
    assert TASKS["segmentation"].protocol(config)["departures"] == {}


@pytest.mark.parametrize("name", ["reproduce_b16", "reproduce_h14"])
def test_reproduction_departs_in_nothing(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.tokenizer.path = str(tmp_path / "tokenizer")
    (tmp_path / "tokenizer").touch()
    assert config.eval.resize == "published" and config.eval.train_records == config.eval.test_records == 0
    for task in ("linear_published", "reconstruction_probe"):
        assert TASKS[task].protocol(config)["departures"] == {}
