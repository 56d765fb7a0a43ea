"""Checkpoints: parameters, the rest of the state, the data position and the configuration.

A step folder holds `params` (all that `load` needs), `rest` (optimizer, EMA, counters), `data` (the
next index of the global stream) and `config`. Orbax writes a step under a temporary name first, so
that one cut short is never taken for a checkpoint.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import textwrap

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import args as A
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sparse_vis.errors import UserError
from sparse_vis.train.settings import plain
from sparse_vis.train.step import TrainState

FOLDER = "checkpoints"
ITEMS = ("params", "rest", "data", "config")


def prepare(workdir: pathlib.Path) -> None:
    """Create a workdir.

    Raises:
        UserError: it cannot be created or written to.
    """
    if "[" in str(workdir.resolve()):
        raise UserError(
            f"workdir {workdir.resolve()} has a [ in its name, below which Orbax loses what it saves; "
            "give another --workdir."
        )
    try:
        (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
        writable = os.access(workdir, os.W_OK) and os.access(workdir / FOLDER, os.W_OK)
        reason = "permission denied"
    except OSError as error:
        writable, reason = False, error.strerror
    if not writable:
        raise UserError(f"cannot write to workdir {workdir} ({reason}); give another --workdir.")


def open_manager(workdir: pathlib.Path, keep: int) -> ocp.CheckpointManager:
    """Checkpoint manager of a run; keeps the newest `keep` checkpoints and the one of lowest total loss.

    Args:
        workdir: of the run. keep: at least 1.
    """
    policy = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(get_metric_fn=_merit, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=_merit,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # what a kill in the middle of a save leaves behind
    )
    return ocp.CheckpointManager((workdir / FOLDER).resolve(), options=options)


def _merit(metrics: dict[str, float]) -> float:
    return -metrics["total"]


def save(
    manager: ocp.CheckpointManager, state: TrainState, next_index: int, config: ConfigDict, metrics: dict
) -> None:
    """Start saving a state in the background; the position is that of the first image not yet seen.

    Args:
        manager: of `open_manager`. state: TrainState.
        next_index: global stream position. config: of the run.
        metrics: finite host floats; without a `total` the checkpoint is no candidate for the best one.

    Raises:
        UserError: this save, or the previous one, cannot be written.
    """
    items = dict(
        params=A.StandardSave(state.params),
        rest=A.StandardSave(state.replace(params=None)),
        data=A.JsonSave({"next_index": next_index}),
        config=A.JsonSave(plain(config)),
    )
    try:
        manager.save(
            int(state.step),
            args=A.Composite(**items),
            metrics=metrics if "total" in metrics else None,
            force=True,
        )
    except Exception as error:
        raise _unwritable(manager, error) from error


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until everything is on disk.

    Raises:
        UserError: a checkpoint could not be written.
    """
    try:
        manager.wait_until_finished()
    except Exception as error:
        raise _unwritable(manager, error) from error


# Of tensorstore's messages: the drivers that a cause came through, and the specifications behind it.
_AROUND_CAUSE = (
    r"^[A-Z_]+: (Error opening \"\w+\" driver: )*(Error reading \"[^\"]*\" in OCDBT database at [^:]*: )?"
    r"| \[tensorstore_spec.*|\. See full TensorStore details.*"
)


def _reason(error: Exception) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return textwrap.shorten(re.sub(_AROUND_CAUSE, "", line), 240, placeholder=" …")


def _unwritable(manager: ocp.CheckpointManager, error: Exception) -> UserError:
    return UserError(
        f"a checkpoint cannot be written to {manager.directory} ({_reason(error)}); earlier ones are intact: "
        "mend that and give the same command again."
    )


def _abstract(tree, sharding):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)


def restore(
    manager: ocp.CheckpointManager, abstract: TrainState, sharding: TrainState
) -> tuple[TrainState, int]:
    """Newest state, placed as `sharding` says, and the data position.

    Args:
        manager: of `open_manager`. abstract: shapes of a TrainState. sharding: NamedShardings alike.

    Raises:
        UserError: the newest checkpoint cannot be read.
    """
    step = manager.latest_step()
    target = _abstract(abstract, sharding)
    items = dict(
        params=A.StandardRestore(target.params),
        rest=A.StandardRestore(target.replace(params=None)),
        data=A.JsonRestore(),
    )
    try:
        out = manager.restore(step, args=A.Composite(**items))
        return out["rest"].replace(params=out["params"]), out["data"]["next_index"]
    except Exception as error:
        raise unreadable(pathlib.Path(manager.directory) / str(step), error) from error


def unreadable(folder: pathlib.Path, error: Exception) -> UserError:
    """The sentence for a checkpoint that is there but cannot be read."""
    return UserError(
        f"checkpoint {folder} is incomplete or damaged ({_reason(error)}); "
        "delete that folder to go on from an earlier step, or restore it from a copy."
    )


def newest_step(workdir: pathlib.Path) -> int:
    """The newest step that a workdir has a folder for; 0 if there is none."""
    return max((int(p.name) for p in (workdir / FOLDER).glob("*") if p.name.isdigit()), default=0)


def find_step(path: pathlib.Path) -> pathlib.Path:
    """The step folder that a path means.

    Args:
        path: of a workdir or its checkpoints folder (their newest step), or of a step folder; a folder.

    Raises:
        UserError: no complete checkpoint, or a step folder that lacks something.
    """
    if not path.name.isdigit():
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        steps = [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]
        if not steps:
            raise UserError(
                f"{path} holds no complete checkpoint; train one with main.py --workdir={path}, "
                "or give another folder."
            )
        path = max(steps, key=lambda p: int(p.name))
    missing = [item for item in ITEMS if not (path / item).is_dir()]
    if missing:
        raise UserError(
            f"checkpoint {path} is incomplete: it lacks {', '.join(missing)}; "
            "delete that folder to go on from an earlier step, or restore it from a copy."
        )
    return path


def read_config(step: pathlib.Path) -> dict:
    """The configuration that a step folder was trained with."""
    try:
        return json.loads((step / "config" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise unreadable(step, error) from error


def restore_params(step: pathlib.Path, abstract: dict) -> dict:
    """Parameters of a step folder on this process's first device, whatever devices trained them.

    Args:
        step: of `find_step`. abstract: shapes of the parameter tree.

    Raises:
        UserError: the arrays cannot be read or have other shapes.
    """
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
    alone = ocp.options.MultiprocessingOptions(  # no barrier: the other processes of a run may be gone
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="alone",
    )
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
            return checkpointer.restore(step.resolve() / "params", target)
    except Exception as error:
        raise unreadable(step, error) from error
