"""One exception type for input that the user can mend."""


class UserError(ValueError):
    """A single sentence that names the culprit and the remedy; command lines print it without a traceback."""
