"""What a cluster does, as forks of one process: pretrain and evaluate, in a pair and alone.

    python -m tests.train.pair_process FOLDER HOST:PORT

FOLDER has images and weights (test_pair.py makes them). The pair has two devices each and works in
FOLDER/pair, the one process has one device and works in FOLDER/alone; standard error goes to FOLDER/NAME.log.
The pair also fine-tunes. In the end an image of the second process's share is damaged, and the pair
evaluates again. Prints the exit statuses of the three, and the seconds between the ends of the pair.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import time

from sparse_vis.commands import run as command
from sparse_vis.config.contradictions import TERMS
from sparse_vis.evals import command as evaluation  # noqa: F401 (imported here, before the processes are forked)
from sparse_vis.runtime import batches
from sparse_vis.train import distributed, log
from sparse_vis.train.stop import StopSignal
from tests.train.test_log import NoBoard
from tests.train.test_vq import vq_config

TASKS = ("knn", "segmentation", "reconstruction_probe")


def configuration(folder: pathlib.Path, init: pathlib.Path, tasks: tuple[str, ...]):
    """Two steps from these weights, with codes as target; then an evaluation of 24 and 13 images."""
    config = vq_config(16, 32)
    config.init, config.teacher.enabled = str(init), False
    config.data.update(source="folder", path=str(folder / "images"), split="")
    config.views.local_count = 0
    config.loss.update(dict.fromkeys(TERMS, 0.0) | {"reconstruction": 1.0})  # the others take long to compile
    config.train.update(steps=2, save_every=2)
    config.eval.update(
        tasks=tasks, train_split="", test_split="", holdout=0.35, short_side=1.0, batch=4, train_records=0,
        test_records=0, masks=str(folder / "maps"), mask_classes=2,
    )  # fmt: skip
    config.eval.segmentation.update(epochs=1, batch=8)
    config.eval.reconstruction_probe.update(
        target="pixel", epochs=2, width=8, layers=1, heads=1, mlp_dim=16, batch_size=7, learning_rate=1e-2
    )
    return config


def work(folder: pathlib.Path, name: str) -> None:
    """All that this process does."""
    weights, workdir = folder / "weights", folder / name
    with StopSignal() as stop:
        command.run(configuration(folder, weights, TASKS), workdir / "pretrained", "train", stop)
        if name == "alone":
            return
        config = configuration(folder, workdir / "pretrained", ("classifier",))
        command.run(config, workdir / "finetuned", "finetune", stop)
        (folder / "images" / "red" / "0.png").write_text("no image")
        config = configuration(folder, weights, ("retrieval",))
        command.run(config, workdir / "pretrained", "evaluate", stop)


def become(folder: pathlib.Path, name: str, address: str, process: int) -> None:
    """One of the three processes, from here on."""
    devices = 1 if name == "alone" else 2
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    os.dup2(os.open(folder / f"{name}{process}.log", os.O_WRONLY | os.O_CREAT), 2)
    log.TensorBoard = NoBoard
    batches.GATHERED = 1000  # several blocks for every array
    command.jax.distributed.shutdown = lambda: None  # `run` calls it, but here another run follows
    pair = distributed.joined(f"{address},2,{process}", 0)
    with contextlib.nullcontext() if name == "alone" else pair:
        work(folder, name)
    os._exit(0)


def main() -> None:
    folder, address = pathlib.Path(sys.argv[1]), sys.argv[2]
    places = [("pair", 0), ("pair", 1), ("alone", 0)]
    numbers = {}
    for name, process in places:
        if not (number := os.fork()):
            become(folder, name, address, process)
        numbers[number] = name, process
    ended = {}
    for _ in places:
        number, status = os.wait()
        ended[numbers[number]] = os.waitstatus_to_exitcode(status), time.monotonic()
    statuses = [ended[place][0] for place in places]
    print(*statuses, abs(ended["pair", 0][1] - ended["pair", 1][1]))


if __name__ == "__main__":
    main()
