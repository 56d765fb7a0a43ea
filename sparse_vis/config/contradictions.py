"""Find settings that are valid one by one but contradict each other."""

from __future__ import annotations

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
    """Yield one sentence per contradiction between settings.

    Args:
        config: complete, every setting in its range. devices, backend: as in `settings.check`.
    """
    m, e = config.model, config.efficiency
    yield from of_model(m)
    yield from _of_transformer(config.eval.reconstruction_probe, "eval.reconstruction_probe", decodes=True)
    yield from _of_training(config, devices)
    known = config.data.source in ("scenes", "folder", "packed")
    if not known and not re.fullmatch(r"tfds:\S+", config.data.source):
        yield (
            f"config.data.source={config.data.source!r} is unknown; use 'scenes', 'folder', 'packed' or "
            "'tfds:<name>'"
        )
    if config.data.canvas < m.patch:
        yield f"config.data.canvas={config.data.canvas} is smaller than a patch ({m.patch} px); enlarge it"
    wrong = next((size for size in e.mesh if size == 0 or size < -1), None)
    if wrong is not None or e.mesh[0] == e.mesh[1] == -1:
        what = "leaves both numbers open" if wrong is None else f"has {wrong}, which is no number of devices"
        yield (
            f"config.efficiency.mesh={tuple(e.mesh)} {what}; give two numbers of devices whose "
            "product is all of them, or -1 for one of the two"
        )
    if e.attention != "xla" and e.dtype == "float32":
        yield (
            f"config.efficiency.attention={e.attention} has no float32; set "
            "config.efficiency.dtype=bfloat16, or attention=xla"
        )
    if e.attention != "xla" and backend not in ("gpu", ""):
        yield (
            f"config.efficiency.attention={e.attention} needs an NVIDIA GPU and JAX runs on {backend!r}; set "
            "config.efficiency.attention=xla, or install jax[cuda13]"
        )
    chunks = -(-m.prototypes.count // e.prototype_chunk)
    if chunks > 1 and m.prototypes.count % e.prototype_chunk:
        yield (
            f"config.model.prototypes.count={m.prototypes.count} is no multiple of "
            f"config.efficiency.prototype_chunk={e.prototype_chunk}; choose one, e.g. "
            f"{chunks * e.prototype_chunk}, or a chunk that divides it"
        )
    yield from _of_evaluation(config.eval)
    if config.eval.reconstruction_probe.target == "vq" and not m.tokenizer.path:
        yield (
            "config.eval.reconstruction_probe.target=vq needs the codes of a tokenizer; give "
            "--config.model.tokenizer.path=FILE, or set the target to pixel"
        )


def of_model(m: ConfigDict) -> Iterator[str]:
    """Yield one sentence per contradiction within config.model; every setting must be in its range."""
    if m.image_size % m.patch:
        yield (
            f"config.model.image_size={m.image_size} is no multiple of config.model.patch={m.patch}; "
            "choose one that is"
        )
    yield from _of_transformer(m, "model")
    yield from _of_transformer(m.decoder, "model.decoder", decodes=True)


def _of_transformer(part: ConfigDict, name: str, decodes: bool = False) -> Iterator[str]:
    if part.width % part.heads:
        yield f"config.{name}.width={part.width} is no multiple of its heads ({part.heads}); change one"
    if decodes and part.width % 2:
        yield f"config.{name}.width={part.width} is odd; its position code needs an even one"


def _of_training(config: ConfigDict, devices: int) -> Iterator[str]:
    m, t, v, o = config.model, config.train, config.views, config.optimizer
    if m.tokens < 2 and (config.loss.koleo_image or config.loss.koleo_masked):
        yield "KoLeo needs two tokens; set config.loss.koleo_image and koleo_masked to 0, or add tokens"
    if config.teacher.enabled and v.global_count < 2:
        yield "the teacher sees the second global view; set config.views.global_count to at least 2"
    if not v.local_count and config.loss.cls_local:
        yield "config.loss.cls_local needs local views; set config.views.local_count above 0, or it to 0"
    if t.batch % (devices * config.efficiency.microbatches):
        yield (
            f"config.train.batch={t.batch} is no multiple of devices x config.efficiency.microbatches "
            f"({devices} x {config.efficiency.microbatches}); choose one that is"
        )
    if not any(config.loss[name] for name in TERMS):
        yield "every weight of config.loss is 0, so that nothing would be trained; raise one"
    if v.local_count and v.local_size < m.patch:
        yield (
            f"config.views.local_size={v.local_size} is smaller than a patch ({m.patch} px); enlarge it, or "
            "set config.views.local_count to 0"
        )
    if o.schedule == "cosine" and o.final_lr > o.peak_lr:
        yield (
            f"config.optimizer.final_lr={shown(o.final_lr)} is above peak_lr={shown(o.peak_lr)}, so that the "
            "rate would rise; lower it"
        )
    patches = (m.image_size // m.patch) ** 2
    if int((1 - v.masking_ratio) * patches) < 1:
        yield (
            f"config.views.masking_ratio={shown(v.masking_ratio)} leaves none of {patches} patches visible; "
            "lower it"
        )
    if o.schedule == "cosine" and round(o.warmup * t.steps) >= t.steps:
        yield (
            f"config.optimizer.warmup={shown(o.warmup)} of config.train.steps={t.steps} leaves no step after "
            "the warm-up; lower it, or set config.optimizer.schedule to 'constant'"
        )


def _of_evaluation(e: ConfigDict) -> Iterator[str]:
    """Yield one sentence per contradiction within config.eval."""
    same = e.train_split == e.test_split
    if same != bool(e.holdout):
        yield (
            f"config.eval.holdout={shown(e.holdout)} with train_split={e.train_split!r} and test_split="
            f"{e.test_split!r}: hold a share out, e.g. 0.2, where both are the same, and only there"
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
            f"config.eval.masks={e.masks!r} and mask_classes={e.mask_classes} do not fit: give both, the "
            "folder and the number of classes in its label maps, or neither"
        )
    for name in ("tasks", "beside"):
        if len(set(e[name])) < len(e[name]):
            yield f"config.eval.{name}={e[name]} is wrong; give different names, e.g. ('knn', 'linear')"
