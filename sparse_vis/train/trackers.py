"""Writers for Weights & Biases and MLflow: config.train.trackers."""

import functools
import importlib.util
import tempfile
import time
from collections.abc import Mapping

import numpy as np

from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.files import read_json, write_json
from sparse_vis.runtime.paths import AnyPath, in_bucket
from sparse_vis.train.board import Guarded, Writer

PROJECT = "sparse-vis"  # project of W&B, experiment of MLflow
FILE = "trackers.json"  # in the workdir: tracker -> id of its run, which a continued run continues
MOST_PARAMS, LONGEST = 100, 500  # MLflow's limits: parameters in one call, characters of a value


class WandbWriter(Writer):
    """A run of Weights & Biases; `id` continues one. WANDB_MODE=offline keeps it in the workdir.

    wandb writes to disks only: if the workdir is in a bucket, its files are in a temporary folder.
    """

    def __init__(self, workdir: AnyPath, id: str | None):
        import wandb

        self.image = wandb.Image
        folder = tempfile.mkdtemp(prefix="wandb-") if in_bucket(workdir) else workdir
        self.run = wandb.init(
            project=PROJECT, name=workdir.resolve().name, dir=folder, id=id, resume="allow",
            settings=wandb.Settings(console="off"),
        )  # fmt: skip
        self.id = self.run.id

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self.run.log({name: self.image(image) for name, image in images.items()}, step=step)

    def write_hparams(self, hparams: Mapping) -> None:
        self.run.config.update(dict(hparams))

    def close(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))


class MlflowWriter(Writer):
    """A run of MLflow, in the store that MLFLOW_TRACKING_URI names; `id` continues one."""

    def __init__(self, workdir: AnyPath, id: str | None):
        from mlflow import MlflowClient, entities

        self.client, self.entities = MlflowClient(), entities
        if id is None:
            found = self.client.get_experiment_by_name(PROJECT)
            experiment = found.experiment_id if found else self.client.create_experiment(PROJECT)
            id = self.client.create_run(experiment, run_name=workdir.resolve().name).info.run_id
        self.client.update_run(id, status="RUNNING")
        self.id = id

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self.entities.Metric(name, float(x), now, step) for name, x in scalars.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            self.client.log_image(self.id, image, key=name, step=step)

    def write_hparams(self, hparams: Mapping) -> None:
        params = [self.entities.Param(name, str(x)[:LONGEST]) for name, x in hparams.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.id, params=params[start : start + MOST_PARAMS])

    def close(self, failed: bool = False) -> None:
        self.client.set_terminated(self.id, status="FAILED" if failed else "FINISHED")


WRITERS = {"wandb": WandbWriter, "mlflow": MlflowWriter}


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise UserError if the package of a tracker is not installed."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a mere folder of that name, which wandb makes for its files
            raise UserError(
                f"config.train.trackers names {name!r}, which is not installed; pip install -e "
                f'".[{name}]", or leave it out.'
            )


def open_trackers(names: tuple[str, ...], workdir: AnyPath, hparams: Mapping) -> list[Guarded]:
    """Writers for these trackers; each continues the run that it has for this workdir, or starts one.

    `hparams`: dotted name -> value of every setting, which is written to a new run.
    """
    file = workdir / FILE
    with explained(ValueError, f"{file} is damaged", "delete it to start new runs of the trackers."):
        ids = read_json(file) if file.exists() else {}

    def make(name: str) -> Writer:
        writer = WRITERS[name](workdir, ids.get(name))
        if name not in ids:
            writer.write_hparams(hparams)
            ids[name] = writer.id
            write_json(file, ids)
        return writer

    return [Guarded(f"{name} records", functools.partial(make, name)) for name in names]
