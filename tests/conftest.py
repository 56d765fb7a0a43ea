"""Set before JAX starts: no accelerator, and quick compilation.

Type annotations of public array functions are checked by beartype while the tests run.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxlib.version import __version__ as jaxlib_version
from jaxtyping import install_import_hook

QUICK = "--xla_backend_optimization_level=0"
# Programs that run once are ready sooner without; later versions always use them, and refuse the flag.
if [int(part) for part in jaxlib_version.split(".")[:3]] < [0, 11, 1]:
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)

CHECKED = (
    "ops", "views", "models", "losses", "evals", "viz", "report", "data.decode", "data.image_file",
    "data.cut", "data.records", "train.optimizer", "train.health", "commands.reconstruct",
)  # fmt: skip
install_import_hook([f"sparse_vis.{name}" for name in CHECKED], "beartype.beartype")


def pytest_collection_modifyitems(items):
    """The long files first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: "train" not in item.path.parts)
