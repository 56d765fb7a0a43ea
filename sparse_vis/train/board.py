"""TensorBoard files, written through clu's interface without TensorFlow."""

from __future__ import annotations

import importlib.util
import pathlib
import socket
import textwrap
import time
from collections.abc import Mapping

from sparse_vis.runtime.progress import say


def _interface() -> type:
    """clu's MetricWriter, its module loaded alone, because its package imports TensorFlow."""
    [package] = importlib.util.find_spec("clu").submodule_search_locations
    path = pathlib.Path(package, "metric_writers", "interface.py")
    spec = importlib.util.spec_from_file_location("clu.metric_writers.interface", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MetricWriter


class ScalarWriter(_interface()):
    """A clu MetricWriter for scalars, which writes one event file in a folder."""

    def __init__(self, folder: pathlib.Path):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self.records = RecordWriter((folder / name).open("wb"))
        self.event, self.summary = event_pb2.Event, summary_pb2.Summary
        self._write(time.time(), file_version="brain.Event:2")

    def _write(self, when: float, **content) -> None:
        self.records.write(self.event(wall_time=when, **content).SerializeToString())

    def write_scalars(self, step: int, scalars: Mapping[str, float], when: float | None = None) -> None:
        values = [self.summary.Value(tag=name, simple_value=float(x)) for name, x in scalars.items()]
        self._write(when or time.time(), step=step, summary=self.summary(value=values))

    def flush(self) -> None:
        self.records.flush()

    def close(self) -> None:
        self.records.close()

    def _no_scalars(self, *_, **__) -> None:
        raise NotImplementedError("only scalars are written to TensorBoard files")

    write_summaries = write_images = write_videos = write_audios = write_texts = _no_scalars
    write_histograms = write_pointcloud = write_hparams = _no_scalars


class TensorBoard:
    """Writes the rows of metrics.jsonl as a TensorBoard file too; on an error, prints one note and stops.

    Args:
        folder: for the file. rows: of metrics.jsonl before the step from which the run continues. They are
            written again: the file of a killed run may lack some, be damaged, or hold later steps.
    """

    def __init__(self, folder: pathlib.Path, rows: list[dict]):
        self.writer = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.tfevents.*"):
                path.unlink()
            self.writer = ScalarWriter(folder)
            for row in rows:
                numbers = {name: x for name, x in row.items() if name not in ("step", "time")}
                self.writer.write_scalars(row["step"], numbers, row.get("time"))
            self.writer.flush()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Stop writing: a full disk or a missing package must not end the run."""
        self.writer = None
        why = textwrap.shorten(str(error), 240, placeholder=" …")
        say(f"note: TensorBoard files are no longer written ({why}); metrics.jsonl has all numbers.")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write the numbers of a step."""
        if self.writer:
            try:
                self.writer.write_scalars(step, numbers)
                self.writer.flush()
            except Exception as error:
                self._give_up(error)

    def close(self) -> None:
        if self.writer:
            self.writer.close()
