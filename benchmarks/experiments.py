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
    """A number of a result: its title, its keys in the result file, its digits.

    Attributes:
        path: of an evaluation (task, what was measured, metric), or ("health", measure).
    """

    title: str
    path: tuple[str, ...]
    digits: int = 3


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that stand in one table."""

    title: str
    columns: tuple[Column, ...]
    rows: dict[str, Row]


KNN = Column("kNN mean S", ("knn", "mean_S", "k20"))
LINEAR = Column("linear mean S", ("linear", "mean_S", "accuracy"))
CLS = Column("linear CLS", ("linear", "cls", "accuracy"))
DENSE = Column("linear mean U", ("linear", "mean_U", "accuracy"))
PSNR = Column("PSNR", ("reconstruction", "", "psnr"), 2)
IOU = Column("best-token IoU", ("localization", "", "best_iou"))
ARI = Column("FG-ARI", ("localization", "", "fg_ari"))
USAGE = Column("prototypes used", ("health", "prototype_usage"))
CHANGED = Column("matches changed", ("health", "match_changed"))

# What each ablation of the paper takes away; weights of zero cost nothing.
NO_CLS = {f"loss.{name}": 0.0 for name in ("cls_clustering", "cls_masked", "cls_local")}
NO_ALIGNMENT = {f"loss.{name}": 0.0 for name in ("set_alignment", "cls_masked", "cls_local")}
NO_CLUSTERING = {"loss.token_clustering": 0.0, "loss.cls_clustering": 0.0}
NO_KOLEO = {"loss.koleo_image": 0.0, "loss.koleo_masked": 0.0}
ONLY_PIXELS = {**NO_CLUSTERING, **NO_ALIGNMENT, **NO_KOLEO}


def changed(settings: dict) -> Row:
    """The recipe of configs/digits.py with some settings changed."""
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
