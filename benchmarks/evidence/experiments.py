"""The experiments of docs/results.md and docs/small_experiments.md: groups of rows, each a configuration."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One experiment."""

    config: str  # file of configs/
    settings: dict = dataclasses.field(default_factory=dict)  # dotted name -> value, as --config.NAME=VALUE
    shown: tuple[str, ...] = ()  # encoders of config.eval.beside that get a row in the table too
    program: tuple[str, ...] = ("main.py",)  # with its flags


@dataclasses.dataclass(frozen=True)
class Column:
    """A number of a result."""

    title: str
    # Its keys in a result file: (task, what was measured, metric) or ("health", measure). If names are joined
    # by |, the first that a result has.
    path: tuple[str, ...]
    digits: int = 3


@dataclasses.dataclass(frozen=True)
class Group:
    """The rows of one table."""

    title: str
    columns: tuple[Column, ...]
    rows: dict[str, Row]


# Of mean S, or of mean U if an encoder has no S.
KNN = Column("kNN", ("knn", "mean_S|mean_U", "k20"))
LINEAR = Column("linear", ("linear", "mean_S|mean_U|cls_mean_U", "accuracy"))
CLS = Column("linear CLS", ("linear", "cls", "accuracy"))
CONCATENATED = Column("linear all of S", ("linear", "concat_S", "accuracy"))
CLS_U = Column("linear CLS and mean U", ("linear", "cls_mean_U", "accuracy"))
KNN_CLS = Column("kNN CLS", ("knn", "cls", "k20"))
KNN_U = Column("kNN mean U", ("knn", "mean_U", "k20"))
PSNR = Column("PSNR", ("reconstruction", "", "psnr"), 2)
NEW_DECODER = Column("PSNR, new decoder", ("reconstruction_probe", "Z, centre|U, centre", "psnr"), 2)
IOU = Column("best-token IoU", ("localization", "", "best_iou"))
ARI = Column("FG-ARI", ("localization", "", "fg_ari"))
USAGE = Column("prototypes used", ("health", "prototype_usage"))
CHANGED = Column("matches changed", ("health", "match_changed"))
RANK = Column("rank of S in an image", ("health", "S_rank_in_image"))
SPREAD = Column("spread of CLS", ("health", "cls_spread"))
SOFTNESS = Column("entropy of L", ("health", "L_entropy"))
COVERAGE = Column("tokens used", ("health", "L_coverage"))
SCENES = (
    Column("PSNR", ("scenes", "", "psnr"), 2),
    Column("FG-ARI", ("scenes", "", "fg_ari")),
    Column("best-token IoU", ("scenes", "", "best_iou")),
)


def factor(title: str, what: str, key: str = "value") -> Column:
    """A number of the task `factorization`."""
    return Column(title, ("factorization", what, key))


def rate(title: str, form: str, key: str) -> Column:
    """A PSNR of the task `rate`."""
    return Column(title, ("rate", form, key), 2)


FACTORIZATION = (
    *SCENES,
    factor("S of a view", "S of a view"),
    factor("(of another image)", "S of a view", "compared_with"),
    factor("L of a view", "L of a view"),
    factor("(L not warped)", "L of a view", "compared_with"),
    factor("position in S, R²", "position in S (R2)"),
    factor("class in L", "class in L"),
    factor("S after a swap", "S after a swapped token"),
    factor("(with the original S)", "S after a swapped token", "compared_with"),
    rate("PSNR, (S, L) in 1,168 bytes", "int8", "psnr_linear"),
    rate("PSNR, U in 1,152 bytes", "int8", "U_psnr_linear"),
    rate("PSNR, (S, L) in 4,096 bytes", "float32", "psnr_linear"),
    rate("PSNR, U in 4,096 bytes", "float32", "U_psnr_linear"),
)

