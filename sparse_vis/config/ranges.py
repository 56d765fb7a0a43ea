"""The allowed values of every setting of defaults.py, in one table.

Configurations, manifests of released models and dataclasses built from settings are checked against it. Every
entry has two methods: `kind(value)` checks the type, `fault(value)` type and range. Both return "" if the
value is right, else the end of a sentence that says what is wrong and how to correct it. Values may come from
JSON, where tuples are lists.
"""

import numbers
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.tools import LARGEST_SIDE as SIDE

MOST = 2**31 - 1  # largest int32


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, compared after rounding to float32.

    Attributes:
        above: whether low is excluded. below: whether high is excluded.
        whole: only whole numbers, which are not rounded. pair: two such numbers, the smaller first.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    whole: bool = False
    pair: bool = False

    def kind(self, value: Any) -> str:
        if self.pair:
            right = isinstance(value, tuple | list) and len(value) == 2 and all(map(fits, value))
            return "" if right else "is not a pair of numbers; write it like (0.5, 1.0)"
        if self.whole:
            return "" if is_whole(value) else "is not a whole number; give one"
        return "" if fits(value) else "is not a finite float32 number; give one"

    def fault(self, value: Any) -> str:
        if kind := self.kind(value):
            return kind
        for number in value if self.pair else (value,):
            # A number that rounds to an end in float32 equals that end in all computations.
            x, low, high = (n if self.whole else single(n) for n in (number, self.low, self.high))
            if x < low or (self.above and x == low):
                return f"is too small; it must be {'above' if self.above else 'at least'} {self.low:.15g}"
            if x > high or (self.below and x == high):
                return f"is too large; it must be {'below' if self.below else 'at most'} {self.high:.15g}"
        return "has its larger number first; swap the two" if self.pair and value[0] > value[1] else ""


def real(interval: str, **more) -> Range:
    """Numbers in an interval, written like "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    return Range(low, high, interval[0] == "(", interval[-1] == ")", **more)


pair = partial(real, pair=True)


def whole(low: int, high: int = MOST) -> Range:
    """Whole numbers from low to high."""
    return Range(low, high, whole=True)


class Choice(tuple):
    """One of several strings."""

    def __new__(cls, *words: str):
        return super().__new__(cls, words)

    def kind(self, value: Any) -> str:
        return self.fault(self[0] if isinstance(value, str) else None)

    def fault(self, value: Any) -> str:
        right = isinstance(value, str) and value in self
        return "" if right else f"is unknown; use {' or '.join(map(repr, self))}"


@dataclass(frozen=True)
class Form:
    """Values that pass the test `right`; `wrong` is what `kind` and `fault` return for others."""

    right: Callable[[Any], bool]
    wrong: str

    def kind(self, value: Any) -> str:
        return "" if self.right(value) else self.wrong

    fault = kind


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; booleans are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def fits(value: Any) -> bool:
    """Whether a value is a number that float32 can hold; NaN, infinities and booleans are not."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and abs(single(value)) < float("inf")


def single(number: float) -> float:
    """The nearest float32; beyond the largest, infinity with the number's sign."""
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except (OverflowError, struct.error):  # struct.error: an int beyond float64
        return float("inf") if number > 0 else float("-inf")


def shown(value: Any) -> str:
    """A value for a message, shortened if it is long; whole floats without .0."""
    if isinstance(value, float) and value.is_integer():
        return f"{value:.15g}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…"


def _sequence(right: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, tuple | list) and length in (None, len(x)) and all(map(right, x))


