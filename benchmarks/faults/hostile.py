"""Torch files that hold what is no weight, or ask to run code; nothing may run.

What is read must be the sound tensors; all else must be refused.
"""

import argparse
import collections
import functools
import gzip
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from safetensors.numpy import load_file

from benchmarks.faults.flips import equal
from benchmarks.faults.kills import ROOT
from benchmarks.faults.tally import Part
from sparse_vis.interop.load import read_model

GOLDEN = ROOT / "tests" / "golden"
SOUND = GOLDEN / "pixel_p16.safetensors"


class Evil:
    """Unpickled, it calls a function."""

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
    """Tensors that are no array of floating-point numbers, or of none that a network has."""
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
    """What would leave a file if it ran."""
    text = str(mark)
    return [
        Evil(os.system, f"touch {text}"), Evil(eval, f"open({text!r}, 'w')"),
        Evil(exec, f"open({text!r}, 'w')"),
        Evil(subprocess.Popen, ["touch", text]), Evil(open, text, "w"), Evil(pathlib.Path.touch, mark),
        Evil(shutil.copy, str(SOUND), text), Evil(np.save, text, 3), Evil(torch.save, 3, text),
        Evil(functools.partial, os.system, f"touch {text}"),
    ]  # fmt: skip


def contents(mark: pathlib.Path, part: Part) -> Iterator[tuple[str, str, bytes]]:
    """Kind of each file, which it is, and its bytes."""
    warnings.simplefilter("ignore")  # torch's, on what of it is in beta or deprecated
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
        yield "cut", f"{at}", sound[:at]
        flipped = bytearray(sound)
        flipped[at] ^= 1 << part.chance.randrange(8)
        yield "bit flipped", f"{at}", bytes(flipped)


def campaign(part: Part) -> None:
    """Every hostile file, and 40 that are cut and 40 with a bit flipped."""
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
