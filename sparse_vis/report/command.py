"""A model on one HTML page: `python -m sparse_vis report --help`.

Configuration, curves, evaluations, images with maps and edits of their tokens, prototypes, health.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from sparse_vis.data.ahead import ON_ERROR
from sparse_vis.data.image_file import MAX_PIXELS
from sparse_vis.interop.load import PLACES
from sparse_vis.report.contents import make_contents
from sparse_vis.report.page import GENERATOR, render
from sparse_vis.runtime import lock, paths
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import write_whole
from sparse_vis.runtime.tools import Parser, positive


def check_output(path: pathlib.Path) -> None:
    """Refuse an output that cannot be written, or is a file other than an earlier report.

    Raises:
        UserError: the path is a folder or another file, or its folder is missing.
    """
    if path.is_dir():
        raise UserError(
            f"--output={path} is a folder; give the name of an HTML file, e.g. {path / 'report.html'}."
        )
    if not path.parent.is_dir():
        raise UserError(f"the folder of --output={path} does not exist; make it or give another.")
    if path.exists():
        with path.open("rb") as file:
            head = file.read(400)
        if f'name="generator" content="{GENERATOR}"'.encode() not in head:
            raise UserError(f"--output={path} exists and is no report; give another name.")


def run(arguments: argparse.Namespace) -> None:
    """Write the report.

    Raises:
        UserError: any error that the user can correct.
    """
    check_output(arguments.output)
    for name in ("gallery", "voters"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}={getattr(arguments, name)} is no number of images; give at least 1.")
    output = arguments.output
    with lock.hold(output.parent, "report", name=f".{output.name}{lock.LOCK}"):
        page = render(make_contents(arguments))
        try:
            write_whole(output, page)
        except OSError as error:
            raise UserError(f"{output} cannot be written ({error}); give another --output.") from error
    print(f"wrote {output}, {output.stat().st_size / 1e6:.1f} MB, which opens in any browser")


def main() -> None:
    """Command line; see --help."""
    parser = Parser(
        prog=sys.argv[0],
        description="A model on one self-contained HTML page (docs/visualization.md).",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, type=paths.place, help=PLACES)
    add("--name", help="model of a release folder that holds several")
    add(
        "--output",
        required=True,
        type=paths.path,
        metavar="FILE",
        help="HTML; an earlier report is replaced",
    )
    add(
        "--images",
        type=paths.folder,
        metavar="FOLDER",
        help="folder of images, instead of the test split of the run's data",
    )
    add("--on-error", choices=ON_ERROR, default="stop", help="when an image cannot be used (%(default)s)")
    add("--max-pixels", type=positive, default=MAX_PIXELS, help="of an image there (%(default)s)")
    add("--size", metavar="HxW", help="of the images in pixels; the model's square unless given")
    add("--gallery", type=int, default=12, help="images shown with maps and edits (%(default)s)")
    add(
        "--voters",
        type=int,
        default=256,
        help="images that vote for prototypes and of which health is measured (%(default)s)",
    )
    add(
        "--tokenizer",
        type=paths.path,
        metavar="FILE",
        help="weights of the VQ tokenizer, where the checkpoint does not name them",
    )
    run(parser.parse_args())
