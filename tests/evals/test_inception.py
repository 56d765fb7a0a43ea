"""The Inception network of FID against the same network in torch's functions, float64, random weights."""

from __future__ import annotations

import functools
import gc

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn import functional

from sparse_vis.evals.columns import compared, quality
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.pixels.inception import tf1_bilinear_matrix
from sparse_vis.evals.pixels.networks import Networks, load_inception
from sparse_vis.runtime.errors import UserError
from tests.evals.pictures import Pictures


class TorchInception:
    """The network as torch computes it; a weight is drawn when first used and kept under the file's name."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.state = {"fc.weight": self.draw(1008, 2048), "fc.bias": self.draw(1008)}

    def draw(self, *shape):
        return self.rng.normal(size=shape).astype(np.float32)

    def conv(self, x, name, out, kernel, stride=1, padding=0):
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        if f"{name}.conv.weight" not in self.state:
            fan_in = x.shape[1] * kernel[0] * kernel[1]
            self.state |= {
                f"{name}.conv.weight": self.draw(out, x.shape[1], *kernel) * np.float32((2 / fan_in) ** 0.5),
                f"{name}.bn.weight": 1 + 0.2 * self.draw(out),
                f"{name}.bn.bias": 0.1 * self.draw(out),
                f"{name}.bn.running_mean": 0.1 * self.draw(out),
                f"{name}.bn.running_var": np.exp(0.3 * self.draw(out)),
                f"{name}.bn.num_batches_tracked": np.int64(7),
            }
        get = {k: torch.as_tensor(v).double() for k, v in self.state.items() if k.startswith(f"{name}.")}
        x = functional.conv2d(x, get[f"{name}.conv.weight"], None, stride, padding)
        statistics = (get[f"{name}.bn.running_mean"], get[f"{name}.bn.running_var"])
        gain = (get[f"{name}.bn.weight"], get[f"{name}.bn.bias"])
        return functional.batch_norm(x, *statistics, *gain, training=False, eps=1e-3).relu()

    def average(self, x, name, out):
        x = functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return self.conv(x, f"{name}.branch_pool", out, 1)

    def a(self, x, name, pool):
        five = self.conv(x, f"{name}.branch5x5_1", 48, 1)
        five = self.conv(five, f"{name}.branch5x5_2", 64, 5, padding=2)
        three = self.conv(x, f"{name}.branch3x3dbl_1", 64, 1)
        three = self.conv(three, f"{name}.branch3x3dbl_2", 96, 3, padding=1)
        three = self.conv(three, f"{name}.branch3x3dbl_3", 96, 3, padding=1)
        one = self.conv(x, f"{name}.branch1x1", 64, 1)
        return torch.cat([one, five, three, self.average(x, name, pool)], 1)

    def b(self, x, name):
        three = self.conv(x, f"{name}.branch3x3", 384, 3, stride=2)
        double = self.conv(x, f"{name}.branch3x3dbl_1", 64, 1)
        double = self.conv(double, f"{name}.branch3x3dbl_2", 96, 3, padding=1)
        double = self.conv(double, f"{name}.branch3x3dbl_3", 96, 3, stride=2)
        return torch.cat([three, double, functional.max_pool2d(x, 3, 2)], 1)

    def c(self, x, name, width):
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        one = self.conv(x, f"{name}.branch1x1", 192, 1)
        seven = self.conv(x, f"{name}.branch7x7_1", width, 1)
        seven = self.conv(seven, f"{name}.branch7x7_2", width, **row)
        seven = self.conv(seven, f"{name}.branch7x7_3", 192, **column)
        double = self.conv(x, f"{name}.branch7x7dbl_1", width, 1)
        for i, (out, kind) in enumerate([(width, column), (width, row), (width, column), (192, row)], 2):
            double = self.conv(double, f"{name}.branch7x7dbl_{i}", out, **kind)
        return torch.cat([one, seven, double, self.average(x, name, 192)], 1)

    def d(self, x, name):
        three = self.conv(x, f"{name}.branch3x3_1", 192, 1)
        three = self.conv(three, f"{name}.branch3x3_2", 320, 3, stride=2)
        seven = self.conv(x, f"{name}.branch7x7x3_1", 192, 1)
        seven = self.conv(seven, f"{name}.branch7x7x3_2", 192, (1, 7), padding=(0, 3))
        seven = self.conv(seven, f"{name}.branch7x7x3_3", 192, (7, 1), padding=(3, 0))
        seven = self.conv(seven, f"{name}.branch7x7x3_4", 192, 3, stride=2)
        return torch.cat([three, seven, functional.max_pool2d(x, 3, 2)], 1)

    def e(self, x, name, maximum):
        def both(x, prefix):
            left = self.conv(x, f"{prefix}a", 384, (1, 3), padding=(0, 1))
            return [left, self.conv(x, f"{prefix}b", 384, (3, 1), padding=(1, 0))]

        one = self.conv(x, f"{name}.branch1x1", 320, 1)
        three = both(self.conv(x, f"{name}.branch3x3_1", 384, 1), f"{name}.branch3x3_2")
        double = self.conv(x, f"{name}.branch3x3dbl_1", 448, 1)
        double = both(
            self.conv(double, f"{name}.branch3x3dbl_2", 384, 3, padding=1), f"{name}.branch3x3dbl_3"
        )
        if maximum:
            pool = self.conv(functional.max_pool2d(x, 3, 1, 1), f"{name}.branch_pool", 192, 1)
        else:
            pool = self.average(x, name, 192)
        return torch.cat([one, *three, *double, pool], 1)

    def __call__(self, images):
        """Images (B, H, W, 3) uint8 -> (B, 2048) float64."""
        x = torch.from_numpy(sampled(images.astype(np.float64), 299)).permute(0, 3, 1, 2)
        x = self.conv((x - 128) / 128, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = self.conv(x, "Conv2d_2a_3x3", 32, 3)
        x = functional.max_pool2d(self.conv(x, "Conv2d_2b_3x3", 64, 3, padding=1), 3, 2)
        x = self.conv(x, "Conv2d_3b_1x1", 80, 1)
        x = functional.max_pool2d(self.conv(x, "Conv2d_4a_3x3", 192, 3), 3, 2)
        x = self.a(self.a(self.a(x, "Mixed_5b", 32), "Mixed_5c", 64), "Mixed_5d", 64)
        x = self.c(self.b(x, "Mixed_6a"), "Mixed_6b", 128)
        x = self.c(self.c(self.c(x, "Mixed_6c", 160), "Mixed_6d", 160), "Mixed_6e", 192)
        x = self.e(self.e(self.d(x, "Mixed_7a"), "Mixed_7b", False), "Mixed_7c", True)
        return x.mean((2, 3)).numpy()


def sampled(images, side):
    """Bilinear values at i * size / side, held at the last pixel: one axis after the other, by indexing."""
    for axis in (1, 2):
        size = images.shape[axis]
        position = np.arange(side) * np.float64(np.float32(size / side))
        low = np.floor(position).astype(int)
        weight = (position - low).reshape([-1 if a == axis else 1 for a in range(4)])
        high = np.minimum(low + 1, size - 1)
        images = (1 - weight) * images.take(low, axis) + weight * images.take(high, axis)
    return images


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    images = np.random.default_rng(1).integers(0, 256, (2, 80, 96, 3), dtype=np.uint8)
    images[1] //= np.arange(1, 97, dtype=np.uint8)[:, None]  # darker from left to right
    reference = TorchInception(0)
    with torch.no_grad():
        features = reference(images)
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({name: torch.as_tensor(value) for name, value in reference.state.items()}, path)
    return images, features, path, reference.state


def test_features_match_torch(case):
    images, features, path, _ = case
    module, params = load_inception(path)
    ours = jax.jit(lambda p, x: module.apply({"params": p}, x))(params, images)
    assert ours.shape == (2, 2048) and ours.dtype == np.float32
    assert np.abs(features[0] - features[1]).max() > 0.1 * features.max()  # they depend on the image
    np.testing.assert_allclose(ours, features, rtol=1e-4, atol=1e-5 * features.mean())


@pytest.mark.fast
@pytest.mark.parametrize("size", [7, 256, 299, 500])
def test_resize_of_tensorflow_1(size):
    image = np.random.default_rng(size).random((1, size, 1, 1))
    expected = sampled(image.repeat(299, axis=2), 299)[0, :, 0, 0]
    np.testing.assert_allclose(tf1_bilinear_matrix(size, 299) @ image[0, :, 0, 0], expected, atol=1e-4)


def test_wrong_files_are_refused(case, tmp_path):
    state = {name: np.asarray(value) for name, value in case[3].items()}
    with pytest.raises(
        UserError, match=r"absent\.pth is not a file.*pt_inception-2015-12-05-6726825d\.pth from"
    ):
        load_inception(tmp_path / "absent.pth")
    # torchvision's own Inception: the same names, 1000 classes and an auxiliary head.
    other = state | {"fc.weight": np.zeros((1000, 2048), np.float32), "AuxLogits.fc.bias": state["fc.bias"]}
    save_file(other, tmp_path / "v3.safetensors")
    pattern = (
        r"v3\.safetensors does not hold.*1 misshapen \(fc\.weight is \(1000, 2048\).*unexpected \(AuxLogits"
    )
    with pytest.raises(UserError, match=pattern):
        load_inception(tmp_path / "v3.safetensors")
    state.pop("Mixed_6c.branch7x7_2.bn.running_var")
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(Mixed_6c\.branch7x7_2\.bn\.running_var\)"):
        load_inception(tmp_path / "short.safetensors")


def test_rfid_of_reconstructions_that_are_right_and_wrong(case):
    """Through `compared` and `quality`, as both reconstruction tasks measure."""
    gc.collect()
    before = sum(x.nbytes for x in jax.live_arrays())
    networks = Networks(str(case[2]), "", "", batch_size=3)
    # Read and checked; on the device only once it is used.
    assert sum(x.nbytes for x in jax.live_arrays()) - before < 1000
    assert set(networks.absent) == {"lpips"} and networks.about["inception"]["file"] == "inception.pth"
    images = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    images[2:] //= 3
    part = Part(Pictures(images), np.arange(4), 32, 32, threads=1)
    unit = images.astype(np.float32) / 255
    true = functools.partial(networks.true_moments, part)
    right, absent = quality(compared(unit, images, networks), networks, true)
    assert right["psnr"] == 100 and right["ssim"] == pytest.approx(1) and right["rfid"] < 1e-3
    assert set(absent) == {"lpips"} and "config.eval.lpips.alexnet is not set" in absent["lpips"]
    wrong, _ = quality(compared(1 - unit, images, networks), networks, true)
    assert wrong["rfid"] > 100 * max(right["rfid"], 1e-3) and wrong["psnr"] < 15
    # A reconstruction of another size is brought to the images' own for PSNR and SSIM.
    larger = np.kron(unit, np.ones((1, 2, 2, 1), np.float32))
    assert compared(larger, images, Networks("", "", "", 3))["psnr"].min() > 20
