"""UserError, for mistakes that the user can correct, and how command lines report it."""

from __future__ import annotations

import inspect
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from sparse_vis.runtime import host


class UserError(ValueError):
    """An error whose message is one sentence with cause and remedy; command lines print no traceback."""


@dataclass(frozen=True)
class _Unraisable:
    """A sys.unraisablehook that drops the errors that follow Orbax's first error of a checkpoint.

    After that error Orbax closes its event loop (asyncio_utils._run_sync_via_new_loop) while other arrays are
    still being read. Their coroutines are abandoned, and tensorstore's threads fail to report to the closed
    loop, with one traceback each.

    Attributes:
        before: the previous hook, for all other errors.
    """

    before: Callable

    def __call__(self, unraisable) -> None:
        given_up = inspect.iscoroutine(unraisable.object)
        if not given_up and str(unraisable.exc_value) != "Event loop is closed":
            self.before(unraisable)


def _is_news(record: logging.LogRecord) -> bool:
    # Each of Orbax's threads logs the error that ends it, with a traceback; Orbax raises that error too.
    return record.levelno < logging.ERROR or "/orbax/" not in record.pathname


def _is_retrieved(record: logging.LogRecord) -> bool:
    # Orbax raises the first error, and abandons all other futures.
    return "never retrieved" not in record.getMessage()


def quiet_orbax() -> None:
    """Suppress Orbax's logging of errors that it also raises, for the rest of the process.

    Its threads may log long after the call that failed.
    """
    from absl import logging as absl_logging

    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable(sys.unraisablehook)
    absl_logging.get_absl_logger().addFilter(_is_news)
    logging.getLogger("asyncio").addFilter(_is_retrieved)


def command_line(main: Callable[[], None]) -> None:
    """Run a tool's main function. A UserError becomes one line on stderr and exit status 1; Ctrl-C prints
    `interrupted` and exits with status 130.

    File names need not be UTF-8: characters that stdout cannot encode are escaped, as stderr always does.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    quiet_orbax()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception:
        if sentence := host.missing_devices():
            sys.exit(f"error: {sentence}")
        raise
