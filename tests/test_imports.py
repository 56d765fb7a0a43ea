"""Imports follow the data: from files to views, models, targets, losses, objective, training."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "sparse_vis"

# A module may import from its own line and those above it. `losses.spec` is plain numbers, hence early;
# so are the networks behind rFID and LPIPS, whose weights `interop` reads.
ORDER = (
    ("errors", "tools", "config", "ranges", "host", "progress", "runtime"), ("types",),
    ("ops", "pictures", "wrong_images"),
    ("data", "losses.spec"),
    ("augment", "crops", "masking"), ("views",),
    ("models", "evals.inception", "evals.lpips"), ("targets",), ("losses",), ("objective",),
    ("train.mesh", "train.optimizer", "train.ema", "train.gradients", "train.step"), ("build",),
    ("train.contradictions", "train.settings", "train.arguments", "train.stop", "train.checksums"),
    ("train.checkpoint", "train.distributed"), ("train.progress", "train.skipped", "train.health"),
    ("interop",), ("train.init",), ("train.loop",), ("api", "viz"), ("evals",), ("train.run",),
)  # fmt: skip


def rank(module: str) -> int:
    """Line of the longest prefix of a module's name; modules that are on none are tools, which come last."""
    ranks = {name: line for line, names in enumerate(ORDER) for name in names}
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((ranks[prefix] for prefix in prefixes if prefix in ranks), len(ORDER))


def imported(path: pathlib.Path) -> set[str]:
    """Modules of the package that a file imports when it is imported itself, without the package's name."""
    found = set()
    for node in ast.parse(path.read_text()).body:
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
    assert ("train.step", "views") in edges and ("objective", "losses.koleo") in edges
    assert sorted(f"{name} imports {other}" for name, other in edges if rank(other) > rank(name)) == []


@pytest.mark.fast
def test_the_package_itself_imports_nothing_heavy():
    code = "import sys, sparse_vis; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    names = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "sparse_vis" in names
    assert not {"jax", "flax", "tensorflow", "orbax", "grain", "numpy"} & set(names)
