"""Names as text: of files, whose bytes need not be UTF-8, and of the arrays of a tree."""

from __future__ import annotations

import re

# A backslash, what ends a line or is not shown, and bytes that are not UTF-8 as Python holds them.
_SPECIAL = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]")


def escaped(name: str) -> str:
    r"""A name as one line of UTF-8: a backslash is doubled, other special characters are \xNN per byte.

    Args:
        name: as Python gives it, bytes that are not UTF-8 as surrogates (`surrogateescape`).
    """

    def escape(match: re.Match) -> str:
        code = match[0].encode(errors="surrogateescape")
        return "\\\\" if code == b"\\" else "".join(f"\\x{byte:02x}" for byte in code)

    return _SPECIAL.sub(escape, name)


def quoted(name: str) -> str:
    """A name in a message: in quotes, and as `escaped` writes it in lists and columns."""
    return f"'{escaped(name)}'"


def unescaped(text: str) -> str:
    """The name that `escaped` made a text of; open() and os.path take it."""
    code = re.sub(
        rb"\\(?:\\|x([0-9a-f]{2}))",
        lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"\\",
        text.encode(),
    )
    return code.decode(errors="surrogateescape")


def path_name(path) -> str:
    """Key path of a pytree leaf as a/b/c."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
