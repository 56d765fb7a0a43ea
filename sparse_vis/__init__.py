"""STELLAR in JAX: images as a few semantic tokens S and a localization matrix L.

    model, params = sparse_vis.load("runs/quickstart")
    out = sparse_vis.encode(model, params, images)
    pixels = sparse_vis.reconstruct(model, params, out)
    model, params, history = sparse_vis.train("photos")  # a folder, an address, an array or a data set

Heavy dependencies are imported when one of these names is first used.
"""

import gc
import importlib

from sparse_vis.runtime import host

__version__ = "0.2.0"
# Name -> module that has it. `train` is not among them: it is a module that can be called.
_PLACES = {
    "classify": "api", "encode": "api", "load": "api", "probe": "commands.probe", "reconstruct": "api",
    "segment": "commands.segmenter", "segmenter": "commands.segmenter",
}  # fmt: skip
__all__ = [*_PLACES, "train"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'sparse_vis' has no attribute {name!r}")
    if name == "train":
        return importlib.import_module("sparse_vis.train")
    collecting = gc.isenabled()
    gc.disable()  # garbage collection takes a fifth of the time of these imports, and finds nothing
    try:
        return getattr(importlib.import_module(f"sparse_vis.{_PLACES[name]}"), name)
    finally:
        if collecting:
            gc.enable()


host.leave_out_ynnpack()  # sets XLA_FLAGS, which JAX reads when it makes its first array
