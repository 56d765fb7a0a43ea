"""Time what the project does differently from the direct form, both in turns on this machine.

    python benchmarks/before_after.py --json=benchmarks/results/before_after.json

A ratio is before / after, of the least times and the median over the turns: above 1 where ours is faster.
"unroll" is the step of configs/digits.py with the layers of the scan laid out; "threads" is step.py with
configs/quickstart.py, in processes with 32 threads of XLA and with one per core, in three turns;
"libraries" is encode.py for B/16 with and without YNNPACK, likewise; "start" is main.py twice with a cache
of compiled programs that is empty at first, then with another seed; "loss-memory" only compiles the losses
for 128 images.
"""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

from benchmarks.speed.arguments import script_parser
from sparse_vis.runtime.errors import UserError, command_line

ROOT = pathlib.Path(__file__).resolve().parent.parent


def in_turns(forms: list, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of both forms' calls, one after the other, after two turns that do not count."""
    from benchmarks.speed.measure import timed

    turns = [[timed(form, 1, 0).seconds[0] for form in forms] for _ in range(2 + repeats)][2:]
    return [turn[0] for turn in turns], [turn[1] for turn in turns]


def compare(times: tuple[list[float], list[float]]) -> dict:
    """Least seconds of both and their ratio; median and quartile distance of the turns' ratios."""
    from benchmarks.speed.measure import quartile_spread

    ratios = [before / after for before, after in zip(*times, strict=True)]
    before, after = map(min, times)
    ratio, spread = statistics.median(ratios), quartile_spread(ratios)
    return {"seconds": [before, after], "least_ratio": before / after, "ratio": ratio, "spread": spread}


def differ(a, b) -> float:
    """Largest relative L2 distance between the arrays of two results."""
    import jax
    import numpy as np

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    flat = [[np.asarray(x, np.float64).ravel() for x in pair] for pair in pairs]
    return max(float(np.linalg.norm(x - y) / max(np.linalg.norm(x), 1e-30)) for x, y in flat)


def measure_pair(name: str, repeats: int) -> dict:
    """Times, temporary memory and distance of a pair's results.

    Raises:
        UserError: forms that should agree do not.
    """
    import numpy as np

    from benchmarks.direct_model import PAIRS
    from benchmarks.speed.measure import compiled

    pair = PAIRS[name]()
    programs = [compiled(form, *pair.arguments) for form in pair.forms]
    results = [program.call(*pair.arguments) for program in programs]
    found = {"before": pair.before, "after": pair.after}
    if pair.same:
        found["differ"] = differ(*results)
        if found["differ"] > 1e-4:
            raise UserError(
                f"{name}: both forms' results are {found['differ']:.1e} apart; correct one of them."
            )
    else:
        found["agree"] = float(np.mean(np.asarray(results[0]) == np.asarray(results[1])))
    times = in_turns([lambda p=p: p.call(*pair.arguments) for p in programs], repeats)
    return found | compare(times) | {"temporaries": [program.temporaries for program in programs]}


def measure_memory(_name: str, _repeats: int) -> dict:
    """Temporary memory of the losses' forms for one device's 128 images; nothing is run."""
    import jax

    from benchmarks.direct import losses
    from benchmarks.speed.measure import compiled

    shapes, pair = jax.eval_shape(lambda: losses(128, 1024).arguments), losses(1, 1024)
    temporaries = [compiled(form, *shapes).temporaries for form in pair.forms]
    found = {"before": pair.before, "after": pair.after, "temporaries": temporaries}
    return found | {"seconds": None, "least_ratio": temporaries[0] / temporaries[1], "ratio": None}


def measure_unroll(_: str, repeats: int) -> dict:
    """The whole step of configs/digits.py with its 3 layers scanned one by one, and laid out."""
    import numpy as np

    from benchmarks.speed.measure import compiled
    from benchmarks.speed.synthetic import random_batch, random_state, recipe_of
    from configs.digits import get_config
    from sparse_vis.train.mesh import make_mesh
    from sparse_vis.train.step import compile_step

    config, programs, steps = get_config(), [], []
    for unroll in (1, config.model.layers):
        config.efficiency.unroll = unroll
        recipe, batch = recipe_of(config), random_batch(config)
        state, seed = random_state(recipe), np.uint32(0)
        programs.append(compiled(compile_step(recipe, make_mesh((-1, 1)), state), state, batch, None, seed))

        def step(program=programs[-1], kept=[state], batch=batch, seed=seed):  # noqa: B006
            kept[0], metrics = program.call(kept[0], batch, None, seed)
            return metrics

        steps.append(step)
    found = {"before": "unroll=1", "after": f"unroll={config.model.layers}"} | compare(
        in_turns(steps, repeats)
    )
    found["compile_seconds"] = [program.compile_seconds for program in programs]
    return found | {"temporaries": [program.temporaries for program in programs]}


def output_of(*command: str, environment: dict[str, str]) -> str:
    """What one of our programs prints, run from the repository's root; UserError where it fails."""
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"{command[0]} did not end well: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def median_seconds(repeats: int, environment: dict[str, str], *command: str) -> float:
    """Median seconds of one of our benchmarks, in a process with these variables and XLA's own threads."""
    inherited = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "result.json")
        output_of(*command, f"--repeats={repeats}", f"--json={path}", environment=inherited | environment)
        return json.loads(path.read_text())["seconds"]["median"]


