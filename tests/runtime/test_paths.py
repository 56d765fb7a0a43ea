"""Where paths enter: ~ is expanded; what is empty or an address is refused before any work."""

import importlib
import importlib.util
import pathlib
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import flags

import sparse_vis
from sparse_vis.commands.shards import make_schema, read_shard, write_shard
from sparse_vis.config import arguments, settings
from sparse_vis.config.defaults import default_config
from sparse_vis.data.packed import PackedSource
from sparse_vis.interop.step_folder import find_step
from sparse_vis.runtime import lock
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.checkpoint import prepare

REQUIRED = {
    "commands.extract": ("--checkpoint", "--input", "--output"),
    "commands.reconstruct": ("--checkpoint", "--input", "--output"),
    "commands.export": ("--checkpoint", "--output"), "report.report": ("--checkpoint", "--output"),
    "commands.pack": ("--input", "--output"), "data.scenes": ("--output",),
}  # fmt: skip
FLAGS = [(tool, flag) for tool, all_ in REQUIRED.items() for flag in all_] + [
    ("commands.extract", "--data-dir"), ("commands.reconstruct", "--tokenizer"),
    ("report.report", "--tokenizer"), ("report.report", "--images"),
]  # fmt: skip
WRONG = [
    ("", "is empty; give a path"),
    ("  ", "is empty"),
    *((text, "is an address, not a path; mount it") for text in ("az://b/r", "file:///tmp/x")),
]
NO_BUCKET = [
    ("gs:///r", "names no bucket; write gs://BUCKET/PATH"), ("s3://", "names no bucket"),
    *((text, "is not the address of a bucket; write gs://B") for text in ("gs:/b/r", "GS://b/r", " gs://b/r")),
    *((f"gs://b/{odd}/r", "has .*, which has another meaning") for odd in ("..", "a#1", "a[x]")),
]  # fmt: skip


@pytest.mark.fast
@pytest.mark.parametrize(("tool", "flag"), FLAGS)
def test_every_path_flag_of_a_tool_refuses_what_is_no_path(tool, flag, tmp_path, monkeypatch):
    main = importlib.import_module(f"sparse_vis.{tool}").main
    monkeypatch.chdir(tmp_path)
    for text, reason in [*WRONG, *NO_BUCKET]:
        given = dict.fromkeys(REQUIRED[tool], "x") | {flag: text}
        monkeypatch.setattr(sys, "argv", ["tool", *(f"{name}={value}" for name, value in given.items())])
        with pytest.raises(UserError, match=f"^argument {flag}.*: {re.escape(repr(text))} {reason}"):
            main()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    given = dict.fromkeys(REQUIRED[tool], "x") | {flag: "gs://b/r"}
    monkeypatch.setattr(sys, "argv", ["tool", *(f"{name}={value}" for name, value in given.items())])
    with pytest.raises(
        UserError, match=f"^argument {flag}.*: 'gs://b/r' needs gcsfs, which is not installed"
    ):
        main()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fast
def test_a_tool_s_paths_begin_at_home(tmp_path, monkeypatch):
    from sparse_vis.data import scenes

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["tool", "--output=~/a:b.png"])
    scenes.main()
    assert [path.name for path in tmp_path.iterdir()] == ["a:b.png"]


@pytest.mark.fast
def test_a_hub_address_is_for_models_only():
    from sparse_vis.commands.extract import parser

    given = ["--checkpoint=hf://microsoft/STELLAR/stellar-b16", "--output=o"]
    assert parser().parse_args([*given, "--input=x"]).checkpoint == given[0].partition("=")[2]
    with pytest.raises(UserError, match="argument --input: 'hf://a/b' is an address"):
        parser().parse_args([*given, "--input=hf://a/b"])


