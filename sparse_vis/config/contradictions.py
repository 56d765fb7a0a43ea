"""Find settings that are valid one by one but contradict each other."""

import functools
import operator
import re
from collections.abc import Iterator

from ml_collections import ConfigDict

from sparse_vis.config.ranges import fits, shown

# The loss weights in config.loss; its other settings are constants.
TERMS = (
    "reconstruction", "token_clustering", "cls_clustering", "set_alignment", "cls_masked", "cls_local",
    "koleo_image", "koleo_masked",
)  # fmt: skip


def contradictions(config: ConfigDict, devices: int, backend: str) -> Iterator[str]:
    """Yield one sentence per contradiction between settings; the arguments are those of `settings.check`."""
    yield from of_model(config)
    yield from _said(config, _of_training(config, devices))
    yield from _said(config, _of_computation(config, backend))
    yield from _said(config, _of_evaluation(config))


def of_model(config: ConfigDict) -> Iterator[str]:
    """Yield one sentence per contradiction within config.model; every setting must be in its range."""
    return _said(config, _of_model(config.model))


def _said(config: ConfigDict, sentences: Iterator[str]) -> Iterator[str]:
    """The sentences with {model.patch} replaced by config.model.patch=16, and so on."""

    def setting(match: re.Match) -> str:
        value = functools.reduce(operator.getitem, match[1].split("."), config)
        return f"config.{match[1]}={value if isinstance(value, str) and value else shown(value)}"

    return (re.sub(r"\{([a-z_.]+)\}", setting, sentence) for sentence in sentences)


def _of_model(m: ConfigDict) -> Iterator[str]:
    if m.image_size % m.patch:
        yield "{model.image_size} is not a multiple of {model.patch}; choose a multiple"
    yield from _of_transformer(m, "model")
    yield from _of_transformer(m.decoder, "model.decoder", decodes=True)


def _of_transformer(part: ConfigDict, name: str, decodes: bool = False) -> Iterator[str]:
    if part.width % part.heads:
        yield f"{{{name}.width}} is not a multiple of its heads ({part.heads}); change one"
    if decodes and part.width % 2:
        yield f"{{{name}.width}} is odd; its position code needs an even one"


def _of_training(config: ConfigDict, devices: int) -> Iterator[str]:
    m, t, v, o = config.model, config.train, config.views, config.optimizer
    if m.tokens < 2 and (config.loss.koleo_image or config.loss.koleo_masked):
        yield "KoLeo needs two tokens; set config.loss.koleo_image and koleo_masked to 0, or add tokens"
    if config.teacher.enabled and v.global_count < 2:
        yield "the teacher sees the second global view; set config.views.global_count to at least 2"
    if not v.local_count and config.loss.cls_local:
        yield "{loss.cls_local} needs local views; set it to 0, or config.views.local_count above 0"
    parts = config.efficiency.microbatches
    if t.batch % (devices * parts):
        what = f"devices x config.efficiency.microbatches ({devices} x {parts})"
        yield f"{{train.batch}} is not a multiple of {what}; choose a multiple"
    if config.finetune.mixup and t.batch % (2 * parts):
        what = "{train.batch} / {efficiency.microbatches} is odd"
        yield f"config.finetune.mixup blends images half a batch apart, and {what}; make it even"
    if not any(config.loss[name] for name in TERMS):
        yield "every weight of config.loss is 0, so nothing would be trained; raise one"
    if v.local_count and v.local_size < m.patch:
        yield "{views.local_size} is smaller than a patch ({model.patch}); enlarge it, or drop local views"
    if o.schedule == "cosine" and o.final_lr > o.peak_lr:
        yield "{optimizer.final_lr} is above {optimizer.peak_lr}, so the rate would rise; lower it"
    patches = (m.image_size // m.patch) ** 2
    if int((1 - v.masking_ratio) * patches) < 1:
        yield f"{{views.masking_ratio}} leaves none of {patches} patches visible; lower it"
    if o.schedule == "cosine" and round(o.warmup * t.steps) >= t.steps:
        yield (
            "{optimizer.warmup} of {train.steps} leaves no step after the warm-up; lower it, or set "
            "config.optimizer.schedule to 'constant'"
        )


def _of_computation(config: ConfigDict, backend: str) -> Iterator[str]:
    e, prototypes = config.efficiency, config.model.prototypes.count
    if not re.fullmatch(
        r"scenes|pictures|folder|packed|object|tfds:\S+|(table|webdataset|hf):.*\S.*", config.data.source
    ):
        yield (
            "{data.source} is unknown; use 'scenes', 'pictures', 'folder', 'packed', 'table:<file>', "
            "'webdataset:<pattern>', 'hf:<name or path>' or 'tfds:<name>'"
        )
    if config.data.canvas < config.model.patch:
        yield "{data.canvas} is smaller than a patch ({model.patch}); enlarge it"
    wrong = [f"has {size}, which is not a number of devices" for size in e.mesh if size == 0 or size < -1]
    if wrong or e.mesh[0] == e.mesh[1] == -1:
        what = wrong[0] if wrong else "has -1 twice"
        remedy = "give two numbers whose product is the number of devices, or -1 for one of them"
        yield f"{{efficiency.mesh}} {what}; {remedy}"
    if e.attention != "xla" and e.dtype == "float32":
        yield (
            "{efficiency.attention} does not support float32; set config.efficiency.dtype=bfloat16 or "
            "attention=xla"
        )
    if e.attention != "xla" and backend not in ("gpu", ""):
        yield (
            f"{{efficiency.attention}} needs an NVIDIA GPU and JAX runs on {backend!r}; set "
            "config.efficiency.attention=xla, or install jax[cuda13]"
        )
    if prototypes > e.prototype_chunk and prototypes % e.prototype_chunk:
        fitting = -(-prototypes // e.prototype_chunk) * e.prototype_chunk
        what = "{model.prototypes.count} is not a multiple of {efficiency.prototype_chunk}"
        yield f"{what}; use e.g. count={fitting}, or a chunk that divides the count"


def _of_evaluation(config: ConfigDict) -> Iterator[str]:
    e = config.eval
    yield from _of_transformer(e.reconstruction_probe, "eval.reconstruction_probe", decodes=True)
    if (e.train_split == e.test_split) != bool(e.holdout):
        yield (
            "{eval.holdout} does not fit {eval.train_split} and {eval.test_split}; it must be above 0, "
            "e.g. 0.2, if the two are the same split, and 0 otherwise"
        )
    for row in e.expected:
        texts, figures = row[:3], row[3:]
        right = len(row) == 5 and all(isinstance(x, str) for x in texts) and all(map(fits, figures))
        if not right or row[0] not in e.tasks or row[4] < 0:
            yield (
                f"config.eval.expected has the row {shown(row)}; write (task, what is measured, metric, "
                "figure, tolerance), the task one of config.eval.tasks"
            )
    if bool(e.masks) != bool(e.mask_classes):
        yield (
            "{eval.masks} and {eval.mask_classes} belong together; give both (the folder, and the number "
            "of classes in its label maps) or neither"
        )
    for name in ("tasks", "beside"):
        if len(set(e[name])) < len(e[name]):
            yield f"{{eval.{name}}} repeats a name; give each name once, e.g. ('knn', 'linear')"
    if e.reconstruction_probe.target == "vq" and not config.model.tokenizer.path:
        yield (
            "{eval.reconstruction_probe.target} needs a VQ tokenizer; give "
            "--config.model.tokenizer.path=FILE, or set the target to pixel"
        )
