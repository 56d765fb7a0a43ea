"""Checks of a configuration before any long work starts, and its way to and from disk."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from sparse_vis.config import default_config
from sparse_vis.errors import UserError

LARGEST = 3.4e38  # of float32, in which everything is computed
DTYPES = ("float32", "bfloat16", "float16")
AT_LEAST_ONE = (
    *(f"model.{name}" for name in ("image_size", "patch", "width", "layers", "heads", "mlp_dim", "tokens")),
    *(f"model.decoder.{name}" for name in ("width", "layers", "heads", "mlp_dim")),
    *(f"model.prototypes.{name}" for name in ("count", "dim", "hidden")),
    *(f"train.{name}" for name in ("batch", "steps", "log_every", "save_every", "keep", "max_bad_steps")),
    *(f"eval.{name}" for name in ("batch", "segmentation.batch", "segmentation.epochs")),
    *(f"eval.linear_published.{name}" for name in ("batch_size", "epochs")),
    *(
        f"eval.reconstruction_probe.{name}"
        for name in ("batch_size", "epochs", "width", "layers", "heads", "mlp_dim")
    ),
    *(f"efficiency.{name}" for name in ("microbatches", "unroll", "prototype_chunk")),
    "data.canvas",
)  # fmt: skip
NOT_NEGATIVE = (
    "train.health_every", "data.workers", "data.threads", "loss.sinkhorn_iterations", "loss.sinkhorn_epsilon",
    "seed", "data.seed", "eval.seed", "eval.train_records", "eval.test_records", "eval.holdout",
)  # fmt: skip
CHOICES = {
    "model.target": ("pixel", "vq"),
    "model.bottleneck": ("factors", "dense"),
    "loss.matching": ("entropic", "exact"),
    "loss.balance_over": ("batch", "microbatch"),
    "data.on_error": ("stop", "substitute"),
    "optimizer.schedule": ("cosine", "constant"),
    "efficiency.dtype": DTYPES,
    "eval.dtype": DTYPES,
    "eval.resize": ("antialiased", "published"),
    "eval.mask_shift": (0, -1),
    "eval.reconstruction_probe.target": ("pixel", "vq"),
    "efficiency.attention": ("xla", "cudnn", "pallas"),
    "efficiency.remat": ("none", "products", "blocks"),
}

# What settings of earlier versions are called now.
FORMER = {"efficiency.remat": {False: "none", True: "blocks"}}


def check(config: ConfigDict, devices: int = 1, backend: str = "") -> None:
    """Refuse settings that cannot work together.

    Args:
        config: complete configuration. devices: of all processes of the run.
        backend: jax.default_backend(), where the run's is known.

    Raises:
        UserError: names the settings and a remedy.
    """
    # In this order and lazily: later checks rely on what the earlier ones refuse.
    checks = itertools.chain(
        wrong_values(config), wrong_ranges(config), contradictions(config, devices, backend)
    )
    for sentence in checks:
        raise UserError(sentence + ".")


def at(config: ConfigDict, name: str):
    """The setting of a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def wrong_values(config: ConfigDict) -> Iterator[str]:
    """Numbers that float32 cannot hold, and tuples of another form than the default's."""
    defaults = leaves(default_config())
    for name, value in leaves(config).items():
        default, items = defaults.get(name), value if isinstance(value, tuple) else (value,)
        if isinstance(default, tuple) and default:
            numbers = all(isinstance(x, int | float) for x in items)
            if len(items) != len(default) or not numbers:
                yield f"config.{name}={value} is wrong; write it like the default, '{default}'"
        if any(isinstance(x, float) and not abs(x) < LARGEST for x in items):
            yield f"config.{name}={value} is no number that float32 can hold; choose a smaller one"


def wrong_ranges(config: ConfigDict) -> Iterator[str]:
    """Single settings outside their range."""
    for names, least in ((AT_LEAST_ONE, 1), (NOT_NEGATIVE, 0)):
        for name in names:
            if at(config, name) < least:
                yield f"config.{name}={at(config, name)} is too small; it must be at least {least}"
    if config.seed >= 2**32:
        yield f"config.seed={config.seed} is too large; it must be below 2**32"
    for name, choices in CHOICES.items():
        if at(config, name) not in choices:
            yield f"config.{name}={at(config, name)!r} is unknown; use {' or '.join(map(repr, choices))}"


