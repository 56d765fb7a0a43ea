"""One exception type for input that the user can mend."""

from __future__ import annotations

import inspect
import logging
import signal
import sys
from collections.abc import Callable

from sparse_vis.runtime import host


class UserError(ValueError):
    """A single sentence that names the culprit and the remedy; command lines print it without a traceback."""


def _unraisable(unraisable) -> None:
    # At the first error of a damaged checkpoint Orbax closes its event loop. Its other coroutines are then
    # given up, and tensorstore's threads report to it in vain, in a traceback each.
    given_up = inspect.iscoroutine(unraisable.object) or str(unraisable.exc_value) == "Event loop is closed"
    if not given_up:
        sys.__unraisablehook__(unraisable)


def _is_news(record: logging.LogRecord) -> bool:
    # Each of Orbax's threads logs the error that ends it, with its traceback, and we are given it as well.
    return record.levelno < logging.ERROR or "/orbax/" not in record.pathname


def command_line(main: Callable[[], None]) -> None:
    """Run the main function of a tool; a UserError becomes one line on stderr and exit status 1,
    and Ctrl-C the word `interrupted` and status 130.

    Names of files need not be UTF-8: what stdout cannot show is escaped, as stderr always does.
    """
    from absl import logging as absl_logging

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.unraisablehook = _unraisable
    absl_logging.get_absl_logger().addFilter(_is_news)
    # Orbax gives up all its other futures at the first error; that one is raised.
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())
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
