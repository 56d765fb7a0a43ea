"""Checks of a configuration before any long work starts, and its way to and from disk."""

from __future__ import annotations

import json
import math
import pathlib

from ml_collections import ConfigDict

from sparse_vis.config import default_config
from sparse_vis.errors import UserError


def check(config: ConfigDict, processes: int = 1) -> None:
    """Refuse settings that cannot work together.

    Args:
        config: complete configuration. processes: of the run.

    Raises:
        UserError: names the settings and a remedy.
    """
    m, t, v = config.model, config.train, config.views
    rules = (
        (m.image_size % m.patch == 0, f"config.model.image_size={m.image_size} is no multiple of "
         f"config.model.patch={m.patch}; choose one that is"),
        (m.width % m.heads == 0, f"config.model.width={m.width} is no multiple of config.model.heads={m.heads}; "
         "choose one that is"),
        (m.target in ("pixel", "vq"), f"config.model.target={m.target!r} is unknown; use 'pixel' or 'vq'"),
        (config.loss.matching in ("entropic", "exact"), f"config.loss.matching={config.loss.matching!r} is "
         "unknown; use 'entropic' or 'exact'"),
        (m.tokens > 1 or not (config.loss.koleo_image or config.loss.koleo_masked), "KoLeo needs at least two "
         "tokens; with config.model.tokens=1 set config.loss.koleo_image and koleo_masked to 0"),
        (not config.teacher.enabled or v.global_count >= 2, "the teacher sees the second global view; set "
         "config.views.global_count to at least 2"),
        (v.local_count > 0 or not config.loss.cls_local, "config.loss.cls_local needs local views; set "
         "config.views.local_count above 0, or the weight to 0"),
        (t.batch % (processes * config.efficiency.microbatches) == 0, f"config.train.batch={t.batch} is no "
         f"multiple of processes x microbatches ({processes} x {config.efficiency.microbatches}); choose one that is"),
        (min(t.steps, t.batch, t.log_every, t.save_every, t.keep) >= 1, "steps, batch, log_every, save_every "
         "and keep of config.train must be at least 1"),
        (config.data.on_error in ("stop", "substitute"), f"config.data.on_error={config.data.on_error!r} is "
         "unknown; use 'stop' or 'substitute'"),
    )  # fmt: skip
    for holds, sentence in rules:
        if not holds:
            raise UserError(sentence + ".")


def from_plain(plain: dict, source: pathlib.Path) -> ConfigDict:
    """A configuration from its JSON form, on top of the defaults, locked.

    Args:
        plain: nested dict. source: where it came from, for the message.

    Raises:
        UserError: it names a setting that this version does not know.
    """
    config = default_config()

    def fill(target: ConfigDict, values: dict, prefix: str) -> None:
        for name, value in values.items():
            if name not in target:
                raise UserError(
                    f"{source} has the setting {prefix}{name}, which this version does not know; "
                    "use the version that wrote it."
                )
            if isinstance(value, dict):
                fill(target[name], value, f"{prefix}{name}.")
            else:
                target[name] = tuple(value) if isinstance(value, list) else value

    fill(config, plain, "")
    return config


def read(workdir: pathlib.Path) -> ConfigDict:
    """The configuration saved in a workdir.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        return from_plain(json.loads(path.read_text()), path)
    except FileNotFoundError:
        raise UserError(f"{workdir} holds no config.json; start the run with --config=configs/NAME.py.") from None
    except json.JSONDecodeError:
        raise UserError(f"{path} is no valid JSON; give --config=configs/NAME.py to write it again.") from None


def differences(saved: dict, now: dict, prefix: str = "") -> list[str]:
    """`name: saved -> now` of every setting that two configurations in JSON form do not share."""
    found = []
    for name in sorted(saved.keys() | now.keys()):
        a, b = saved.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b and not (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b)):
            found.append(f"{prefix}{name}: {a} -> {b}")
    return found


def check_resume(saved: dict, now: dict, workdir: pathlib.Path) -> list[str]:
    """Refuse to continue a workdir with another architecture; return the other differences.

    Args:
        saved, now: configurations in JSON form. workdir: for the message.

    Raises:
        UserError: config.model or the presence of a teacher differs.
    """
    changed = differences(saved, now)
    fatal = [line for line in changed if line.startswith(("model.", "teacher.enabled"))]
    if fatal:
        raise UserError(
            f"{workdir} was trained with another architecture ({'; '.join(fatal)}); "
            "use another --workdir, or the saved settings."
        )
    return [line for line in changed if not line.startswith(("efficiency.", "eval.", "name"))]
