"""The transformer that encoder and decoder share: pre-LN blocks, stacked and scanned."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
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

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B Q d"]:
        def linear(inputs, features, name):
            layer = Linear(inputs, features, self.init_std, name=name)
            return layer.kernel, layer.bias

        def dense(x, kernel, bias):
            return checkpoint_name(product(x, kernel.astype(self.dtype)) + bias.astype(self.dtype), PRODUCT)

        def heads(x):
            return x.reshape(*x.shape[:2], self.heads, self.width // self.heads)

        x = batch_sharded(x)
        batch, length, _ = x.shape
        norm = LayerNorm(self.width, name="norm_attention")
        kernel, bias = norm.into(*linear(self.width, 3 * self.width, "qkv"))
        y = standardize(x)
        if self.only:
            x, asked = self.only(x), self.only(y)
            q = dense(asked, kernel[:, : self.width], bias[: self.width])
            k, v = jnp.split(dense(y, kernel[:, self.width :], bias[self.width :]), 2, axis=-1)
            y = plain_attention(heads(q), heads(k), heads(v))
        elif self.attention == "pallas":
            qkv = dense(y, kernel, bias)
            y = short_attention(qkv.reshape(batch, length, 3, self.heads, self.width // self.heads))
        elif self.attention == "xla":
            y = plain_attention(*map(heads, jnp.split(dense(y, kernel, bias), 3, axis=-1)))
        else:  # cuDNN reads each from memory of its own: the kernel is cut, not what it gives
            cut = zip(jnp.split(kernel, 3, axis=1), jnp.split(bias, 3), strict=True)
            q, k, v = (heads(dense(y, *part)) for part in cut)
            y = fused_attention(q, k, v, self.length or length)
        y = y.reshape(x.shape)
        x = x + dense(y, *linear(self.width, self.width, "attention_out"))
        norm = LayerNorm(self.width, name="norm_mlp")
        hidden = dense(standardize(x), *norm.into(*linear(self.width, self.mlp_dim, "mlp_in")))
        return x + dense(gelu(hidden), *linear(self.mlp_dim, self.width, "mlp_out"))


class Trunk(nn.Module):
    """`layers` blocks and a final LayerNorm; parameters of the blocks carry a leading layer axis.

    Attributes:
        layers, width, heads, mlp_dim: sizes. dtype, attention, init_std: as in Block, but that "pallas"
            leaves more than 128 tokens to cuDNN.
        remat: what of a block is computed again in the backward pass: "none", all but "products"
            (`kept_by_products`), or all of the "blocks".
        unroll: how many layers of the scan are laid out one after the other.
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

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T d"], only: Callable[[Array], Array] | None = None
    ) -> Float[Array, "B Q d"]:
        """All tokens, or those that `only` takes out of (B, T, d): laid out, the last layer has no others."""
        block, length = Block, x.shape[1]
        laid_out = self.unroll >= self.layers
        attention = "cudnn" if self.attention == "pallas" and length > LONGEST else self.attention
        if self.remat != "none":
            policy = kept_by_products if self.remat == "products" else None
            # Laid out in full, both computations stand in one program, where XLA would merge them on GPUs.
            block = nn.remat(Block, prevent_cse=laid_out, policy=policy)
        block = functools.partial(
            block, self.width, self.heads, self.mlp_dim, self.dtype, attention, length, self.init_std
        )
        if attention == "cudnn" and length % 2:  # a token that no other sees, taken off again below
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
        norm = LayerNorm(self.width, name="norm")
        if only and laid_out and self.layers > 1 and not self.is_initializing():
            leaves, tree = jax.tree.flatten(self.variables["params"]["blocks"])
            # Cut once: the way back joins what layers give, where a slice of each would add padded copies.
            cut = [jax.lax.split(leaf, (self.layers - 1, 1)) for leaf in leaves]
            first, last = (tree.unflatten(part) for part in zip(*cut, strict=True))
            x, _ = jax.lax.scan(
                lambda x, params: (block(parent=None).apply({"params": params}, x), None),
                x, first, unroll=self.layers - 1,
            )  # fmt: skip
            last = jax.tree.map(lambda leaf: leaf[0], last)
            return norm(block(parent=None, only=only).apply({"params": last}, x[:, :length]))
        stack = nn.scan(
            lambda module, carry, _: (module(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
            unroll=1
            if self.is_initializing()
            else self.unroll,  # else each layer's start is compiled by itself
        )
        x, _ = stack(block(name="blocks"), x, None)
        x = x[:, :length]
        return norm(only(x) if only else x)
