"""Find our own checkpoints (step folders), read them, and check them against their checksums.

A step folder has the items `params` (all that `load` needs), `rest` (optimizer, EMA, counters), `config`, and
`data` (next position in the global stream, sums for the next row of metrics, checksums of arrays and JSON).
"""

import itertools
import json
import re
import textwrap
from collections.abc import Callable
from typing import TypeVar

import jax

from sparse_vis.models.stellar import teacher_params
from sparse_vis.runtime import checksums
from sparse_vis.runtime.errors import UserError, quiet_orbax
from sparse_vis.runtime.names import path_name
from sparse_vis.runtime.paths import S3, AnyPath, in_bucket, is_utf8

FOLDER = "checkpoints"
ITEMS = ("params", "rest", "data", "config")
SAVED = "commit_success.txt"  # in a bucket, Orbax's mark of a complete save
T = TypeVar("T")
# What tensorstore's messages have around the cause: drivers before it, specifications after it.
_AROUND_CAUSE = (
    r"^[A-Z_]+: (Error opening \"\w+\" driver: )*(Error reading \"[^\"]*\" in OCDBT database at [^:]*: )?"
    r"| \[tensorstore_spec.*|\. See full TensorStore details.*"
)
_STEP = rf'(?<=")[^"]*/{FOLDER}/\d+/'  # path of the step folder, which our sentence names already


def reason_of(error: BaseException) -> str:
    while error.__cause__ is not None:  # Orbax's outer error says only in which array it occurred
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if (cause := re.search(r"([A-Z][^:\"\[]*) \[(?:os_error_code|OS error)", str(error))) is not None:
        return cause[1]
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    missing = ": not found" if line.startswith("NOT_FOUND: ") and "does not exist" not in line else ""
    line = re.sub(_AROUND_CAUSE, "", re.sub(_STEP, "", line)) + missing
    return textwrap.shorten(line, 240, placeholder=" …")


def saved_steps(workdir: AnyPath) -> str:
    """In words, the saved steps from which a stopped run can continue."""
    try:
        steps = _steps(workdir)
    except OSError:  # a bucket that cannot be reached
        return "which steps are saved there is not known"
    return f"steps saved there: {', '.join(map(str, steps))}" if steps else "no step is saved there"


def damaged(folder: AnyPath, reason: str) -> UserError:
    """The UserError for a checkpoint that cannot be read, or whose checksums differ."""
    return UserError(
        f"checkpoint {folder} is incomplete or damaged ({reason}); delete that folder to continue from an "
        "earlier step, or restore it from a copy."
    )


def _read_json(step: AnyPath, item: str) -> dict:
    path = step / item / "metadata"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(step, reason_of(error)) from error
    if not isinstance(content, dict):
        raise damaged(step, f"{item}/metadata is not a JSON object")
    return content


def read_data(step: AnyPath) -> tuple[dict, dict | None]:
    """The `data` of a step folder, and the checksums of all its items; None if it was saved without them."""
    data = _read_json(step, "data")
    saved = data.pop("checksums", None)
    if saved is None and set(data) == {"next_index"}:
        return data, None
    if not isinstance(saved, dict) or saved.get("data") != checksums.of_json(data):
        raise damaged(step, "the checksum of data differs")
    return data, saved


def compare(step: AnyPath, saved: dict | None, item: str, tree) -> None:
    """Raise UserError, naming the first array, if checksums of restored arrays differ.

    `saved`: checksums from `read_data`; if None, a note is printed. `tree`: some arrays of `item`, or all.
    """
    if saved is None:
        print(f"note: {step / item} was saved without checksums: damage would not be noticed.", flush=True)
        return
    for name, found in checksums.checksums(tree).items():
        if not isinstance(saved.get(item), dict) or saved[item].get(name) != found:
            raise damaged(step, f"the checksum of {item}/{name} differs")


def _is_step(path: AnyPath) -> bool:
    """Whether a folder is a step folder, complete or not, and not one of a class named 0, 1 …"""
    if not path.name.isdigit():
        return False
    return path.parent.name == FOLDER or any((path / item).is_dir() for item in ITEMS)


def _steps(path: AnyPath) -> list[int]:
    """Steps with a folder in a workdir or its checkpoints folder, complete or not, sorted.

    In a bucket, where Orbax cannot rename a folder that is complete, only those that it has marked as saved.
    """
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = (p for p in folder.glob("*") if _is_step(p) and p.is_dir())
    return sorted(int(p.name) for p in steps if not in_bucket(p) or (p / SAVED).exists())


