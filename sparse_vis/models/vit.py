"""The transformer that encoder and decoder share: pre-LN blocks, stacked and scanned."""

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

from sparse_vis.models.gelu import gelu
from sparse_vis.models.linear import INIT_STD, Linear, product
from sparse_vis.models.norm import MOMENT, LayerNorm, standardize
from sparse_vis.models.short_attention import LONGEST, RESULT, short_attention

PRODUCT = "product"  # names what a block's products with kernels give


def batch_sharded(x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """x with its batch spread over all devices of the mesh in use; x itself where there is none.

    Without it, split kernels have their gradients formed from activations of other devices' images, which are
    gathered for that: five times the traffic at B/16 (docs/scaling.md).
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def plain_attention(
    q: Float[Array, "B Q h c"], k: Float[Array, "B T h c"], v: Float[Array, "B T h c"]
) -> Float[Array, "B Q h c"]:
    """softmax(q k^T / sqrt(c)) v per head; scores, exponentials and their sums in float32.

    Plain batched products over [B, h]: on CPU twice as fast as jax.nn.dot_product_attention, and the
    reference for its fused kernels. The sums divide the c numbers that leave a row, not its T weights.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    scores = jnp.matmul(q, jnp.swapaxes(k, 2, 3), preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    # Any shift gives the same weights; this one keeps the exponentials from overflowing.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return jnp.swapaxes((y / weights.sum(axis=-1, keepdims=True)).astype(v.dtype), 1, 2)


def fused_attention(
    q: Float[Array, "B T h c"],
    k: Float[Array, "B T h c"],
    v: Float[Array, "B T h c"],
    length: int,
    implementation: str = "cudnn",
) -> Float[Array, "B T h c"]:
    """`plain_attention` of the first `length` tokens in one kernel that never writes the scores to memory.

    Args:
        q, k, v: bfloat16 or float16; cuDNN has no way back for odd T. length: of T; what tokens from there on
            get has no meaning. implementation: of jax.nn.dot_product_attention.
    """
    lengths = jnp.full(q.shape[0], length, jnp.int32) if length < q.shape[1] else None
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )


def kept_by_products(primitive, *_, **parameters) -> bool:
    """What `remat="products"` keeps: products with kernels, fused attention, each row's mean and scale."""
    if primitive.name == "name":
        return parameters["name"] in (PRODUCT, MOMENT, RESULT)
    return primitive.name.startswith("dot_product_attention_fwd")


@struct.dataclass
class Maps:
    """A block's linear maps, (kernel, bias) each; those behind a LayerNorm contain its scale and bias."""

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
    """What a Block of these maps and attributes makes of x."""

    def dense(x, kernel, bias):
        return checkpoint_name(product(x, kernel.astype(dtype)) + bias.astype(dtype), PRODUCT)

    def per_head(x):
        return x.reshape(*x.shape[:2], heads, -1)

    x = batch_sharded(x)
    if attention != "xla":
        # The kernels read tokens row by row. What the last layer takes of them must not turn them on all the
        # way: XLA's choice for H/14's local views is the batch last, 18 ms of copies in a step on an H100.
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
    else:  # cuDNN reads each from memory of its own: the kernel is cut, not what it gives
        cut = zip(jnp.split(kernel, 3, axis=1), jnp.split(bias, 3), strict=True)
        q, k, v = (per_head(dense(y, *part)) for part in cut)
        y = fused_attention(q, k, v, length or tokens)
    x = x + dense(y.reshape(x.shape), *maps.attention_out)
    return x + dense(gelu(dense(standardize(x), *maps.mlp_in)), *maps.mlp_out)


class Block(nn.Module):
    """Pre-LN transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
        width: d. heads: attention heads. mlp_dim: hidden width of the MLP.
        dtype: of the computation; parameters are float32.
        attention: "xla" (`plain_attention`), "cudnn" (`fused_attention`) or "pallas" (`short_attention`).
        length: tokens that count with "cudnn", from the first; all where None.
        init_std: of the kernels.
        only: takes the tokens that are asked for, (B, Q, d), out of (B, T, d); no others are computed beyond
            their keys and values. None: all.
    """

    width: int
    heads: int
    mlp_dim: int
    dtype: str = "float32"
    attention: str = "xla"
    length: int | None = None
    init_std: float = INIT_STD
    only: Callable[[Array], Array] | None = None

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

    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B Q d"]:
        return transform(self.maps(), x, self.heads, self.dtype, self.attention, self.length, self.only)


class Trunk(nn.Module):
    """`layers` blocks and a final LayerNorm; parameters of the blocks carry a leading layer axis.

    Attributes:
        layers, width, heads, mlp_dim: sizes. dtype, attention, init_std: as in Block, but that "pallas"
            leaves more than 128 tokens to cuDNN.
        remat: what of a block is computed again in the backward pass: "none", all but "products"
            (`kept_by_products`), or all of the "blocks".
        unroll: how many layers of the scan are laid out one after the other. Where all are, and they are
            several, there is no scan.
    """

    layers: int
    width: int
    heads: int
    mlp_dim: int
    dtype: str = "float32"
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1
    init_std: float = INIT_STD

    def setup(self):
        # Here once for all views of a step: their gradients are summed before layers are joined.
        self.laid_out = None
        if 1 < self.layers <= self.unroll and not self.is_initializing():
            leaves, tree = jax.tree.flatten(self.variables["params"]["blocks"])
            cut = zip(*(jax.lax.split(leaf, (1,) * self.layers) for leaf in leaves), strict=True)
            block = Block(self.width, self.heads, self.mlp_dim, parent=None)
            self.laid_out = [
                block.apply({"params": tree.unflatten([leaf[0] for leaf in layer])}, method="maps")
                for layer in cut
            ]

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T d"], only: Callable[[Array], Array] | None = None
    ) -> Float[Array, "B Q d"]:
        """All tokens, or those that `only` takes out of (B, T, d): laid out, the last layer has no others."""
        length = x.shape[1]
        attention = "cudnn" if self.attention == "pallas" and length > LONGEST else self.attention
        policy = kept_by_products if self.remat == "products" else None
        if attention == "cudnn" and length % 2:  # a token that no other sees, taken off again below
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
        norm = LayerNorm(self.width, name="norm")
        if self.laid_out:

            def run(maps, x, only):
                return transform(maps, x, self.heads, self.dtype, attention, length, only)

            if self.remat != "none":
                run = jax.checkpoint(run, policy=policy, static_argnums=2)
            run = jax.jit(run, static_argnums=2)  # traced once for all layers
            *first, last = self.laid_out
            for maps in first:
                x = run(maps, x, None)
            return norm(run(last, x[:, :length], only) if only else run(last, x, None)[:, :length])
        block = nn.remat(Block, prevent_cse=False, policy=policy) if self.remat != "none" else Block
        stack = nn.scan(
            lambda module, carry, _: (module(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
            unroll=1
            if self.is_initializing()
            else self.unroll,  # else each layer's start is compiled by itself
        )
        sizes = self.width, self.heads, self.mlp_dim, self.dtype
        x, _ = stack(block(*sizes, attention, length, self.init_std, name="blocks"), x, None)
        x = x[:, :length]
        return norm(only(x) if only else x)
