"""One exception type for input that the user can mend."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A single sentence that names the culprit and the remedy; command lines print it without a traceback."""


def _unraisable(unraisable) -> None:
    # At the first error of a damaged checkpoint Orbax closes its event loop; tensorstore's threads then
    # report all others to it, in a traceback each.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def command_line(main: Callable[[], None]) -> None:
    """Run the main function of a tool; a UserError becomes one line on stderr and exit status 1."""
    sys.unraisablehook = _unraisable
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
