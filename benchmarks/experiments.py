"""The experiments behind docs/results.md: groups of rows, each a configuration and what it changes."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
        config: file of configs/. settings: dotted name -> value, as in --config.NAME=VALUE.
        beside: rows of the same group whose models, of the same seed, are measured in this row's run too.
        shown: encoders measured beside the run's own, rows of `beside` included, that get a row in the table.
    """

    config: str
    settings: dict = dataclasses.field(default_factory=dict)
    beside: tuple[str, ...] = ()
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
MEAN_U = Column("linear mean U", ("linear", "mean_U", "accuracy"))
RECALL1 = Column("recall@1", ("retrieval", "mean_S", "recall1"))
RECALL5 = Column("recall@5", ("retrieval", "mean_S", "recall5"))
PSNR = Column("PSNR", ("reconstruction", "", "psnr"), 2)
IOU = Column("best-token IoU", ("localization", "", "best_iou"))
ARI = Column("FG-ARI", ("localization", "", "fg_ari"))
USAGE = Column("prototypes used", ("health", "prototype_usage"))
CHANGED = Column("matches changed", ("health", "match_changed"))
RANK = Column("rank of S in an image", ("health", "S_rank_in_image"))
SPREAD = Column("spread of CLS", ("health", "cls_spread"))

# What each ablation of the paper takes away; weights of zero cost nothing.
NO_CLS = {f"loss.{name}": 0.0 for name in ("cls_clustering", "cls_masked")}
NO_ALIGNMENT = {f"loss.{name}": 0.0 for name in ("set_alignment", "cls_masked")}
NO_CLUSTERING = {"loss.token_clustering": 0.0, "loss.cls_clustering": 0.0}
NO_KOLEO = {"loss.koleo_image": 0.0, "loss.koleo_masked": 0.0}
ONLY_PIXELS = {**NO_CLUSTERING, **NO_ALIGNMENT, **NO_KOLEO}

# Baselines: hidden patches from those that are seen; an autoencoder of U with class tokens, without S and L.
MAE_STYLE = {
    **ONLY_PIXELS,
    **NO_CLS,
    "loss.reconstruction": 0.0,
    "loss.inpainting": 10.0,
    "model.bottleneck": "dense",
}
DENSE = {"loss.token_clustering": 0.0, "loss.set_alignment": 0.0, "model.bottleneck": "dense"}

# Ablations are short, and have the published terms that one token alone has no use for.
ABLATION = {
    "model.tokens": 4,
    "loss.koleo_image": 0.1,
    "loss.koleo_masked": 0.1,
    "train.steps": 300,
    "train.log_every": 50,
    "train.health_every": 50,
    "eval.beside": (),
}
SMALL = {"eval.beside": (), "train.log_every": 50, "train.health_every": 50}
UNCENTRED = {"data.scenes.digits": "many", "data.scenes.max_digits": 1, "data.scenes.digit_scale": (0.5, 0.7)}


def compared(config: str, title: str) -> dict[str, Row]:
    """The method and two models of equal budget without factorization; the last run measures all of them."""
    mae, dense = f"{title} MAE-style", f"{title} dense tokens"
    return {
        title: Row(config, shown=("untrained", "pixels", "pca")),
        mae: Row(config, {**MAE_STYLE, "eval.beside": ()}),
        dense: Row(config, {**DENSE, "eval.beside": ("untrained", "pixels", "pca")}, beside=(title, mae)),
    }


def changed(settings: dict) -> Row:
    """A short run of configs/digits.py with four tokens and some settings changed."""
    return Row("configs/digits.py", {**ABLATION, **settings})


def batch(images: int, steps: int) -> Row:
    """A run of configs/digits.py with another batch."""
    return Row("configs/digits.py", {**SMALL, "train.batch": images, "train.steps": steps})


GROUPS = {
    "semantics": Group(
        "classes from random initialisation: digits",
        (KNN, LINEAR, CLS, MEAN_U, PSNR, IOU, USAGE),
        {
            "uncentred": Row("configs/digits.py", UNCENTRED, shown=("untrained", "pixels", "pca")),
            **compared("configs/digits.py", "centred"),
        },
    ),
    "clipart": Group(
        "drawings by folder name",
        (KNN, LINEAR, CLS, MEAN_U, RECALL1, RECALL5, PSNR, USAGE),
        compared("configs/clipart.py", "drawings"),
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
    "batches": Group(
        "small batches: does anything collapse?",
        (KNN, LINEAR, PSNR, USAGE, RANK, SPREAD),
        {"16": batch(16, 600), "64": batch(64, 300), "256": batch(256, 150)},
    ),
}
