"""Load images in order, in threads that work ahead of their use."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from sparse_vis.data.decode import decode, to_square
from sparse_vis.data.sources import FolderSource, Source
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.skipped import Skips

SHORT_SIDE = 256 / 224  # of an image before its centre crop, relative to the crop, as published
T = TypeVar("T")


class Loaded(NamedTuple):
    """An image ready for the encoder; height and width are those of the upright original, in pixels."""

    name: str
    height: int
    width: int
    pixels: np.ndarray  # (size, size, 3) uint8


def load_image(source: Source, index: int, size: int, short_side: int | None = None) -> Loaded:
    """Decode one image, resize its short side (bicubic, antialiased) and crop the centre.

    Args:
        size, short_side: in pixels; short_side is SHORT_SIDE * size unless given.

    Raises:
        UserError: it cannot be decoded.
    """
    record = source[index]
    pixels = decode(record)
    height, width = pixels.shape[:2]
    short_side = short_side or round(SHORT_SIDE * size)
    square = to_square(pixels, size, short_side=short_side, resample=Image.Resampling.BICUBIC)
    return Loaded(record["name"], height, width, square)


def load_ahead(
    load: Callable[[int], T], indices: list[int], threads: int, ahead: int
) -> Iterator[tuple[int, Future[T]]]:
    """Yield (index, future of `load(index)`) in order; threads work at most `ahead` images ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[int, Future[T]]] = deque()
        for index in indices:
            waiting.append((index, pool.submit(load, index)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting


def usable(
    source: Source, futures: Iterator[tuple[int, Future[T]]], on_error: str, skipped: Skips
) -> Iterator[T]:
    """Yield the loaded images; an unusable one raises, or is left out and added to `skipped`.

    Args:
        source: the images' source. futures: from `load_ahead`. on_error: one of ON_ERROR.
        skipped: list to which (name, reason) of unusable images is appended.

    Raises:
        UserError: an image cannot be used and on_error is "stop".
    """
    for index, future in futures:
        try:
            yield future.result()
        except UserError as error:
            if on_error == "stop":
                raise or_skip(error, "--on-error=skip") from None
            skipped.append((name_of(source, index), str(error)))


@contextlib.contextmanager
def images_ahead(
    source: Source, load: Callable[[int], T], indices: list[int], *, threads: int, ahead: int, on_error: str
) -> Iterator[Callable[[int], tuple[Iterator[T], Skips]]]:
    """Context that loads images in order, ahead of their use; it yields a function `take`.

    `take(count)` is the next `count` images: an iterator of the usable ones, and a list that has (name,
    reason) of the others when that iterator ends. Arguments and errors: as of `load_ahead` and `usable`.
    """
    # Closed here: else, after an error such as a full disk, one of its own threads might have to close it,
    # and would wait for itself.
    with contextlib.closing(load_ahead(load, indices, threads, ahead)) as futures:

        def take(count: int) -> tuple[Iterator[T], Skips]:
            skipped: Skips = []
            return usable(source, islice(futures, count), on_error, skipped), skipped

        yield take


def none_usable(count: int, skipped: Skips, what: str = "images") -> UserError:
    """The error when all of `count` images were skipped: it names the first."""
    return UserError(f"none of {count} {what} can be used; {skipped[0][1].rstrip('.')}.")


def or_skip(error: UserError, how: str) -> UserError:
    """The error for an unusable image, with the flag that skips it as a further remedy.

    Args:
        error: says what is wrong and how to correct it. how: the flag, and optionally what it does.
    """
    return UserError(f"{str(error).rstrip('.')}, or pass {how}.")


def name_of(source: Source, index: int) -> str:
    """The name of an unusable record, or "#number" if it cannot be read at all."""
    if isinstance(source, FolderSource):
        return source.names[index]
    try:
        return source[index]["name"]
    except UserError:
        return f"#{index}"
