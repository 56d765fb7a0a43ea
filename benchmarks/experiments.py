"""The experiments behind docs/results.md: groups of rows, each a configuration and what it changes."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
        config: file of configs/. settings: dotted name -> value, as in --config.NAME=VALUE.
        shown: encoders measured beside the run's own that get a row too.
    """

    config: str
    settings: dict = dataclasses.field(default_factory=dict)
    shown: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Column:
    """A number of a result: its title, its path in the result file (ENCODER is the row's), its digits."""

    title: str
    path: str
    digits: int = 3


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that stand in one table."""

    title: str
    columns: tuple[Column, ...]
    rows: dict[str, Row]


def metric(title: str, path: str, digits: int = 3) -> Column:
    return Column(title, f"metrics/ENCODER/{path}", digits)


KNN = metric("kNN mean S", "knn/mean_S/k20")
LINEAR = metric("linear mean S", "linear/mean_S/accuracy")
CLS = metric("linear CLS", "linear/cls/accuracy")
DENSE = metric("linear mean U", "linear/mean_U/accuracy")
PSNR = metric("PSNR", "reconstruction/decoder/psnr", 2)
IOU = metric("best-token IoU", "localization/L/best_iou")
ARI = metric("FG-ARI", "localization/L/fg_ari")
RECALL = metric("recall@1", "retrieval/mean_S/recall1")
USAGE = Column("prototypes used", "health/health/prototype_usage")
CHANGED = Column("matches changed", "health/health/match_changed")

# What each ablation of the paper takes away; weights of zero cost nothing.
NO_CLS = {f"loss.{name}": 0.0 for name in ("cls_clustering", "cls_masked", "cls_local")}
NO_ALIGNMENT = {f"loss.{name}": 0.0 for name in ("set_alignment", "cls_masked", "cls_local")}
NO_CLUSTERING = {"loss.token_clustering": 0.0, "loss.cls_clustering": 0.0}
NO_KOLEO = {"loss.koleo_image": 0.0, "loss.koleo_masked": 0.0}
NO_SETS = {"loss.token_clustering": 0.0, "loss.set_alignment": 0.0, **NO_KOLEO}
ONLY_PIXELS = {**NO_CLUSTERING, **NO_ALIGNMENT, **NO_KOLEO}


def digits(**settings) -> Row:
    return Row("configs/digits.py", {name.replace("__", "."): value for name, value in settings.items()})


def changed(settings: dict) -> Row:
    return Row("configs/digits.py", settings)


GROUPS = {
    "semantics": Group(
        "recipes that learn classes from random initialisation",
        (KNN, LINEAR, CLS, DENSE, PSNR, IOU, USAGE),
        {
            "digits": Row("configs/digits.py", shown=("untrained", "pixels")),
        },
    ),
    "ablations": Group(
        "what each part of the method is for, on centred digits",
        (KNN, LINEAR, PSNR, IOU, USAGE, CHANGED),
        {
            "full": changed({}),
            "without reconstruction": changed({"loss.reconstruction": 0.0}),
            "without clustering": changed(NO_CLUSTERING),
            "softmax targets": changed({"loss.sinkhorn_iterations": 0}),
            "without alignment": changed(NO_ALIGNMENT),
            "without KoLeo": changed(NO_KOLEO),
            "without CLS terms": changed(NO_CLS),
            "reconstruction only": changed(ONLY_PIXELS),
            "clustering only": changed({"loss.reconstruction": 0.0, **NO_KOLEO, **NO_ALIGNMENT}),
            "r = 1": changed({"model.tokens": 1, **NO_KOLEO}),
            "r = 8": changed({"model.tokens": 8}),
            "r = 16": changed({"model.tokens": 16}),
            "exact matching": changed({"loss.matching": "exact"}),
        },
    ),
}
