"""The command line of those scripts of this folder that take no configuration."""

from __future__ import annotations

import argparse
import pathlib

from sparse_vis.runtime.tools import Parser


def script_parser(file: str, doc: str) -> Parser:
    """A parser without arguments yet.

    Args:
        file, doc: __file__ and __doc__ of the script, whose docstring is the text of --help.
    """
    return Parser(
        prog=f"python benchmarks/{pathlib.Path(file).name}", description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
