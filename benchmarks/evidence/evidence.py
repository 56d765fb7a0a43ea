"""Run the experiments behind docs/results.md: every row with several seeds, finished ones kept.

    python -m benchmarks.evidence.evidence --group=ablations --seeds=0,1,2

Stop it at any time and start it again. All rows run with the first seed before the second one begins.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import platform
import re
import subprocess
import sys
import time

from benchmarks.evidence.evidence_tables import metrics, write_tables
from benchmarks.evidence.experiments import GROUPS, Row
from benchmarks.speed.command import script_parser
from sparse_vis.runtime.errors import UserError, command_line

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "evidence"


def place(group: str, name: str, seed: int, workdirs: pathlib.Path) -> pathlib.Path:
    """Workdir of a run."""
    return workdirs / group / name / f"seed{seed}"


def command(row: Row, seed: int, workdir: pathlib.Path, models: list[str]) -> list[str]:
    """Arguments of main.py for one run.

    Args:
        row, seed, workdir: of the run. models: workdirs of finished runs to measure beside it.
    """
    settings = {**row.settings, "seed": seed}
    if models:
        settings["eval.beside"] = (*row.settings.get("eval.beside", ()), *models)
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    return [f"--config={row.config}", f"--workdir={workdir}", *overrides]


def health(workdir: pathlib.Path) -> dict[str, float]:
    """The last measures of health in a run's metrics."""
    found = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        found |= {
            k.removeprefix("health/"): v for k, v in json.loads(line).items() if k.startswith("health/")
        }
    return found


def run(group: str, name: str, seed: int, workdirs: pathlib.Path) -> dict:
    """Train and evaluate one row with one seed.

    Args:
        group, name: of the row. seed: of the run. workdirs: where runs live.

    Returns:
        What its results file holds: the command, every evaluation's metrics, the last measures of health.

    Raises:
        UserError: the run failed.
    """
    row, workdir = GROUPS[group].rows[name], place(group, name, seed, workdirs)
    workdir.mkdir(parents=True, exist_ok=True)
    others = {str(place(group, other, seed, workdirs)): other for other in row.beside}
    arguments, began = command(row, seed, workdir, list(others)), time.time()
    start = [sys.executable, str(ROOT / "main.py"), *arguments]
    with (workdir / "log.txt").open("a") as log:
        done = subprocess.run(start, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    log = (workdir / "log.txt").read_text()
    if done.returncode:
        raise UserError(f"{group}/{name} seed {seed} failed: see the end of {workdir / 'log.txt'}.")
    measured = metrics(json.loads((workdir / "evaluation.json").read_text()))
    return {
        "group": group, "row": name, "seed": seed, "command": ["main.py", *arguments],
        "seconds": time.time() - began, "date": datetime.date.today().isoformat(),
        "machine": platform.machine(), "alarms": [x for x in log.splitlines() if x.startswith("warning:")],
        "health": health(workdir),
        "metrics": {others.get(encoder, encoder): tasks for encoder, tasks in measured.items()},
    }  # fmt: skip


def main() -> None:
    """Command line; see the docstring of this file."""
    parser = script_parser(__spec__, __doc__)
    add, folder = parser.add_argument, {"type": pathlib.Path, "metavar": "DIR"}
    add(
        "--group",
        choices=GROUPS,
        help="of benchmarks/evidence/experiments.py; without it, all of them are listed",
    )
    add("--rows", metavar="A,B", help="only these rows of the group")
    add(
        "--seeds",
        metavar="N,N",
        default="0,1,2",
        help="each is a run of main.py: train, then evaluate (%(default)s)",
    )
    add("--workdirs", **folder, default=ROOT / "runs" / "evidence",
        help="where runs live (runs/evidence); an interrupted one continues")  # fmt: skip
    add("--results", **folder, default=RESULTS,
        help="one JSON file per finished run; a run that has one is skipped")  # fmt: skip
    add("--tables", action="store_true",
        help="run nothing; write the tables of all results into docs/results.md")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.tables:
        return write_tables(arguments.results, ROOT / "docs" / "results.md")
    if arguments.group is None:
        for name, group in GROUPS.items():
            print(f"{name}: {group.title}\n    {', '.join(group.rows)}")
        return None
    rows = GROUPS[arguments.group].rows
    wanted = arguments.rows.split(",") if arguments.rows else list(rows)
    if unknown := [name for name in wanted if name not in rows]:
        raise UserError(f"--rows={unknown[0]} is no row of {arguments.group}; it has {', '.join(rows)}.")
    seeds = arguments.seeds.split(",")
    if wrong := [seed for seed in seeds if not re.fullmatch("[0-9]+", seed)]:
        raise UserError(
            f"--seeds={arguments.seeds}: {wrong[0]!r} is no seed; give numbers, as in --seeds=0,1,2."
        )
    results, group = arguments.results, arguments.group
    files = {
        (name, seed): results / group / f"{name}-seed{seed}.json"
        for seed in map(int, seeds)
        for name in wanted
    }
    todo, began = [pair for pair, file in files.items() if not file.exists()], time.time()
    for done, (name, seed) in enumerate(todo):
        seconds = (time.time() - began) / max(done, 1) * (len(todo) - done)
        left = datetime.timedelta(seconds=round(seconds)) if done else "unknown yet"
        print(f"{done + 1}/{len(todo)} {name}, seed {seed} ...  ETA {left}", flush=True)
        result, file = run(group, name, seed, arguments.workdirs), files[name, seed]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"    {result['seconds']:.0f} s -> {file}", flush=True)
    return None


if __name__ == "__main__":
    command_line(main)
