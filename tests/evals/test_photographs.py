"""The task `photographs`: numbers of encoders whose error is known, and the picture."""

import numpy as np
import pytest
from PIL import Image

from sparse_vis.config.defaults import default_config
from sparse_vis.data import examples
from sparse_vis.evals.dataset import Data
from sparse_vis.evals.features import Encoder
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.evals.pixels.photographs import PHOTOGRAPHS
from sparse_vis.evals.task import Bench

pytestmark = pytest.mark.fast
PATCH = 7
NOTHING = Data({}, ("train", "test"), 0, {})  # the task reads no data set


def bench(error):
    """An encoder that sees one patch in two tokens, and is wrong by `error` in every pixel."""

    def features(images, wanted):
        x = images.astype(np.float32) / 255
        n = (images.shape[1] // PATCH) ** 2
        L = np.stack([np.arange(n) % 2, 1 - np.arange(n) % 2], axis=-1).astype(np.float32)
        return {
            "reconstruction": np.where(x < 0.5, x + error, x - error),
            "spatial": np.repeat(L[None], len(x), axis=0),
        }

    encoder = Encoder("test", ("reconstruction", "spatial"), features)
    return Bench(encoder, NOTHING, Networks("", "", "", 1), 250, 0, {})


@pytest.fixture
def config():
    found = default_config()
    found.model.patch = PATCH
    return found


def test_photographs_are_square_and_as_their_files():
    found = examples.photographs(64)
    assert list(found) == ["astronaut", "chelsea", "coffee", "rocket"]
    file = Image.open(examples.FOLDER / "coffee.jpg")
    left = (file.width - file.height) // 2
    centre = file.crop((left, 0, left + file.height, file.height)).resize((64, 64), Image.Resampling.BOX)
    assert found["coffee"].shape == (64, 64, 3) and found["coffee"].dtype == np.uint8
    assert np.abs(found["coffee"].astype(int) - np.asarray(centre)).mean() < 4


def test_psnr_of_a_known_error(config):
    metrics = PHOTOGRAPHS.measure(bench(0.1), config).metrics[""]
    assert metrics["psnr"] == pytest.approx(20.0, abs=1e-3)  # -10 log10 of 0.1 squared
    assert metrics["ssim"] < 1
    assert PHOTOGRAPHS.measure(bench(0.0), config).metrics[""]["ssim"] == pytest.approx(1.0)


def test_the_protocol_names_the_size_in_whole_patches(config):
    assert PHOTOGRAPHS.protocol(config)["size"] == 238
    for patch, size in ((4, 192), (300, 300)):  # at most 48 patches along a side, at least one
        config.model.patch = patch
        assert PHOTOGRAPHS.protocol(config)["size"] == size


def test_the_picture_shows_a_row_per_photograph(tmp_path, config):
    file, draw = PHOTOGRAPHS.picture
    draw(bench(0.1), config, tmp_path / file)
    with Image.open(tmp_path / file) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    dark = (pixels.min(axis=-1) < 250).mean(axis=1)  # white lines between the rows
    inside = dark > 0.5
    assert np.count_nonzero(inside[1:] & ~inside[:-1]) == 4