def compare_environments(repeats: int, before: dict[str, str], after: dict[str, str], *command: str) -> dict:
    """One of our benchmarks in both environments, three turns of processes."""
    turns = [[median_seconds(repeats, each, *command) for each in (before, after)] for _ in range(3)]
    return compare(tuple(zip(*turns, strict=True)))


def measure_threads(_name: str, repeats: int) -> dict:
    """Training steps of the quickstart on one CPU device, with 32 threads, and with a thread per core."""
    command = "benchmarks/speed/step.py", "--config=configs/quickstart.py"
    found = {"before": "32 threads of XLA", "after": f"one per core ({os.cpu_count()})"}
    return found | compare_environments(repeats, {"PJRT_NPROC": "32"}, {}, *command)


def measure_libraries(_name: str, repeats: int) -> dict:
    """B/16's encoder, with products and sums by YNNPACK where XLA would use it, and without it."""
    command = (
        "benchmarks/speed/encode.py",
        "--config=configs/imagenet_b16.py",
        "--config.efficiency.dtype=float32",
    )
    default = {"XLA_FLAGS": f"--{host.LIBRARY}=+individual_dot"}  # which is among what XLA gives it
    found = {"before": "YNNPACK, XLA's choice", "after": "Eigen"}
    return found | compare_environments(
        repeats, default, {"XLA_FLAGS": host.NO_YNNPACK}, *command, "--images=8"
    )


def start(cache: str, seed: int) -> tuple[float, str]:
    """Seconds from the start of main.py to its end after one step, and its line on compilation."""
    with tempfile.TemporaryDirectory() as workdir:
        arguments = [
            "--config=configs/digits.py", f"--workdir={workdir}/run", f"--config.seed={seed}",
            "--config.train.steps=1", "--config.train.health_every=0", "--config.eval.tasks=()",
        ]  # fmt: skip
        began = time.perf_counter()
        said = output_of("main.py", *arguments, environment=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache})
        took = time.perf_counter() - began
    found = re.search(r"compiled in .*", said)
    if not found:
        raise UserError(f"main.py did not train: {said.strip()[-300:]}")
    return took, found[0]


def measure_start(_name: str, _repeats: int) -> dict:
    """main.py with an empty cache, and again with another seed; once, as it takes long."""
    with tempfile.TemporaryDirectory() as cache:
        (cold, said), (warm, said_again) = start(cache, 0), start(cache, 1)
    found = {"before": f"first start ({said})", "after": f"second start ({said_again})"}
    return found | {"seconds": [cold, warm], "least_ratio": cold / warm, "ratio": None}


def row(name: str, r: dict) -> str:
    """A result as a line of the table."""
    seconds = r["seconds"] or ()
    before, after = [f"{x:.1f} s" if x > 5 else f"{1e3 * x:.1f} ms" for x in seconds] or ("", "")
    turns = "" if r["ratio"] is None else f"{r['ratio']:.2f} ({r['spread']:.0%})"
    memory = "" if "temporaries" not in r else "{:.0f} → {:.0f}".format(*(x / 1e6 for x in r["temporaries"]))
    agreement = f"{r['differ']:.0e}" if "differ" in r else ""
    agreement = f"{r['agree']:.1%} equal" if "agree" in r else agreement
    cells = (
        name,
        r["before"],
        r["after"],
        before,
        after,
        f"{r['least_ratio']:.2f}",
        turns,
        memory,
        agreement,
    )
    return f"| {' | '.join(cells)} |"


HEADER = "\n".join([
    "| what | before | after | before, least | after, least | ratio | median ratio (quartiles) "
    "| temporaries MB | results differ by |",
    "|" + 9 * "---|",
])  # fmt: skip


def main() -> None:
    from benchmarks.direct_model import PAIRS
    from benchmarks.speed.record import check_json, write_json

    known = {name: measure_pair for name in PAIRS} | {
        "loss-memory": measure_memory,
        "unroll": measure_unroll,
        "threads": measure_threads,
        "libraries": measure_libraries,
        "start": measure_start,
    }
    parser = script_parser(__file__, __doc__)
    add = parser.add_argument
    add(
        "--only",
        default="",
        metavar="LOSSES,CROPS",
        help="some of the pairs of benchmarks/direct_model.py, or of: loss-memory, unroll, threads, "
        "libraries, start",
    )
    add(
        "--repeats",
        type=int,
        default=15,
        metavar="N",
        help="turns that are timed, after two that are not (%(default)s)",
    )
    add("--json", metavar="FILE", help="the same numbers for programs; other pairs of the file stay")
    arguments = parser.parse_args()
    check_json(arguments.json)
    names = arguments.only.split(",") if arguments.only else list(known)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--only={unknown[0]} is unknown; use some of: {'; '.join(known)}.")
    if arguments.repeats < 1:
        raise UserError(f"--repeats={arguments.repeats} is too small; use at least 1.")
    print(HEADER, flush=True)
    path = pathlib.Path(arguments.json) if arguments.json else None
    results = json.loads(path.read_text())["pairs"] if path and path.exists() else {}
    for name in names:
        results[name] = known[name](name, arguments.repeats)
        print(row(name, results[name]), flush=True)
        write_json(arguments.json, {"pairs": results})


if __name__ == "__main__":
    command_line(main)
