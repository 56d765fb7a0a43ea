"""The transformer that encoder and decoder share: stacked blocks, scanned or unrolled."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparse_vis.models.block import Block, kept_by_products, transform
from sparse_vis.models.linear import INIT_STD, LayerNorm
from sparse_vis.models.short_attention import LONGEST


class Trunk(nn.Module):
    """`layers` blocks and a final LayerNorm; the blocks' parameters have a leading layer axis.

    Attributes:
        layers, width, heads, mlp_dim: sizes. dtype, init_std: as in Block.
        attention: as in Block, but "pallas" uses cuDNN for more than 128 tokens.
        remat: what the backward pass recomputes: "none"; "products", all but what `kept_by_products` saves;
            or "blocks", everything inside a block.
        unroll: layers per iteration of the scan. With unroll >= layers > 1 a Python loop replaces the scan.
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
        # Split the layers once for all encoder calls of a step, so that their gradients are summed before the
        # layers are stacked again. The gradient of lax.split is one concatenation; that of a slice per layer
        # would be a sum of zero-padded copies.
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
        """Apply all blocks and the final norm.

        Args:
            x: (B, T, d) tokens.
            only: selects the tokens to return, (B, T, d) -> (B, Q, d); unrolled, the last layer computes no
                others. None: all tokens.
        """
        length = x.shape[1]
        attention = "cudnn" if self.attention == "pallas" and length > LONGEST else self.attention
        policy = kept_by_products if self.remat == "products" else None
        if attention == "cudnn" and length % 2:  # pad with a token that is masked, and removed below
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
        block = Block
        if self.remat != "none":
            # Without a loop, XLA on GPUs would merge the recomputation with the forward pass (CSE).
            block = nn.remat(Block, prevent_cse=self.unroll >= self.layers, policy=policy)
        stack = nn.scan(
            lambda module, carry, _: (module(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
            unroll=1 if self.is_initializing() else self.unroll,  # one compiled block initialises all layers
        )
        sizes = self.width, self.heads, self.mlp_dim, self.dtype
        x, _ = stack(block(*sizes, attention, length, self.init_std, name="blocks"), x, None)
        x = x[:, :length]
        return norm(only(x) if only else x)
