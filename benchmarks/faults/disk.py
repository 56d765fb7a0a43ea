"""A disk that is full at some byte of whatever a command writes.

The command must end with status 1 and one sentence, keep what was complete, and, given space and started
again, end as if nothing had happened. Needs root, to mount a small file system in memory.
"""

from __future__ import annotations

import pathlib
import random
import subprocess

from benchmarks.faults import kills, two
from benchmarks.faults.process import start
from benchmarks.faults.samples import picture_folder
from benchmarks.faults.tally import Tally
from benchmarks.faults.two import Command


def mount(place: pathlib.Path, size: int, again: bool = False) -> None:
    """An empty file system of `size` bytes; `again`: the one that is there gets that size."""
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={size}" + (",remount" if again else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def unmount(place: pathlib.Path) -> None:
    subprocess.run(["umount", str(place)], check=True)


def used(place: pathlib.Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def commands(place: pathlib.Path, run: pathlib.Path, images: pathlib.Path) -> dict[str, Command]:
    """What writes, by name: program and arguments that write below `place`."""
    out = f"--output={place / 'out'}"
    return {
        "training": ("main.py", kills.run_flags(place / "out", 0)),
        "extraction": ("-m sparse_vis.extract", [
            f"--checkpoint={run}", f"--input={images}", out, "--shard-size=4", "--batch=4",
        ]),
        "packing": ("-m sparse_vis.data.pack", [f"--input={images}", out, "--shard-size=4"]),
        "export": ("-m sparse_vis.export", [f"--checkpoint={run}", out]),
        "reconstruction": ("-m sparse_vis.reconstruct", [f"--checkpoint={run}", f"--input={images}", out]),
        "report": ("-m sparse_vis.report", [f"--checkpoint={run}", f"{out}.html"]),
    }  # fmt: skip


def campaign(folder: pathlib.Path, tally: Tally, each: int, seed: int) -> None:
    """Every command that writes, on disks of random sizes below what it needs.

    Args:
        folder: for all that is written. tally: gets the trials. each: sizes per command. seed: of the sizes.
    """
    chance, run, place = random.Random(seed), folder / "calm", folder / "disk"
    if start(kills.run_flags(run, 0), folder / "calm.log").wait():
        raise RuntimeError((folder / "calm.log").read_text())
    images, expected = picture_folder(folder / "images", 60), kills.final(run)
    for name, (program, arguments) in commands(place, run, images).items():
        mount(place, 1 << 30)
        if start(arguments, folder / "first.log", program).wait():
            raise RuntimeError((folder / "first.log").read_text())
        need = used(place)
        unmount(place)
        for _ in range(each):
            mount(place, max(4096, int(need * chance.uniform(0, 0.95))))
            status = start(arguments, folder / "full.log", program).wait()
            text = (folder / "full.log").read_text()
            mount(place, 1 << 30, again=True)
            again = start(arguments, folder / "again.log", program).wait()
            wrong = [f"again: {(folder / 'again.log').read_text()[-500:]}"] if again else []
            if not wrong and name == "training":
                wrong = kills.differences(kills.final(place / "out"), expected)
            if not wrong and name == "extraction":
                wrong = two.lacking(place / "out", 60)
            if not wrong and name == "packing":
                wrong = two.packed_lacks(place / "out", images)
            unmount(place)
            kind, fault = f"disk full, {name}", f"{need} bytes needed"
            if wrong:
                tally.fail(kind, f"{fault}: {'; '.join(wrong)}")
            elif status == 0:
                tally.row(kind).harmless += 1  # e.g. without its TensorBoard file, and the run says so
            elif status == 1 and "Traceback" not in text:
                tally.refuse(kind, fault, text.strip().splitlines()[-1])
            else:
                tally.fail(kind, f"{fault}: status {status}: {text[-500:]}")
