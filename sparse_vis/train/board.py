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
    """Load clu.metric_writers.interface alone, because its package imports TensorFlow."""
    [package] = importlib.util.find_spec("clu").submodule_search_locations
    path = pathlib.Path(package, "metric_writers", "interface.py")
    spec = importlib.util.spec_from_file_location("clu.metric_writers.interface", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ScalarWriter(_interface().MetricWriter):
    """A clu MetricWriter for scalars, which writes one event file.

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
        """Pass everything written so far to the operating system."""
        self.records.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self.records.close()

    def _no_scalars(self, *_, **__) -> None:
        raise NotImplementedError("only scalars are written to TensorBoard files")

    write_summaries = write_images = write_videos = write_audios = write_texts = _no_scalars
    write_histograms = write_pointcloud = write_hparams = _no_scalars


class TensorBoard:
    """Writes the rows of metrics.jsonl as TensorBoard files too; on an error, prints one note and stops.

    Args:
        folder: for the event files. rows: rows of metrics.jsonl before the step from which the run continues.
    """

    def __init__(self, folder: pathlib.Path, rows: list[dict]):
        self.writer = None
        try:
            last = rows[-1]["step"] if rows else 0
            there = max((keep_events(path, last) for path in folder.glob("*.tfevents.*")), default=0)
            self.writer = ScalarWriter(folder)
        except Exception as error:
            self._give_up(error)
        for row in rows:  # a killed run may have left a few rows unwritten
            if self.writer and row["step"] > there:
                self.write(row["step"], {name: x for name, x in row.items() if name not in ("step", "time")})

    def _give_up(self, error: Exception) -> None:
        """Stop writing: a full disk or a missing package must not end the run."""
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
    """Drop the events of a TensorBoard file after a step, and all from the first damaged event on.

    Args:
        path: event file. step: last step to keep.

    Returns:
        The last step kept; 0 if there is none.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    data, kept, last, start = path.read_bytes(), [], 0, 0
    while start + 12 <= len(data):  # a record: length (8 bytes), its checksum (4), event, its checksum (4)
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