# What each ablation of the paper removes.
NO_CLS = {f"loss.{name}": 0.0 for name in ("cls_clustering", "cls_masked")}
NO_ALIGNMENT = {f"loss.{name}": 0.0 for name in ("set_alignment", "cls_masked")}
NO_CLUSTERING = {"loss.token_clustering": 0.0, "loss.cls_clustering": 0.0}
ONLY_PIXELS = {**NO_CLUSTERING, **NO_ALIGNMENT}
ABLATIONS = {
    "without reconstruction": {"loss.reconstruction": 0.0},
    "without clustering": NO_CLUSTERING,
    "softmax targets": {"loss.sinkhorn_iterations": 0},
    "without alignment": NO_ALIGNMENT,
    "without CLS terms": NO_CLS,
    "reconstruction only": ONLY_PIXELS,
    "clustering only": {"loss.reconstruction": 0.0, **NO_ALIGNMENT},
}

OF_THE_PAPER = ("without clustering", "without alignment", "without reconstruction", "softmax targets")

# Baselines: reconstruction of hidden patches; an autoencoder of U with class tokens, without S and L.
MAE_STYLE = {**ONLY_PIXELS, **NO_CLS, "loss.reconstruction": 10.0, "eval.beside": ()}
DENSE = {"loss.token_clustering": 0.0, "loss.set_alignment": 0.0, "eval.beside": ()}

ALONE = ("untrained", "pixels", "pca")
# Of DINO; a quarter of the image's pixels each, so that objects are about as large as in global views.
LOCAL_VIEWS = {"views.local_count": 4, "views.local_size": 14, "views.local_scale": (0.1, 0.35)}

SHORT = {"train.steps": 500, "train.log_every": 50, "train.health_every": 50, "eval.beside": ()}
SHORT_FASHION = {
    "train.steps": 1000, "train.health_every": 250, "eval.beside": (),
    "eval.tasks": ("knn", "linear", "reconstruction"),
}  # fmt: skip
# Pushes the tokens of an image apart, for more than one token.
KOLEO = {"loss.koleo_image": 0.1, "loss.koleo_masked": 0.1}
FOUR = {"model.tokens": 4, **KOLEO}
UNCENTRED = {"data.scenes.digits": "many", "data.scenes.max_digits": 1, "data.scenes.digit_scale": (0.5, 0.7)}


def baseline(name: str) -> tuple[str, ...]:
    """The program of a row that runs a baseline of benchmarks/evidence/baselines.py."""
    return "-m", "benchmarks.evidence.baselines", f"--baseline={name}"


def peer(name: str, settings: dict | None = None) -> Row:
    """A peer of benchmarks/evidence/peers.py, on Fashion-MNIST."""
    return Row(
        "configs/fashion.py", settings or {}, program=("-m", "benchmarks.evidence.peers", f"--peer={name}")
    )


def compared(config: str, title: str, shown: tuple[str, ...], prefix: str = "") -> dict[str, Row]:
    """Rows of the method and of two models of equal budget without factorization."""
    return {
        title: Row(config, shown=shown),
        f"{prefix}MAE-style": Row(config, MAE_STYLE, program=baseline("masked")),
        f"{prefix}dense tokens": Row(config, DENSE, program=baseline("dense")),
    }


def changed(settings: dict) -> Row:
    """A short run of configs/digits.py with some settings changed."""
    return Row("configs/digits.py", {**SHORT, **settings})


