"""The step, the loop around it, checkpoints. Calling the module, `sparse_vis.train(data, …)`, trains a model.

    model, params, history = sparse_vis.train("photos", train__steps=200)

Trains as main.py does: the same checks, checkpoints and lock. Ctrl-C (in Jupyter: interrupt the kernel) saves
after the step and raises KeyboardInterrupt; the same call continues. Evaluations of config.eval do not run.

Args:
    data: images: a folder, an address such as "hf:cifar10", an array (N, H, W, 3), uint8 or float in [0, 1],
        or any object with `__len__` and `__getitem__` (docs/api.md).
    config: name of an experiment of configs/, a file like those, or a ConfigDict.
    workdir: folder of the run. The default is runs/NAME, which is refused if it holds a run of other images
        or settings (docs/api.md says how images are compared). A run in a given folder is continued, and
        notes say which settings have changed.
    init: initial weights, as config.init.
    settings: settings of the configuration, with __ between the parts of a name: train__steps=200, seed=1.

Returns:
    (model, params, history): what `sparse_vis.load(workdir)` returns, and all numbers of the run's
    metrics.jsonl as name → (steps, values).

Raises:
    UserError: any error that the user can correct, before the first step where possible.
"""

import importlib
import sys
import types


class _Callable(types.ModuleType):
    """A module that can be called, because the function and the folder have one name."""

    def __call__(self, data, config="folder_small", workdir=None, init=None, **settings):
        # Imported by its name, because commands/ imports this folder.
        call = importlib.import_module("sparse_vis.commands.notebook").train
        return call(data, config, workdir, init, settings)


_Callable.__call__.__doc__ = __doc__
sys.modules[__name__].__class__ = _Callable
