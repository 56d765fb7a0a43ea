"""Records -> batches of canvases, through Grain: one endless shuffled stream, the same in every process.

The stream depends on (source, seed) alone: the record at position p is the p-th of the shuffled, repeated
source. Each step takes the next global_batch positions; process k of P takes b = global_batch / P of them,
from k * b on. The number of processes, workers and threads therefore changes nothing, and the position of the
next image is enough to continue, even with another batch size.
"""

import atexit
import functools
import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

import grain
import numpy as np
from absl import flags

from sparse_vis.data.decode import decode, to_canvas
from sparse_vis.data.records import name_of, none_usable, or_skip
from sparse_vis.data.sources import Source
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.skipped import Skips

if TYPE_CHECKING:
    from sparse_vis.types import Batch

SHARED_BYTES = 1 << 20  # arrays of at least this size go from worker to parent through shared memory


@dataclass(frozen=True)
class Stream:
    """A function from i to the canvas of this process's i-th image of the stream; workers get a pickle of it.

    Attributes:
        global_batch: images per step over all processes; a multiple of process_count.
        seed: of the order, 0 to 2**32 - 1; every epoch is shuffled differently.
        start_index: position in the stream of the first image.
        canvas: side of the square canvases in pixels. min_side: as in `to_canvas`, the patch size.
        on_error: "stop" raises at the first unusable record; "skip" replaces it by the next usable one.
        labels: whether batches have the label of each image.
        cache: MiB of canvases that each process (each worker) keeps, so that later epochs need not decode.
    """

    source: Source
    global_batch: int
    seed: int
    start_index: int
    canvas: int
    min_side: int
    on_error: str
    process_index: int
    process_count: int
    labels: bool = False
    cache: int = 0
    # Number of a record -> what `_placed` returns.
    _kept: dict[int, tuple] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def local_batch(self) -> int:
        """Images per step of this process."""
        return self.global_batch // self.process_count

    @functools.cached_property
    def _numbers(self) -> grain.MapDataset:
        # Of record numbers, not of records, so that an unreadable record still has its number.
        return grain.MapDataset.range(len(self.source)).seed(self.seed).shuffle().repeat(None)

    def __call__(self, i: int) -> dict[str, np.ndarray]:
        step, slot = divmod(int(i), self.local_batch)
        first = self.start_index + self.process_index * self.local_batch
        position = first + step * self.global_batch + slot
        skipped: dict[tuple[str, str], None] = {}  # an ordered set
        # Across epochs, N consecutive positions may miss some of the N records; 2N - 1 hold a whole epoch.
        for ahead in range(2 * len(self.source) - 1):
            number = int(self._numbers[position + ahead])
            try:
                pixels, height, width, label = self._placed(number)
            except UserError as error:
                if self.on_error == "stop":
                    how = "--config.data.on_error=skip to use the next image in its place"
                    raise or_skip(error, how) from None
                skipped[name_of(self.source, number), str(error)] = None
                continue
            return {
                **({"label": np.int32(label)} if self.labels else {}),
                "image": pixels,
                "height": np.int32(height),
                "width": np.int32(width),
                # The position itself, even if a later record is used, so that draws stay unique in the batch.
                "index": np.uint32(position % 2**32),
                "skipped": np.array(json.dumps(list(skipped))),
            }
        raise none_usable(len(self.source), list(skipped))

    def _placed(self, number: int) -> tuple[np.ndarray, int, int, int]:
        """Canvas, height, width and label (-1: none) of a record."""
        if found := self._kept.get(number):
            return found
        record = self.source[number]
        # Twice the canvas: reduction of a JPEG is a coarse filter; the last factor of 2 is bicubic.
        pixels = decode(record, at_least=2 * self.canvas)
        found = *to_canvas(pixels, self.canvas, min_side=self.min_side), record.get("label", -1)
        if (len(self._kept) + 1) * 3 * self.canvas**2 <= self.cache << 20:
            self._kept[number] = found
        return found


def train_batches(
    source: Source, *, steps: int, workers: int, threads: int, **settings
) -> "Iterator[tuple[Batch, list[Skips]]]":
    """Iterate over this process's part of the next `steps` batches of the stream.

    Args:
        workers: decoding processes; 0 decodes in this process.
        threads: decoding threads in each decoding process; each holds one batch in memory.
        settings: the other attributes of `Stream`.

    Yields:
        (batch, skipped): a Batch of numpy arrays with global_batch / process_count images, and, for each
        image that replaces unusable ones, the list of their (name, reason).
    """
    stream = Stream(source, **settings)
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which fails outside of an absl app
        flags.FLAGS.mark_as_parsed()
    batches = (
        grain.MapDataset.range(steps * stream.local_batch)
        .map(stream)
        .batch(stream.local_batch, drop_remainder=True)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    )
    if workers:
        _start_tracker()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        # Small arrays are faster through the pipe, and leave no shared memory behind if the run is killed.
        shared = grain.experimental.DatasetOptions(min_shm_size=SHARED_BYTES)
        batches = grain.experimental.WithOptionsIterDataset(batches, shared)
        batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
    return _iterate(batches, stream._kept)


def _iterate(batches: grain.IterDataset, kept: dict) -> "Iterator[tuple[Batch, list[Skips]]]":
    """Turn Grain's dictionaries into batches; at the end, stop the workers and empty the cache."""
    from sparse_vis.types import Batch  # here, because worker processes import this module but need no Batch

    iterator = iter(batches)
    atexit.register(iterator.close)  # at exit, Python would close a still referenced generator too late
    try:
        for arrays in iterator:
            found = [json.loads(text) for text in arrays.pop("skipped").tolist()]
            skipped = [[(name, reason) for name, reason in skips] for skips in found if skips]
            yield Batch(**{name: np.asarray(array) for name, array in arrays.items()}), skipped
    except UserError as error:
        raise UserError(str(error)) from None  # without the worker's traceback and Grain's notes
    except RuntimeError as error:
        if not (code := re.search(r"terminated unexpectedly with exit code (\S+)\.", str(error))):
            raise
        raise UserError(
            f"a process that decodes images has ended with exit code {code[1]}: see its own error above; if "
            "there is none, memory may be short: lower config.data.workers (0: decode in this process) or "
            "config.data.cache."
        ) from None
    finally:
        iterator.close()
        atexit.unregister(iterator.close)
        kept.clear()  # the stream itself stays until Python looks for cycles, which Grain's objects form


def _start_tracker() -> None:
    """Start Python's tracker, which removes the shared memory of a process that ends without doing so.

    Its warnings about that are off: a SIGTERM before the first step ends the process in this way on purpose.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    resource_tracker.ensure_running()
    del os.environ["PYTHONWARNINGS"]
    if before is not None:
        os.environ["PYTHONWARNINGS"] = before


def _start_worker(index: int, count: int) -> None:
    """Make a worker end with its parent, and ignore signals to the process group: the parent handles them."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # Not prctl(PR_SET_PDEATHSIG): it is Linux only, and fires when the *thread* that started the worker ends.
    multiprocessing.parent_process().join()
    os._exit(1)
