"""Unpack Debian packages, for programs that write data sets from their files."""

import contextlib
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

from benchmarks.speed.command import script_parser
from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.files import PARTIAL


@contextlib.contextmanager
def folders(spec, doc: str) -> Iterator[tuple[pathlib.Path, ...]]:
    """Parse the command line of a program that writes a data set, given its __spec__ and __doc__.

    Yields the folder to write, which gets the name --output only when it is complete; the folder of
    downloads; and a folder to unpack them, which is removed at the end.
    """
    parser, folder = script_parser(spec, doc), {"type": paths.path, "metavar": "FOLDER"}
    parser.add_argument("--output", required=True, **folder, help="new folder")
    parser.add_argument("--downloads", **folder, help="keep the packages here (default: do not keep them)")
    given = parser.parse_args()
    if given.output.exists():
        raise UserError(f"{given.output} exists already; give another --output, or remove it.")
    partial = given.output.with_name(given.output.name + PARTIAL)
    with tempfile.TemporaryDirectory() as place:
        downloads = given.downloads or pathlib.Path(place, "downloads")
        shutil.rmtree(partial, ignore_errors=True)  # of an interrupted run
        for flag, folder in (("--output", partial), ("--downloads", downloads)):
            with explained(OSError, f"{folder} cannot be made", f"give another {flag}."):
                folder.mkdir(parents=True, exist_ok=True)
        yield partial, downloads, pathlib.Path(place, "tree")
    partial.rename(given.output)


def unpack_debian(names: tuple[str, ...], downloads: pathlib.Path, tree: pathlib.Path) -> None:
    """Unpack packages into one tree of folders; those missing in `downloads` are fetched with apt-get."""
    try:
        for name in names:
            if not list(downloads.glob(f"{name}_*.deb")):
                print(f"fetching {name}", flush=True)
                subprocess.run(["apt-get", "-q", "download", name], cwd=downloads, check=True)
            file = next(downloads.glob(f"{name}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", file.resolve(), tree], check=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        failed = error.cmd[0] if isinstance(error, subprocess.CalledProcessError) else error
        raise UserError(
            f"The package {name} cannot be fetched or unpacked (failed: {failed}); on Debian run apt-get "
            f"update, or put its .deb file into --downloads (all that are needed: {', '.join(names)})."
        ) from None
