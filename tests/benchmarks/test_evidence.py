"""The runner of experiments: commands, finished runs, tables."""

import json
import os
import subprocess
import sys
import tarfile

import pytest

from benchmarks.evidence import evidence
from benchmarks.evidence.experiments import GROUPS, Column, Group, Row, baseline
from sparse_vis.runtime.errors import UserError
from tests.main_process import ROOT, TINY

COLUMNS = (
    Column("kNN", ("knn", "mean_S|mean_U", "k10")),
    Column("used", ("health", "prototype_usage"), 1),
)
TINY_SETTINGS = {
    "train.steps": 2,
    "train.health_every": 1,
    "eval.tasks": "('knn',)",
    "eval.beside": ("pixels",),
}
GROUP = Group(
    "tiny",
    COLUMNS,
    {
        "plain": Row(str(TINY), TINY_SETTINGS, shown=("pixels",)),
        "masked": Row(str(TINY), {**TINY_SETTINGS, "eval.beside": ()}, program=baseline("masked")),
        "other": Row("missing.py"),
    },
)


@pytest.fixture
def groups(monkeypatch):
    monkeypatch.setattr(evidence, "GROUPS", {"tiny": GROUP})


def start(monkeypatch, folder, *arguments):
    places = [f"--workdirs={folder / 'runs'}", f"--results={folder / 'results'}"]
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--group=tiny", *places, *arguments])
    evidence.main()


def test_a_run_is_trained_evaluated_kept_and_not_run_again(groups, monkeypatch, tmp_path, capsys):
    start(monkeypatch, tmp_path, "--rows=plain", "--seeds=3")
    result = json.loads((tmp_path / "results/tiny/plain-seed3.json").read_text())
    assert "--config.seed=3" in result["command"] and "--config.train.steps=2" in result["command"]
    assert set(result["metrics"]) == {"trained", "pixels"}
    assert 0 <= result["metrics"]["trained"]["knn"]["mean_S"]["k10"] <= 1
    assert 0 < result["health"]["prototype_usage"] <= 1
    start(monkeypatch, tmp_path, "--rows=masked", "--seeds=3")
    baseline = json.loads((tmp_path / "results/tiny/masked-seed3.json").read_text())["metrics"]
    assert set(baseline) == {"trained"} and set(baseline["trained"]["knn"]) == {"cls", "mean_U"}
    capsys.readouterr()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("ran again"))
    start(monkeypatch, tmp_path, "--rows=plain", "--seeds=3")
    assert capsys.readouterr().out == ""


