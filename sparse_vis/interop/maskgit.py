"""Read MaskGIT-VQGAN weight files, in torch or original Flax layout, into our parameter tree.

    ours                                 torch                                original Flax, after params/
    encoder/conv_in/kernel               encoder.conv_in.weight               encoder/Conv_0/kernel
    encoder/down_0_block_1/conv1/kernel  encoder.down.0.block.1.conv1.weight  encoder/ResBlock_1/Conv_0/kernel
    decoder/up_4_upsample_conv/bias      decoder.up.4.upsample_conv.bias      decoder/Conv_1/bias
    codebook                             quantize.embedding.weight            quantizer/codebook

The Flax original numbers modules in the order of computation, so its decoder counts from the coarsest level,
while torch's `up.i` is resolution level i. Flax kernels are kh x kw x in x out, torch's out x in x kh x kw.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from sparse_vis.interop.tensors import check_tensors, read_tensors
from sparse_vis.models.vqgan import GROUPS, VQGAN
from sparse_vis.runtime.errors import UserError

MOST_LEVELS = 16  # of resolution; the published tokenizer has five
IN_BLOCK = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "nin_shortcut": "Conv_2",
}


def load_tokenizer(path: str | Path, dtype: DTypeLike = jnp.float32) -> tuple[VQGAN, dict]:
    """Read a MaskGIT-VQGAN; its sizes follow from the tensors' shapes.

    Args:
        path: a torch or safetensors file in the torch layout (maskgit-vqgan-imagenet-f16-256.bin), or the
            Flax msgpack of the MaskGIT release (tokenizer_imagenet256_checkpoint).
        dtype: of the module's convolutions; parameters are float32.

    Raises:
        UserError: an unreadable file, or one with missing, misshapen or unexpected tensors.
    """
    found = read_tensors(path)
    layout = _layout_of(found)
    module = VQGAN(**_sizes(found, layout, path), dtype=dtype)
    side = 2 ** (layout.levels - 1)
    pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]
    leaves = traverse_util.flatten_dict(tree, sep="/")
    shapes = {layout.name(ours): layout.shape(x.shape) for ours, x in leaves.items()}
    checked = check_tensors(found, shapes, (), path)
    params = {ours: jnp.asarray(layout.ours(checked[layout.name(ours)])) for ours in leaves}
    return module, traverse_util.unflatten_dict(params, sep="/")


@dataclass(frozen=True)
class _Layout:
    """One of the two file layouts, for a tokenizer of these sizes."""

    levels: int  # of resolution
    blocks: int  # residual blocks per level
    name: Callable[[str], str]  # our path -> name in the file
    torch: bool  # whether kernels have torch's axes

    def ours(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(2, 3, 1, 0) if self.torch and array.ndim == 4 else array

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        return (ours[3], ours[2], *ours[:2]) if self.torch and len(ours) == 4 else ours


def _layout_of(names: Iterable[str]) -> _Layout:
    if any("ResBlock_" in name for name in names):
        # The decoder has levels + 1 convolutions outside of residual blocks, and `blocks` residual blocks for
        # each level and for the middle.
        levels = _count(r"params/decoder/Conv_(\d+)/", names) - 1
        blocks = _count(r"params/decoder/ResBlock_(\d+)/", names) // (max(levels, 0) + 1)
        name = partial(_flax_name, modules=_flax_modules(levels, blocks))
        return _Layout(levels, blocks, name, torch=False)
    levels = _count(r"encoder\.down\.(\d+)\.", names)
    return _Layout(levels, _count(r"encoder\.mid\.(\d+)\.", names), _torch_name, torch=True)


def _count(pattern: str, names: Iterable[str]) -> int:
    # The number of different indices, not the largest one, as a damaged name may have any index.
    return len({match[1] for match in map(re.compile(pattern).match, names) if match})


def _sizes(found: Mapping[str, np.ndarray], layout: _Layout, path: str | Path) -> dict:
    """Sizes of the VQGAN, from the shapes of a few tensors. Raises UserError if these are impossible."""
    ranks = {"codebook": 2, "encoder/conv_in/kernel": 4}
    ranks |= {f"encoder/down_{level}_block_0/conv2/kernel": 4 for level in range(layout.levels)}
    telling = {}
    for ours, rank in ranks.items() if 0 < layout.levels <= MOST_LEVELS and layout.blocks > 0 else ():
        name = layout.name(ours)
        if name in found and found[name].ndim == rank:
            telling[ours] = layout.ours(found[name]).shape
    if telling.keys() != ranks.keys():
        lacking = ", ".join(layout.name(o) for o in ranks if o not in telling) if telling else "its blocks"
        raise UserError(
            f"{path} is not a MaskGIT-VQGAN (it lacks {lacking}); give maskgit-vqgan-imagenet-f16-256.bin "
            "or tokenizer_imagenet256_checkpoint."
        )
    num_embeddings, z_channels = telling.pop("codebook")
    hidden, *widths = (shape[-1] for shape in telling.values())
    empty = min(num_embeddings, z_channels, hidden, *widths) < 1
    if empty or hidden % GROUPS or any(w % hidden for w in widths):
        raise UserError(
            f"{path} is not a MaskGIT-VQGAN: {hidden} channels, then {widths}, {num_embeddings} codes of "
            f"{z_channels} (widths must be multiples of the first, the first of {GROUPS}); download it again."
        )
    return dict(
        hidden_channels=hidden, channel_mult=tuple(width // hidden for width in widths),
        num_res_blocks=layout.blocks, z_channels=z_channels, num_embeddings=num_embeddings,
    )  # fmt: skip


def _torch_name(ours: str) -> str:
    if ours == "codebook":
        return "quantize.embedding.weight"
    *modules, leaf = ours.split("/")
    dotted = [re.sub(r"_(\d+)_?", r".\1.", module).rstrip(".") for module in modules]
    return ".".join([*dotted, "bias" if leaf == "bias" else "weight"])


def _flax_name(ours: str, modules: Mapping[str, str]) -> str:
    if ours == "codebook":
        return "params/quantizer/codebook"
    coder, module, *inner, leaf = ours.split("/")
    return "/".join(["params", modules[f"{coder}/{module}"], *(IN_BLOCK[name] for name in inner), leaf])


def _flax_modules(levels: int, blocks: int) -> dict[str, str]:
    """Our module -> the original Flax one."""
    middle = [f"mid_{block}" for block in range(blocks)]
    down = [f"down_{level}_block_{block}" for level in range(levels) for block in range(blocks)]
    up = [f"up_{level}_block_{block}" for level in reversed(range(levels)) for block in range(blocks)]
    upsampling = [f"up_{level}_upsample_conv" for level in range(levels - 1, 0, -1)]
    orders = {
        ("encoder", "ResBlock"): [*down, *middle],
        ("encoder", "Conv"): ["conv_in", "conv_out"],
        ("encoder", "GroupNorm"): ["norm_out"],
        ("decoder", "ResBlock"): [*middle, *up],
        ("decoder", "Conv"): ["conv_in", *upsampling, "conv_out"],
        ("decoder", "GroupNorm"): ["norm_out"],
    }
    return {
        f"{coder}/{module}": f"{coder}/{kind}_{i}"
        for (coder, kind), order in orders.items()
        for i, module in enumerate(order)
    }
