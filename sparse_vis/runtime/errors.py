"""UserError, for mistakes that the user can correct, and how the tools report it."""

import _thread
import contextlib
import functools
import inspect
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from sparse_vis.runtime import host

AGAIN = 0.05  # seconds until a lost Ctrl-C is raised again


class UserError(ValueError):
    """An error whose message is one sentence with cause and remedy; the tools print it without traceback."""


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line; errors of the operating system without their number and file."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def explained(kinds: type | tuple[type, ...], what: str, remedy: str) -> Iterator[None]:
    """Context that turns errors of these kinds into the UserError "what (reason); remedy"."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(f"{what} ({reason_of(error)}); {remedy}") from None


@contextlib.contextmanager
def reworded(change: Callable[[str], str]) -> Iterator[None]:
    """Context that changes the sentences of UserErrors, e.g. to name settings as the caller gives them."""
    try:
        yield
    except UserError as error:
        raise UserError(change(str(error))) from error.__cause__


def command_line(main: Callable[[], None]) -> None:
    """Run a tool's main function. A UserError becomes one line on stderr and exit status 1; Ctrl-C prints
    `interrupted` and exits with status 130.

    Characters that stdout cannot encode are escaped, as file names need not be UTF-8; stderr does so anyway.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    quiet_orbax()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if not str(error.filename).startswith(("gs://", "s3://")):
            raise
        sys.exit(
            f"error: {error.filename} cannot be used ({error.strerror}); repeat the command when the network "
            "and this machine's credentials allow it."
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception:
        if sentence := host.missing_devices():
            sys.exit(f"error: {sentence}")
        raise


def quiet_orbax() -> None:
    """Suppress Orbax's logging of errors that it also raises, for the rest of the process.

    Its threads may log long after the call that failed. After the first error of a checkpoint Orbax closes
    its event loop (asyncio_utils._run_sync_via_new_loop) while other arrays are still being read: their
    coroutines are abandoned, and tensorstore's threads fail to report to the closed loop.
    """
    from absl import logging as absl_logging

    if getattr(sys.unraisablehook, "func", None) is not _report_unless_abandoned:
        sys.unraisablehook = functools.partial(_report_unless_abandoned, sys.unraisablehook)
    for logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(_is_news)


def _report_unless_abandoned(before: Callable, unraisable) -> None:
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # Python drops a Ctrl-C during a callback of its garbage collector, such as JAX's: raise it again.
        threading.Timer(AGAIN, _thread.interrupt_main).start()
        return
    if not inspect.iscoroutine(unraisable.object) and str(unraisable.exc_value) != "Event loop is closed":
        before(unraisable)


def _is_news(record: logging.LogRecord) -> bool:
    # Each of Orbax's threads logs the error that ends it, with a traceback. Orbax raises the first of these
    # errors, and abandons all other futures. Not getMessage(), which fails if the arguments do not fit.
    of_orbax = record.levelno >= logging.ERROR and "/orbax/" in record.pathname
    return not of_orbax and "never retrieved" not in str(record.msg)
