"""Read files of other programs: damaged pictures, and torch files that hold no weights or try to run code.

Pictures that Pillow refuses must be refused; all others must be decoded to its pixels. Torch files must be
refused or give the undamaged tensors, and none may run code.
"""

import argparse
import collections
import functools
import gzip
import io
import itertools
import json
import os
import pathlib
import pickle
import random
import shutil
import struct
import subprocess
import time
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from benchmarks.faults.flips import equal, flip
from benchmarks.faults.kills import ROOT
from benchmarks.faults.tally import Part
from sparse_vis.data.decode import decode
from sparse_vis.interop.load import read_model

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
LONGEST = 5.0  # seconds for one picture of a few hundred pixels, whatever its header says
GOLDEN = ROOT / "tests" / "golden"
SOUND = GOLDEN / "pixel_p16.safetensors"


def picture(kind: str, chance: random.Random) -> bytes:
    """A picture's file, of random smooth content and random size."""
    size = chance.choice([(1, 1), (3, 40), (31, 17), (120, 80), (257, 190)])
    noise = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (5, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def huge(data: bytes, chance: random.Random) -> bytes:
    """The data with a large number in two or four bytes of the header, where sizes are."""
    at, form = chance.randrange(min(len(data) - 4, 64)), chance.choice([">H", "<H", ">I", "<I"])
    number = struct.pack(form, 13000 if form[1] == "H" else 70000)
    return data[:at] + number + data[at + len(number) :]


def shuffled(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(min(16, len(data) - at)) + data[at + 16 :]


FAULTS = {
    "bit flipped": lambda data, chance: flip(data, chance.randrange(len(data)), chance.randrange(8)),
    "cut": lambda data, chance: data[: chance.randrange(len(data))],
    "zeros": lambda data, chance: (
        data[:-2] + bytes(chance.randrange(1, 200)) + data[-2:]
    ),  # a JPEG ends with two bytes
    "huge": huge,
    "random bytes": shuffled,
}


def is_pillows(pixels: np.ndarray, data: bytes) -> bool:
    """Whether Pillow alone reads the file with these pixels, transparent ones over white."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            image = ImageOps.exif_transpose(image)
            rgba = np.asarray(image.convert("RGBA"), np.float64)
    except Exception:  # Pillow raises nearly anything on damaged bytes
        return False
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    return pixels.shape == expected.shape and bool(np.abs(pixels - expected).max() <= 1)


def pictures(part: Part) -> None:
    """Damage ten pictures of every format in each way of FAULTS."""
    for kind, (name, fault) in itertools.product(FORMATS, FAULTS.items()):
        for number in part.times(10):
            data = fault(picture(kind, part.chance), part.chance)
            begun = time.monotonic()
            part.tally.judge(
                f"pictures, {kind}", f"{name} {number}",
                lambda data=data: decode({"image": data, "name": "p"}),
                lambda found, data=data: is_pillows(found, data),
            )  # fmt: skip
            if (seconds := time.monotonic() - begun) > LONGEST:
                part.tally.fail(f"pictures, {kind}", f"{name} {number}: takes {seconds:.0f} s")


class Evil:
    """An object that calls a function when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def saved(content, **options) -> bytes:
    """The bytes of torch.save."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def odd_tensors(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors that are not floating-point arrays, or of types or values that no network has."""
    flat = x.reshape(len(x), -1)
    odd = {"not a number": x * float("nan"), "infinite": x + float("inf"), "transposed": flat.T[None]}
    odd |= {f"{dtype}": x.to(dtype) for dtype in (torch.int8, torch.bool, torch.uint16, torch.int64)}
    odd |= {f"{dtype}": x.to(dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)}
    ones, zeros = torch.ones(len(x)), torch.zeros(len(x))
    return odd | {
        "sparse": flat.to_sparse(), "sparse rows": flat.to_sparse_csr(), "meta": x.to("meta"),
        "quantized": torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "quantized rows": torch.quantize_per_channel(x, ones, zeros, 0, torch.qint8),
        "conjugate": torch.complex(x, x).conj(), "one value, 4 TB": torch.zeros(1).expand(10**12),
        "nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    }  # fmt: skip


def attacks(mark: pathlib.Path) -> list[Evil]:
    """Objects that would write the file `mark` if their code ran."""
    text = str(mark)
    return [
        Evil(os.system, f"touch {text}"), Evil(eval, f"open({text!r}, 'w')"),
        Evil(exec, f"open({text!r}, 'w')"),
        Evil(subprocess.Popen, ["touch", text]), Evil(open, text, "w"), Evil(pathlib.Path.touch, mark),
        Evil(shutil.copy, str(SOUND), text), Evil(np.save, text, 3), Evil(torch.save, 3, text),
        Evil(functools.partial, os.system, f"touch {text}"),
    ]  # fmt: skip


def contents(mark: pathlib.Path, part: Part) -> Iterator[tuple[str, str, bytes]]:
    """Kind, name and bytes of each file."""
    warnings.simplefilter("ignore")  # torch warns of its beta and deprecated features
    arrays = load_file(SOUND)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    name = "cls_cluster_head.predictor.layers.0.weight"
    for what, x in odd_tensors(tensors[name]).items():
        yield "odd tensors", what, saved(tensors | {name: x})
    for evil in attacks(mark):
        for zipped in (True, False):
            options = {"_use_new_zipfile_serialization": zipped}
            for content in (tensors | {"x": evil}, {"model": tensors, "args": evil}):
                yield "run code", f"{evil.call}", saved(content, **options)
        yield "run code", f"pickled {evil.call}", pickle.dumps({"model": evil})
    notes = argparse.Namespace(lr=1e-3, place=pathlib.PurePosixPath("/x"), counts=collections.Counter())
    trainer = {"model": tensors, "optimizer": {"state": {0: torch.zeros(3)}}, "epoch": 9, "args": notes}
    module = torch.nn.Linear(2, 2)
    odd = {
        "of a trainer": saved(trainer), "wrapped": saved({f"module.{k}": x for k, x in tensors.items()}),
        "module": saved(module), "list": saved([*tensors.values()]), "no names": saved({0: tensors[name]}),
        "page": b"<!DOCTYPE html><html>404</html>", "gzip": gzip.compress(saved(tensors)), "empty": b"",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "zeros": bytes(1000),
        "safetensors": SOUND.read_bytes(), "text": b"hello " * 99, "random": part.chance.randbytes(5000),
    }  # fmt: skip
    yield from (("other content", what, data) for what, data in odd.items())
    sound = saved(tensors)
    for _ in part.times(40):
        at = part.chance.randrange(len(sound))
        yield "truncated", f"{at}", sound[:at]
        yield "bit flipped", f"{at}", flip(sound, at, part.chance.randrange(8))


def torch_files(part: Part) -> None:
    """Read every hostile file, 40 that are truncated, and 40 with a flipped bit."""
    entry = json.loads((GOLDEN / "config.json").read_text())["models"]["pixel_p16"] | {"weights": "x.pth"}
    (part.folder / "config.json").write_text(json.dumps({"models": {"x": entry}}))
    weights, mark = part.folder / "x.pth", part.folder / "it_ran"
    expected = read_model(SOUND).params
    for kind, fault, data in contents(mark, part):
        kind = f"torch files: {kind}"
        weights.write_bytes(data)
        part.tally.judge(
            kind, fault, lambda: read_model(weights).params, lambda found: equal(found, expected)
        )
        if mark.exists():
            mark.unlink()
            part.tally.fail(kind, f"{fault}: its code ran")