GROUPS = {
    "semantics": Group(
        "classes from random initialisation: digits",
        (KNN, LINEAR, CLS, CLS_U, PSNR, IOU, USAGE),
        {
            "uncentred": Row("configs/digits.py", UNCENTRED, shown=ALONE),
            "uncentred four times as long": Row(
                "configs/digits.py", {**UNCENTRED, "train.steps": 12000, "eval.beside": ()}
            ),
            **compared("configs/digits.py", "centred", ALONE, "centred "),
            "centred reconstruction only": Row("configs/digits.py", {**ONLY_PIXELS, "eval.beside": ()}),
        },
    ),
    "fashion": Group(
        "classes and pixels of Fashion-MNIST, beside peers of the package lightly",
        (KNN, LINEAR, CONCATENATED, KNN_CLS, KNN_U, CLS, CLS_U, NEW_DECODER, PSNR),
        {
            **compared("configs/fashion.py", "ours", ALONE),
            "DINO": peer("dino"),
            "DINO with local views": peer("dino", LOCAL_VIEWS),
            "SimCLR": peer("simclr"),
            "MAE": peer("mae"),
        },
    ),
    "fashion_ablations": Group(
        "what each part of the method is for, on Fashion-MNIST with four tokens",
        (KNN, LINEAR, CONCATENATED, CLS, PSNR, USAGE, RANK),
        {
            name: Row("configs/fashion.py", SHORT_FASHION | ABLATIONS.get(name, {}))
            for name in ("full", *OF_THE_PAPER)
        },
    ),
    "pictures": Group(
        "objects on photographs: tokens, classes of whole pictures and of single objects",
        (
            *(*SCENES, KNN, LINEAR),
            Column("object, S by L", ("objects", "S by L", "linear")),
            Column("object, U by mask", ("objects", "U by mask", "linear")),
            Column("recall@1, S by L", ("objects", "S by L", "recall1")),
            Column("recall@1, U by mask", ("objects", "U by mask", "recall1")),
            factor("L after a move", "L after a moved map"),
            factor("(with the original L)", "L after a moved map", "compared_with"),
            factor("S after a swap", "S after a swapped token"),
            factor("(with the original S)", "S after a swapped token", "compared_with"),
        ),
        compared("configs/pictures_tiny.py", "pictures-tiny", ("untrained", "pixels")),
    ),
    "temperature": Group(
        "how sharp L is: the quickstart with other spatial temperatures",
        (*SCENES, Column("PSNR of photographs", ("photographs", "", "psnr"), 2), SOFTNESS, COVERAGE),
        {
            f"tau = {tau}": Row(
                "configs/quickstart.py", {"model.spatial_temperature": tau, "eval.beside": ()}
            )
            for tau in (0.06, 0.03, 0.015)
        },
    ),
    "factorization": Group(
        "what S and L each hold, and what they cost: scenes of up to four digits, 48 pixels, eight tokens",
        FACTORIZATION,
        {
            "scenes": Row(
                "configs/scenes_tiny.py",
                {"eval.tasks": ("scenes", "factorization", "rate"), "eval.beside": ("untrained",)},
                shown=("untrained",),
            )
        },
    ),
    "ablations": Group(
        "what each part of the method is for, on centred digits with one token",
        (KNN, LINEAR, CLS, PSNR, USAGE, SPREAD),
        {name: changed(ABLATIONS.get(name, {})) for name in ("full", *ABLATIONS)},
    ),
    "ablations4": Group(
        "the same with four tokens, which have to be told apart, placed and matched",
        (KNN, LINEAR, PSNR, IOU, USAGE, RANK, CHANGED),
        {name: changed({**FOUR, **settings}) for name, settings in ABLATIONS.items()},
    ),
    "tokens": Group(
        "how many tokens (one: the full row above), what keeps them apart, how they are matched",
        (KNN, LINEAR, CONCATENATED, PSNR, IOU, USAGE, RANK, CHANGED),
        {
            "r = 4": changed(FOUR),
            "r = 8": changed({"model.tokens": 8, **KOLEO}),
            "r = 16": changed({"model.tokens": 16, **KOLEO}),
            "r = 4 without KoLeo": changed({"model.tokens": 4}),
            "r = 4 exact matching": changed({**FOUR, "loss.matching": "exact"}),
        },
    ),
    "batches": Group(
        "small batches: does anything collapse?",
        (KNN, LINEAR, PSNR, USAGE, RANK, SPREAD),
        {
            str(images): changed({**FOUR, "train.batch": images, "train.steps": steps})
            for images, steps in ((16, 800), (64, 400), (256, 150))
        },
    ),
}
