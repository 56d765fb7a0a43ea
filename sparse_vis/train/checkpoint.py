"""Save and restore a run. interop/step_folder.py describes and reads the step folders.

Orbax writes a step under a temporary name first, so that an interrupted save is never taken for a checkpoint.
"""

import contextlib
import copy
import os
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import args as A
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sparse_vis.config.settings import plain
from sparse_vis.interop.step_folder import FOLDER, compare, damaged, read_data, reason_of, saved_steps
from sparse_vis.runtime import checksums
from sparse_vis.runtime.errors import UserError, explained, quiet_orbax
from sparse_vis.runtime.paths import S3, AnyPath, as_path, in_bucket
from sparse_vis.train.step import TrainState


def check_place(workdir: AnyPath) -> None:
    """Raise UserError for a workdir where Orbax cannot save: in S3, or with a [ in its path."""
    if str(workdir).startswith(S3):
        raise UserError(
            f"Orbax cannot save checkpoints to {S3} ({workdir}); give a --workdir in gs:// or in a folder, "
            "e.g. the bucket mounted as one."
        )
    if "[" in str(workdir.resolve()):
        raise UserError(
            f"workdir {workdir.resolve()} has a [ in its path, and Orbax cannot save there; give another "
            "--workdir."
        )


def prepare(workdir: AnyPath) -> None:
    """Create a workdir. Raises UserError if it cannot be written to, or as `check_place`."""
    check_place(workdir)
    if in_bucket(workdir):
        return
    with explained(OSError, f"cannot write to workdir {workdir}", "give another --workdir."):
        (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
        if not (os.access(workdir, os.W_OK) and os.access(workdir / FOLDER, os.W_OK)):
            raise PermissionError(0, "permission denied")


def open_manager(workdir: AnyPath, keep: int) -> ocp.CheckpointManager:
    """Checkpoint manager of a run; keeps the newest `keep` checkpoints."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(keep),
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # what a kill in the middle of a save leaves behind
    )
    # As text, because Orbax would call methods that a BucketPath does not have.
    return ocp.CheckpointManager(str((workdir / FOLDER).resolve()), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, data: dict, config: ConfigDict) -> None:
    """Start saving a state in the background. Raises UserError if this save, or the previous one, fails.

    `data` is JSON-compatible: `next_index`, the position of the next image in the global stream, and whatever
    else a continued run needs.
    """
    data = copy.deepcopy(data)  # Orbax writes it later, when the training has added to its sums
    settings, rest = plain(config), state.replace(params=None)
    sums = {"params": checksums.checksums(state.params), "rest": checksums.checksums(rest)}
    sums |= {"config": checksums.of_json(settings), "data": checksums.of_json(data)}
    items = dict(
        params=A.StandardSave(state.params),
        rest=A.StandardSave(rest),
        data=A.JsonSave({**data, "checksums": sums}),
        config=A.JsonSave(settings),
    )
    with _writing(manager):
        manager.save(int(state.step), args=A.Composite(**items), force=True)


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until all checkpoints are on disk. Raises UserError if one could not be written."""
    with _writing(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        folder = as_path(manager.directory)
        raise UserError(
            f"the checkpoint could not be written to {folder} ({reason_of(error)}; "
            f"{saved_steps(folder.parent)}); fix this and repeat the command."
        ) from error


def restore(
    manager: ocp.CheckpointManager, abstract: TrainState, sharding: TrainState
) -> tuple[TrainState, dict]:
    """The newest checkpoint's state, of these shapes and with this sharding, and the `data` saved with it.

    Raises UserError if it cannot be read, or if its checksums do not match.
    """
    folder = as_path(manager.directory) / str(manager.latest_step())
    data, saved = read_data(folder)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, sharding)
    items = dict(params=A.StandardRestore(target.params), rest=A.StandardRestore(target.replace(params=None)))
    quiet_orbax()
    try:
        out = manager.restore(int(folder.name), args=A.Composite(**items))
    except Exception as error:
        raise damaged(folder, reason_of(error)) from error
    for item in items:
        compare(folder, saved, item, out[item])
    return out["rest"].replace(params=out["params"]), data
