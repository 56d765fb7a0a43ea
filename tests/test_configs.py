"""Every file of configs/ is complete, and its step traces at full size."""

import functools
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from sparse_vis.build import build_model
from sparse_vis.config import settings
from sparse_vis.models.stellar import init_params
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import initial_state, train_step
from sparse_vis.types import Batch

FILES = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))
NAMES = [path.stem for path in FILES]
TRAINED = [name for name in NAMES if not name.startswith("reproduce")]  # those only evaluate

# docs/method.md sections 1 and 7: width, layers, heads, patch, epochs, peak learning rate.
PUBLISHED = {
    "imagenet_b16": (768, 12, 12, 16, 150, 1.5e-4),
    "imagenet_l16": (1024, 24, 16, 16, 100, 5e-5),
    "imagenet_h14": (1280, 32, 16, 14, 50, 5e-5),
}
# Parameters of the plain ViTs with CLS token and position table but no classifier, as they are widely quoted.
PLAIN_VIT = {"imagenet_b16": 85_798_656, "imagenet_l16": 303_301_632, "imagenet_h14": 630_764_800}


def read(name):
    path = next(path for path in FILES if path.stem == name)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(), module.__doc__


def completed(name):
    """The configuration with what only the user can know."""
    config, _ = read(name)
    if config.model.target == "vq":
        config.model.tokenizer.path = "tokenizer.bin"
    if config.data.source != "scenes":
        config.data.path = "data"
    return config


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def vit(width, layers, mlp):
    """Pre-LN blocks with QKV, output and MLP biases, two norms each, and the final norm."""
    attention = 4 * (width * width + width)
    return layers * (attention + 2 * width * mlp + mlp + width + 4 * width) + 2 * width


def formula(config):
    """Parameters by section of docs/method.md."""
    m, c, k = config.model, config.model.decoder, config.model.prototypes
    d, patch_values, patches = m.width, 3 * m.patch**2, (m.image_size // m.patch) ** 2
    head = d * k.hidden + k.hidden + k.hidden * k.dim + k.dim + k.dim * k.count
    output = (
        c.width * m.tokenizer.codes + m.tokenizer.codes if m.target == "vq" else c.width * patch_values + 3
    )
    return {
        "encoder": patch_values * d + d + d + (1 + patches) * d + m.tokens * d + vit(d, m.layers, m.mlp_dim),
        "factorizer": 2 * (d * d + d),
        "decoder": d * c.width + c.width + c.width + vit(c.width, c.layers, c.mlp_dim) + output,
        "sparse_head": head,
        "cls_head": head,
    }


@pytest.mark.fast
@pytest.mark.parametrize("name", NAMES)
def test_configuration_is_complete_locked_and_described(name):
    config, docstring = read(name)
    assert config.name == name
    assert config.is_locked and config.model.is_locked
    with pytest.raises(AttributeError, match="stepz"):
        config.train.stepz = 1
    for section in ("Command:", "Hardware:", "Result:", f"configs/{name}.py"):
        assert section in docstring
    settings.check(completed(name))


@pytest.mark.fast
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(name):
    width, layers, heads, patch, epochs, rate = PUBLISHED[name]
    config, docstring = read(name)
    m, o = config.model, config.optimizer
    assert (m.width, m.layers, m.heads, m.patch, m.mlp_dim) == (width, layers, heads, patch, 4 * width)
    assert (m.tokens, m.image_size, m.target, config.loss.reconstruction) == (16, 224, "vq", 0.05)
    assert (o.peak_lr, o.final_lr, o.warmup, o.weight_decay, o.b1, o.b2, o.clip) == (
        rate, 1e-6, 0.1, 0.04, 0.9, 0.999, 3.0,
    )  # fmt: skip
    held_out, everything = math.floor(0.9 * 1_281_167) // 2048, 1_281_167 // 2048
    assert (config.train.batch, config.train.steps) == (2048, epochs * held_out)
    assert config.data.split == "train[:90%]" and f"--config.train.steps={epochs * everything}" in docstring
    assert not config.teacher.enabled and config.init.startswith("hf://facebook/vit-mae-")
    assert "published, not yet reproduced" in docstring


@pytest.mark.fast
def test_two_stage_recipe_from_random_initialisation():
    first, second = (read(f"imagenet_b16_scratch{stage}")[0] for stage in (1, 2))
    main = read("imagenet_b16")[0]
    assert first.teacher.enabled and first.teacher.momentum == 0.996 and not second.teacher.enabled
    assert (first.views.masking_ratio, second.views.masking_ratio) == (0.6, 0.8)
    assert (first.train.steps, second.train.steps) == (main.train.steps, main.train.steps // 2)
    assert first.init == "" and second.init == f"runs/{first.name}" and second.init_heads == "keep"
    assert first.model == main.model and second.model == main.model


@pytest.mark.parametrize("name", TRAINED)
def test_parameter_counts(name):
    config = completed(name)
    tree = jax.eval_shape(functools.partial(init_params, build_model(config)), jax.random.key(0))
    assert {part: count(tree[part]) for part in tree} == formula(config)
    if name in PLAIN_VIT:
        assert count(tree["encoder"]) == PLAIN_VIT[name] + config.model.tokens * config.model.width


# The two stages from random initialisation have the step of imagenet_b16.
@pytest.mark.parametrize("name", [name for name in TRAINED if "scratch" not in name])
def test_a_step_traces_at_full_size(name):
    config = completed(name)
    images = 2 * config.efficiency.microbatches
    recipe, canvas = build_recipe(config), config.data.canvas
    state = jax.eval_shape(functools.partial(initial_state, recipe))
    number = jax.ShapeDtypeStruct((images,), jnp.int32)
    batch = Batch(
        image=jax.ShapeDtypeStruct((images, canvas, canvas, 3), jnp.uint8), height=number, width=number,
        index=jax.ShapeDtypeStruct((images,), jnp.uint32),
    )  # fmt: skip
    tokenizer = None
    if config.model.target == "vq":
        vqgan = VQGAN(128, (1, 1, 2, 2, 4), 2, 256, config.model.tokenizer.codes)  # docs/method.md section 4
        tokenizer = jax.eval_shape(vqgan.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
        recipe = build_recipe(config, vqgan)
    after, metrics = jax.eval_shape(functools.partial(train_step, recipe), state, batch, tokenizer)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.params))
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    assert (after.teacher is not None) == config.teacher.enabled