def contradictions(config: ConfigDict, devices: int, backend: str) -> Iterator[str]:
    """Settings that exclude each other."""
    m, t, v, e = config.model, config.train, config.views, config.efficiency
    if m.image_size % m.patch:
        yield (
            f"config.model.image_size={m.image_size} is no multiple of config.model.patch={m.patch}; "
            "choose one that is"
        )
    decoders = {"model.decoder": m.decoder, "eval.reconstruction_probe": config.eval.reconstruction_probe}
    for name, part in {"model": m, **decoders}.items():
        if part.width % part.heads:
            yield f"config.{name}.width={part.width} is no multiple of its heads ({part.heads}); change one"
    if m.tokens < 2 and (config.loss.koleo_image or config.loss.koleo_masked):
        yield "KoLeo needs two tokens; set config.loss.koleo_image and koleo_masked to 0, or add tokens"
    if config.teacher.enabled and v.global_count < 2:
        yield "the teacher sees the second global view; set config.views.global_count to at least 2"
    if config.loss.inpainting and m.target != "pixel":
        yield "config.loss.inpainting needs pixels; set config.model.target=pixel, or it to 0"
    if not v.local_count and config.loss.cls_local:
        yield "config.loss.cls_local needs local views; set config.views.local_count above 0, or it to 0"
    if t.batch % (devices * e.microbatches):
        yield (
            f"config.train.batch={t.batch} is no multiple of devices x config.efficiency.microbatches "
            f"({devices} x {e.microbatches}); choose one that is"
        )
    if config.data.canvas < m.patch:
        yield f"config.data.canvas={config.data.canvas} is smaller than a patch ({m.patch} px); enlarge it"
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
    yield from contradictions_of_evaluation(config.eval)
    if config.eval.reconstruction_probe.target == "vq" and not m.tokenizer.path:
        yield (
            "config.eval.reconstruction_probe.target=vq needs the codes of a tokenizer; give "
            "--config.model.tokenizer.path=FILE, or set the target to pixel"
        )


def contradictions_of_evaluation(e: ConfigDict) -> Iterator[str]:
    """Settings of config.eval that exclude each other."""
    same = e.train_split == e.test_split
    if same != bool(e.holdout):
        yield (
            f"config.eval.holdout={e.holdout} with train_split={e.train_split!r} and test_split="
            f"{e.test_split!r}: hold a share out, e.g. 0.2, where both are the same, and only there"
        )
    for row in e.expected:
        if len(row) != 5 or row[0] not in e.tasks or not all(isinstance(x, int | float) for x in row[3:]):
            yield (
                f"config.eval.expected has the row {row}; write (task, what is measured, metric, figure, "
                "tolerance), the task one of config.eval.tasks"
            )
    if bool(e.masks) != bool(e.mask_classes):
        yield (
            f"config.eval.masks={e.masks!r} and mask_classes={e.mask_classes} do not fit: give both, the "
            "folder and the number of classes in its label maps, or neither"
        )
    if e.holdout >= 1:
        yield f"config.eval.holdout={e.holdout} leaves nothing for train; choose a share below 1, e.g. 0.2"
    for name in ("tasks", "beside"):
        if len(set(e[name])) < len(e[name]) or not all(isinstance(item, str) for item in e[name]):
            yield f"config.eval.{name}={e[name]} is wrong; give different names, e.g. ('knn', 'linear')"


def leaves(config: ConfigDict, prefix: str = "") -> dict:
    """Dotted name -> value of every setting."""
    found = {}
    for name, value in config.items():
        found |= (
            leaves(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name: value}
        )
    return found


def plain(config: ConfigDict) -> dict:
    """The configuration as JSON keeps it (tuples become lists)."""
    return json.loads(config.to_json())


def from_plain(plain: dict, source: pathlib.Path) -> ConfigDict:
    """A configuration from its JSON form, on top of the defaults, locked.

    Args:
        plain: nested dict. source: where it came from, for the message.

    Raises:
        UserError: it names a setting that this version does not know, or gives one a wrong type.
    """
    config = default_config()

    def fill(target: ConfigDict, values: dict, prefix: str) -> None:
        for name, value in values.items():
            if name not in target:
                raise UserError(
                    f"{source} has the setting {prefix}{name}, which this version does not know; "
                    "use the version that wrote it."
                )
            if isinstance(value, dict):
                fill(target[name], value, f"{prefix}{name}.")
            else:
                value = tuple(value) if isinstance(value, list) else value
                former = FORMER.get(prefix + name)
                target[name] = former.get(value, value) if former else value

    try:
        fill(config, plain, "")
    except (AttributeError, TypeError) as error:
        raise UserError(f"{source} is no configuration ({error}); restore it from a copy.") from None
    return config


def read(workdir: pathlib.Path) -> ConfigDict:
    """The configuration saved in a workdir.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        return from_plain(json.loads(path.read_text()), path)
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no config.json; start the run with --config=configs/NAME.py."
        ) from None
    except json.JSONDecodeError:
        raise UserError(f"{path} is no valid JSON; give --config=configs/NAME.py to replace it.") from None


def differences(saved: dict, now: dict, prefix: str = "") -> list[str]:
    """`name: saved -> now` of every setting that two configurations in JSON form do not share."""
    found = []
    for name in sorted(saved.keys() | now.keys()):
        a, b = saved.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b and not (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b)):
            found.append(f"{prefix}{name}: {a} -> {b}")
    return found


def check_resume(saved: dict, now: dict, workdir: pathlib.Path) -> list[str]:
    """Refuse to continue a workdir with another architecture; return the other differences.

    Args:
        saved, now: configurations in JSON form. workdir: for the message.

    Raises:
        UserError: config.model or the presence of a teacher differs.
    """
    # Where the tokenizer's file lies is no matter.
    changed = [line for line in differences(saved, now) if not line.startswith("model.tokenizer.path")]
    fatal = [line for line in changed if line.startswith(("model.", "teacher.enabled"))]
    if fatal:
        raise UserError(
            f"{workdir} was trained with another architecture ({'; '.join(fatal)}); "
            "use another --workdir, or the saved settings."
        )
    return [line for line in changed if not line.startswith(("efficiency.", "eval.", "name"))]