TEXT = Form(lambda x: isinstance(x, str), "is not a string; write it in quotes")
FLAG = Form(lambda x: isinstance(x, bool), "is neither True nor False; write one of them")
NAMES = Form(_sequence(TEXT.right), "is not a list of names; write it like ('knn', 'linear')")
ROWS = Form(
    _sequence(lambda row: isinstance(row, tuple | list)),
    "is not a list of rows; write ((task, what is measured, metric, figure, tolerance), ...)",
)
TRACKERS = Form(
    lambda names: _sequence(lambda x: x in ("wandb", "mlflow"))(names) and len(set(names)) == len(names),
    "is not a list of trackers; write it like ('wandb', 'mlflow')",
)
MESH = Form(_sequence(is_whole, 2), "is not a pair of whole numbers; write it like (-1, 1)")
DTYPES = Choice("float32", "bfloat16", "float16")
_SHARE, _WEIGHT, _TEMPERATURE = real("[0, 1]"), real("[0, 1e6]"), real("[1e-4, 1e4]")
_RATE, _DECAY, _MEMORY = real("(0, 10]"), real("[0, 100]"), real("[0, 1)")
_CLIP = real("(0, 1e30]")  # global gradient norm
_COUNT, _SEED = whole(1), whole(0, 2**32 - 1)
_BATCH, _WIDTH, _LAYERS = whole(1, 2**20), whole(1, 2**18), whole(1, 1024)
_TRANSFORMER = {"width": _WIDTH, "layers": _LAYERS, "heads": _LAYERS, "mlp_dim": _WIDTH}

