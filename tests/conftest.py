"""Set before JAX starts: no accelerator, and quick compilation.

Type annotations of public array functions are checked by beartype while the tests run.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

from sparse_vis.host import CPU_COMPILER_OPTIONS

QUICK = CPU_COMPILER_OPTIONS | {"xla_backend_optimization_level": 0}
os.environ.setdefault("XLA_FLAGS", " ".join(f"--{name}={int(value)}" for name, value in QUICK.items()))

CHECKED = (
    "ops", "losses", "models", "evals", "views", "crops", "augment", "masking", "objective", "targets",
    "pictures", "viz", "report",
)  # fmt: skip
install_import_hook([f"sparse_vis.{name}" for name in CHECKED], "beartype.beartype")


def pytest_collection_modifyitems(items):
    """The long files first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: "train" not in item.path.parts)
