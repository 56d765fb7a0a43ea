"""Settings that are refused before anything starts, and their way through JSON."""

import json
import pathlib

import pytest

from sparse_vis.config import settings
from sparse_vis.config.contradictions import TERMS
from sparse_vis.config.defaults import default_config
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.skipped import MAX_PIXELS
from sparse_vis.runtime.tools import FLAGS
from sparse_vis.train.loop import write_config

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "name,value,words",
    [
        ("model.patch", 0, "at least 1"),
        ("model.patch", 15, "image_size=224 is not a multiple"),
        ("model.heads", 7, "config.model.width=768"),
        ("model.decoder.heads", 7, "config.model.decoder.width=512"),
        ("model.target", "codes", "'pixel' or 'vq'"),
        ("model.tokens", 1, "KoLeo"),
        ("loss.matching", "best", "'entropic' or 'exact'"),
        ("views.local_count", 0, "cls_local"),
        ("views.aspect", ("3",), "write it like (0.5, 1.0)"),
        ("train.batch", 2049, "2 x 1"),
        ("train.keep", 0, "at least 1"),
        ("efficiency.microbatches", 0, "at least 1"),
        ("efficiency.dtype", "float8", "'float32' or 'bfloat16'"),
        ("seed", 2**32, "at most 4294967295"),
        ("optimizer.peak_lr", float("nan"), "float32"),
        ("optimizer.peak_lr", 1e39, "float32"),
        ("data.on_error", "substitute", "'stop' or 'skip'"),
        ("data.max_pixels", 0, "at least 1"),
        ("data.canvas", 8, "smaller than a patch"),
        ("views.local_size", 15, "smaller than a patch"),
        ("model.prototypes.count", 10_000, "prototype_chunk=1024; use e.g. count=10240"),
        ("optimizer.warmup", 0.999999, "leaves no step after the warm-up"),
        ("optimizer.clip", 0.0, "config.optimizer.clip=0 is too small"),
        ("optimizer.warmup", 1.0, "config.optimizer.warmup=1 is too large"),
        ("efficiency.mesh", (2, -3), "has -3, which is not a number of devices"),
        ("efficiency.mesh", (-1, -1), "has -1 twice; give two numbers"),
        ("efficiency.mesh", (0, -1), "has 0, which is not a number of devices; give two numbers"),
        ("eval.batch", 0, "at least 1"),
        ("eval.train_records", -1, "at least 0"),
        ("eval.dtype", "half", "'float32' or 'bfloat16'"),
        ("eval.holdout", 0.2, "above 0, e.g. 0.2, if the two are the same split, and 0 otherwise"),
        ("eval.test_split", "train", "must be above 0"),
        ("eval.mask_classes", 3, "give both (the folder, and the number"),
        ("eval.beside", ("pixels", "pixels"), "give each name once"),
        ("eval.expected", (("knn", "mean_S", "k20", 0.6, 0.1),), "the task one of config.eval.tasks"),
        ("eval.linear_published.epochs", 0, "at least 1"),
        ("eval.segmentation.batch", 0, "at least 1"),
        ("eval.reconstruction_probe.heads", 7, "config.eval.reconstruction_probe.width=512"),
        ("eval.reconstruction_probe.target", "vq", "--config.model.tokenizer.path=FILE"),
        ("eval.reconstruction_probe.target", "codes", "'pixel' or 'vq'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(name, value, words):
    config = default_config()
    section, _, last = name.rpartition(".")
    (settings.at(config, section) if section else config)[last] = value
    with pytest.raises(UserError) as error:
        settings.check(config, devices=2)
    assert last in str(error.value)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_only_several_settings_show():
    config = default_config()
    config.model.decoder.update(width=513, heads=27)
    with pytest.raises(UserError, match=r"config\.model\.decoder\.width=513 is odd; its position code"):
        settings.check(config)
    config = default_config()
    config.finetune.mixup, config.train.batch = 0.2, 6
    config.efficiency.microbatches = 2
    with pytest.raises(
        UserError, match=r"train\.batch=6 / config\.efficiency\.microbatches=2 is odd; make it"
    ):
        settings.check(config)
    config = default_config()
    config.loss.update(dict.fromkeys(TERMS, 0.0))
    with pytest.raises(UserError, match=r"every weight of config\.loss is 0, so nothing would be trained"):
        settings.check(config)
    config.loss.koleo_image = 0.1
    settings.check(config)
    config.train.steps, config.optimizer.warmup = 1, 0.6
    with pytest.raises(UserError, match=r"warmup=0.6 of config.train.steps=1 leaves no step"):
        settings.check(config)
    config.optimizer.schedule = "constant"
    settings.check(config)


def test_a_configuration_of_ones_own_must_have_all_settings_and_no_others():
    config = default_config().unlock()
    del config["views"]["hue"]
    with pytest.raises(UserError, match=r"lacks the setting views\.hue; .* start from default_config\(\)"):
        settings.check(config)
    config = default_config().unlock()
    config.model.width2 = 3
    with pytest.raises(UserError, match=r"has the unknown setting model\.width2; "):
        settings.check(config)


@pytest.mark.parametrize("name", ["cudnn", "pallas"])
def test_fused_attention_is_refused_where_it_cannot_run(name):
    config = default_config()
    config.efficiency.attention = name
    settings.check(config, devices=1, backend="gpu")
    with pytest.raises(
        UserError, match=rf"attention={name} needs an NVIDIA GPU and JAX runs on 'cpu'; set .*=xla"
    ):
        settings.check(config, devices=1, backend="cpu")
    config.efficiency.dtype = "float32"
    with pytest.raises(UserError, match=rf"attention={name} does not support float32; set .*dtype=bfloat16"):
        settings.check(config, devices=1, backend="gpu")


def test_the_limit_on_pixels_is_the_one_of_sources():
    assert default_config().data.max_pixels == MAX_PIXELS == FLAGS["--max-pixels"]["default"] == 2**27


def test_the_teacher_needs_a_second_view():
    config = default_config()
    settings.check(config, devices=8)
    config.teacher.enabled, config.views.global_count = True, 1
    with pytest.raises(UserError, match="global_count to at least 2"):
        settings.check(config)


def test_a_configuration_comes_back_from_json(tmp_path):
    config = default_config()
    config.views.aspect, config.name = (0.5, 2.0), "mine"
    (tmp_path / "config.json").write_text(json.dumps(settings.plain(config)))
    assert settings.read(tmp_path) == config


def test_a_changed_digit_of_a_saved_configuration_is_noticed(tmp_path):
    path = tmp_path / "config.json"
    write_config(default_config(), tmp_path)
    assert settings.read(tmp_path) == default_config()
    changed = path.read_text().replace('"steps": 93750', '"steps": 93758')
    path.write_text(changed)
    with pytest.raises(UserError, match=r'edited by hand .*delete its line "checksum" if'):
        settings.read(tmp_path)
    lines = changed.splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"checksum"' not in line))
    assert settings.read(tmp_path).train.steps == 93758


@pytest.mark.parametrize(
    "section,name,former,now",
    [
        ("efficiency", "remat", False, "none"),
        ("efficiency", "remat", True, "blocks"),
        ("data", "on_error", "substitute", "skip"),
    ],
)
def test_what_an_earlier_version_called_otherwise_is_understood(tmp_path, section, name, former, now):
    (tmp_path / "config.json").write_text(json.dumps({section: {name: former}}))
    assert settings.read(tmp_path)[section][name] == now


def test_a_setting_that_went_is_understood_where_it_changed_nothing(tmp_path):
    path, former = tmp_path / "config.json", {"loss": {"inpainting": 0.0}, "model": {"bottleneck": "factors"}}
    path.write_text(json.dumps(former))
    assert settings.read(tmp_path) == default_config()
    path.write_text(json.dumps({"model": {"bottleneck": "dense"}}))
    with pytest.raises(UserError, match=r"the setting .model\.bottleneck., which this version does not"):
        settings.read(tmp_path)


def test_a_resume_of_an_earlier_version_tells_no_changes_that_are_none():
    config = default_config()
    config.data.on_error = "skip"
    saved = settings.plain(config)
    saved["data"]["on_error"] = "substitute"
    del saved["data"]["max_pixels"]
    assert settings.check_resume(saved, settings.plain(config), pathlib.Path("run")) == []


@pytest.mark.parametrize(
    "text,words",
    [
        ('{"train": {"stepz": 3}}', "train.stepz"),
        ('{"train": 3}', "is not a configuration"),
        ('{"train": {"steps": "x"}}', "is not a configuration"),
        ('{"train": ', "not a JSON object"),
        *((text, "not a JSON object") for text in ("[]", "null", "3", '"a"', "NaN", "true")),
        *(
            (text, "is not a configuration")
            for text in ('{"train": []}', '{"train": null}', '{"train": "a"}', '{"model": {"decoder": 3}}')
        ),
        ('{"model": {"width": {"a": 1}}}', "model.width={'a': 1} is not a whole number"),
        ('{"model": {"width": 0}}', "model.width=0 is too small"),
        ('{"model": {"heads": 7}}', "config.model.width=768 is not a multiple of its heads"),
        ('{"views": {"aspect": [[1], 2]}}', "views.aspect=.* is not a pair of numbers"),
        ('{"eval": {"expected": [["a"], "b"]}}', "eval.expected=.* is not a list of rows"),
        ('{"tr\\nain": 3}', r"the setting 'tr\\nain', which this version"),
        (b"\xff\xfe{", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"seed": ' + "9" * 5000 + "}", "not a JSON object"),
    ],
    ids=lambda text: str(text)[:30],
)
def test_a_damaged_configuration_is_named(tmp_path, text, words):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words) as error:
        settings.read(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value) and "\n" not in str(error.value)


def test_a_configuration_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json cannot be read \(Is a directory\); "):
        settings.read(tmp_path)


def test_a_resume_may_change_everything_but_the_architecture():
    saved, config = settings.plain(default_config()), default_config()
    config.train.batch, config.efficiency.remat, config.model.tokenizer.path = 64, "blocks", "elsewhere"
    config.data.update(workers=2, threads=1, cache=1024)  # speed and memory only
    assert settings.check_resume(saved, settings.plain(config), pathlib.Path("run")) == [
        "train.batch: 2048 -> 64"
    ]
    config.model.tokenizer.codes = 512
    assert len(settings.check_resume(saved, settings.plain(config), pathlib.Path("run"))) == 1
    saved["model"]["target"] = config.model.target = "vq"
    with pytest.raises(UserError, match=r"architecture \(model.tokenizer.codes: 1024 -> 512\)"):
        settings.check_resume(saved, settings.plain(config), pathlib.Path("run"))
    config.model.tokenizer.codes, config.model.tokens = 1024, 8
    with pytest.raises(
        UserError, match=r"run was trained with another architecture \(model.tokens: 16 -> 8\)"
    ):
        settings.check_resume(saved, settings.plain(config), pathlib.Path("run"))
