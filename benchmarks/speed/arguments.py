"""The command line of those scripts of this folder that take no configuration."""

from __future__ import annotations

import argparse

from sparse_vis.runtime.tools import Parser


def script_parser(spec, doc: str) -> Parser:
    """A parser without arguments yet.

    Args:
        spec, doc: __spec__ and __doc__ of the script, whose docstring is the text of --help.
    """
    return Parser(
        prog=f"python -m {spec.name}", description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
