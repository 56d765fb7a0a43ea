"""One exception type for input that the user can mend."""

from __future__ import annotations

import inspect
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from sparse_vis.runtime import host


class UserError(ValueError):
    """A single sentence that names the culprit and the remedy; command lines print it without a traceback."""


@dataclass(frozen=True)
class _Unraisable:
    """A sys.unraisablehook that leaves out what follows Orbax's first error of a checkpoint.

    Orbax then closes its event loop (asyncio_utils._run_sync_via_new_loop) while other arrays are still read.
    Their coroutines are given up, and tensorstore's threads report to the loop in vain, in a traceback each.

    Attributes:
        before: the hook for all else.
    """

    before: Callable

    def __call__(self, unraisable) -> None:
        given_up = inspect.iscoroutine(unraisable.object)
        if not given_up and str(unraisable.exc_value) != "Event loop is closed":
            self.before(unraisable)


def _is_news(record: logging.LogRecord) -> bool:
    # Each of Orbax's threads logs the error that ends it, with its traceback, and we are given it as well.
    return record.levelno < logging.ERROR or "/orbax/" not in record.pathname


def _is_retrieved(record: logging.LogRecord) -> bool:
    # Orbax gives up all its other futures at the first error; that one is raised.
    return "never retrieved" not in record.getMessage()


def quiet_orbax() -> None:
    """Let Orbax say what is wrong with a checkpoint by the error that it raises, and by that alone.

    For the rest of the process, as its threads report later.
    """
    from absl import logging as absl_logging

    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable(sys.unraisablehook)
    absl_logging.get_absl_logger().addFilter(_is_news)
    logging.getLogger("asyncio").addFilter(_is_retrieved)


def command_line(main: Callable[[], None]) -> None:
    """Run the main function of a tool; a UserError becomes one line on stderr and exit status 1,
    and Ctrl-C the word `interrupted` and status 130.

    Names of files need not be UTF-8: what stdout cannot show is escaped, as stderr always does.
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
