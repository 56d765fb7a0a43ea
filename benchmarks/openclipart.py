"""Drawn pictures in category folders, from Debian's package openclipart-png; nothing of it is committed.

    python benchmarks/openclipart.py --output=data/openclipart

Needs a Debian system with apt (`apt-get update` first) and 300 MB. Writes OUTPUT/train/CATEGORY/*.png and
OUTPUT/test/CATEGORY/*.png: of every category with at least 50 pictures, each fifth file by name is for test.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # for a run from anywhere

from sparse_vis.errors import UserError, command_line

PACKAGE = "openclipart-png"
FEWEST, TEST_EVERY = 50, 5
NO_CATEGORY = ("special", "unsorted")


def unpacked(package: pathlib.Path | None, folder: pathlib.Path) -> pathlib.Path:
    """The folder of categories, from a package file or the one that apt downloads.

    Raises:
        UserError: apt or dpkg-deb fail, or the package holds something else.
    """
    try:
        if package is None:
            subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
            package = next(folder.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", package.resolve(), folder / "files"], check=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        raise UserError(
            f"{PACKAGE} cannot be fetched ({error}); on Debian run apt-get update, "
            "or give --package=FILE.deb."
        ) from None
    found = folder / "files" / "usr" / "share" / "openclipart" / "png"
    if not found.is_dir():
        raise UserError(f"{package} holds no usr/share/openclipart/png; give the package {PACKAGE}.")
    return found


def arrange(categories: pathlib.Path, output: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Copy the pictures of large categories into train and test.

    Args:
        categories: a folder per category, with any folders below. output: must not exist yet.

    Returns:
        Category -> number of pictures for train and for test.
    """
    counts = {}
    for category in sorted(path for path in categories.iterdir() if path.is_dir()):
        files = sorted(category.rglob("*.png"))
        if category.name in NO_CATEGORY or len(files) < FEWEST:
            continue
        split = {"test": files[::TEST_EVERY], "train": [f for i, f in enumerate(files) if i % TEST_EVERY]}
        for name, chosen in split.items():
            target = output / name / category.name
            target.mkdir(parents=True)
            for file in chosen:
                shutil.copyfile(file, target / "-".join(file.relative_to(category).parts))
        counts[category.name] = len(split["train"]), len(split["test"])
    return counts


def main() -> None:
    """Command line; see the docstring of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--package", type=pathlib.Path, help="the .deb file, if it was downloaded before")
    arguments = parser.parse_args()
    if arguments.output.exists():
        raise UserError(f"{arguments.output} exists already; give another --output, or remove it.")
    with tempfile.TemporaryDirectory() as folder:
        counts = arrange(unpacked(arguments.package, pathlib.Path(folder)), arguments.output)
    for category, (train, test) in counts.items():
        print(f"{category:20} {train:5} train {test:5} test")
    total = [sum(count) for count in zip(*counts.values(), strict=True)]
    print(f"{'all':20} {total[0]:5} train {total[1]:5} test")


if __name__ == "__main__":
    command_line(main)
