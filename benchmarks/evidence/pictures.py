"""Write a data set of real pictures, fetched from Debian packages and scikit-image.

    python -m benchmarks.evidence.pictures --output=data/pictures

Needs a Debian system with apt (`apt-get update` first), pip and 1.5 GB while it works. Writes
OUTPUT/objects/SPLIT/CATEGORY/*.png, drawings and photographs of single objects with transparent surroundings,
at most 192 pixels a side, and OUTPUT/photographs/SPLIT/*.jpg, at most 1024 pixels a side. Objects whose names
differ only from the first digit on (`lion_01`, `lion_02`) are variants and go to one split.
Of Tux Paint's stamps, only files at even positions of the sorted list of all PNG files are read.
"""

import collections
import pathlib
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
from PIL import Image

from benchmarks.evidence.packages import folders, unpack_debian
from sparse_vis.runtime.errors import UserError, command_line

PACKAGES = (
    "openclipart-png", "tuxpaint-stamps-default", "mate-backgrounds", "plasma-workspace-wallpapers",
    "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04",
)  # fmt: skip
CLIPART, STAMPS = "usr/share/openclipart/png", "usr/share/tuxpaint/stamps"
# Category -> subfolders of openclipart, and of the stamps. Signs, icons, flags and patterns are no objects.
CATEGORIES = {
    "animals": (("animals",), ("animals",)),
    "buildings": (("buildings",), ("town",)),
    "celebrations": (("recreation/holiday", "recreation/party"), ("seasonal",)),
    "clothes": (("people/clothing",), ("clothes",)),
    "electronics": (("electronics", "computer/hardware", "office/telephone"), ()),
    "food": (("food",), ("food",)),
    "music": (("recreation/music",), ("hobbies",)),
    "people": (("people",), ("people",)),
    "plants": (("plants",), ("plants",)),
    "sports": (("recreation/sports", "recreation/toys"), ("sports",)),
    "tools": (("tools", "office", "education"), ("household",)),
    "vehicles": (
        ("transportation", "transportation/boating", "transportation/vehicles"), ("vehicles", "military"),
    ),
}  # fmt: skip
FLAT = {"people", "transportation", "office"}  # their subfolders are other categories, or signs
WALLPAPERS = {
    "usr/share/backgrounds/mate/nature": (
        "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower"
    ),
    "usr/share/wallpapers": (
        "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path "
        "summer_1am"
    ),
    "usr/share/backgrounds": (
        "Bridge_by Dragonfly_by Picture_0B_by Picture_1A_by Wine_by aitzgorri_by free_by friends_by "
        "greentock_by life_by picosdeeuropa_by seeding_by sunset_by Kleiber_by"
    ),
}
# Of these well-known pictures, those in SHOWN are for testing; the others are mostly textures.
SCIKIT_IMAGE = "astronaut brick camera chelsea coffee coins grass gravel motorcycle_left rocket"
SCIKIT_LEARN = "china flower"
SHOWN = "astronaut camera chelsea coffee motorcycle_left rocket china flower"
FOLDS, WALLPAPER_FOLDS = 5, 7
SPLITS = {0: "test", 1: "validation"}  # checksum or number modulo the folds -> split; else train
OBJECT_SIDE, SMALLEST_SIDE, PHOTO_SIDE = 192, 24, 1024
COVERED = (0.25, 0.97)  # share of its bounding box that an object covers, neither lines nor a rectangle


def split_of(name: str) -> str:
    """The split of a picture, by the part of its name before the first digit."""
    start = re.split(r"\d", name.lower())[0].rstrip("_- ")
    return SPLITS.get(zlib.crc32((start or name).encode()) % FOLDS, "train")


