"""TensorBoard files, written through clu's interface without TensorFlow."""

from __future__ import annotations

import importlib.util
import pathlib
import socket
import textwrap
import time
import types
from collections.abc import Mapping

from sparse_vis.runtime.files import write_whole


def _interface() -> types.ModuleType:
    """clu.metric_writers.interface alone: the package around it imports TensorFlow."""
    [package] = importlib.util.find_spec("clu").submodule_search_locations
    path = pathlib.Path(package, "metric_writers", "interface.py")
    spec = importlib.util.spec_from_file_location("clu.metric_writers.interface", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ScalarWriter(_interface().MetricWriter):
    """A clu MetricWriter of scalars: one event file, on disk when `flush` returns.

    Args:
        folder: for the event file.
    """

    def __init__(self, folder: pathlib.Path):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self.records = RecordWriter((folder / name).open("wb"))
        self.event, self.summary = event_pb2.Event, summary_pb2.Summary
        self._write(file_version="brain.Event:2")

    def _write(self, **content) -> None:
        self.records.write(self.event(wall_time=time.time(), **content).SerializeToString())

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write one event with all scalars of a step."""
        values = [self.summary.Value(tag=name, simple_value=float(x)) for name, x in scalars.items()]
        self._write(step=step, summary=self.summary(value=values))

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self.records.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self.records.close()

    def _no_scalars(self, *_, **__) -> None:
        raise NotImplementedError("only scalars are written to TensorBoard files")

    write_summaries = write_images = write_videos = write_audios = write_texts = _no_scalars
    write_histograms = write_pointcloud = write_hparams = _no_scalars


class TensorBoard:
    """The rows of metrics.jsonl as TensorBoard files; where they cannot be written, a note says so once.

    Args:
        folder: for the event files. rows: of metrics.jsonl up to the step at which the run goes on.
    """

    def __init__(self, folder: pathlib.Path, rows: list[dict]):
        self.writer = None
        try:
            last = rows[-1]["step"] if rows else 0
            there = max((keep_events(path, last) for path in folder.glob("*.tfevents.*")), default=0)
            self.writer = ScalarWriter(folder)
        except Exception as error:
            self._give_up(error)
        for row in rows:  # a kill leaves a few that were not written here yet
            if self.writer and row["step"] > there:
                self.write(row["step"], {name: x for name, x in row.items() if name not in ("step", "time")})

    def _give_up(self, error: Exception) -> None:
        """The disk is full, a package is missing ...: the run is worth more."""
        self.writer = None
        why = textwrap.shorten(str(error), 240, placeholder=" …")
        print(f"note: no more TensorBoard files ({why}); metrics.jsonl has all numbers.", flush=True)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write the numbers of a step."""
        if self.writer:
            try:
                self.writer.write_scalars(step, numbers)
                self.writer.flush()
            except Exception as error:
                self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self.writer:
            self.writer.close()


def keep_events(path: pathlib.Path, step: int) -> int:
    """Drop a TensorBoard file's events beyond a step, and from one on that is damaged or was cut short.

    Args:
        path: of the file. step: the last to keep.

    Returns:
        The last step that is kept; 0 if there is none.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    data, kept, last, start = path.read_bytes(), [], 0, 0
    while start + 12 <= len(data):  # length and its checksum, the event and its checksum
        end = start + 16 + int.from_bytes(data[start : start + 8], "little")
        if end > len(data):
            break
        try:
            event = Event.FromString(data[start + 12 : end - 4])
        except DecodeError:
            break
        if event.step <= step:
            kept.append(data[start:end])
            last = max(last, event.step)
        start = end
    if sum(map(len, kept)) < len(data):
        write_whole(path, b"".join(kept))
    return last
