"""The transformer that encoder and decoder share: `transform` computes a block, `Trunk` stacks them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from sparse_vis.models.attention import LONGEST, RESULT, fused_attention, plain_attention, short_attention
from sparse_vis.models.layers import EPSILON, INIT_STD, MOMENT, LayerNorm, Linear, affine, gelu, standardize

PRODUCT = "product"  # name of the outputs of a block's linear maps, for `kept_by_products`


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a transformer, and two constants of its layers."""

    width: int  # d
    layers: int
    heads: int  # of attention
    mlp_dim: int  # hidden width of the MLP
    init_std: float = INIT_STD  # standard deviation of initial kernels
    epsilon: float = EPSILON  # of LayerNorm


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a transformer is computed; results differ by rounding at most."""

    dtype: str = "float32"  # of activations; parameters are always float32
    # "xla" (`plain_attention`), "cudnn" (`fused_attention`), or "pallas" (`short_attention`; in a Trunk,
    # sequences of more than LONGEST tokens use "cudnn").
    attention: str = "xla"
    # What the backward pass recomputes: "none", "blocks" (all) or "products" (see `kept_by_products`).
    remat: str = "none"
    unroll: int = 1  # layers per iteration of the scan; with unroll >= layers > 1, a Python loop replaces it


def batch_sharded(x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """x with its batch sharded over all devices of the current mesh; without a mesh, x itself.

    Without this constraint XLA gathers activations of all devices to compute the gradients of sharded
    kernels: five times the traffic at B/16 (docs/scaling.md).
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def kept_by_products(primitive, *_, **parameters) -> bool:
    """Policy of `remat="products"`: save linear maps, fused attention, and the statistics of LayerNorm."""
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
    sizes: Sizes,
    compute: Compute,
    length: int | None = None,
    only: Callable[[Array], Array] | None = None,
) -> Float[Array, "B Q d"]:
    """A pre-LN transformer block. With c channels per head, it computes the same as

        q, k, v = split_heads(qkv(norm_attention(x)))
        weights = softmax(einsum("bqhc,bkhc->bhqk", q, k) / sqrt(c))
        x = x + attention_out(einsum("bhqk,bkhc->bqhc", weights, v))
        x = x + mlp_out(gelu(mlp_in(norm_mlp(x))))
        return only(x)

    Args:
        maps: parameters. sizes: of these, heads and epsilon are used. compute: of this, dtype and attention.
        length: with "cudnn", the number of valid tokens, counted from the first; None: all are valid.
        only: selects the Q tokens to return, (B, T, d) -> (B, Q, d); for the others only keys and values are
            computed. None: all tokens, Q = T.
    """

    def dense(x, kernel, bias):
        return checkpoint_name(affine(x.astype(compute.dtype), kernel, bias), PRODUCT)

    def per_head(x):
        return x.reshape(*x.shape[:2], sizes.heads, -1)

    x = batch_sharded(x)
    if compute.attention != "xla":
        # The attention kernels need row-major tokens. Without this constraint the last layer's `only` makes
        # XLA store H/14's local views with the batch axis last, and copy them in every layer.
        x = with_layout_constraint(x, Layout((0, 1, 2)))
    batch, tokens, width = x.shape
    y = standardize(x, sizes.epsilon)
    kernel, bias = maps.qkv
    if only:
        x, asked = only(x), only(y)
        q = dense(asked, kernel[:, :width], bias[:width])
        k, v = jnp.split(dense(y, kernel[:, width:], bias[width:]), 2, axis=-1)
        y = plain_attention(per_head(q), per_head(k), per_head(v))
    elif compute.attention == "pallas":
        y = short_attention(
            dense(y, kernel, bias).reshape(batch, tokens, 3, sizes.heads, width // sizes.heads)
        )
    elif compute.attention == "xla":
        y = plain_attention(*map(per_head, jnp.split(dense(y, kernel, bias), 3, axis=-1)))
    else:  # cuDNN needs q, k and v as separate arrays: split the kernel, not its output
        cut = zip(jnp.split(kernel, 3, axis=1), jnp.split(bias, 3), strict=True)
        q, k, v = (per_head(dense(y, *part)) for part in cut)
        y = fused_attention(q, k, v, length or tokens)
    x = x + dense(y.reshape(x.shape), *maps.attention_out)
    return x + dense(gelu(dense(standardize(x, sizes.epsilon), *maps.mlp_in)), *maps.mlp_out)


class Block(nn.Module):
    """The parameters of a transformer block; calling it applies `transform` with them and `length`."""

    sizes: Sizes
    compute: Compute = Compute()
    length: int | None = None

    def setup(self):
        width, mlp_dim, std = self.sizes.width, self.sizes.mlp_dim, self.sizes.init_std
        epsilon = self.sizes.epsilon
        self.norm_attention = LayerNorm(width, epsilon)
        self.qkv = Linear(width, 3 * width, std)
        self.attention_out = Linear(width, width, std)
        self.norm_mlp = LayerNorm(width, epsilon)
        self.mlp_in = Linear(width, mlp_dim, std)
        self.mlp_out = Linear(mlp_dim, width, std)

    def maps(self) -> Maps:
        return Maps(
            qkv=self.norm_attention.into(self.qkv.kernel, self.qkv.bias),
            attention_out=(self.attention_out.kernel, self.attention_out.bias),
            mlp_in=self.norm_mlp.into(self.mlp_in.kernel, self.mlp_in.bias),
            mlp_out=(self.mlp_out.kernel, self.mlp_out.bias),
        )

    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        maps = self.maps()
        if self.is_initializing():  # x determines none of the parameters
            return x
        return transform(maps, x, self.sizes, self.compute, self.length)


class Trunk(nn.Module):
    """Blocks and a final LayerNorm; the blocks' parameters have a leading layer axis."""

    sizes: Sizes
    compute: Compute = Compute()

    def setup(self):
        # Split the layers once for all encoder calls of a step, so that their gradients are summed before the
        # layers are stacked again. The gradient of lax.split is one concatenation; that of a slice per layer
        # would be a sum of zero-padded copies.
        self.unrolled, layers = None, self.sizes.layers
        if 1 < layers <= self.compute.unroll and not self.is_initializing():
            leaves, tree = jax.tree.flatten(self.variables["params"]["blocks"])
            split = zip(*(jax.lax.split(leaf, (1,) * layers) for leaf in leaves), strict=True)
            each = (tree.unflatten([leaf[0] for leaf in layer]) for layer in split)
            block = Block(self.sizes, parent=None)
            self.unrolled = [block.apply({"params": params}, method="maps") for params in each]

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T d"], only: Callable[[Array], Array] | None = None
    ) -> Float[Array, "B Q d"]:
        """The tokens that `only` selects (None: all). If unrolled, the last layer computes no others."""
        length, sizes, compute = x.shape[1], self.sizes, self.compute
        if compute.attention == "pallas" and length > LONGEST:
            compute = dataclasses.replace(compute, attention="cudnn")
        policy = kept_by_products if compute.remat == "products" else None
        if compute.attention == "cudnn" and length % 2:  # add a token, which is masked, and removed below
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
        norm = LayerNorm(sizes.width, sizes.epsilon, name="norm")
        if self.unrolled:

            def run(maps, x, only):
                return transform(maps, x, sizes, compute, length, only)

            if compute.remat != "none":
                run = jax.checkpoint(run, policy=policy, static_argnums=2)
            run = jax.jit(run, static_argnums=2)  # traced once for all layers
            *first, last = self.unrolled
            for maps in first:
                x = run(maps, x, None)
            return norm(run(last, x[:, :length], only) if only else run(last, x, None)[:, :length])
        block = Block
        if compute.remat != "none":
            # Without a loop, XLA on GPUs would merge the recomputation with the forward pass (CSE).
            block = nn.remat(Block, prevent_cse=compute.unroll >= sizes.layers, policy=policy)
        stack = nn.scan(
            lambda module, carry, _: (module(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=sizes.layers,
            # The check traces the block a second time, which changes the initial weights that a seed gives.
            check_constancy_invariants=self.is_initializing(),
            unroll=1 if self.is_initializing() else compute.unroll,  # one compiled block draws all layers
        )
        x, _ = stack(block(sizes, compute, length, name="blocks"), x, None)
        x = x[:, :length]
        return norm(only(x) if only else x)