@pytest.mark.fast
def test_main_s_workdir_and_configuration_file(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = arguments.PathParser()
    assert parser.parse("~/x") == tmp_path / "x" and parser.parse("x") == pathlib.Path("x")
    values = flags.FlagValues()
    flags.DEFINE(parser, "workdir", None, "", flag_values=values)
    for text, reason in WRONG:
        with pytest.raises(flags.Error, match=f"flag --workdir={text}: it {reason}"):
            values(["main.py", f"--workdir={text}"])
        with pytest.raises(UserError, match=f"--config={text} {reason}"):
            arguments.parse(["main.py", f"--config={text}"])
    with pytest.raises(flags.Error, match=f"flag --workdir=gs://: it {NO_BUCKET[0][1][:16]}"):
        values(["main.py", "--workdir=gs://"])
    with pytest.raises(UserError, match=r"--config=gs://b/c\.py is an address, not a path"):
        arguments.parse(["main.py", "--config=gs://b/c.py"])
    with pytest.raises(UserError, match=f"configuration file {tmp_path}/absent.py: No such file"):
        arguments.parse(["main.py", "--config=~/absent.py"])


@pytest.mark.fast
@pytest.mark.parametrize("name", sorted(settings.PATHS))
def test_every_path_setting(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")

    def given(text):
        config = default_config()
        section = settings.at(config, name.rpartition(".")[0]) if "." in name else config
        last = name.rpartition(".")[2]
        section[last] = (text,) if isinstance(section[last], tuple) else text
        settings.local_paths(config)
        return section[last] if isinstance(section[last], str) else section[last][0]

    assert given("~/d") == "/home/me/d" and given("d:e/~") == "d:e/~"
    for text in ("az://b/r", "file:///d", *(["gs://b/r"] if name == "eval.masks" else [])):
        with pytest.raises(UserError, match=f"^config.{name}={text} is an address"):
            settings.check(default_config_with(name, text))
    if name != "eval.masks":
        assert given("gs://b/r") == "gs://b/r"
    if name in ("init", "eval.beside"):
        assert given("hf://a/b") == "hf://a/b"
    else:
        with pytest.raises(UserError, match=f"^config.{name}=hf://a/b is an address"):
            given("hf://a/b")


def default_config_with(name, text):
    config = default_config()
    section = settings.at(config, name.rpartition(".")[0]) if "." in name else config
    last = name.rpartition(".")[2]
    section[last] = (text,) if isinstance(section[last], tuple) else text
    return config


@pytest.mark.fast
def test_settings_that_look_like_paths_are_in_the_table():
    alike = {
        name
        for name, value in settings.leaves(default_config()).items()
        if value == "" and not name.endswith(("init_name", "split"))
    }
    assert alike == set(settings.PATHS) - {"eval.beside"}


@pytest.mark.fast
@pytest.mark.parametrize("name", ["", " ", "/x", "a/../../b"])
def test_a_run_s_name_must_stay_below_runs(name):
    with pytest.raises(UserError, match=f"^config.name={name!r} cannot be the name of a folder below runs/"):
        settings.check(default_config_with("name", name))


@pytest.mark.fast
def test_load_takes_the_same_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path, wrong in (("", "is empty"), ("az://b/r", "is an address"), ("s3://", "names no bucket")):
        with pytest.raises(UserError, match=f"^checkpoint={path} {wrong}"):
            sparse_vis.load(path)
    for path in ("~/absent", pathlib.Path("~/absent")):
        with pytest.raises(UserError, match=f"^checkpoint {tmp_path}/absent does not exist"):
            sparse_vis.load(path)
    with pytest.raises(UserError, match=r"^tokenizer=az://t is an address"):
        sparse_vis.load("scenes-tiny", tokenizer="az://t")


@pytest.mark.fast
def test_a_missing_client_of_buckets_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for text, package, extra in (("gs://b/r", "gcsfs", "gs"), ("s3://b", "s3fs", "s3")):
        with pytest.raises(UserError, match=rf'^checkpoint={text} needs {package}.*-e "\.\[{extra}\]"'):
            sparse_vis.load(text)


@pytest.mark.fast
def test_a_shard_below_a_name_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = pathlib.Path("feat:v2", "x.parquet")
    path.parent.mkdir()
    rows = {"name": ["a"], "height": [1], "width": [2]}
    about = {"settings": "", "images": "", "times": ""}
    write_shard(path, make_schema({}, "float32"), iter([rows]), [], about)
    assert read_shard(path, 1, "", content=True).rows == 1
    table = pq.read_table(pa.OSFile(str(path)))
    assert table.to_pydict() == {"name": ["a"], "height": [1], "width": [2]}


@pytest.mark.fast
def test_folders_that_a_library_cannot_read_from_are_not_called_damaged(tmp_path):
    for name, read in (("Orbax", find_step), ("ArrayRecord", lambda path: PackedSource(str(path)))):
        (tmp_path / "Mu\udcf1oz" / "checkpoints" / "3" / "params").mkdir(parents=True, exist_ok=True)
        with pytest.raises(UserError, match=rf"Mu\\udcf1oz' .* not UTF-8, below which {name} cannot read"):
            read(tmp_path / "Mu\udcf1oz")


@pytest.mark.fast
def test_folders_that_a_library_cannot_write_to_are_refused(tmp_path):
    with (
        pytest.raises(UserError, match=r"Mu\\udcf1oz' is not UTF-8.* another --output"),
        lock.hold(tmp_path / "Mu\udcf1oz", "packing"),
    ):
        pass
    with pytest.raises(UserError, match=r"seeds\[0\]/run has a \[ in its path, and Orbax cannot save"):
        prepare(tmp_path / "seeds[0]" / "run")
    assert list(tmp_path.iterdir()) == []
