"""ArrayRecord files in a bucket: one ranged request per record, because ArrayRecord's reader needs a disk.

A shard is a Riegeli file: a sequence of chunks, interrupted every 64 KiB by a block header of 24 bytes. A
chunk is a header of 40 bytes, a byte for the compression (zero: none), the length of the sizes, the size of
every record, and the records; numbers are varints. If they are compressed, sizes and records each begin with
their uncompressed length. `pack` and TFDS write one record per chunk. The last block says where the footer
is: a chunk whose first record describes the file, and whose others say where each record's chunk begins.
"""

import bisect
import functools
import itertools
from collections.abc import Iterable

from sparse_vis.runtime.paths import as_path

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 2**16, 24, 40
# Errors of reading a record: ArrayRecord raises only RuntimeError.
UNREADABLE = RuntimeError, ValueError, IndexError, OSError
CODECS = {b"b": "brotli", b"z": "zstd"}
OFFSET = 8  # tag of the first field of the messages in the footer and of the last block: a position


class BucketRecords:
    """The records of all shards, by position; a shard is (address, bytes, number of records)."""

    def __init__(self, shards: Iterable[tuple[str, int, int]]):
        self._shards = list(shards)
        self._ends = list(itertools.accumulate(count for *_, count in self._shards))

    def __getitem__(self, index: int) -> bytes:
        """The bytes of a record. Raises one of UNREADABLE if they cannot be read."""
        number = bisect.bisect_right(self._ends, index)
        path, size, count = self._shards[number]
        row = index - (self._ends[number] - count)
        starts = _starts(path, size, count)
        return _records(as_path(path).read_bytes(starts[row], starts[row + 1]), starts[row])[0]


@functools.lru_cache(maxsize=4096)  # shards; every worker process reads their footers once
def _starts(path: str, size: int, count: int) -> list[int]:
    """Where the chunk of each record begins, and where the last one ends."""
    file, last = as_path(path), size - BLOCK
    footer = _position(_records(file.read_bytes(last, size), last)[0])
    starts = [_position(entry) for entry in _records(file.read_bytes(footer, last), footer)[1:]]
    if len(starts) != count:
        raise ValueError(f"{len(starts)} records, {count} expected")
    return [*starts, footer]


def _records(data: bytes, start: int) -> list[bytes]:
    """The records of the chunk at position `start` of the file; `data` are the bytes from there on."""
    parts, at = [], start
    while at < start + len(data):
        at += max(BLOCK_HEADER - at % BLOCK, 0)
        end = min((at // BLOCK + 1) * BLOCK, start + len(data))
        parts.append(data[at - start : end - start])
        at = end
    chunk = b"".join(parts)
    size, kind = int.from_bytes(chunk[8:16], "little"), chunk[24:25]
    body = chunk[CHUNK_HEADER : CHUNK_HEADER + size]
    if kind != b"r" or len(body) != size or body[:1] not in (b"\0", *CODECS):
        raise ValueError("no chunk of records")
    length, at = _varint(body, 1)
    sizes, values = (_decompressed(body[:1], part) for part in (body[at : at + length], body[at + length :]))
    ends, at = [0], 0
    while at < len(sizes):
        found, at = _varint(sizes, at)
        ends.append(ends[-1] + found)
    if ends[-1] != len(values):
        raise ValueError("a chunk of another length")
    return [values[a:b] for a, b in itertools.pairwise(ends)]


def _decompressed(compression: bytes, data: bytes) -> bytes:
    if compression == b"\0":
        return data
    import pyarrow  # only here, as packed shards are not compressed

    length, at = _varint(data, 0)
    return pyarrow.decompress(data[at:], length, CODECS[compression], asbytes=True)


def _position(message: bytes) -> int:
    if message[:1] != bytes([OFFSET]):
        return 0  # a field that is zero is left out
    return _varint(message, 1)[0]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at a position (seven bits per byte, the lowest first), and the position after it."""
    value = 0
    for shift in itertools.count(0, 7):
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
