"""Names as printable text: of files, which need not be UTF-8, and of the leaves of a pytree."""

import re

# Backslash, line ends, control characters, and bytes that are not UTF-8 (surrogates in Python).
_SPECIAL = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]")


def escaped(name: str) -> str:
    r"""A name as one line of UTF-8: backslashes doubled, other special characters as \xNN per byte.

    Bytes that are not UTF-8 are surrogates in the name, as Python gives it (`surrogateescape`).
    """

    def escape(match: re.Match) -> str:
        code = match[0].encode(errors="surrogateescape")
        return "\\\\" if code == b"\\" else "".join(f"\\x{byte:02x}" for byte in code)

    return _SPECIAL.sub(escape, name)


def quoted(name: str) -> str:
    """A name for a message: escaped, in quotes."""
    return f"'{escaped(name)}'"


def unescaped(text: str) -> str:
    """Inverse of `escaped`; open() and os.path accept the result."""
    code = re.sub(
        rb"\\(?:\\|x([0-9a-f]{2}))",
        lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"\\",
        text.encode(),
    )
    return code.decode(errors="surrogateescape")


def path_name(path) -> str:
    """Key path of a pytree leaf, as a/b/c."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
