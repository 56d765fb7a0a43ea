"""Measure images/s of the input pipeline, from JPEG files to canvases in host batches, per core and in all.

    python -m benchmarks.speed.input --json=benchmarks/results/input.json

Files are made from scikit-learn's photographs and stay in memory, so that only computation is measured. Per
core means per second of a core's time, on which other work on the machine has little influence.
"""

import importlib.util
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.speed.command import check_file, script_parser, write_json
from sparse_vis.commands.pack import pack
from sparse_vis.data.decode import decode, to_canvas
from sparse_vis.data.loader import train_batches
from sparse_vis.data.sources import Source, as_source, open_input
from sparse_vis.runtime.errors import command_line
from sparse_vis.runtime.tools import positive

CANVAS, BATCH, BATCHES, MARK = 512, 32, 32, 500
SIZES = ((500, 375, 40), (1000, 750, 20), (2000, 1500, 8))  # width, height, files
# (workers, threads); 0 workers decode within this process, others are processes.
SPLITS = ((0, 1), (0, 2), (0, 4), (1, 1), (2, 1), (2, 2))


def photographs(count: int, width: int, height: int) -> list[bytes]:
    """JPEG files of random parts of two photographs, of at least 70 % of their height."""
    pictures, rng, files = load_sample_images().images, np.random.default_rng(0), []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        part = int(picture.shape[0] * rng.uniform(0.7, 1)), int(picture.shape[1] * rng.uniform(0.7, 1))
        top, left = (
            rng.integers(0, whole - size + 1) for whole, size in zip(picture.shape, part, strict=False)
        )
        cut = Image.fromarray(picture[top : top + part[0], left : left + part[1]])
        buffer = io.BytesIO()
        cut.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    return files


def by_pillow(data: bytes) -> np.ndarray:
    """Decode with Pillow alone."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def by_us(data: bytes, at_least: int = 0) -> np.ndarray:
    """Decode as in training."""
    return decode({"image": data, "name": "photograph"}, at_least=at_least)


def placed(pixels: np.ndarray) -> np.ndarray:
    """Place an image on its canvas."""
    return to_canvas(pixels, CANVAS, min_side=16)[0]


FORMS = {
    "Pillow": by_pillow,
    "simplejpeg": by_us,
    "Pillow, on canvas": lambda data: placed(by_pillow(data)),
    "simplejpeg, on canvas": lambda data: placed(by_us(data)),
    "simplejpeg, reduced while decoded, on canvas": lambda data: placed(by_us(data, CANVAS)),
}


def per_core(form, files: Sequence, repeats: int = 5) -> float:
    """Images per second of this thread's time, in the best of `repeats` passes over the files."""
    best = float("inf")
    for _ in range(repeats):
        began = time.thread_time()
        for data in files:
            form(data)
        best = min(best, time.thread_time() - began)
    return len(files) / best


