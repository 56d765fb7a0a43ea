"""A lock that lets one process write to a folder; it ends with that process."""

import contextlib
import datetime
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.paths import AnyPath, in_bucket, is_utf8

LOCK, EVALUATION_LOCK = ".lock", ".evaluation.lock"
CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_held: set[Path] = set()  # lock files of this process


@contextlib.contextmanager
def hold(folder: AnyPath, doing: str, flag: str = "--output", name: str = LOCK) -> Iterator[None]:
    """Context in which this process is the only one that writes to a folder, created if needed.

    The lock is a POSIX record lock (`fcntl.lockf`) on a small file in the folder, which names the holder. The
    kernel, or the NFS server, releases it however the process ends, so a leftover file blocks nobody. Unlike
    flock's, it is not inherited: a data worker that outlives a killed run does not keep it. But a process
    loses it by closing any other descriptor of the file; therefore the file is opened only here, and never a
    second time by a process that holds it. A folder created here is removed if nothing was written to it. In
    a bucket, `bucket_lock.hold` does the same by other means.

    Args:
        doing: what the holder does, e.g. "training", for the error of others. flag: that names the folder.
        name: of the lock file; locks of different names do not exclude each other.

    Raises:
        UserError: the lock is held, and by whom; the folder cannot be written; its name is not UTF-8.
    """
    if not is_utf8(folder):
        raise UserError(
            f"the name of {str(folder)!r} is not UTF-8, and some libraries cannot write there; give "
            f"another {flag}."
        )
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    holder = f"{doing}, process {os.getpid()} on {socket.gethostname()}, since {since}"
    if in_bucket(folder):
        from sparse_vis.runtime import bucket_lock

        with bucket_lock.hold(folder / name, holder, flag):
            yield
        return
    with explained(OSError, f"cannot write to {folder}", f"give another {flag}."):
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.resolve() / name
        descriptor = None if path in _held else _lock(path)
    if descriptor is None:
        raise UserError(f"{folder} is in use ({_holder(path)}); wait until it ends, or give another {flag}.")
    _held.add(path)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds anyway
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{holder}\n".encode(errors="replace"), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder is gone, or not empty
            path.unlink()  # before the lock is released, so that nobody else's file is removed
            if new:
                folder.rmdir()
        os.close(descriptor)
        _held.discard(path)


def _lock(path: Path) -> int | None:
    """A descriptor of the file, locked where possible; None if another process holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                os.close(descriptor)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return None
                raise
            where = f"{path.parent} does not support locks ({error.strerror})"
            print(f"note: the file system of {where}; make sure no other process writes there.", flush=True)
            return descriptor
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # the previous holder removed the file in between


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        return False


def _holder(path: Path) -> str:
    if path in _held:
        return "this process"
    with contextlib.suppress(OSError, IndexError):
        return path.read_text(errors="replace").strip().splitlines()[0][:300]
    return "another process"
