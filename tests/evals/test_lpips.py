"""LPIPS against the same network in torch's own functions, float64, on random weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn import functional

from sparse_vis.evals.columns import compared
from sparse_vis.evals.pixels.networks import Networks, load_lpips
from sparse_vis.runtime.errors import UserError

SHAPES = {
    0: (64, 3, 11, 11),
    3: (192, 64, 5, 5),
    6: (384, 192, 3, 3),
    8: (256, 384, 3, 3),
    10: (256, 256, 3, 3),
}


def random_files(seed):
    """Tensors of the two files, under their names."""
    rng = np.random.default_rng(seed)
    alexnet, heads = {"classifier.6.bias": np.zeros(1000, np.float32)}, {}
    for i, (index, shape) in enumerate(SHAPES.items()):
        scale = (2 / np.prod(shape[1:])) ** 0.5
        alexnet[f"features.{index}.weight"] = (scale * rng.normal(size=shape)).astype(np.float32)
        alexnet[f"features.{index}.bias"] = (0.1 * rng.normal(size=shape[0])).astype(np.float32)
        heads[f"lin{i}.model.1.weight"] = rng.random((1, shape[0], 1, 1), np.float32)
    return alexnet, heads


def lpips_in_torch(alexnet, heads, x, y):
    """The definition, step by step: x, y (B, H, W, 3) in [0, 1] -> (B,) float64."""

    def activations(image):
        shift, scale = torch.tensor([-0.03, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.45])
        h = ((torch.from_numpy(image).double() * 2 - 1 - shift) / scale).permute(0, 3, 1, 2)
        for index, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if index in (3, 6):
                h = functional.max_pool2d(h, 3, 2)
            weight, bias = (torch.from_numpy(alexnet[f"features.{index}.{k}"]) for k in ("weight", "bias"))
            h = functional.conv2d(h, weight.double(), bias.double(), stride, padding).relu()
            yield h

    total = 0
    for i, (a, b) in enumerate(zip(activations(x), activations(y), strict=True)):
        difference = a / (a.norm(dim=1, keepdim=True) + 1e-10) - b / (b.norm(dim=1, keepdim=True) + 1e-10)
        head = torch.from_numpy(heads[f"lin{i}.model.1.weight"]).double()
        total += functional.conv2d(difference**2, head).mean((1, 2, 3))
    return total.numpy()


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder, (alexnet, heads) = tmp_path_factory.mktemp("lpips"), random_files(0)
    torch.save({k: torch.from_numpy(v) for k, v in alexnet.items()}, folder / "alexnet.pth")
    # The published heads are in torch's old format, without a zip archive.
    tensors = {k: torch.from_numpy(v) for k, v in heads.items()}
    torch.save(tensors, folder / "alex.pth", _use_new_zipfile_serialization=False)
    module, params = load_lpips(folder / "alexnet.pth", folder / "alex.pth")
    return alexnet, heads, jax.jit(lambda x, y: module.apply({"params": params}, x, y)), folder


def pair(seed, shape):
    rng = np.random.default_rng(seed)
    x = rng.random(shape, np.float32)
    return x, np.clip(x + 0.2 * rng.normal(size=shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize("size", [(64, 75), (31, 40)])
def test_matches_torch(case, size):
    alexnet, heads, lpips, _ = case
    x, y = pair(0, (2, *size, 3))
    y[1, : size[0] // 2] = 0.0  # flat and far
    np.testing.assert_allclose(lpips(x, y), lpips_in_torch(alexnet, heads, x, y), rtol=1e-4)
    np.testing.assert_allclose(lpips(x, y), lpips(y, x), rtol=1e-6)
    assert (np.asarray(lpips(x, x)) == 0).all()


def test_columns_have_the_distance_of_each_pair_at_256_pixels(case):
    alexnet, heads, _, folder = case
    networks = Networks("", str(folder / "alexnet.pth"), str(folder / "alex.pth"), batch_size=2)
    assert set(networks.absent) == {"rfid"} and set(networks.about) == {"lpips.alexnet", "lpips.heads"}
    images = np.random.default_rng(3).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    other = np.random.default_rng(4).random(images.shape, np.float32)
    other[0] = images[0] / np.float32(255)
    found = compared(other, images, networks)
    assert found["lpips"][0] == 0 and set(found) == {"psnr", "ssim", "lpips"}
    expected = lpips_in_torch(alexnet, heads, np.round(255 * other) / 255, images / np.float32(255))
    np.testing.assert_allclose(found["lpips"], expected, rtol=1e-4, atol=1e-7)


def test_a_network_whose_file_is_not_there_is_absent_and_says_why(case, tmp_path):
    folder = case[-1]
    networks = Networks(str(tmp_path / "no.pth"), str(folder / "alexnet.pth"), "", batch_size=2)
    assert networks.absent["rfid"].startswith(
        f"config.eval.inception={tmp_path}/no.pth does not exist; give the"
    )
    assert networks.absent["lpips"].startswith("config.eval.lpips.heads is not set; give the heads of LPIPS")
    images = np.zeros((1, 256, 256, 3), np.uint8)
    assert networks.inception(images) is None and networks.lpips(images, images) is None
    with pytest.raises(UserError, match="does not hold"):
        Networks(str(folder / "alexnet.pth"), "", "", batch_size=2)


@pytest.mark.fast
def test_small_images_and_wrong_files_are_refused(case, tmp_path):
    _, heads, lpips, folder = case
    with pytest.raises(UserError, match="at least 31 pixels per side, but these have 30x64"):
        lpips(*pair(0, (1, 30, 64, 3)))
    with pytest.raises(UserError, match=r"absent\.pth is not a file.*alexnet-owt-7be5be79\.pth"):
        load_lpips(tmp_path / "absent.pth", folder / "alex.pth")
    with pytest.raises(UserError, match=r"alexnet\.pth does not hold.*lpips/weights/v0\.1"):
        load_lpips(folder / "alexnet.pth", folder / "alexnet.pth")
    # The heads for VGG have the same names and other widths.
    save_file(
        heads | {"lin1.model.1.weight": np.zeros((1, 128, 1, 1), np.float32)}, tmp_path / "vgg.safetensors"
    )
    with pytest.raises(
        UserError, match=r"lin1\.model\.1\.weight is \(1, 128, 1, 1\) instead of \(1, 192, 1, 1\)"
    ):
        load_lpips(folder / "alexnet.pth", tmp_path / "vgg.safetensors")
