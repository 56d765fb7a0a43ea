"""The functions that benchmarks/growth/growth.py times, and their arguments, for given sizes."""

import functools

import jax
import jax.numpy as jnp
from jax import random

from sparse_vis.build import build_loss, build_model
from sparse_vis.config.defaults import default_config
from sparse_vis.losses.objective import objective
from sparse_vis.losses.reconstruction import pixel_mse
from sparse_vis.losses.targets import make_targets
from sparse_vis.models.stellar import Stellar, fold, init_params
from sparse_vis.ops.matching import entropic_match, exact_match
from sparse_vis.types import Views
from sparse_vis.views.masking import visible_count

BASE = {"batch": 4, "tokens": 16, "prototypes": 4096, "image": 128, "views": 4}
AXES = {
    "batch": (1, 4, 16),
    "tokens": (4, 16, 64, 256),
    "prototypes": (1024, 4096, 16384),
    "image": (64, 128, 192, 256),
    "views": (1, 4, 8),
}
# The sizes that an arm depends on.
NEEDS = {"stellar": tuple(BASE), "dense": ("batch", "image", "views"), "decoder": ("batch", "image")}
LENGTHS = (4, 8, 16, 32, 64, 128, 256)
MATCHINGS = ("entropic", "exact")
SETS = 16  # pairs of each kind, matched together


def point(arm: str, axis: str, value: int) -> str:
    """Name of the result of an arm with BASE sizes, but this value of one."""
    sizes = BASE | {axis: value}
    return f"{arm} { {name: sizes[name] for name in NEEDS[arm]} }"


def configured(tokens: int, prototypes: int, image: int):
    """The published configuration with a small ViT."""
    config = default_config()
    config.model.update(image_size=image, width=128, layers=4, heads=4, mlp_dim=512, tokens=tokens, patch=16)
    config.model.decoder.update(width=128, layers=2, heads=4, mlp_dim=512)
    config.model.prototypes.update(count=prototypes, dim=64, hidden=256)
    config.efficiency.dtype = "float32"
    return config


def random_views(batch: int, image: int, views: int, patches: int) -> Views:
    """Random pixels, with as many masked as local views; local ones have 48 px per side."""
    keys = random.split(random.key(0), 3)
    kept = visible_count(patches, 0.8)
    masked = random.uniform(keys[0], (batch, views, image, image, 3))
    visible = jnp.argsort(random.uniform(keys[1], (batch, views, patches)))[..., :kept]
    local = random.uniform(keys[2], (batch, views, 48, 48, 3))
    return Views(masked[:, 0], masked, visible.astype(jnp.int32), local)


def stellar(batch: int, tokens: int, prototypes: int, image: int, views: int) -> tuple:
    """Loss and gradients of the full objective."""
    config = configured(tokens, prototypes, image)
    model, spec = build_model(config), build_loss(config)
    params = init_params(model, random.key(1))

    def loss(params, views):
        outputs = model.apply({"params": params}, views)
        return objective(outputs, make_targets(model, spec, views, outputs), spec)[0]

    return jax.value_and_grad(loss), (params, random_views(batch, image, views, (image // 16) ** 2))


def parts(image: int) -> tuple[Stellar, dict, tuple[int, int]]:
    """A model without queries, for the other arms; its parameters; its grid of patches."""
    model = build_model(configured(2, 64, image))
    model, grid = model.clone(encoder=model.encoder.clone(queries=0)), model.grid(image, image)
    pixels, Z = jnp.zeros((1, image, image, 3)), jnp.zeros((1, grid[0] * grid[1], 128))
    encoder = jax.jit(model.encoder.init)(random.key(1), pixels)["params"]
    decoder = jax.jit(functools.partial(model.decoder.init, grid=grid))(random.key(2), Z)["params"]
    return model, {"encoder": encoder, "decoder": decoder}, grid


def dense(batch: int, image: int, views: int, **_) -> tuple:
    """Loss and gradients of a ViT without queries that decodes its patch features, on the same views."""
    model, params, grid = parts(image)

    def encode(params, pixels, visible=None):
        return model.encoder.apply({"params": params["encoder"]}, pixels, visible)

    def loss(params, views):
        U = encode(params, views.image).U
        pixels = model.decoder.apply({"params": params["decoder"]}, U, grid)
        masked = encode(params, fold(views.masked), fold(views.visible)).cls
        local = encode(params, fold(views.local)).cls
        return pixel_mse(pixels, views.image) + jnp.mean(masked**2) + jnp.mean(local**2)

    return jax.value_and_grad(loss), (params, random_views(batch, image, views, grid[0] * grid[1]))


def decoder(batch: int, image: int, **_) -> tuple:
    """Loss of the decoder alone, with gradients of its parameters and input."""
    model, params, grid = parts(image)
    Z = random.normal(random.key(3), (batch, grid[0] * grid[1], 128))
    target = jnp.zeros((batch, image, image, 3))

    def loss(params, Z, target):
        return pixel_mse(model.decoder.apply({"params": params}, Z, grid), target)

    return jax.value_and_grad(loss, (0, 1)), (params["decoder"], Z, target)


def token_sets(tokens: int) -> tuple[jax.Array, jax.Array]:
    """Pairs of sets of tokens of width 128: shuffled copies with noise of equal size, then unrelated sets."""
    y = random.normal(random.key(tokens), (SETS, tokens, 128))
    order = jax.vmap(lambda key: random.permutation(key, tokens))(random.split(random.key(4), SETS))
    noise = random.normal(random.key(5), y.shape)
    copies = jnp.take_along_axis(y, order[..., None], axis=1) + noise
    unrelated = random.normal(random.key(6), (2, *y.shape))
    return jnp.concatenate([copies, unrelated[0]]), jnp.concatenate([y, unrelated[1]])


ARMS = {
    "stellar": stellar, "dense": dense, "decoder": decoder,
    "entropic": lambda tokens: (  # as published
        functools.partial(entropic_match, epsilon=0.1, iterations=5), token_sets(tokens)
    ),
    "exact": lambda tokens: (exact_match, token_sets(tokens)),
}  # fmt: skip
