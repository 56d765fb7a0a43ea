"""What a step needs, made up: a batch of random pixels, a tokenizer with random weights, a train state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sparse_vis.models.vqgan import VQGAN
from sparse_vis.train.recipe import Recipe, build_recipe
from sparse_vis.train.step import TrainState, initial_state
from sparse_vis.types import Batch

CHANNELS, MULTIPLIERS, BLOCKS, LATENT = 128, (1, 1, 2, 2, 4), 2, 256  # of the released MaskGIT-VQGAN


def tokenizer_module(config: ConfigDict) -> VQGAN | None:
    """The VQ tokenizer in its released size; None for the pixel target."""
    if config.model.target != "vq":
        return None
    tokenizer = config.model.tokenizer
    return VQGAN(CHANNELS, MULTIPLIERS, BLOCKS, LATENT, tokenizer.codes, tokenizer.dtype)


def recipe_of(config: ConfigDict) -> Recipe:
    """The configuration's recipe, its model with the tokenizer."""
    recipe = build_recipe(config)
    return dataclasses.replace(recipe, model=recipe.model.clone(tokenizer=tokenizer_module(config)))


def random_tokenizer(module: VQGAN | None) -> dict | None:
    """Parameters of the tokenizer, normal with mean 0 and deviation 0.05; None where there is no tokenizer.

    Not the module's own start: one program of all its draws takes half a minute to compile for a GPU.
    """
    if module is None:
        return None
    shapes = jax.eval_shape(module.init, jax.random.key(1), jnp.zeros((1, 32, 32, 3)))["params"]
    return jax.tree.map(lambda x: 0.05 * jax.random.normal(jax.random.key(1), x.shape, x.dtype), shapes)


def random_batch(config: ConfigDict, images: int | None = None) -> Batch:
    """Canvases full of random uint8 pixels; `images` are config.train.batch where not given."""
    count, side = images or config.train.batch, config.data.canvas
    return Batch(
        image=jax.random.randint(jax.random.key(2), (count, side, side, 3), 0, 256).astype(jnp.uint8),
        height=jnp.full(count, side, jnp.int32),
        width=jnp.full(count, side, jnp.int32),
        index=jnp.arange(count, dtype=jnp.uint32),
    )


def random_state(recipe: Recipe) -> TrainState:
    """The state of step 0, made on the device."""
    return jax.jit(functools.partial(initial_state, recipe))()
