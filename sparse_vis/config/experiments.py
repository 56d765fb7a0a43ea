"""The experiments of configs/ by name: `--config=quickstart`, in the repository and after `pip install`."""

import pathlib
import runpy

from ml_collections import ConfigDict

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# pip installs configs/ inside the package; in the repository it is beside the package.
FOLDER = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def file_of(text: str) -> str:
    """The file of an experiment, given its name; any other text unchanged."""
    return str(FOLDER / f"{text}.py") if text in names() else text


def experiment(name: str) -> ConfigDict:
    """The configuration of an experiment, as a base for another one."""
    return runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"]()
