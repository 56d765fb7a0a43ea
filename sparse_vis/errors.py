"""One exception type for input that the user can mend."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A single sentence that names the culprit and the remedy; command lines print it without a traceback."""


def command_line(main: Callable[[], None]) -> None:
    """Run the main function of a tool; a UserError becomes one line on stderr and exit status 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
