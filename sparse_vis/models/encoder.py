"""ViT encoder: pixels and learned queries to class token, semantic tokens S and dense features U."""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sparse_vis.models.linear import INIT_STD, vit_init
from sparse_vis.models.vit import Trunk
from sparse_vis.ops.resize import resize_bicubic
from sparse_vis.types import Tokens

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def patchify(images: Float[Array, "B H W C"], patch: int) -> Float[Array, "B n p2C"]:
    """Flatten every patch to a vector in the order (row, column, channel); patches are row-major.

    Pixels at the bottom and right that do not fill a patch are dropped.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    images = images[:, : rows * patch, : columns * patch]
    images = images.reshape(batch, rows, patch, columns, patch, channels)
    return images.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def resize_position_table(table: Float[Array, "m d"], grid: tuple[int, int]) -> Float[Array, "n d"]:
    """Resize the patch positions of a position table to another grid, bicubic as in PyTorch.

    Args:
        table: (g*g, d), made for a square grid of side g. grid: (rows, columns) of the result.

    Returns:
        (rows*columns, d); `table` itself if the grid is the same.
    """
    side = math.isqrt(table.shape[0])
    if grid == (side, side):
        return table
    resized = resize_bicubic(table.reshape(side, side, -1), grid, align_corners=False)
    return resized.reshape(grid[0] * grid[1], -1)


class Encoder(nn.Module):
    """ViT over [CLS, visible patches, r queries] (docs/method.md section 2).

    Attributes:
        image_size: side in pixels of the square image for which the position table is made.
        patch: patch side in pixels. width, layers, heads, mlp_dim: sizes of the ViT.
        queries: r, number of semantic tokens.
        dtype, attention, remat, unroll, init_std: as in Trunk.
    """

    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    queries: int
    dtype: str = "float32"
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1
    init_std: float = INIT_STD

    def setup(self):
        self.trunk = Trunk(
            self.layers, self.width, self.heads, self.mlp_dim, self.dtype, self.attention, self.remat,
            self.unroll, self.init_std,
        )  # fmt: skip

    @nn.compact
    def __call__(
        self,
        pixels: Float[Array, "B H W 3"],
        visible: Int[Array, "B keep"] | None = None,
        only: Literal["cls", "S"] | None = None,
    ) -> Tokens:
        """Encode images of any size of at least one patch.

        Args:
            pixels: (B, H, W, 3) RGB in [0, 1]; ImageNet normalisation happens here.
            visible: (B, keep) patch indices to compute; all patches if None.
            only: "cls" returns cls alone, "S" returns cls and S; None returns all. The last layer may then
                compute less.

        Returns:
            Tokens: cls (B, 1, d), S (B, r, d) and U (B, n or keep, d); fields left out by `only` are None.
        """
        batch, height, width, _ = pixels.shape
        mean, std = jnp.array(IMAGENET_MEAN, jnp.float32), jnp.array(IMAGENET_STD, jnp.float32)
        patches = patchify((pixels - mean) / std, self.patch)
        side = self.image_size // self.patch
        init = vit_init(self.init_std)
        cls = self.param("cls_token", init, (self.width,))
        cls_position = self.param("cls_position", init, (self.width,))
        table = self.param("position_table", init, (side * side, self.width))
        drawn = nn.initializers.normal(self.width**-0.5, jnp.float32)
        queries = self.param("queries", drawn, (self.queries, self.width))
        positions = resize_position_table(table, (height // self.patch, width // self.patch))[None]
        if visible is not None:
            patches = jnp.take_along_axis(patches, visible[:, :, None], axis=1)
            positions = positions[0][visible]
        embed = nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="patch_embedding")
        tokens = embed(patches) + positions.astype(self.dtype)

        def spread(x):
            return jnp.broadcast_to(x.astype(self.dtype), (batch, *x.shape))

        tokens = jnp.concatenate([spread((cls + cls_position)[None]), tokens, spread(queries)], axis=1)

        def asked(x):
            return x[:, :1] if only == "cls" else jnp.concatenate([x[:, :1], x[:, split:]], axis=1)

        split = tokens.shape[1] - self.queries
        tokens = self.trunk(tokens, asked if only else None)
        if only:
            return Tokens(cls=tokens[:, :1], S=tokens[:, 1:] if only == "S" else None, U=None)
        return Tokens(cls=tokens[:, :1], S=tokens[:, split:], U=tokens[:, 1:split])