# In the order of defaults.py.
_TABLE = {
    "name": TEXT, "seed": _SEED, "init": TEXT, "init_name": TEXT, "init_heads": Choice("keep", "fresh"),
    "model": {
        "image_size": whole(5, SIDE), "patch": whole(1, 1024), **_TRANSFORMER,
        "tokens": whole(1, 2**16), "init_std": real("[1e-6, 10]"), "norm_epsilon": real("(0, 1e-2]"),
        "spatial_temperature": _TEMPERATURE,
        "target": Choice("pixel", "vq"), "decoder": _TRANSFORMER,
        "prototypes": {"count": whole(1, 2**24), "dim": _WIDTH, "hidden": _WIDTH},
        "tokenizer": {"path": TEXT, "codes": whole(1, 2**24), "dtype": DTYPES},
    },
    "loss": {
        "reconstruction": _WEIGHT, "token_clustering": _WEIGHT, "cls_clustering": _WEIGHT,
        "set_alignment": _WEIGHT, "cls_masked": _WEIGHT, "cls_local": _WEIGHT, "koleo_image": _WEIGHT,
        "koleo_masked": _WEIGHT, "student_temperature": _TEMPERATURE,
        "sinkhorn_temperature": _TEMPERATURE, "sinkhorn_iterations": whole(0, 1000),
        "sinkhorn_epsilon": _SHARE, "balance_over": Choice("batch", "microbatch"),
        "matching": Choice("entropic", "exact"), "match_epsilon": _TEMPERATURE,
        "match_iterations": whole(1, 1000),
    },
    "views": {
        # local_size: the blur reflects four pixels at the border.
        "global_count": whole(1, 1024), "global_scale": pair("(0, 1]"), "local_count": whole(0, 1024),
        "local_size": whole(5, SIDE), "local_scale": pair("(0, 1]"), "aspect": pair("[0.01, 100]"),
        "flip_probability": _SHARE, "colour_per": Choice("view", "batch"), "jitter_probability": _SHARE,
        "brightness": _SHARE, "contrast": _SHARE, "saturation": _SHARE, "hue": real("[0, 0.5]"),
        "grey_probability": _SHARE, "blur_probability": _SHARE, "blur_sigma": pair("[0.01, 100]"),
        "masking_ratio": _MEMORY, "mask_kind": Choice("gaussian", "uniform", "block"),
        "focus_probability": _SHARE,
    },
    "teacher": {"enabled": FLAG, "momentum": _SHARE, "final_momentum": _SHARE},
    "data": {
        "source": TEXT, "path": TEXT, "split": TEXT, "canvas": whole(1, SIDE),
        "max_pixels": whole(1, 2**31 - 1), "on_error": Choice("stop", "skip"), "workers": whole(0, 1024),
        "threads": whole(1, 1024), "cache": whole(0, 2**20), "seed": _SEED,
        "scenes": {
            # Digits are illegible below 24 pixels.
            "size": whole(24, SIDE), "digits": Choice("many", "one"), "colours": Choice("random", "white"),
            "max_digits": whole(1, 4), "digit_scale": pair("[0.3, 0.9]"),
            "train_records": _COUNT, "eval_records": _COUNT,
        },
        "pictures": {
            "size": whole(24, SIDE), "photographs": _SHARE, "plain": _SHARE, "max_objects": whole(1, 4),
            "object_scale": pair("[0.1, 1]"), "train_records": _COUNT, "eval_records": _COUNT,
        },
    },
    "optimizer": {
        "peak_lr": _RATE, "final_lr": real("[0, 10]"), "warmup": _MEMORY,
        "schedule": Choice("cosine", "constant"), "weight_decay": _DECAY, "b1": _MEMORY, "b2": _MEMORY,
        "clip": _CLIP,
    },
    "train": {
        "batch": _BATCH, "steps": _COUNT, "log_every": _COUNT, "save_every": _COUNT,
        "health_every": whole(0), "probe_every": whole(0), "probe_images": _COUNT, "trackers": TRACKERS,
        "keep": _COUNT, "max_bad_steps": _COUNT,
    },
    "finetune": {
        "classes": NAMES, "pool": Choice("mean_S", "cls", "concat_S"), "layer_decay": real("(0, 1]"),
        "label_smoothing": _MEMORY, "mixup": real("[0, 100]"),
    },
    "efficiency": {
        "dtype": DTYPES, "remat": Choice("none", "products", "blocks"), "unroll": _LAYERS,
        "attention": Choice("xla", "cudnn", "pallas"), "microbatches": _BATCH, "mesh": MESH,
        "prototype_chunk": whole(1, 2**24),
    },
    "eval": {
        "tasks": NAMES, "beside": NAMES, "train_split": TEXT, "test_split": TEXT, "holdout": _MEMORY,
        "train_records": whole(0), "test_records": whole(0), "batch": _BATCH, "dtype": DTYPES,
        "seed": _SEED, "masks": TEXT, "mask_classes": whole(0, 255), "mask_shift": whole(-1, 0),
        "short_side": real("[1, 4]"), "resize": Choice("antialiased", "published"), "expected": ROWS,
        "inception": TEXT,
        "lpips": {"alexnet": TEXT, "heads": TEXT},
        "reconstruction_probe": {
            "target": Choice("pixel", "vq"), "learning_rate": _RATE, "weight_decay": _DECAY, "clip": _CLIP,
            "batch_size": _BATCH, "epochs": _COUNT, "validation": _MEMORY, "scale": pair("(0, 1]"),
            **_TRANSFORMER,
        },
        "segmentation": {"batch": _BATCH, "epochs": _COUNT, "scale": pair("(0, 1]")},
        "linear_published": {
            "learning_rate": _RATE, "weight_decay": _DECAY, "clip": _CLIP, "batch_size": _BATCH,
            "epochs": _COUNT, "validation": _MEMORY, "scale": pair("(0, 1]"),
        },
    },
}  # fmt: skip


def leaves(sections: Mapping, prefix: str = "") -> dict:
    """Dotted name -> value of every setting, of nested dictionaries or a ConfigDict."""
    found = {}
    for name, value in sections.items():
        nested = hasattr(value, "items")
        found |= leaves(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


ALLOWED: dict[str, Range | Choice | Form] = leaves(_TABLE)  # by the setting's dotted name


def check_fields(section: str, values: dict) -> None:
    """Raise UserError for the first value out of range; ignores names that the (dotted) section lacks."""
    for name, value in values.items():
        allowed = ALLOWED.get(f"{section}.{name}")
        if allowed and (sentence := allowed.fault(value)):
            raise UserError(f"{section}.{name}={shown(value)} {sentence}.")
