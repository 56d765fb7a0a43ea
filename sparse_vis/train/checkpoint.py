"""Checkpoints: parameters, the rest of the state, the data position and the configuration.

A step folder holds `params` (all that `load` needs), `rest` (optimizer, EMA, counters), `data` (the
next index of the global stream) and `config`. Orbax writes a step under a temporary name first, so
that one cut short is never taken for a checkpoint.
"""

from __future__ import annotations

import json
import pathlib

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import args as A
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sparse_vis.errors import UserError
from sparse_vis.train.step import TrainState

FOLDER = "checkpoints"
ITEMS = ("params", "rest", "data", "config")


def open_manager(workdir: pathlib.Path, keep: int) -> ocp.CheckpointManager:
    """Checkpoint manager of a run; keeps the newest `keep` checkpoints and the one of lowest total loss.

    Args:
        workdir: of the run. keep: at least 1.
    """
    policy = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: -metrics["total"], n=1, keep_checkpoints_without_metrics=False
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy, best_fn=lambda metrics: -metrics["total"], enable_async_checkpointing=True
    )
    return ocp.CheckpointManager((workdir / FOLDER).resolve(), options=options)


def plain(config: ConfigDict) -> dict:
    """The configuration as JSON keeps it (tuples become lists)."""
    return json.loads(config.to_json())


def save(
    manager: ocp.CheckpointManager, state: TrainState, next_index: int, config: ConfigDict, metrics: dict
) -> None:
    """Start saving a state in the background; the position is that of the first image not yet seen.

    Args:
        manager: of `open_manager`. state: TrainState.
        next_index: global stream position. config: of the run. metrics: host floats, with `total`.
    """
    rest = state.replace(params=None)
    manager.save(
        int(state.step),
        args=A.Composite(
            params=A.StandardSave(state.params),
            rest=A.StandardSave(rest),
            data=A.JsonSave({"next_index": next_index}),
            config=A.JsonSave(plain(config)),
        ),
        metrics=metrics,
        force=True,
    )


def _abstract(tree, sharding):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)


def restore(manager: ocp.CheckpointManager, abstract: TrainState, sharding: TrainState) -> tuple[TrainState, int]:
    """Newest state, placed as `sharding` says, and the data position.

    Args:
        manager: of `open_manager`. abstract: shapes of a TrainState. sharding: NamedShardings alike.

    Raises:
        UserError: the newest checkpoint cannot be read.
    """
    step = manager.latest_step()
    target = _abstract(abstract, sharding)
    try:
        out = manager.restore(
            step,
            args=A.Composite(
                params=A.StandardRestore(target.params),
                rest=A.StandardRestore(target.replace(params=None)),
                data=A.JsonRestore(),
            ),
        )
    except Exception as error:
        raise unreadable(pathlib.Path(manager.directory) / str(step), error) from error
    return out["rest"].replace(params=out["params"]), out["data"]["next_index"]


def unreadable(folder: pathlib.Path, error: Exception) -> UserError:
    """The sentence for a checkpoint that is there but cannot be read."""
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return UserError(
        f"checkpoint {folder} is incomplete or damaged ({reason}); "
        "delete that folder to go on from an earlier step, or restore it from a copy."
    )


def find_step(path: pathlib.Path) -> pathlib.Path:
    """The step folder meant by a workdir (its newest complete step), its checkpoints folder, or a step folder.

    Args:
        path: of any of the three.

    Raises:
        UserError: nothing there, no complete checkpoint, or a step folder that lacks something.
    """
    if not path.is_dir():
        raise UserError(f"checkpoint {path} does not exist; give a workdir of main.py or one of its step folders.")
    if not path.name.isdigit():
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        steps = [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]
        if not steps:
            raise UserError(
                f"{path} holds no complete checkpoint; train with main.py --workdir={path}, or give another folder."
            )
        path = max(steps, key=lambda p: int(p.name))
    missing = [item for item in ITEMS if not (path / item).is_dir()]
    if missing:
        raise UserError(
            f"checkpoint {path} is incomplete: it lacks {', '.join(missing)}; "
            "delete that folder to fall back to an earlier step."
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
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(step.resolve() / "params", target)
    except Exception as error:
        raise unreadable(step, error) from error
