"""Drawn pictures in category folders, from Debian's package openclipart-png; nothing of it is committed.

    python -m benchmarks.evidence.openclipart --output=data/openclipart

Needs a Debian system with apt (`apt-get update` first) and 300 MB. Writes FOLDER/train, FOLDER/validation and
FOLDER/test/CATEGORY/*.png: of every category with at least 50 pictures, each fifth file by name is for test,
the one after it for validation. Pictures are reduced to at most 128 pixels a side, on white ground; what is
thinner than 16 pixels then is left out.
"""

import collections
import pathlib
import subprocess
import tempfile

from PIL import Image

from benchmarks.speed.command import script_parser
from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import UserError, command_line

PACKAGE = "openclipart-png"
FEWEST, FOLDS, SIDE, THINNEST = 50, 5, 128, 16
SPLITS = {0: "test", 1: "validation"}  # number of a file modulo FOLDS -> its split; all others: train
NO_CATEGORY = ("special", "unsorted")


def unpacked(package: pathlib.Path | None, folder: pathlib.Path) -> pathlib.Path:
    """The folder of categories, from a package file or the one that apt downloads."""
    if package is not None and not package.is_file():
        raise UserError(f"--package={package} is no file; give the .deb of {PACKAGE}, or leave it out.")
    try:
        if package is None:
            subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
            package = next(folder.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", package.resolve(), folder / "files"], check=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        failed = error.cmd[0] if isinstance(error, subprocess.CalledProcessError) else error
        raise UserError(
            f"{PACKAGE} cannot be fetched or unpacked (failed: {failed}); on Debian run apt-get update, "
            "or give --package=FILE.deb."
        ) from None
    found = folder / "files" / "usr" / "share" / "openclipart" / "png"
    if not found.is_dir():
        raise UserError(f"{package} holds no usr/share/openclipart/png; give the package {PACKAGE}.")
    return found


def reduce(file: pathlib.Path, target: pathlib.Path) -> bool:
    """Write a picture again with at most SIDE pixels a side, on white ground; False, nothing, if too thin."""
    with Image.open(file) as image:
        drawn = image.convert("RGBA")  # before it is reduced: palettes have no colours in between
    drawn.thumbnail((SIDE, SIDE))
    if min(drawn.size) < THINNEST:
        return False
    ground = Image.new("RGBA", drawn.size, "white")
    Image.alpha_composite(ground, drawn).convert("RGB").save(target)
    return True


def arrange(categories: pathlib.Path, output: pathlib.Path) -> dict[str, dict[str, int]]:
    """Reduced copies of the pictures of large categories, in folders for train, validation and test.

    `categories` has a folder for each, with any folders below. Returns category -> split -> number.
    """
    # The package holds drawings of up to 231 million pixels, which Pillow takes for an attack.
    Image.MAX_IMAGE_PIXELS = None
    counts = {}
    for category in sorted(path for path in categories.iterdir() if path.is_dir()):
        files = sorted(category.rglob("*.png"))
        if category.name in NO_CATEGORY or len(files) < FEWEST:
            continue
        counts[category.name] = collections.Counter()
        for number, file in enumerate(files):
            split = SPLITS.get(number % FOLDS, "train")
            folder = output / split / category.name
            folder.mkdir(parents=True, exist_ok=True)
            kept = reduce(file, folder / "-".join(file.relative_to(category).parts))
            counts[category.name][split if kept else "too thin"] += 1
        print(category.name, *(f"{n} {split}" for split, n in counts[category.name].items()), flush=True)
    return counts


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    add = parser.add_argument
    add("--output", required=True, type=paths.path, metavar="FOLDER", help="new folder for the pictures")
    add("--package", type=paths.path, metavar="FILE", help="the .deb file, if it was downloaded before")
    arguments = parser.parse_args()
    if arguments.output.exists():
        raise UserError(f"{arguments.output} exists already; give another --output, or remove it.")
    with tempfile.TemporaryDirectory() as folder:
        counts = arrange(unpacked(arguments.package, pathlib.Path(folder)), arguments.output)
    total = sum(counts.values(), collections.Counter())
    print("all:", ", ".join(f"{n} {split}" for split, n in total.items()))


if __name__ == "__main__":
    command_line(main)
