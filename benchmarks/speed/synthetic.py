"""Random inputs of a step: a batch of pixels, weights of a tokenizer, a train state."""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sparse_vis.models.vqgan import VQGAN
from sparse_vis.train.recipe import Recipe, build_recipe
from sparse_vis.train.step import TrainState, initial_state
from sparse_vis.types import Batch

CHANNELS, MULTIPLIERS, BLOCKS, LATENT = 128, (1, 1, 2, 2, 4), 2, 256  # of the released MaskGIT-VQGAN


def recipe_of(config: ConfigDict) -> Recipe:
    """The configuration's recipe; for the VQ target, its model has a tokenizer of the released size."""
    t = config.model.tokenizer
    tokenizer = VQGAN(CHANNELS, MULTIPLIERS, BLOCKS, LATENT, t.codes, t.dtype)
    return build_recipe(config, tokenizer if config.model.target == "vq" else None)


def random_tokenizer(module: VQGAN | None) -> dict | None:
    """Parameters of a tokenizer, normal with mean 0 and standard deviation 0.05; None for None."""
    # Not by the module's own init, which takes half a minute to compile for a GPU.
    if module is None:
        return None
    shapes = jax.eval_shape(module.init, jax.random.key(1), jnp.zeros((1, 32, 32, 3)))["params"]
    return jax.tree.map(lambda x: 0.05 * jax.random.normal(jax.random.key(1), x.shape, x.dtype), shapes)


def random_batch(config: ConfigDict) -> Batch:
    """Canvases full of random uint8 pixels."""
    count, side = config.train.batch, config.data.canvas
    return Batch(
        image=jax.random.randint(jax.random.key(2), (count, side, side, 3), 0, 256).astype(jnp.uint8),
        height=jnp.full(count, side, jnp.int32),
        width=jnp.full(count, side, jnp.int32),
        index=jnp.arange(count, dtype=jnp.uint32),
    )


def random_state(recipe: Recipe) -> TrainState:
    """The state of step 0, made on the device."""
    return jax.jit(functools.partial(initial_state, recipe))()