@pytest.mark.fast
def test_a_failed_run_and_an_unknown_row_are_named(groups, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--rows=plan is not a row of tiny; it has plain, masked, other"):
        start(monkeypatch, tmp_path, "--rows=plan")
    with pytest.raises(UserError, match="--rows= is not a row of tiny"):
        start(monkeypatch, tmp_path, "--rows=")
    with pytest.raises(UserError, match="'a' is not a seed; give numbers"):
        start(monkeypatch, tmp_path, "--seeds=0,a")
    with pytest.raises(UserError, match=r"tiny/other seed 0 failed: see the end of .*log\.txt"):
        monkeypatch.setenv("HOME", str(tmp_path))
        start(monkeypatch, tmp_path, "--rows=other", "--seeds=0", "--workdirs=~/runs", "--results=~/results")
    assert "missing.py" in (tmp_path / "runs/tiny/other/seed0/log.txt").read_text()


@pytest.mark.fast
def test_tables_hold_mean_and_deviation_over_seeds(groups, tmp_path):
    def result(seed, knn, pixels, alarms=()):
        metrics = {
            "trained": {"knn": {"mean_U": {"k10": 9.0}, "mean_S": {"k10": knn}}},
            "pixels": {"knn": {"mean_U": {"k10": pixels}}},
        }
        return {"row": "plain", "seed": seed, "metrics": metrics, "alarms": list(alarms),
                "health": {"prototype_usage": 0.5}}  # fmt: skip

    (tmp_path / "tiny").mkdir()
    runs = [result(0, 0.1, 0.5), result(1, 0.2, 0.5), result(2, 0.6, 0.5, ["warning: collapse"])]
    for run in runs:
        (tmp_path / "tiny" / f"plain-seed{run['seed']}.json").write_text(json.dumps(run))
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- tiny -->\nold\n<!-- end -->\nafter\n")
    other = tmp_path / "other.md"
    other.write_text("no marks")
    evidence.write_tables(tmp_path, (other, page))
    text = page.read_text()
    assert "| plain | 0.300 ± 0.265 | 0.5 ± 0.0 | 1 |" in text
    assert "| plain: pixels | 0.500 ± 0.000 | – |  |" in text
    assert (
        "old" not in text and "other" not in text and text.startswith("before") and text.endswith("after\n")
    )
    page.write_text("no marks")
    with pytest.raises(UserError, match="has no marks <!-- tiny -->"):
        evidence.write_tables(tmp_path, (page, other))


@pytest.mark.fast
def test_results_that_are_damaged_or_missing_leave_the_tables_as_they_are(groups, tmp_path):
    page = tmp_path / "results.md"
    page.write_text("<!-- tiny -->\nold\n<!-- end -->\n")
    with pytest.raises(UserError, match=r"--results=.*nowhere is no folder; give that"):
        evidence.write_tables(tmp_path / "nowhere", (page,))
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "plain-seed0.json").write_text('{"row": "pla')
    with pytest.raises(UserError, match=r"plain-seed0\.json cannot be read \(.*\); delete it and run"):
        evidence.write_tables(tmp_path, (page,))
    assert "old" in page.read_text()


@pytest.mark.fast
def test_the_page_of_results_has_a_place_for_every_group():
    text = "".join(page.read_text() for page in evidence.PAGES)
    assert all(text.count(f"<!-- {name} -->") == 1 for name in GROUPS)
    assert all((ROOT / row.config).is_file() for group in GROUPS.values() for row in group.rows.values())


@pytest.mark.fast
def test_the_script_for_a_gpu_without_network_trains_and_leaves_a_model(tmp_path):
    """With a Python that only notes its arguments, and writes what main.py and export would."""
    fake = tmp_path / "python3"
    fake.write_text(
        f"""#!/bin/bash
echo "$@" >> {tmp_path}/calls
for word in "$@"; do
  case $word in
    --workdir=*) mkdir "${{word#*=}}"; touch "${{word#*=}}"/{{metrics.jsonl,config.json}}; sleep 10 ;;
    --config.data.path=*) cat "${{word#*=}}/objects/train/cat/a.png" >> {tmp_path}/seen ;;
    --output=*) mkdir "${{word#*=}}" ;;
  esac
done
"""
    )
    fake.chmod(0o755)
    tree = tmp_path / "tree"
    (tree / "benchmarks" / "evidence").mkdir(parents=True)
    script = tree / "benchmarks" / "evidence" / "gpu_train.sh"
    script.write_bytes((ROOT / "benchmarks" / "evidence" / "gpu_train.sh").read_bytes())
    for split in ("train", "test"):
        (tree / "data" / "pictures" / "objects" / split / "cat").mkdir(parents=True)
        (tree / "data" / "pictures" / "objects" / split / "cat" / "a.png").write_text(split)
        (tree / "data" / "pictures" / "photographs" / split).mkdir(parents=True)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}

    def run(*arguments):
        return subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, env=env)

    assert "pictures.tar is missing; run pack first" in run("train", "1").stderr
    assert run("pack").returncode == 0 and "grain==" in (tmp_path / "calls").read_text()
    with tarfile.open(tree / ".gpu" / "pictures.tar") as packed:
        assert {name.split("/")[1] for name in packed.getnames() if "/" in name} == {"train"}
    done = run("train", "1", "--config.train.steps=5")  # which `timeout` ends before the tenth second
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert "--config.train.steps=5" in calls and "export --checkpoint=" in calls
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "metrics.jsonl", "model"]
    assert "give pack, or train SECONDS" in run("tarin").stderr
