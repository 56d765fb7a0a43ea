"""Writers of metrics, besides metrics.jsonl: clu's interface, and TensorBoard files without TensorFlow."""

import importlib.util
import io
import pathlib
import socket
import textwrap
import time
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from sparse_vis.runtime.growing import growing
from sparse_vis.runtime.paths import AnyPath
from sparse_vis.runtime.progress import say

PICTURES = "probe"  # folder of a workdir with pictures of config.train.probe_every


def _interface() -> type:
    """clu's MetricWriter. Only its module is loaded, because its package imports TensorFlow."""
    [package] = importlib.util.find_spec("clu").submodule_search_locations
    path = pathlib.Path(package, "metric_writers", "interface.py")
    spec = importlib.util.spec_from_file_location("clu.metric_writers.interface", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MetricWriter


class Writer(_interface()):
    """A clu MetricWriter for scalars, images (H, W, 3) uint8 and hyperparameters."""

    def write_hparams(self, hparams: Mapping) -> None:
        """Does nothing unless a subclass keeps them, as config.json has them."""

    def flush(self) -> None:
        """Does nothing unless a subclass collects what it writes."""

    def close(self, failed: bool = False) -> None:
        """Close the file or the run; `failed`: whether an error has ended the training."""

    def _no_such_kind(self, *_, **__) -> None:
        raise NotImplementedError("only scalars, images and hyperparameters are written")

    write_summaries = write_videos = write_audios = write_texts = _no_such_kind
    write_histograms = write_pointcloud = _no_such_kind


class EventWriter(Writer):
    """Writes one TensorBoard event file in a folder."""

    def __init__(self, folder: AnyPath):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self.records = RecordWriter(growing(folder / name))
        self.event, self.summary = event_pb2.Event, summary_pb2.Summary
        self._write(time.time(), file_version="brain.Event:2")

    def _write(self, when: float, **content) -> None:
        self.records.write(self.event(wall_time=when, **content).SerializeToString())

    def write_scalars(self, step: int, scalars: Mapping[str, float], when: float | None = None) -> None:
        values = [self.summary.Value(tag=name, simple_value=float(x)) for name, x in scalars.items()]
        self._write(when or time.time(), step=step, summary=self.summary(value=values))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        values = []
        for name, image in images.items():
            Image.fromarray(image).save(file := io.BytesIO(), format="PNG")
            size = dict(height=image.shape[0], width=image.shape[1], colorspace=3)
            picture = self.summary.Image(encoded_image_string=file.getvalue(), **size)
            values.append(self.summary.Value(tag=name, image=picture))
        self._write(time.time(), step=step, summary=self.summary(value=values))

    def flush(self) -> None:
        self.records.flush()

    def close(self, failed: bool = False) -> None:
        self.records.close()


class Guarded:
    """A writer that must not end the training, e.g. on a full disk: an error prints a note and stops it."""

    def __init__(self, what: str, make: Callable[[], Writer]):
        self.what = what
        self.writer = self._attempt(make)

    def _attempt(self, call: Callable, *arguments):
        try:
            return call(*arguments)
        except Exception as error:
            self.writer = None
            why = textwrap.shorten(str(error), 240, placeholder=" …")
            say(f"note: {self.what} are no longer written ({why}); metrics.jsonl has all numbers.")

    def write(self, step: int, numbers: dict[str, float], images: Mapping[str, np.ndarray] = {}) -> None:
        if self.writer:
            self._attempt(self._write, step, numbers, images)

    def _write(self, step: int, numbers: dict[str, float], images: Mapping[str, np.ndarray]) -> None:
        self.writer.write_scalars(step, numbers)
        if images:
            self.writer.write_images(step, images)
        self.writer.flush()

    def close(self, failed: bool = False) -> None:
        if self.writer:
            self._attempt(self.writer.close, failed)


class TensorBoard(Guarded):
    """Writes the rows of metrics.jsonl, and pictures, to a TensorBoard file.

    The file is new in every process. `rows`, up to the step from which the run continues, are written again,
    with their pictures: the old file of a killed run may lack some, be damaged, or hold later steps.
    """

    def __init__(self, folder: AnyPath, rows: list[dict]):
        super().__init__("TensorBoard files", lambda: self._open(folder, rows))

    @staticmethod
    def _open(folder: AnyPath, rows: list[dict]) -> EventWriter:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.tfevents.*"):
            path.unlink()
        writer = EventWriter(folder)
        for row in rows:
            numbers = {name: x for name, x in row.items() if name not in ("step", "time")}
            writer.write_scalars(row["step"], numbers, row.get("time"))
            picture = picture_of(folder.parent, row["step"])
            if any(name.startswith(f"{PICTURES}/") for name in numbers) and picture.exists():
                with picture.open("rb") as file, Image.open(file) as image:
                    writer.write_images(row["step"], {PICTURES: np.asarray(image.convert("RGB"))})
        writer.flush()
        return writer


def picture_of(workdir: AnyPath, step: int) -> AnyPath:
    return workdir / PICTURES / f"step_{step:06d}.png"
