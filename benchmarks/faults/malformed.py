"""Give impossible values to settings on the command line, and in JSON files.

A value that is accepted must be used as it was written, and the training step must be traceable with it.
"""

import ast
import functools
import json
import random
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from benchmarks.faults.flips import equal, fresh_copy, load, samples, unpack
from benchmarks.faults.kills import TINY
from benchmarks.faults.tally import Part
from benchmarks.speed.synthetic import random_batch, random_state
from sparse_vis.commands.train import define_flags
from sparse_vis.config import arguments, settings
from sparse_vis.config.defaults import default_config
from sparse_vis.interop.manifest import SETTINGS
from sparse_vis.runtime.files import CHECKSUM, write_json
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import train_step

TEXTS = (
    "0", "-1", "1", "5", "1e30", "-0.5", "0.5", "nan", "inf", "-inf", "1e-50", "None", "True", "", "x", "'",
    "(", "[]", "()", "(1,)", "(2,1)", "(0.5,1.5)", "('a','b')", "{}", "9" * 30, "9" * 5000, "a\nb", "../..",
    "(" * 2000,
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 1, 3, 0.5, 1e9, 10**30, float("nan"), float("inf"), "", "x", "../..", "/etc/passwd",
    "a\nb", [], [[]], [1, 2], ["a"], {}, {"a": 1}, "x" * 5000,
)  # fmt: skip
# Settings that decide what the step computes.
COMPUTED = ("model", "loss", "views", "teacher", "optimizer", "efficiency", "train.batch", "data.canvas")


def parsed(flag: str) -> ConfigDict:
    """The configuration as main.py has it after its checks."""
    if "config" not in flags.FLAGS:
        define_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    sys.argv = ["main.py", f"--config={TINY}", flag]  # which config_flags reads
    arguments.parse(sys.argv)
    settings.check(flags.FLAGS.config)
    return flags.FLAGS.config


def try_flag(name: str, text: str) -> Any:
    """Set a setting and return its value; if the step depends on it, the step is traced."""
    config = parsed(f"--config.{name}={text}")
    if name.startswith(COMPUTED) and config.model.target == "pixel":
        recipe = build_recipe(config)
        state, batch = jax.eval_shape(lambda: (random_state(recipe), random_batch(config)))
        jax.eval_shape(functools.partial(train_step, recipe), state, batch, None)
    return settings.at(config, name)


def as_written(found: Any, text: str) -> bool:
    """Whether a value is the text, or the number, tuple … that the text stands for in Python."""
    try:
        said = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        said = text
    return found in (text, said, (said,)) or same_number(found, said)


def same_number(found: Any, said: Any) -> bool:
    """Whether a float is that nearest to a whole number."""
    return isinstance(found, float) and isinstance(said, int) and found == float(said)


def mutated(content: dict, chance: random.Random) -> str:
    """Replace a value somewhere in a JSON object; returns, in words, which."""
    key = chance.choice(sorted(content))
    while isinstance(content[key], dict) and content[key] and chance.random() < 0.9:
        content, key = content[key], chance.choice(sorted(content[key]))
    content[key] = chance.choice(VALUES)
    return f"{key}={content[key]!r}"[:80]


def agrees(found: Any, said: Any) -> bool:
    """Whether all values of a JSON object were read, with the same types."""
    if isinstance(said, dict):
        return isinstance(found, dict) and all(agrees(found[key], value) for key, value in said.items())
    return (found == said or same_number(found, said)) and isinstance(found, bool) == isinstance(said, bool)


def as_said(found: dict, content: dict, expected: dict) -> bool:
    """Whether a model has the sizes in its manifest, and the undamaged parameters."""
    (entry,) = content["models"].values()
    said = {SETTINGS[key]: value for key, value in entry.items() if key in SETTINGS and value is not None}
    model = settings.leaves(ConfigDict(found["config"]["model"]))
    return all(agrees(model[name], value) for name, value in said.items()) and equal(
        found["params"], expected["params"]
    )


def campaign(part: Part) -> None:
    """Try 200 settings on the command line, 100 config.json, 100 manifests and 100 packed.json."""
    chance, names, copy = part.chance, sorted(settings.leaves(default_config())), part.folder / "damaged"
    for _ in part.times(200):
        name, text = chance.choice(names), chance.choice(TEXTS)
        read, fault = functools.partial(try_flag, name, text), f"{name}={text[:20]!r}"
        part.tally.judge("settings, command line", fault, read, lambda x, t=text: as_written(x, t))
    samples(part.folder)
    model, records = load(part.folder / "exported"), unpack(part.folder / "packed")
    kinds: dict[str, tuple[str, str, Callable, Callable]] = {
        "settings, config.json": (
            "run", "config.json", lambda run: settings.plain(settings.read(run)), agrees),
        "manifest of a model": (
            "exported", "config.json", load, lambda found, said: as_said(found, said, model)),
        "packed.json": ("packed", "packed.json", unpack, lambda found, _: equal(found, records)),
    }  # fmt: skip
    for kind, (sound, file, read, same) in kinds.items():
        for _ in part.times(100):
            fresh_copy(part.folder / sound, copy)
            content = json.loads((copy / file).read_text())
            content.pop(CHECKSUM, None)
            fault = mutated(content, chance)
            write_json(copy / file, content)  # with a valid checksum
            part.tally.judge(kind, fault, lambda r=read: r(copy), lambda x, s=same, c=content: s(x, c))