def unpack(downloads: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpack all packages into one tree; those missing in `downloads` are fetched."""
    unpack_debian(PACKAGES, downloads, folder)
    try:
        if not list(downloads.glob("scikit_image-*.whl")):
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads]
            subprocess.run([*pip, "scikit-image"], check=True)
        with zipfile.ZipFile(next(downloads.glob("scikit_image-*.whl"))) as wheel:
            wheel.extractall(folder, [n for n in wheel.namelist() if n.startswith("skimage/data/")])
    except (OSError, subprocess.CalledProcessError, StopIteration, zipfile.BadZipFile):
        what = "scikit-image's wheel cannot be fetched or unpacked"
        raise UserError(f"{what}; put it into --downloads: pip download --no-deps scikit-image.") from None


def object_files(tree: pathlib.Path, category: str) -> Iterator[tuple[str, pathlib.Path]]:
    """(name, file) of every drawing of a category."""
    clipart, stamps = CATEGORIES[category]
    for sub in clipart:
        folder = tree / CLIPART / sub
        for file in sorted(folder.glob("*.png") if sub in FLAT else folder.rglob("*.png")):
            if "sign" not in file.stem:
                yield file.stem, file
    for file in sorted((tree / STAMPS).rglob("*.png"))[::2]:  # the others are reserved for other checks
        if file.relative_to(tree / STAMPS).parts[0] in stamps:
            yield file.stem, file


def cut_out(file: pathlib.Path) -> Image.Image | str:
    """An object with its transparency, cropped to its opaque part and reduced; or why it is not used."""
    with Image.open(file) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return "opaque"
        if image.width * image.height > 40e6:
            return "huge"
        drawn = image.convert("RGBA")
    box = drawn.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    if box is None:
        return "empty"
    drawn = drawn.crop(box)
    drawn.thumbnail((OBJECT_SIDE, OBJECT_SIDE))
    if min(drawn.size) < SMALLEST_SIDE:
        return "thin"
    covered = float((np.asarray(drawn.getchannel("A")) > 127).mean())
    if not COVERED[0] <= covered <= COVERED[1]:
        return "lines" if covered < COVERED[0] else "rectangle"
    return drawn


def write_objects(tree: pathlib.Path, output: pathlib.Path) -> collections.Counter:
    """Cut out and write all objects; prints the counts of each category and returns their sum."""
    total, seen = collections.Counter(), set()
    for category in CATEGORIES:
        counts = collections.Counter()
        for name, file in object_files(tree, category):
            drawn = cut_out(file)
            content = drawn if isinstance(drawn, str) else drawn.tobytes()
            if isinstance(drawn, str) or content in seen:
                counts[drawn if isinstance(drawn, str) else "twice"] += 1
                continue
            seen.add(content)
            split = split_of(name)
            folder = output / "objects" / split / category
            folder.mkdir(parents=True, exist_ok=True)
            # The later of two drawings of one name stays, as in the data of pictures-tiny.
            counts["of the same name" if (folder / f"{name}.png").exists() else split] += 1
            drawn.save(folder / f"{name}.png")
        print(category, *(f"{n} {what}" for what, n in sorted(counts.items())), flush=True)
        total += counts
    return total


def photograph_files(tree: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """(name, file) of every photograph."""
    for folder, names in WALLPAPERS.items():
        for name in names.split():
            found = [f for f in (tree / folder).glob(f"{name}*") if f.is_file()]
            found += (tree / folder / name / "contents" / "images").glob("*.jpg")
            yield name, max(found, key=lambda file: file.stat().st_size)
    for name in SCIKIT_IMAGE.split():
        yield from ((name, file) for file in sorted((tree / "skimage" / "data").glob(f"{name}.*")))
    sklearn = pathlib.Path(find_spec("sklearn").origin).parent / "datasets" / "images"
    for name in SCIKIT_LEARN.split():
        yield name, sklearn / f"{name}.jpg"


def write_photographs(tree: pathlib.Path, output: pathlib.Path) -> collections.Counter:
    """Write reduced copies of all photographs; returns the number in each split."""
    counts, wallpapers = collections.Counter(), sum(len(names.split()) for names in WALLPAPERS.values())
    for number, (name, file) in enumerate(photograph_files(tree)):
        split = SPLITS.get(number % WALLPAPER_FOLDS, "train") if number < wallpapers else "train"
        split = "test" if name in SHOWN.split() else split
        folder = output / "photographs" / split
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            reduced = image.convert("RGB")
        reduced.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        reduced.save(folder / f"{name}.jpg", quality=92)
        counts[split] += 1
    return counts


def main() -> None:
    Image.MAX_IMAGE_PIXELS = None  # some drawings have 200 million pixels, which Pillow refuses by default
    with folders(__spec__, __doc__) as (output, downloads, tree):
        unpack(downloads, tree)
        objects, photographs = write_objects(tree, output), write_photographs(tree, output)
    for what, counts in (("objects", objects), ("photographs", photographs)):
        print(f"{what}:", ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))


if __name__ == "__main__":
    command_line(main)
