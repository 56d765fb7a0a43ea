"""A pre-LN transformer block: `Block` holds the parameters, `transform` computes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from sparse_vis.models.attention import fused_attention, plain_attention
from sparse_vis.models.linear import INIT_STD, MOMENT, LayerNorm, Linear, gelu, product, standardize
from sparse_vis.models.short_attention import RESULT, short_attention

PRODUCT = "product"  # checkpoint name of the outputs of a block's linear maps


def batch_sharded(x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """x with its batch sharded over all devices of the current mesh; without a mesh, x itself.

    Without this constraint XLA gathers activations of all devices to compute the gradients of sharded
    kernels: five times the traffic at B/16 (docs/scaling.md).
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def kept_by_products(primitive, *_, **parameters) -> bool:
    """Policy of `remat="products"`: save the outputs of linear maps and of fused attention.

    LayerNorm statistics are saved too; the backward pass recomputes all else.
    """
    if primitive.name == "name":
        return parameters["name"] in (PRODUCT, MOMENT, RESULT)
    return primitive.name.startswith("dot_product_attention_fwd")


@struct.dataclass
class Maps:
    """A block's linear maps, (kernel, bias) each; qkv and mlp_in include their LayerNorm's scale and bias."""

    qkv: tuple[Float[Array, "d three_d"], Float[Array, " three_d"]]
    attention_out: tuple[Float[Array, "d d"], Float[Array, " d"]]
    mlp_in: tuple[Float[Array, "d m"], Float[Array, " m"]]
    mlp_out: tuple[Float[Array, "m d"], Float[Array, " d"]]


def transform(
    maps: Maps,
    x: Float[Array, "B T d"],
    heads: int,
    dtype: str,
    attention: str,
    length: int | None,
    only: Callable[[Array], Array] | None,
) -> Float[Array, "B Q d"]:
    """A pre-LN transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        maps: parameters. x: (B, T, d) tokens. heads, dtype, attention, length: as in Block.
        only: selects the Q tokens to compute, (B, T, d) -> (B, Q, d); of the others only keys and values are
            computed. None: all tokens, Q = T.

    Returns:
        (B, Q, d) tokens.
    """

    def dense(x, kernel, bias):
        return checkpoint_name(product(x, kernel.astype(dtype)) + bias.astype(dtype), PRODUCT)

    def per_head(x):
        return x.reshape(*x.shape[:2], heads, -1)

    x = batch_sharded(x)
    if attention != "xla":
        # The attention kernels need row-major tokens. Without this constraint the last layer's `only` makes
        # XLA store H/14's local views with the batch axis last, and copy them in every layer.
        x = with_layout_constraint(x, Layout((0, 1, 2)))
    batch, tokens, width = x.shape
    y = standardize(x)
    kernel, bias = maps.qkv
    if only:
        x, asked = only(x), only(y)
        q = dense(asked, kernel[:, :width], bias[:width])
        k, v = jnp.split(dense(y, kernel[:, width:], bias[width:]), 2, axis=-1)
        y = plain_attention(per_head(q), per_head(k), per_head(v))
    elif attention == "pallas":
        y = short_attention(dense(y, kernel, bias).reshape(batch, tokens, 3, heads, width // heads))
    elif attention == "xla":
        y = plain_attention(*map(per_head, jnp.split(dense(y, kernel, bias), 3, axis=-1)))
    else:  # cuDNN needs q, k and v as separate arrays: split the kernel, not its output
        cut = zip(jnp.split(kernel, 3, axis=1), jnp.split(bias, 3), strict=True)
        q, k, v = (per_head(dense(y, *part)) for part in cut)
        y = fused_attention(q, k, v, length or tokens)
    x = x + dense(y.reshape(x.shape), *maps.attention_out)
    return x + dense(gelu(dense(standardize(x), *maps.mlp_in)), *maps.mlp_out)


class Block(nn.Module):
    """The parameters of a transformer block; calling it applies `transform`.

    Attributes:
        width: d. heads: attention heads. mlp_dim: hidden width of the MLP.
        dtype: of the computation; parameters are float32.
        attention: "xla" (`plain_attention`), "cudnn" (`fused_attention`) or "pallas" (`short_attention`).
        length: with "cudnn", the number of valid tokens, counted from the first; None: all.
        init_std: standard deviation of the initial kernels.
    """

    width: int
    heads: int
    mlp_dim: int
    dtype: str = "float32"
    attention: str = "xla"
    length: int | None = None
    init_std: float = INIT_STD

    def setup(self):
        self.norm_attention = LayerNorm(self.width)
        self.qkv = Linear(self.width, 3 * self.width, self.init_std)
        self.attention_out = Linear(self.width, self.width, self.init_std)
        self.norm_mlp = LayerNorm(self.width)
        self.mlp_in = Linear(self.width, self.mlp_dim, self.init_std)
        self.mlp_out = Linear(self.mlp_dim, self.width, self.init_std)

    def maps(self) -> Maps:
        return Maps(
            qkv=self.norm_attention.into(self.qkv.kernel, self.qkv.bias),
            attention_out=(self.attention_out.kernel, self.attention_out.bias),
            mlp_in=self.norm_mlp.into(self.mlp_in.kernel, self.mlp_in.bias),
            mlp_out=(self.mlp_out.kernel, self.mlp_out.bias),
        )

    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        return transform(self.maps(), x, self.heads, self.dtype, self.attention, self.length, None)
