"""Check a configuration before any long work starts; convert it to and from JSON."""

import functools
import json
import math
import operator
import pathlib
import textwrap
from typing import NoReturn

from ml_collections import ConfigDict

from sparse_vis.config.contradictions import contradictions, of_model
from sparse_vis.config.defaults import default_config
from sparse_vis.config.ranges import ALLOWED, leaves, shown
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.files import CHECKSUM, read_json
from sparse_vis.runtime.paths import AnyPath, expanded

# Settings that hold a path or a tuple of paths -> whether an hf:// address is allowed too. All but eval.masks
# may be in a bucket; some sources of images cannot read there.
PATHS = {
    "init": True, "data.path": False, "model.tokenizer.path": False, "eval.masks": False, "eval.beside": True,
    "eval.inception": False, "eval.lpips.alexnet": False, "eval.lpips.heads": False,
}  # fmt: skip

GIVE = "--config=configs/NAME.py"
# Setting -> values of earlier versions -> their present names.
FORMER = {"efficiency.remat": {False: "none", True: "blocks"}, "data.on_error": {"substitute": "skip"}}

# Former settings -> the only value with which a configuration that has them can still be read.
REMOVED = {"model.bottleneck": "factors", "loss.inpainting": 0.0}


def check(config: ConfigDict, devices: int = 1, backend: str = "") -> None:
    """Raise UserError if settings are out of range or contradict each other; expand ~ in paths, in place.

    `devices`: number of devices of all processes. `backend`: jax.default_backend(), or "" if not known.
    """
    found = leaves(config)
    for name in found.keys() ^ ALLOWED.keys():
        does = "lacks the" if name in ALLOWED else "has the unknown"
        remedy = "in get_config(), start from default_config() (config/defaults.py) and change its values"
        raise UserError(f"the configuration {does} setting {name}; {remedy}.")
    for name, value in found.items():
        if sentence := ALLOWED[name].fault(value):
            raise UserError(f"config.{name}={shown(value)} {sentence}.")
    local_paths(config)
    for sentence in contradictions(config, devices, backend):
        raise UserError(sentence + ".")


def local_paths(config: ConfigDict) -> None:
    """Expand ~ in all paths, in place. Raises UserError for a wrong path or config.name."""
    for name, hub in PATHS.items():
        *sections, last = name.split(".")
        part, value = at(config, *sections), at(config, *sections, last)
        given = [value] if isinstance(value, str) else value
        found = tuple(item and expanded(item, f"config.{name}", hub, name != "eval.masks") for item in given)
        part[last] = found[0] if isinstance(value, str) else found
    below = pathlib.PurePath(config.name)
    if not config.name.strip() or below.is_absolute() or ".." in below.parts:
        raise UserError(
            f"config.name={config.name!r} cannot be the name of a folder below runs/; give a simple name, "
            "e.g. mine."
        )


def at(config: ConfigDict, *names: str):
    """The setting or section with these names, which may be dotted."""
    return functools.reduce(operator.getitem, ".".join(names).split(".") if names else (), config)


def plain(config: ConfigDict) -> dict:
    """The configuration as a dict of JSON types (tuples become lists)."""
    return json.loads(config.to_json())


def from_plain(plain: dict, source: AnyPath) -> ConfigDict:
    """A locked configuration from its JSON form; missing settings keep their defaults.

    Types are checked everywhere, ranges in config.model alone: if a later version narrows a range, old
    checkpoints must stay readable. Raises UserError, which names the `source`, for an unknown setting, a
    wrong type, or a config.model that is out of range or contradictory.
    """
    config = default_config()

    def refuse(name: str, sentence: str) -> NoReturn:
        raise UserError(f"{source} {sentence}; correct {name or 'it'}, or restore the file from a copy.")

    def fill(target: ConfigDict, values: dict, prefix: str) -> None:
        if not isinstance(values, dict):
            section = prefix.rstrip(".")
            refuse(section, f"is not a configuration: {section or 'its content'} must be a group of settings")
        for key, value in values.items():
            name = prefix + key
            if name in REMOVED and value == REMOVED[name]:
                continue
            if key not in target:
                raise UserError(
                    f"{source} has the setting {shown(name)}, which this version does not know; "
                    "use the version that wrote it."
                )
            if isinstance(target[key], ConfigDict):
                fill(target[key], value, f"{name}.")
                continue
            if isinstance(value, bool | str):
                value = FORMER.get(name, {}).get(value, value)
            allowed = ALLOWED[name]
            if sentence := allowed.fault(value) if name.startswith("model.") else allowed.kind(value):
                refuse(name, f"is not a configuration: {name}={shown(value)} {sentence}")
            target[key] = from_json(value)

    fill(config, plain, "")
    for sentence in of_model(config):
        refuse("it", f"is not a configuration: {sentence}")
    return config


def from_json(value):
    """A setting's value from its JSON form: with tuples instead of lists."""
    return tuple(map(from_json, value)) if isinstance(value, list) else value


def read(workdir: AnyPath) -> ConfigDict:
    """The configuration saved in a workdir. Raises UserError if there is none or it is damaged."""
    path = workdir / "config.json"
    remedy = f'give {GIVE} to replace it, or delete its line "{CHECKSUM}" if the edit was intended.'
    unread = explained(OSError, f"{path} cannot be read", f"give {GIVE}, or restore it.")
    with unread, explained(ValueError, f"{path} is damaged or was edited by hand", remedy):
        if not path.exists():
            raise UserError(f"{workdir} holds no config.json; start the run with {GIVE}.")
        plain = read_json(path)
    plain.pop(CHECKSUM, None)  # files of earlier versions have none
    return from_plain(plain, path)


def differences(saved: dict, now: dict) -> list[str]:
    """`name: saved -> now` for every setting that differs between two configurations in JSON form."""
    found, (before, after) = [], map(leaves, (saved, now))
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        if a != b and not (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b)):
            found.append(f"{name}: {a} -> {b}")
    return found


def check_resume(saved: dict, now: dict, workdir: AnyPath) -> list[str]:
    """Differences of two configurations in JSON form that can change results, as `differences` writes them.

    Raises UserError if config.model, the use of a teacher or the classifier differs, if one is a fine-tuning
    and the other is not, or if `saved` is not valid.
    """
    # Configurations of earlier versions may lack settings or hold former values.
    saved = plain(from_plain(saved, workdir))
    # The path of the tokenizer may change; with pixel targets, so may all settings of the tokenizer.
    apart = "model.tokenizer." if now["model"]["target"] == "pixel" else "model.tokenizer.path"
    changed = [line for line in differences(saved, now) if not line.startswith(apart)]
    tuned, tunes = (bool(config["finetune"]["classes"]) for config in (saved, now))
    if tuned != tunes:
        kinds = {True: "a fine-tuning", False: "a pretraining"}
        modes = {True: "finetune", False: "train"}
        raise UserError(
            f"{workdir} holds {kinds[tuned]}, and this is {kinds[tunes]}; give another --workdir, or "
            f"--mode={modes[tuned]} to continue it."
        )
    fixed = {
        "architecture": ("model.", "teacher.enabled"),
        "classifier": ("finetune.classes", "finetune.pool"),
    }
    for what, names in fixed.items():
        if fatal := [textwrap.shorten(x, 200, placeholder=" …") for x in changed if x.startswith(names)]:
            raise UserError(
                f"{workdir} was trained with another {what} ({'; '.join(fatal)}); "
                "use another --workdir, or the saved settings."
            )
    same = ("efficiency.", "eval.", "name", "data.workers", "data.threads", "data.cache")
    return [line for line in changed if not line.startswith(same)]
