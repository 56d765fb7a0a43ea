"""A page in your browser for any model and any picture: `python -m sparse_vis explore --help`."""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import secrets
import shlex
import signal
import socket
import sys
import tempfile

import numpy as np

from sparse_vis import api
from sparse_vis.commands import extract
from sparse_vis.commands.outputs import in_one_sentence
from sparse_vis.data.packed import METADATA
from sparse_vis.explore import static_page
from sparse_vis.explore.saved import png
from sparse_vis.explore.shelf import Shelf
from sparse_vis.explore.similar import Extraction
from sparse_vis.runtime import paths, skipped
from sparse_vis.runtime.errors import UserError, explained, reworded
from sparse_vis.runtime.progress import say
from sparse_vis.runtime.tools import Parser

HOST = "127.0.0.1"
NEEDED = ("starlette", "uvicorn")
# Ports that browsers refuse, as other services use them (https://fetch.spec.whatwg.org/#port-blocking).
UNSAFE = frozenset((
    1, 7, 9, 11, 13, 15, 17, *range(19, 24), 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, *range(101, 105), 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, *range(512, 516), 526,
    530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659,
    4045, 4190, 5060, 5061, 6000, 6566, *range(6665, 6670), 6679, 6697, 10080,
))  # fmt: skip
SHUTDOWN = 10  # seconds that requests have to end after Ctrl-C
SHOWN = 5  # most unusable images that are named


def port(text: str) -> int:
    """argparse `type` of a port; 0 means any free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 65535")
    if int(text) in UNSAFE:
        raise argparse.ArgumentTypeError(f"{text!r} is a port that browsers do not open; give another")
    return int(text)


def main() -> None:
    parser = Parser(
        description="Serve a page on this computer that shows and edits the tokens and maps of any picture "
        "(docs/explore.md). Example: python -m sparse_vis explore --checkpoint=runs/quickstart"
    )
    add = parser.add_argument
    add("--checkpoint", required=False, default="pictures-tiny", help=f"{paths.PLACES} (%(default)s)")
    add("--name")
    add("--tokenizer")
    add("--port", type=port, default=0, help="port of the address (default: a free one)")
    add("--max-pixels")
    add("--letterbox")
    searched = "extraction of --images (`extract`); without it, one is made and deleted at the end"
    add("--gallery", type=paths.local, metavar="EXTRACTION", help=searched)
    add("--images", type=paths.local, metavar="FOLDER", help="images to search for similar tokens")
    static = "write the page to this folder, for a web server of any kind, and serve nothing"
    add("--export", type=paths.local, metavar="FOLDER", help=static)
    runtime = f"with --export: folder of {static_page.PACKAGE}, unpacked (default: fetched with npm)"
    add("--runtime", type=paths.local, metavar="FOLDER", help=runtime)
    given = parser.parse_args()
    if given.export is not None:
        return export(given)
    if given.runtime is not None:
        raise UserError("--runtime is for --export; give both, or neither.")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f'explore needs {" and ".join(missing)}; run pip install -e ".[explore]".')
    if given.gallery is not None and given.images is None:
        raise UserError("--gallery needs --images, the folder of the extraction's images; give it too.")
    for name in ("gallery", "images"):
        check_is_folder(name, getattr(given, name))
    listening = bound(given.port)
    model, params = api.load(given.checkpoint, given.name, tokenizer=given.tokenizer)
    api.check_tokenizer(model, given.checkpoint)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the folder is deleted then too
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # when the terminal is closed, unless under nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="sparse_vis-") as place:
        if given.images is not None and given.gallery is None:
            given.gallery = extracted(given, pathlib.Path(place, "features"))
        gallery = given.gallery and Extraction(given.gallery, given.images, model, params, given.max_pixels)
        shelf = Shelf(model, params, given.max_pixels, gallery, letterbox=given.letterbox)
        serve(shelf, given.checkpoint, listening)


def extracted(given: argparse.Namespace, output: pathlib.Path) -> pathlib.Path:
    """Extract the features of --images into a folder, which is returned; prints some unusable images."""
    if (given.images / METADATA).is_file():
        raise UserError(f"--images={given.images} holds packed images; give the folder that was packed.")
    name = [] if given.name is None else [f"--name={given.name}"]
    # An absolute path, because the folder's name may look like an address or begin with ~.
    images = f"--input={given.images.absolute()}", f"--max-pixels={given.max_pixels}", "--on-error=skip"
    whole = ["--letterbox"] if given.letterbox else []
    flags = [f"--checkpoint={given.checkpoint}", *name, *images, *whole, f"--output={output}"]
    with reworded(lambda sentence: sentence.replace("--input", "--images")), in_one_sentence(output):
        extract.extract(extract.parser().parse_args(flags))
    for line in (output / skipped.FILE).read_text("utf-8").splitlines()[:SHOWN]:
        say(f"left out: {line}")
    return output


def export(given: argparse.Namespace) -> None:
    """Write the page that needs no server of ours, and print how to serve it."""
    served = ("gallery", "images", "tokenizer", "port", "letterbox")
    if wrong := next((name for name in served if getattr(given, name)), None):
        raise UserError(f"--{wrong} needs the server; leave out --{wrong}, or --export.")
    static_page.check(given.export)
    check_is_folder("runtime", given.runtime)
    runtime = static_page.fetched() if given.runtime is None else static_page.from_folder(given.runtime)
    model, params = api.load(given.checkpoint, given.name)
    size = static_page.write(model, params, given.checkpoint, given.max_pixels, runtime, given.export)
    say(f"wrote {given.export}, {size / 1e6:.1f} MB")
    folder = shlex.quote(str(given.export))
    say(f"python -m http.server --bind={HOST} --directory={folder} serves it on this computer")


def check_is_folder(name: str, folder: pathlib.Path | None) -> None:
    """Raise UserError if the flag of this name is given, and is not a folder."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"--{name}={folder} is not a folder; give another --{name}.")


def bound(number: int) -> socket.socket:
    """A socket that only this computer reaches, at this port (0: any free one)."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with explained(OSError, f"--port={number} cannot be used", "give another."):
        listening.bind((HOST, number))
        listening.listen()
    return listening


def serve(shelf: Shelf, name: str, listening: socket.socket) -> None:
    """Compile the programs of the first picture, print the address and serve it until Ctrl-C."""
    import uvicorn  # here, as it may not be installed, which `main` reports

    from sparse_vis.explore.server import default_side, make_app

    say("compiling, the first time for about 10 seconds")
    one_pixel = png(np.zeros((1, 1, 3), np.uint8))  # any --max-pixels allows it
    shelf.shown(shelf.put(one_pixel, "one pixel"), default_side(shelf.model), [])
    number, token = listening.getsockname()[1], secrets.token_urlsafe(24)
    app = make_app(shelf, name, token, number)
    say(f"open http://{HOST}:{number}/?token={token} in a browser; Ctrl-C stops the server")
    config = uvicorn.Config(app, log_config=None, log_level="warning", timeout_graceful_shutdown=SHUTDOWN)
    uvicorn.Server(config).run(sockets=[listening])
