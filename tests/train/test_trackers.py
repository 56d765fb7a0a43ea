"""W&B and MLflow, offline, with their own packages; what they stored is read by these too."""

import importlib.machinery
import importlib.util
import json
import struct
import time

import numpy as np
import pytest

from sparse_vis.runtime.errors import UserError
from sparse_vis.train.trackers import check_trackers, open_trackers

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)


def records_of(log):
    """Records of a log in LevelDB's format (doc/log_format.md), as .wandb files are, after their header."""
    place, block, found = 7, 2**15, b""
    while place + 7 <= len(log):
        if block - place % block < 7:
            place += block - place % block
        _, size, kind = struct.unpack("<IHB", log[place : place + 7])
        found += log[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield found
            found = b""


def two_processes(name, workdir):
    """What a run and its continuation write, which an error ends."""
    for first in (1, 2):
        (writer,) = open_trackers((name,), workdir, {"train.steps": 5, "eval.tasks": ("knn",)})
        writer.write(first, {"total": 10.0 * first})
        if first == 2:
            writer.write(3, {"probe/psnr": 20.5}, {"probe": PICTURE})
        assert writer.writer, "it gave up"
        writer.close(failed=first == 2)
    return json.loads((workdir / "trackers.json").read_text())[name]


def test_wandb_continues_its_run(tmp_path, monkeypatch):
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    id = two_processes("wandb", tmp_path)
    (first, second) = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{id}.wandb"))
    found, settings, summary, codes = {}, {}, {}, []
    for file in (first, second):
        records, until = [], time.monotonic() + 60
        while not any(record.HasField("exit") for record in records):  # its own process may still write
            assert time.monotonic() < until, f"{file} has no end"
            records = [Record.FromString(data) for data in records_of(file.read_bytes())]
        codes += [record.exit.exit_code for record in records if record.HasField("exit")]
        for record in records:
            row = {".".join(x.nested_key): json.loads(x.value_json) for x in record.history.item}
            summary |= {".".join(x.nested_key) or x.key: x.value_json for x in record.summary.update}
            found |= {(row["_step"], name): x for name, x in row.items() if name[0] != "_"}
            named = (*record.config.update, *record.run.config.update)
            settings |= {x.key or ".".join(x.nested_key): json.loads(x.value_json) for x in named}
    assert {key: x for key, x in found.items() if "probe." not in key[1]} == {
        (1, "total"): 10, (2, "total"): 20, (3, "probe/psnr"): 20.5,
    }  # fmt: skip
    assert (found[3, "probe.width"], found[3, "probe.height"]) == (9, 8)
    assert settings["train.steps"] == 5 and codes == [0, 1]
    assert (summary["total"], summary["probe/psnr"]) == ("20", "20.5")


def test_mlflow_continues_its_run(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)  # below which it puts images
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    id = two_processes("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(id)
    assert (run.info.status, run.info.run_name) == ("FAILED", tmp_path.name)
    assert run.data.params == {"train.steps": "5", "eval.tasks": "('knn',)"}
    assert [(m.step, m.value) for m in client.get_metric_history(id, "total")] == [(1, 10), (2, 20)]
    assert [(m.step, m.value) for m in client.get_metric_history(id, "probe/psnr")] == [(3, 20.5)]
    assert any(
        "probe" in file.path and file.path.endswith(".png") for file in client.list_artifacts(id, "images")
    )
    assert len(client.search_runs([run.info.experiment_id])) == 1


@pytest.mark.fast
def test_a_folder_of_a_trackers_name_is_no_package(monkeypatch):
    """As wandb/, which W&B makes in the current folder."""
    folder = importlib.machinery.ModuleSpec("wandb", None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: folder)
    with pytest.raises(UserError, match="names 'wandb', which is not installed"):
        check_trackers(("wandb",))


@pytest.mark.fast
def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_trackers(())
    with pytest.raises(
        UserError, match=r'"mlflow"|\'mlflow\', which is not installed; pip install .*\.\[mlflow\]'
    ):
        check_trackers(("mlflow",))
