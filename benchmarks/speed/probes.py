"""Time kNN and linear probes on as many features as ImageNet has images, and those of scikit-learn and faiss.

    python -m benchmarks.speed.probes --json=benchmarks/results/probes.json

Features are random, with a mean for each class, in a file. Each row of the table is a new process, which maps
the file into memory; the largest memory does not count the pages of the file. kNN (k = 20) searches the whole
file for the queries. The linear probes are fitted to the first `--fitted` rows: ours in 500 steps of 256 rows
for 13 learning rates together, scikit-learn's LogisticRegression (L-BFGS) in at most 10 iterations over all
rows for one setting. Their rows/s count a row each time that a classifier is trained on it. Needs `pip
install faiss-cpu`, or a shorter `--only`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.speed import command
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.tools import positive

K, ITERATIONS, BLOCK = 20, 10, 10_000


def write_features(folder: Path, rows: int, queries: int, width: int, classes: int) -> None:
    """Write files of x (rows, width) float32 and y (rows,) int32, and the same for the queries."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(classes, width)).astype(np.float32) / 2
    for name, count in (("train", rows), ("test", queries)):
        y = rng.integers(0, classes, count).astype(np.int32)
        x = np.lib.format.open_memmap(folder / f"{name}_x.npy", "w+", np.float32, (count, width))
        for i in range(0, count, BLOCK):
            x[i : i + BLOCK] = means[y[i : i + BLOCK]] + rng.standard_normal(
                (len(x[i : i + BLOCK]), width), np.float32
            )
        np.save(folder / f"{name}_y.npy", y)


def ours_nearest(x, y, queries, classes):
    from sparse_vis.evals.classes.knn import knn_predict
    from sparse_vis.evals.features import Split

    return knn_predict(Split(x, y), queries, classes=classes, ks=(K,))[K]


def faiss_nearest(x, y, queries, classes):
    import faiss

    index = faiss.IndexFlatIP(x.shape[1])
    for i in range(0, len(x), BLOCK):  # it copies what it gets
        index.add(unit(x[i : i + BLOCK]))
    return vote(*index.search(unit(queries), K), y, classes)


def sklearn_nearest(x, y, queries, classes):
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(x)
    distance, index = found.kneighbors(queries)
    return vote(1 - distance, index, y, classes)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def vote(cosine: np.ndarray, index: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """The class with the largest sum of exp(cos / 0.07)."""
    weight = np.exp((cosine - cosine[:, :1]) / 0.07)
    return np.stack([
        np.bincount(y[rows], w, classes).argmax() for rows, w in zip(index, weight, strict=True)
    ])  # fmt: skip


def ours_linear(x, y, queries, classes):
    from sparse_vis.evals.classes.linear import SweepProtocol, fit_all

    protocol = SweepProtocol()
    fit_all({"x": x}, y, classes, protocol)
    return protocol.steps * min(protocol.batch_size, len(x)) * len(protocol.learning_rates)


def sklearn_linear(x, y, queries, classes):
    import warnings

    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it has not converged
        fitted = LogisticRegression(max_iter=ITERATIONS).fit(x, y)
    return int(fitted.n_iter_.max()) * len(x)


ROWS = {
    "kNN: sparse_vis": ours_nearest, "kNN: faiss": faiss_nearest, "kNN: scikit-learn": sklearn_nearest,
    "linear: sparse_vis": ours_linear, "linear: scikit-learn": sklearn_linear,
}  # fmt: skip


def anonymous() -> int:
    """Bytes in memory of this process, without pages of files."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def largest_during(call: Callable) -> tuple[object, float, int]:
    """The call's result, its seconds, and the largest `anonymous`, measured every 20 ms."""
    done, seen = threading.Event(), [anonymous()]

    def watch():
        while not done.wait(0.02):
            seen.append(anonymous())

    thread, began = threading.Thread(target=watch), time.perf_counter()
    thread.start()
    try:
        value = call()
    finally:
        seconds = time.perf_counter() - began
        done.set()
        thread.join()
    return value, seconds, max(seen)


def one_row(name: str, folder: Path, fitted: int, classes: int) -> dict:
    """Measure a row in this process."""
    load = {part: np.load(folder / f"{part}_x.npy", mmap_mode="r") for part in ("train", "test")}
    y, linear = np.load(folder / "train_y.npy"), name.startswith("linear")
    x, y = (load["train"][:fitted], y[:fitted]) if linear else (load["train"], y)
    value, seconds, memory = largest_during(lambda: ROWS[name](x, y, load["test"], classes))
    found = {"row": name, "seconds": seconds, "memory": memory}
    if linear:
        return found | {"rows_per_second": value / seconds}
    accuracy = float(np.mean(value == np.load(folder / "test_y.npy")))
    return found | {"accuracy": accuracy, "rows_per_second": len(load["test"]) * len(x) / seconds}


def arguments() -> argparse.Namespace:
    parser = command.script_parser(__spec__, __doc__)
    for flag, default, what in (
        ("--rows", 1_281_167, "features to search"), ("--queries", 1000, "features to classify"),
        ("--fitted", 50_000, "features for the linear rows"), ("--width", 768, "numbers in a feature"),
        ("--classes", 1000, "classes"),
    ):  # fmt: skip
        parser.add_argument(flag, type=positive, default=default, metavar="N", help=f"{what} (%(default)s)")
    parser.add_argument("--only", default=",".join(ROWS), metavar="ROWS", help="(all) of: %(default)s")
    parser.add_argument("--folder", metavar="FOLDER", help="features of an earlier call, for one row")
    parser.add_argument("--json", metavar="FILE", help="file for the numbers")
    given = parser.parse_args()
    given.only = given.only.split(",")
    for name in given.only:
        if name not in ROWS:
            parser.error(f"--only={name} is unknown; choose from {', '.join(ROWS)}")
    command.check_file(given.json)
    return given


def main() -> None:
    given = arguments()
    if given.folder:  # this is the process of one row
        print(json.dumps(one_row(given.only[0], Path(given.folder), given.fitted, given.classes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"writing {given.rows * given.width * 4 / 1e9:.1f} GB of features ...", flush=True)
        write_features(Path(folder), given.rows, given.queries, given.width, given.classes)
        found = []
        print("| | seconds | rows/s | largest memory, GiB | accuracy |\n|---|---|---|---|---|", flush=True)
        for name in given.only:
            words = [f"--only={name}", f"--folder={folder}", f"--fitted={given.fitted}"]
            done = subprocess.run(
                [sys.executable, "-m", __spec__.name, *words, f"--classes={given.classes}"],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            if done.returncode:
                raise UserError(f"'{name}' failed, see above; leave it out, or install its package.")
            row = json.loads(done.stdout.splitlines()[-1])
            found.append(row)
            accuracy = f"{row['accuracy']:.3f}" if "accuracy" in row else "-"
            cells = f"{row['seconds']:.1f} | {row['rows_per_second']:.3g} | {row['memory'] / 2**30:.2f}"
            print(f"| {name} | {cells} | {accuracy} |", flush=True)
    sizes = {name: getattr(given, name) for name in ("rows", "queries", "fitted", "width", "classes")}
    command.write_json(given.json, {**sizes, "found": found})


if __name__ == "__main__":
    command_line(main)