def psnr(a: np.ndarray, b: np.ndarray) -> float | None:
    """PSNR of two uint8 images in dB; None if they are equal."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else None


def pipeline(files: list[bytes], workers: int, threads: int, batches: int) -> dict:
    """Images per second of `train_batches`."""
    # Before the clock starts, take as many batches as the queues can hold when all workers run.
    ahead = workers + max(workers, 1) * (threads + 2)
    stream = train_batches(
        as_source(files), global_batch=BATCH, seed=0, start_index=0, steps=ahead + batches, canvas=CANVAS,
        min_side=16, workers=workers, threads=threads, on_error="stop", process_index=0, process_count=1,
    )  # fmt: skip
    for _ in range(ahead):
        next(stream)
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(stream)
    took, busy = time.perf_counter() - began, time.process_time() - busy
    stream.close()
    images = batches * BATCH
    return {"images_per_second": images / took, "per_core": None if workers else images / busy}


def measure_forms() -> list[dict]:
    """Measure and print decoding and placing, for each of SIZES."""
    rows = []
    for width, height, count in SIZES:
        files = photographs(count, width, height)
        r = {"width": width, "height": height, "bytes": float(np.mean([len(data) for data in files]))}
        r["per_core"] = {name: per_core(form, files) for name, form in FORMS.items()}
        full, reduced = (placed(by_us(files[0], at_least)) for at_least in (0, CANVAS))
        r |= {"reduced_psnr": psnr(full, reduced), "pillow_psnr": psnr(by_pillow(files[0]), by_us(files[0]))}
        print(f"{width} x {height}, {r['bytes'] / 1e3:.0f} kB: images/s per core", flush=True)
        for name, rate in r["per_core"].items():
            print(f"  {rate:7.0f}  {name}")
        same, changed = (
            "equal" if db is None else f"{db:.1f} dB" for db in (r["pillow_psnr"], r["reduced_psnr"])
        )
        print(f"  simplejpeg to Pillow: {same}; reduced while decoded to decoded in full: {changed}")
        rows.append(r)
    return rows


def sources(files: list[bytes], folder: Path) -> dict[str, Source]:
    """The same files as every kind of source, written below `folder`."""
    for n, data in enumerate(files):
        path = folder / "folder" / f"{n:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (folder / "list.txt").write_text("".join(f"folder/{n:05d}.jpg\n" for n in range(len(files))))
    with tarfile.open(folder / "0.tar", "w") as tar:
        tar.add(folder / "folder", ".")
    how = dict(shard_size=len(files), threads=1, on_error="stop")
    pack(images=str(folder / "folder"), output=folder / "packed", **how)
    places = {kind: f"{folder}/{kind}" for kind in ("folder", "packed")}
    places |= {"table": f"table:{folder}/list.txt", "webdataset": f"webdataset:{folder}/0.tar"}
    if importlib.util.find_spec("datasets"):
        import datasets

        rows = {"image": [{"bytes": data, "path": None} for data in files]}
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "saved")
        places["hf"] = f"hf:{folder}/saved"
    else:
        print("  (hf: is left out; it needs pip install datasets)", flush=True)
    return {kind: open_input(place) for kind, place in places.items()} | {"own": as_source(files)}


def measure_sources(files: list[bytes]) -> list[dict]:
    """Measure and print, for each source, microseconds per record that is read, and images/s to the canvas.

    The files are in the memory of the system, so that no time of the disk is measured.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, source in sources(files, Path(folder)).items():
            reads = range(len(source))
            read = 1e6 / per_core(source.__getitem__, reads)
            rate = per_core(lambda i, of=source: placed(decode(of[i], CANVAS)), reads)
            rows.append({"source": kind, "read_microseconds": read, "images_per_second": rate})
            print(f"  {kind:10s}  {read:6.0f} us to read, {rate:5.0f} images/s to canvas", flush=True)
    return rows


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    add = parser.add_argument
    add("--rounds", type=positive, default=3, metavar="N", help="how often 32 batches of 32 images are timed "
        "for each number of workers and threads, in turns (%(default)s)")  # fmt: skip
    add("--json", metavar="FILE", help="file for the numbers, with device, versions and date")
    arguments = parser.parse_args()
    check_file(arguments.json)
    rows, splits, files = measure_forms(), [], photographs(40, 500, 375)
    print(f"500 x 375 to host batches of {BATCH}, {os.cpu_count()} cores: images/s in all", flush=True)
    rounds = [[pipeline(files, *split, BATCHES) for split in SPLITS] for _ in range(arguments.rounds)]
    for (workers, threads), runs in zip(SPLITS, zip(*rounds, strict=True), strict=True):
        rate = statistics.median(run["images_per_second"] for run in runs)
        splits.append({"workers": workers, "threads": threads, "images_per_second": rate})
        per_core = ""
        if not workers:
            splits[-1]["per_core"] = statistics.median(run["per_core"] for run in runs)
            per_core = f", {splits[-1]['per_core']:.0f} per second of core time, the batch made"
        print(f"  {rate:7.0f}  workers={workers}, threads={threads}{per_core}", flush=True)
    print("500 x 375 through each source, per core:", flush=True)
    through = measure_sources(photographs(200, 500, 375))
    reached = rows[0]["per_core"]["simplejpeg, reduced while decoded, on canvas"]
    print(f"{reached:.0f} images/s per core; the mark is {MARK}: {'met' if reached >= MARK else 'not met'}")
    write_json(
        arguments.json,
        {"canvas": CANVAS, "decoding": rows, "pipeline": splits, "sources": through, "per_core": reached},
    )


if __name__ == "__main__":
    command_line(main)
