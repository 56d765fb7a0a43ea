"""ViT encoder: pixels and learned queries to class token, semantic tokens S and dense features U."""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sparse_vis.models.block import Compute, Sizes, Trunk
from sparse_vis.models.layers import Dense, vit_init
from sparse_vis.ops.resize import resize_bicubic
from sparse_vis.types import Tokens

Pixels = Float[Array, "B H W 3"]
Visible = Int[Array, "B keep"]
Only = Literal["cls", "S"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def patchify(images: Float[Array, "B H W C"], patch: int) -> Float[Array, "B n p2C"]:
    """Patches, row-major, as vectors in the order (row, column, channel); incomplete patches are dropped."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    images = images[:, : rows * patch, : columns * patch]
    images = images.reshape(batch, rows, patch, columns, patch, channels)
    return images.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def resize_position_table(table: Float[Array, "m d"], grid: tuple[int, int]) -> Float[Array, "n d"]:
    """Patch positions of a square grid, resized to another (rows, columns), bicubic as in PyTorch."""
    side = math.isqrt(table.shape[0])
    if grid == (side, side):
        return table
    return resize_bicubic(table.reshape(side, side, -1), grid).reshape(grid[0] * grid[1], -1)


class VisionTransformer(nn.Module):
    """ViT over [CLS, visible patches, r queries] (docs/method.md section 2)."""

    image_size: int  # side in pixels of the square image for which the position table is made
    patch: int  # side in pixels
    sizes: Sizes
    queries: int  # r
    compute: Compute = Compute()

    def setup(self):
        self.trunk = Trunk(self.sizes, self.compute)

    @nn.compact
    def __call__(self, pixels: Pixels, visible: Visible | None = None, only: Only | None = None) -> Tokens:
        """Encode images of any size of at least one patch.

        Args:
            pixels: RGB in [0, 1]; ImageNet normalisation happens here.
            visible: indices of the patches to encode; None: all.
            only: "cls" returns only cls, "S" cls and S, so that the last layer may compute less; None: all.
        """
        (batch, height, width, _), dim, dtype = pixels.shape, self.sizes.width, self.compute.dtype
        mean, std = jnp.array(IMAGENET_MEAN, jnp.float32), jnp.array(IMAGENET_STD, jnp.float32)
        patches = patchify((pixels - mean) / std, self.patch)
        side = self.image_size // self.patch
        init = vit_init(self.sizes.init_std)
        cls = self.param("cls_token", init, (dim,))
        cls_position = self.param("cls_position", init, (dim,))
        table = self.param("position_table", init, (side * side, dim))
        queries = self.param("queries", nn.initializers.normal(dim**-0.5, jnp.float32), (self.queries, dim))
        positions = resize_position_table(table, (height // self.patch, width // self.patch))[None]
        if visible is not None:
            patches = jnp.take_along_axis(patches, visible[:, :, None], axis=1)
            positions = positions[0][visible]
        tokens = Dense(dim, dtype, init, name="patch_embedding")(patches)

        def spread(x):
            # Cast last, so that gradients are summed over images and devices in float32.
            return jnp.broadcast_to(x, (batch, *x.shape[-2:])).astype(dtype)

        tokens = tokens + spread(positions)
        tokens = jnp.concatenate([spread((cls + cls_position)[None]), tokens, spread(queries)], axis=1)

        split = tokens.shape[1] - self.queries

        def returned(x):
            return x[:, :1] if only == "cls" else jnp.concatenate([x[:, :1], x[:, split:]], axis=1)

        tokens = self.trunk(tokens, returned if only else None)
        if only:
            return Tokens(cls=tokens[:, :1], S=tokens[:, 1:] if only == "S" else None, U=None)
        return Tokens(cls=tokens[:, :1], S=tokens[:, split:], U=tokens[:, 1:split])
