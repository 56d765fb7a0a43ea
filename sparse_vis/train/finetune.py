"""Fine-tuning: a step that trains a classifier on the tokens, and each encoder layer at its own rate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from sparse_vis.build import build_classifier, build_source, build_views
from sparse_vis.data.records import has_labels
from sparse_vis.data.sources import Source
from sparse_vis.losses.classes import smoothed_cross_entropy
from sparse_vis.models.stellar import FineTuned, Stellar
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import path_name
from sparse_vis.train.init import initial_params
from sparse_vis.train.optimizer import make_optimizer
from sparse_vis.train.recipe import Recipe, build_recipe
from sparse_vis.types import Tokens

TRAINED = ("encoder", "classifier")  # all else keeps its weights


def prepare(config: ConfigDict) -> Source:
    """Set the classes to those of the images, and switch off what only pretraining has; returns the images.

    Raises UserError if these have fewer than two classes or other ones than config.finetune.classes, or if
    config.train.probe_every is set.
    """
    if config.train.probe_every:
        raise UserError("config.train.probe_every measures pretraining, not fine-tuning; set it to 0.")
    source, given = build_source(config, config.data.split), tuple(config.finetune.classes)
    if not has_labels(source) or len(source.classes) < 2:
        raise UserError(
            f"--mode=finetune needs images of two or more classes, and {source!r} has "
            f"{len(source.classes) if has_labels(source) else 'none'}; give a folder with one subfolder per "
            "class, or a table with labels."
        )
    if given and given != source.classes:
        raise UserError(f"config.finetune.classes are not the classes of {source!r}; leave it out.")
    config.finetune.classes = source.classes
    config.teacher.enabled, config.train.health_every = False, 0
    return source


def finetune_recipe(config: ConfigDict, tokenizer: None = None) -> Recipe:
    """`build_recipe` with a classifier's loss on one view (a crop, a flip, mixup), without a teacher."""
    f, o, usual = config.finetune, config.optimizer, build_recipe(config, tokenizer)
    parts = {x.name: getattr(usual.model, x.name) for x in dataclasses.fields(Stellar) if x.name != "parent"}
    adamw = dict(weight_decay=o.weight_decay, b1=o.b1, b2=o.b2, clip=o.clip)
    return dataclasses.replace(
        usual,
        model=FineTuned(**parts | {"classifier": build_classifier(config)}),
        views=dataclasses.replace(build_views(config), global_count=1, local_count=0, mixup=f.mixup),
        optimizer=finetune_optimizer(usual.schedule, config.model.layers, f.layer_decay, **adamw),
        loss=dataclasses.replace(usual.loss, balance_over="microbatch"),  # nothing is balanced
        targets=lambda model, loss, views, *_: views,
        objective=lambda logits, views, _: smoothed_cross_entropy(
            logits, views.label, f.label_smoothing, views.other, views.share
        ),
        momentum=None,
    )


def finetune_optimizer(
    schedule: optax.Schedule, layers: int, decay: float, **adamw: float
) -> optax.GradientTransformation:
    """`make_optimizer` for the TRAINED parts alone; every update is multiplied by its `rate_scale`."""

    def scaled(updates, params):
        def one(path, x):
            return x * rate_scale(path_name(path), x.ndim, layers, decay)

        return jax.tree_util.tree_map_with_path(one, updates)

    def kinds(params):
        kind = {name: "trained" if name in TRAINED else "frozen" for name in params}
        return {name: jax.tree.map(lambda _, kind=kind[name]: kind, part) for name, part in params.items()}

    trained = optax.chain(make_optimizer(schedule, **adamw), optax.stateless(scaled))
    return optax.multi_transform({"trained": trained, "frozen": optax.set_to_zero()}, kinds)


def rate_scale(name: str, rank: int, layers: int, decay: float) -> float | Float[Array, "..."]:
    """A parameter's learning rate relative to that of the classifier, for layer-wise decay.

    Classifier and last LayerNorm have 1; block l of L, counted from 1, has decay^(L + 1 - l); patch
    embedding, positions, CLS and queries have decay^(L + 1). Blocks are stacked along the first of `rank`
    axes.

    Source: Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers".
    """
    if "/blocks/" in name:
        return (decay ** jnp.arange(layers, 0, -1.0)).reshape(-1, *(1,) * (rank - 1))
    return 1.0 if name.startswith(("classifier/", "encoder/trunk/")) else decay ** (layers + 1)


def finetune_params(config: ConfigDict) -> dict:
    """Parameters of step 0: those that config.init names, and a random classifier."""
    classifier, m = build_classifier(config), config.model
    blank = Tokens(cls=jnp.zeros((1, 1, m.width)), S=jnp.zeros((1, m.tokens, m.width)), U=None)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    drawn = functools.partial(classifier.init, key, blank)
    return {**initial_params(config), "classifier": jax.jit(drawn)()["params"]}