def newest_step(workdir: AnyPath) -> int:
    """The newest step with a folder in a workdir, complete or not; 0 if there is none."""
    return max(_steps(workdir), default=0)


def find_step(path: AnyPath) -> AnyPath:
    """The step folder for a path: itself, or the newest of a workdir or of its checkpoints folder.

    Raises UserError if there is none, or it is incomplete, in S3, or below a name that is not UTF-8.
    """
    if not is_utf8(path):
        raise UserError(
            f"{str(path)!r} has a name that is not UTF-8, below which Orbax cannot read; rename it."
        )
    if str(path).startswith(S3):
        raise UserError(f"Orbax cannot read checkpoints in {S3} ({path}); copy it to a disk or gs:// first.")
    if not _is_step(path):
        steps = _steps(path)
        if not steps:
            raise UserError(f"{path} holds no complete checkpoint{_remedy(path)}.")
        path = (path / FOLDER if (path / FOLDER).is_dir() else path) / str(steps[-1])
    missing = [item for item in ITEMS if not (path / item).is_dir()]
    missing += [SAVED] if in_bucket(path) and not (path / SAVED).exists() else []
    if missing:
        raise damaged(path, f"it lacks {', '.join(missing)}")
    return path


def _remedy(path: AnyPath) -> str:
    """The rest of the error sentence about a folder without checkpoints; depends on what the folder holds."""
    from sparse_vis.data.decode import EXTENSIONS  # imports Pillow, which only this needs

    step = next((folder for folder in path.absolute().parents if _is_step(folder)), None)
    if step is not None:
        return f"; it is a part of one: give {step}"
    if runs := sorted(below.parent.name for below in path.glob(f"*/{FOLDER}")):
        return f"; give one of the workdirs below it: {', '.join(runs[:4])}{' …' if len(runs) > 4 else ''}"
    files = itertools.chain(path.glob("*.*"), path.glob("*/*.*"))
    if any(file.suffix.lower() in EXTENSIONS for file in itertools.islice(files, 1000)):
        return " but images, which are not a model; give the workdir of a run, or another model"
    return f"; train one with main.py --workdir={path}, or give another folder"


def read_newest(path: AnyPath, read: Callable[[AnyPath], T]) -> T:
    """Apply `read` to the step folder of a path (`find_step`), even while training continues there.

    A run that removes the step folder meanwhile has saved a newer one, which is read instead.
    """
    while True:
        newest = max(_steps(path), default=None)
        try:
            return read(find_step(path))
        except UserError:
            if _is_step(path) or max(_steps(path), default=None) == newest:
                raise


def read_config(step: AnyPath) -> dict:
    """The configuration saved in a step folder, as plain values. Raises UserError."""
    config, (_, saved) = _read_json(step, "config"), read_data(step)
    if saved is not None and saved.get("config") != checksums.of_json(config):
        raise damaged(step, "the checksum of config differs")
    return config


def _restore_part(step: AnyPath, item: str, abstract: dict) -> dict:
    import orbax.checkpoint as ocp  # here, as it takes a second, and released models do not need it

    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
    arguments = ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=item == "rest",
    )  # fmt: skip
    alone = ocp.options.MultiprocessingOptions(  # no barrier: the other processes of a run may be gone
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="alone",
    )
    _, saved = read_data(step)
    quiet_orbax()
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            tree = checkpointer.restore(str(step.resolve() / item), args=arguments)
    except Exception as error:
        raise damaged(step, reason_of(error)) from error
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, jax.Array):  # a partial restore leaves missing arrays as shapes
            raise damaged(step, f"{item} lacks {path_name(path)}")
    compare(step, saved, item, tree)
    return tree


def restore_params(step: AnyPath, abstract: dict) -> dict:
    """Parameters of a step folder, on this process's first device, whatever devices they were trained on.

    Raises UserError if arrays cannot be read, have other shapes than `abstract`, or other checksums.
    """
    return _restore_part(step, "params", abstract)


def restore_teacher(step: AnyPath, abstract: dict) -> dict:
    """The EMA teacher (`teacher_params`) of a step folder, as `restore_params`."""
    return _restore_part(step, "rest", {"teacher": teacher_params(abstract)})["teacher"]
