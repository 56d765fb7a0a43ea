"""Run the experiments of docs/results.md and docs/small_experiments.md.

    python -m benchmarks.evidence.evidence --group=ablations --seeds=0,1,2

It may be stopped at any time and started again: finished runs are kept. All rows run with the first seed
before the second one begins.
"""

import collections
import datetime
import json
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time

from benchmarks.evidence.experiments import GROUPS, Group
from benchmarks.speed.command import script_parser
from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import UserError, command_line, explained
from sparse_vis.runtime.files import read_json, write_whole

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "evidence"
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "small_experiments.md")
TRAINED = "trained"  # name of the encoder that a run has trained, in its results


def run(group: str, name: str, seed: int, workdirs: pathlib.Path) -> dict:
    """Train and evaluate one row with one seed; returns the content of its result file."""
    row, workdir = GROUPS[group].rows[name], workdirs / group / name / f"seed{seed}"
    workdir.mkdir(parents=True, exist_ok=True)
    overrides = [f"--config.{name}={value}" for name, value in {**row.settings, "seed": seed}.items()]
    command, began = [*row.program, f"--config={row.config}", f"--workdir={workdir}", *overrides], time.time()
    with (workdir / "log.txt").open("a") as log:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    log = (workdir / "log.txt").read_text()
    if done.returncode:
        raise UserError(f"{group}/{name} seed {seed} failed: see the end of {workdir / 'log.txt'}.")
    measured = {}  # the last number of each kind
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        measured |= json.loads(line)
    encoders = json.loads((workdir / "evaluation.json").read_text())["encoders"]
    return {
        "group": group, "row": name, "seed": seed, "command": command,
        "seconds": time.time() - began, "date": datetime.date.today().isoformat(),
        "machine": platform.machine(), "alarms": [x for x in log.splitlines() if x.startswith("warning:")],
        "health": {k.removeprefix("health/"): v for k, v in measured.items() if k.startswith("health/")},
        "metrics": {
            encoder: {task: result["metrics"] for task, result in tasks.items()}
            for encoder, tasks in encoders.items()
        },
    }  # fmt: skip


def read_results(folder: pathlib.Path) -> list[dict]:
    """The results of a group's finished runs, in the order of their files' names."""
    found = []
    for file in sorted(folder.glob("*.json")):
        with explained(ValueError, f"{file} cannot be read", "delete it and run its row and seed again."):
            found.append(read_json(file))
    return found


def number(result: dict, encoder: str, path: tuple[str, ...]) -> float | None:
    """A number of a result by its keys; None if it is absent. Only the trained model has health."""
    if path[0] != "health":
        result = result["metrics"].get(encoder)
    elif encoder != TRAINED:
        return None
    for names in path:
        held = result if isinstance(result, dict) else {}
        result = next((held[name] for name in names.split("|") if name in held), None)
    return result if isinstance(result, int | float) else None


def cell(values: list[float], digits: int) -> str:
    """Mean ± standard deviation over seeds, and their number if it is not three."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    count = f" (n={len(values)})" if len(values) != 3 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}{count}"


def table(group: Group, results: list[dict]) -> str:
    """One group as a Markdown table, with a row per experiment and per encoder of its `shown`."""
    by_row = collections.defaultdict(list)
    for result in results:
        by_row[result["row"]].append(result)
    lines = ["| |" + "|".join(column.title for column in group.columns) + "| alarms |"]
    lines.append("|---" * (len(group.columns) + 2) + "|")
    for name, row in group.rows.items():
        if not (runs := by_row.get(name)):
            continue
        for encoder in (TRAINED, *row.shown):
            own = encoder == TRAINED
            cells = [name if own else f"{name}: {encoder}"]
            for column in group.columns:
                found = [number(run, encoder, column.path) for run in runs]
                cells.append(cell([x for x in found if x is not None], column.digits))
            cells.append(str(sum(bool(run["alarms"]) for run in runs)) if own else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_tables(results: pathlib.Path, pages: tuple[pathlib.Path, ...]) -> None:
    """Write each group's table between `<!-- NAME -->` and `<!-- end -->` on the page with these marks."""
    if not results.is_dir():
        raise UserError(f"--results={results} is no folder; give that of the result files.")
    texts = {page: page.read_text() for page in pages}
    for name, group in GROUPS.items():
        found = read_results(results / name)
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = next((page for page, text in texts.items() if pattern.search(text)), None)
        if page is None:
            where = " or ".join(map(str, pages))
            raise UserError(f"{where} has no marks <!-- {name} --> and <!-- end -->; add both.")
        body = table(group, found) if found else "*Not run yet.*"
        texts[page] = pattern.sub(lambda match, body=body: f"{match[1]}\n{body}\n\n{match[2]}", texts[page])
    for page, text in texts.items():
        write_whole(page, text)


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    add, folder = parser.add_argument, {"type": paths.path, "metavar": "DIR"}
    add("--group", choices=GROUPS, help="of benchmarks/evidence/experiments.py; without it, lists all groups")
    add("--rows", metavar="A,B", help="only these rows of the group")
    add("--seeds", metavar="N,N", default="0,1,2",
        help="for each, main.py trains and evaluates every row (%(default)s)")  # fmt: skip
    add("--workdirs", **folder, default=ROOT / "runs" / "evidence",
        help="folder of the runs (runs/evidence); an interrupted run continues")  # fmt: skip
    add("--results", **folder, default=RESULTS,
        help="one JSON file per finished run; a run that has one is skipped")  # fmt: skip
    add("--tables", action="store_true",
        help="run nothing; write the tables of all results into the two pages")  # fmt: skip
    arguments = parser.parse_args()
    results, group = arguments.results, arguments.group
    if arguments.tables:
        return write_tables(results, PAGES)
    if group is None:
        for name, found in GROUPS.items():
            print(f"{name}: {found.title}\n    {', '.join(found.rows)}")
        return None
    rows, seeds = GROUPS[group].rows, arguments.seeds.split(",")
    wanted = list(rows) if arguments.rows is None else arguments.rows.split(",")
    if unknown := [name for name in wanted if name not in rows]:
        raise UserError(f"--rows={unknown[0]} is not a row of {group}; it has {', '.join(rows)}.")
    if wrong := [seed for seed in seeds if not re.fullmatch("[0-9]+", seed)]:
        what = f"--seeds={arguments.seeds}: {wrong[0]!r} is not a seed"
        raise UserError(f"{what}; give numbers, as in --seeds=0,1,2.")
    files = {(n, s): results / group / f"{n}-seed{s}.json" for s in map(int, seeds) for n in wanted}
    todo, began = [pair for pair, file in files.items() if not file.exists()], time.time()
    for done, (name, seed) in enumerate(todo):
        seconds = (time.time() - began) / max(done, 1) * (len(todo) - done)
        left = datetime.timedelta(seconds=round(seconds)) if done else "unknown yet"
        print(f"{done + 1}/{len(todo)} {name}, seed {seed} ...  ETA {left}", flush=True)
        result, file = run(group, name, seed, arguments.workdirs), files[name, seed]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(result, indent=1) + "\n")
        print(f"    {result['seconds']:.0f} s -> {file}", flush=True)
    return None


if __name__ == "__main__":
    command_line(main)
