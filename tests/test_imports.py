"""Imports follow the data, from files to views, models, losses and training; one name is one thing."""

import ast
import collections
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "sparse_vis"

# A file may import from its own folder, and from those above it.
ORDER = (
    "runtime",  # errors, files, progress: knows nothing of images
    "config",  # every setting, its default and its range
    "types",  # the arrays that travel
    "ops",  # Sinkhorn, matching, prototypes, resize
    "data",  # image files -> Batch
    "views",  # Batch -> Views
    "models",  # Views -> Outputs
    "losses",  # targets, terms, objective
    "build",  # from the configuration to objects
    "interop",  # files of weights and checkpoints -> our parameter tree
    "train",  # step, loop, checkpoints
    "api",  # load, encode, reconstruct
    "viz",  # figures and pictures
    "evals",  # encoders, tasks
    "report",  # the page
    "commands",  # what the command line does
    "explore",  # a live page and its server
    "__main__",
)


def imported(path: pathlib.Path) -> set[str]:
    """Modules of the package that a file imports, within functions too, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "sparse_vis":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparse_vis."):
            below = node.module.removeprefix("sparse_vis.")
            modules = {f"{below}.{alias.name}" for alias in node.names}
            files = {m for m in modules if (PACKAGE / (m.replace(".", "/") + ".py")).exists()}
            found |= files or {below}
    return found


@pytest.mark.fast
def test_imports_follow_the_data():
    files = {
        p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): p for p in PACKAGE.rglob("*.py")
    }
    edges = {(name, other) for name, path in files.items() for other in imported(path)}
    assert ("train.step", "views.make") in edges and ("losses.objective", "losses.koleo") in edges
    folder = {name: name.split(".")[0] for edge in edges for name in edge}
    assert {*folder.values()} - {"__init__"} == {*ORDER}
    back = [
        f"{name} imports {other}"
        for name, other in edges
        if folder[name] != "__init__" and ORDER.index(folder[other]) > ORDER.index(folder[name])
    ]
    assert sorted(back) == []


@pytest.mark.fast
def test_files_and_public_classes_have_names_of_their_own():
    places = collections.defaultdict(list)
    for path in (path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".html", ".js", ".css")):
        names = [path.name] if path.name != "__init__.py" else []
        body = ast.parse(path.read_text()).body if path.suffix == ".py" else ()
        names += [x.name for x in body if isinstance(x, ast.ClassDef) and not x.name.startswith("_")]
        for name in names:
            places[name].append(path.relative_to(PACKAGE).as_posix())
    assert places["Encoder"] == ["evals/features.py"] and places["stellar.py"] == ["models/stellar.py"]
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def packages_after(code: str) -> set[str]:
    """The packages that a new process has imported after this code."""
    code += "; import sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    return {
        *subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    }


@pytest.mark.fast
def test_the_package_itself_imports_nothing_heavy():
    names = packages_after("import sparse_vis; assert callable(sparse_vis.train)")
    assert "sparse_vis" in names
    assert not {"jax", "flax", "tensorflow", "orbax", "grain", "numpy"} & names


def test_a_training_starts_without_what_evaluations_and_pictures_need():
    names = packages_after("import sparse_vis.commands.run, sparse_vis.evals.command")
    assert {"jax", "flax", "orbax", "grain"} <= names
    # ott-jax, of which a training needs Sinkhorn, imports scipy and matplotlib itself.
    assert not {"sklearn", "pandas", "pyarrow", "tensorflow", "tensorboard"} & names
