"""Every setting is tried below, at and above the ends of its range, which stand here a second time."""

import json
import pathlib

import pytest

from sparse_vis.config import settings
from sparse_vis.config.defaults import default_config
from sparse_vis.config.ranges import ALLOWED, check_fields
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast
MOST = 2_147_483_647  # of int32
ONE, BELOW_ONE = 1.0, 1 - 1e-9  # to float32, BELOW_ONE is 1
SIZES = ("width", "layers", "heads", "mlp_dim")


def names(section, *last):
    return [f"{section}.{name}" for name in last]


def size_of(part):
    """What the sizes of transformers may be."""
    wide, many = [1, 262_144], [1, 1024]
    return [
        (names(part, "width", "mlp_dim"), wide, [0, -1, 262_145, 10**9]),
        (names(part, "layers", "heads"), many, [0, -3, 1025, 10**9]),
    ]


PROBES = ("eval.reconstruction_probe", "eval.linear_published")
DECODERS = ("model", "model.decoder", "eval.reconstruction_probe")
RIGHT_AND_WRONG = [
    # Parts of one, both ends included; of the circle, hue turns at most half.
    (
        [
            *names("views", "flip_probability", "jitter_probability", "grey_probability", "blur_probability"),
            *names("data.pictures", "photographs", "plain"),
            *names("views", "focus_probability", "brightness", "contrast", "saturation"),
            *names("teacher", "momentum", "final_momentum"), "loss.sinkhorn_epsilon",
        ],
        [0.0, 0.5, ONE], [-1e-6, -1.0, 1.000001, 5.0],
    ),
    (["views.hue"], [0.0, 0.5], [-1e-6, 0.500001, 5.0]),
    (["eval.short_side"], [1.0, 4.0], [0.0, 0.999999, 4.000001]),
    # Parts of one that must leave something.
    (
        [*names("optimizer", "b1", "b2", "warmup"), "views.masking_ratio", "eval.holdout",
         "finetune.label_smoothing",
         *(f"{probe}.validation" for probe in PROBES)],
        [0.0, 0.9999], [-0.5, -1e-6, BELOW_ONE, ONE, 1.5],
    ),
    # A rate of 0 trains nothing.
    (
        ["optimizer.peak_lr", *(f"{probe}.learning_rate" for probe in PROBES)],
        [1e-30, 10.0], [0.0, 1e-50, -1.0, 10.00001],
    ),
    (
        ["optimizer.weight_decay", "finetune.mixup", *(f"{probe}.weight_decay" for probe in PROBES)],
        [0.0, 100.0], [-1e-6, -3.0, 100.0001],
    ),
    (["optimizer.final_lr"], [0.0, 10.0], [-1e-6, 10.00001]),
    (["optimizer.clip", *(f"{probe}.clip" for probe in PROBES)], [1e-30, 1e30], [0.0, -1.0, 1.0001e30]),
    (
        names(
            "loss", "reconstruction", "token_clustering", "cls_clustering", "set_alignment", "cls_masked",
            "cls_local", "koleo_image", "koleo_masked",
        ),
        [0.0, 1e6], [-1e-6, -10.0, 1.00001e6],
    ),
    (
        [
            "model.spatial_temperature",
            *names("loss", "student_temperature", "sinkhorn_temperature", "match_epsilon"),
        ],
        [1e-4, 1e4], [0.0, -0.1, 0.9999e-4, 1.00001e4],
    ),
    (["finetune.layer_decay"], [1e-6, 0.75, ONE], [0.0, -0.5, 1.000001]),
    (["finetune.classes"], [(), ("cat", "dog")], [(1,), ((),)]),
    (["model.norm_epsilon"], [1e-12, 1e-6, 1e-2], [0.0, -1e-6, 1.0001e-2]),
    (["model.init_std"], [1e-6, 10.0], [0.0, -0.02, 0.9999e-6, 10.00001]),
    ([*names("views", "global_scale", "local_scale"), "eval.segmentation.scale",
      *(f"{probe}.scale" for probe in PROBES)], [(1e-6, ONE), (0.5, 0.5)],
     [(0.0, 0.5), (-0.1, 0.5), (0.5, 1.000001), (0.6, 0.5)]),
    (names("views", "aspect", "blur_sigma"), [(0.01, 100.0), (1.0, 1.0)],
     [(0.0, 1.0), (0.0099, 1.0), (1.0, 100.001), (2.0, 1.0)]),
    (["data.pictures.object_scale"], [(0.1, ONE), (0.5, 0.5)], [(0.0999, 0.5), (0.5, 1.000001), (0.5, 0.4)]),
    (["data.scenes.digit_scale"], [(0.3, 0.9), (0.7, 0.7)],
     [(0.2999, 0.5), (0.5, 0.90001), (0.5, 0.4), (0.0, 0.0)]),
    # Counts: of none, of one at least, and of as many as a machine may have.
    (
        [
            *names("train", "steps", "log_every", "save_every", "keep", "max_bad_steps", "probe_images"),
            *names("data.scenes", "train_records", "eval_records"), "eval.segmentation.epochs",
            *names("data.pictures", "train_records", "eval_records"),
            *(f"{probe}.epochs" for probe in PROBES),
        ],
        [1, MOST], [0, -1, MOST + 1],
    ),
    ([*names("train", "health_every", "probe_every"), *names("eval", "train_records", "test_records")],
     [0, MOST], [-1, MOST + 1]),
    (["seed", "data.seed", "eval.seed"], [0, 2**32 - 1], [-1, 2**32]),
    (
        [
            "train.batch", "efficiency.microbatches", "eval.batch", "eval.segmentation.batch",
            *(f"{probe}.batch_size" for probe in PROBES),
        ],
        [1, 1_048_576], [0, -1, 1_048_577],
    ),
    *(row for part in DECODERS for row in size_of(part)),
    (["model.prototypes.dim", "model.prototypes.hidden"], [1, 262_144], [0, -1, 262_145]),
    (
        ["model.prototypes.count", "model.tokenizer.codes", "efficiency.prototype_chunk"],
        [1, 16_777_216], [0, -1, 16_777_217],
    ),
    (["model.tokens"], [1, 65_536], [0, -1, 65_537]),
    (["model.image_size", "views.local_size"], [5, 8192], [4, 0, -1, 8193, 100_000]),
    (["model.patch"], [1, 1024], [0, -1, 1025]),
    (["data.canvas"], [1, 8192], [0, -1, 8193]),
    (["data.scenes.size", "data.pictures.size"], [24, 8192], [23, 0, 8193]),
    (["data.scenes.max_digits", "data.pictures.max_objects"], [1, 4], [0, 5]),
    (["data.max_pixels"], [1, 2_147_483_647], [0, -1, 2_147_483_648]),
    (["data.workers"], [0, 1024], [-1, 1025]),
    (["data.threads"], [1, 1024], [0, -1, 1025]),
    (["data.cache"], [0, 1_048_576], [-1, 1_048_577]),
    (["views.global_count"], [1, 1024], [0, -1, 1025]),
    (["views.local_count"], [0, 1024], [-1, 1025]),
    (["loss.sinkhorn_iterations"], [0, 1000], [-1, 1001]),
    (["loss.match_iterations"], [1, 1000], [0, -3, 1001]),
    (["efficiency.unroll"], [1, 1024], [0, 1025]),
    (["eval.mask_classes"], [0, 255], [-1, 256]),
    (["efficiency.mesh"], [(-1, 1), (2, 4)], [(0, -1), (-1, -1), (1, -2), (1.5, 1), (1,), (True, 1)]),
    # Words.
    (["init_heads"], ["keep", "fresh"], ["foo", ""]),
    (["finetune.pool"], ["mean_S", "cls", "concat_S"], ["mean", "U", ""]),
    (["model.target", "eval.reconstruction_probe.target"], ["pixel", "vq"], ["codes", "VQ"]),
    (["model.tokenizer.dtype", "efficiency.dtype", "eval.dtype"], ["float32", "bfloat16", "float16"],
     ["float64", "half"]),
    (["loss.balance_over"], ["batch", "microbatch"], ["view"]),
    (["loss.matching"], ["entropic", "exact"], ["best"]),
    (["views.colour_per"], ["view", "batch"], ["image"]),
    (["views.mask_kind"], ["gaussian", "uniform", "block"], ["random"]),
    (["data.on_error"], ["stop", "skip"], ["substitute"]),
    (["eval.resize"], ["antialiased", "published"], ["bicubic"]),
    (["eval.mask_shift"], [0, -1], [1, -2]),
    (["data.scenes.digits"], ["many", "one"], ["two"]),
    (["data.scenes.colours"], ["random", "white"], ["red"]),
    (["optimizer.schedule"], ["cosine", "constant"], ["linear"]),
    (["efficiency.remat"], ["none", "products", "blocks"], ["all"]),
    (["efficiency.attention"], ["xla", "cudnn", "pallas"], ["flash"]),
    (["data.source"], ["scenes", "folder", "packed", "tfds:imagenet2012", "table:my photos.csv",
      "webdataset:x-{0..9}.tar", "hf:cifar10", "object"],
     ["", "tfds:", "tfds: a", "foo", "table:", "table: "]),
    (["train.trackers"], [(), ("wandb",), ("mlflow", "wandb")],
     [("wandb", "wandb"), ("neptune",), (1,), ((),)]),
    (["eval.tasks", "eval.beside"], [(), ("knn", "linear")], [("knn", "knn"), (1,), ((),)]),
    (["eval.expected"], [()], [("knn",), (1,), (("knn", "S", "k20", 0.5, 0.1),), (("knn", "S", "k20"),)]),
    (["teacher.enabled"], [True, False], []),
    (
        [
            "name", "init", "init_name", "model.tokenizer.path", "data.path", "data.split", "eval.masks",
            *names("eval", "train_split", "test_split", "inception", "lpips.alexnet", "lpips.heads"),
        ],
        ["", "any text"], [],
    ),
]  # fmt: skip
CASES = {name: (right, wrong) for group, right, wrong in RIGHT_AND_WRONG for name in group}
# As JSON has them; by the type of the default.
WRONG_TYPES = {
    int: ["null", "true", '"1"', "1.5", "[1]", "NaN"],
    float: ["null", "true", '"1"', "[1.0]", "NaN", "Infinity", "1e39", "1" + "0" * 400],
    str: ["null", "1", "true", '["a"]'],
    bool: ["null", "0", "1", '"True"'],
    tuple: ["null", "1", '"ab"', "[null]", "[true, true]", '{"a": 1}'],
}


