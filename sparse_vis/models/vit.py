"""The transformer that encoder and decoder share: stacked blocks, scanned or unrolled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparse_vis.models.attention import LONGEST
from sparse_vis.models.block import Block, Compute, Sizes, kept_by_products, transform
from sparse_vis.models.linear import LayerNorm


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
        """The tokens that `only` selects (None: all); unrolled, the last layer computes no others."""
        length, sizes, compute = x.shape[1], self.sizes, self.compute
        if compute.attention == "pallas" and length > LONGEST:
            compute = dataclasses.replace(compute, attention="cudnn")
        policy = kept_by_products if compute.remat == "products" else None
        if compute.attention == "cudnn" and length % 2:  # pad with a token that is masked, and removed below
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
        norm = LayerNorm(sizes.width, name="norm")
        if self.unrolled:

            def run(maps, x, only):
                return transform(maps, x, sizes.heads, compute, length, only)

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
            unroll=1 if self.is_initializing() else compute.unroll,  # one compiled block starts all layers
        )
        x, _ = stack(block(sizes, compute, length, name="blocks"), x, None)
        x = x[:, :length]
        return norm(only(x) if only else x)
