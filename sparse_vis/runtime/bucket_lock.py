"""A lock in a bucket, where no kernel releases it: an object that its holder rewrites as a sign of life."""

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from sparse_vis.runtime.bucket import BucketPath
from sparse_vis.runtime.errors import UserError, explained

HEARTBEAT = 10.0  # seconds between two signs of life
DEAD = 60.0  # a holder that gives none for so long counts as killed
LOOK = 1.0  # seconds between two looks at another's lock


@contextlib.contextmanager
def hold(path: BucketPath, holder: str, flag: str) -> Iterator[None]:
    """Context in which this process holds the lock; same promise and errors as `lock.hold`.

    The object's first line is `holder`, the second names this call and counts its signs of life. Another
    process that finds the object watches it: if it changes, the lock is held; if it stays the same for DEAD
    seconds, its holder was killed, and the lock is taken over. No clocks are compared. A holder that was
    only offline for that long finds the other's lock and exits, because two runs would mix their files.
    """
    own, ended = uuid.uuid4().hex, threading.Event()
    with explained(OSError, f"cannot write to {path.parent}", f"give another {flag}."):
        _take(path, holder, own, flag)
    beats = threading.Thread(target=_beat, args=(path, holder, own, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        with contextlib.suppress(OSError):
            if _is(path, own):
                path.unlink()


def _content(holder: str, own: str, beat: int) -> bytes:
    return f"{holder}\n{own} {beat}\n".encode(errors="replace")


def _read(path: BucketPath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _is(path: BucketPath, own: str) -> bool:
    return own.encode() in (_read(path) or b"")


def _take(path: BucketPath, holder: str, own: str, flag: str) -> None:
    """Create the object, or take it over from a holder that was killed. Raises UserError if it is held."""
    content = _content(holder, own, 0)
    if (found := _read(path)) is None:
        if path.create(content) or _is(path, own):  # or our own object made a repeated request fail
            return
        found = _read(path)
    other = (found or b"another process").decode(errors="replace").splitlines()[0][:300]
    held = f"{path.parent} is in use ({other}); wait until it ends, or give another {flag}."
    print(f"waiting up to {DEAD:.0f} s for a sign of life of the holder of {path} ({other})", flush=True)
    until = time.monotonic() + DEAD
    while (now := _read(path)) == found and time.monotonic() < until:
        time.sleep(LOOK)
    if now is not None and now != found:
        raise UserError(held)
    if now is not None:
        path.unlink(missing_ok=True)
    if not path.create(content):
        raise UserError(held)
    time.sleep(LOOK)  # another may have taken over at the same moment, and removed ours as the dead holder's
    if not _is(path, own):
        raise UserError(held)
    if now is not None:  # else its holder has ended meanwhile
        print(f"note: took over the lock of a process that was killed ({other})", flush=True)


def _beat(path: BucketPath, holder: str, own: str, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(HEARTBEAT):
        beat += 1
        with contextlib.suppress(OSError):  # no network: the next one may succeed
            found = _read(path)
            if found is not None and own.encode() not in found:
                taken = found.decode(errors="replace").splitlines()[0][:300]
                print(
                    f"error: the lock {path} was taken over ({taken}), as this process gave no sign of life "
                    f"for {DEAD:.0f} s; this process ends, so that two runs do not mix.",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                os._exit(1)
            path.write_bytes(_content(holder, own, beat))