@pytest.fixture(scope="module")
def config():
    return default_config()


@pytest.mark.parametrize("name", settings.leaves(default_config()))
def test_a_setting_is_accepted_inside_its_range_and_refused_outside(name, config):
    (right, wrong), default = CASES[name], settings.at(config, name)
    for value in (default, *right):
        assert ALLOWED[name].fault(value) == ""
    section, _, last = name.rpartition(".")
    part = settings.at(config, section) if section else config
    for value in (*wrong, None):
        part[last] = value
        with pytest.raises(UserError) as error:
            settings.check(config)
        assert f"config.{name}" in str(error.value) and "\n" not in str(error.value)
    part[last] = default
    for text in WRONG_TYPES[type(default)]:
        plain = json.loads(text)
        if name == "efficiency.remat" and plain is True:  # of an earlier version
            continue
        for part in reversed(name.split(".")):
            plain = {part: plain}
        with pytest.raises(UserError) as error:
            settings.from_plain(plain, pathlib.Path("run/config.json"))
        assert str(error.value).startswith("run/config.json ") and name in str(error.value)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_no_setting_is_without_a_range():
    assert settings.leaves(default_config()).keys() == ALLOWED.keys() == CASES.keys()


def test_fields_of_an_object_are_checked_like_the_section():
    check_fields("views", {"hue": 0.5, "patch_size": -1})  # patch_size is none of its settings
    with pytest.raises(UserError, match=r"^views\.hue=0\.6 is too large; it must be at most 0\.5\.$"):
        check_fields("views", {"hue": 0.6})
