"""Parse the command line of main.py; every mistake becomes an error of one sentence."""

import ast
import difflib
import os
import pathlib
import re
import runpy
import traceback
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from sparse_vis.config.defaults import default_config
from sparse_vis.config.experiments import file_of, names
from sparse_vis.config.ranges import ALLOWED, leaves, shown
from sparse_vis.config.settings import at, from_json
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import AnyPath, as_path, expanded, fault
from sparse_vis.runtime.tools import unknown_flag

CONFIG_FLAGS = ("--config", "-config")


class PathParser(flags.ArgumentParser):
    """absl parser of a flag whose value is a path; expands ~."""

    def parse(self, argument: str | AnyPath) -> AnyPath:
        if wrong := fault(str(argument), buckets=True):
            raise ValueError(f"it {wrong}")
        return as_path(expanded(argument, "", buckets=True))


def parse(arguments: list[str]) -> list[str]:
    """Parse absl's flags, including --config and its overrides; returns the program's name alone.

    Raises UserError for a wrong flag, configuration file, setting or value.
    """
    settings = [m[1] for a in arguments[1:] if (m := re.match(r"--?(?:no)?config\.([^=]+)", a))]
    arguments, file = _with_file(arguments)
    if file is not None:
        _check_config_file(file)
    elif settings:
        raise UserError(f"--config.{settings[0]} needs a configuration: add --config=NAME before it.")
    for name in settings:
        check_setting(name)
    program = arguments[0]  # main.py, or as __main__.py has set it: sparse-vis train
    if program.endswith(".py"):
        program = f"python {program}"
    try:
        rest = flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        known = [f"--{name}" for name in flags.FLAGS]
        raise UserError(unknown_flag(f"--{error.flagname}", known, program)) from None
    except Exception as error:  # absl's, or whatever the user's own get_config() raises
        message = str(error)
        if file is not None and (not isinstance(error, flags.Error) or f"--config={file}" in message):
            raise _failing(file, error) from None
        message = re.sub(r"\S{200,}", lambda word: f"{word[0][:60]}…", " ".join(message.split()).rstrip("."))
        raise UserError(f"{message}; {program} --help lists the flags.") from None
    if file is not None and not isinstance(flags.FLAGS["config"].value, ConfigDict):
        raise _no_config(file)
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value.")
    return rest


def read_config(text: str | os.PathLike) -> ConfigDict:
    """The configuration that `text` names: an experiment, or a file like those of configs/.

    Raises UserError if there is none, or if its get_config() fails.
    """
    if not isinstance(text, str | os.PathLike):
        raise UserError(
            f"a configuration is the name of an experiment ({', '.join(names())}), a file like those of "
            f"configs/, or a ConfigDict, not {shown(text)}; give one of these."
        )
    file = pathlib.Path(file_of(os.path.expanduser(os.fspath(text))))
    _check_config_file(file)
    try:
        config = runpy.run_path(str(file))["get_config"]()
    except Exception as error:  # whatever the user's own get_config() raises
        raise _failing(file, error) from None
    if not isinstance(config, ConfigDict):
        raise _no_config(file)
    return config


def override(config: ConfigDict, name: str, value: Any) -> None:
    """Change a setting as --config.NAME=VALUE does. Raises UserError for a wrong name or type.

    `settings.check` checks ranges.
    """
    check_setting(name)
    if name not in ALLOWED:
        known = next(leaf for leaf in ALLOWED if leaf.startswith(f"{name}."))
        raise UserError(f"config.{name} is a group of settings; give one of them, e.g. config.{known}.")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    if sentence := ALLOWED[name].kind(value):
        raise UserError(f"config.{name}={shown(value)} {sentence}.")
    *sections, last = name.split(".")
    at(config, *sections)[last] = from_json(value)


def _failing(file: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"configuration file {file} fails: {_where(error, file)}; correct it.")


def _no_config(file: pathlib.Path) -> UserError:
    return UserError(f"get_config() of {file} does not return a ConfigDict; end it with `return config`.")


def _with_file(arguments: list[str]) -> tuple[list[str], pathlib.Path | None]:
    """The arguments, where the path of a file replaces an experiment's name; and that path, if any."""
    found, file, before = [], None, ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if before in CONFIG_FLAGS:
            flag, equals, value = "", "", argument
        if before in CONFIG_FLAGS or (equals and flag in CONFIG_FLAGS):
            name, colon, rest = value.partition(":")  # get_config() receives the text after the colon
            if wrong := fault(value):
                raise UserError(f"--config={value} {wrong}.")
            path = file_of(os.path.expanduser(name))
            argument, file = f"{flag}{equals}{path}{colon}{rest}", file or pathlib.Path(path)
        found.append(argument)
        before = argument
    return found, file


def _check_config_file(path: pathlib.Path) -> None:
    """Raise UserError for a configuration file that is missing, is not Python, or defines no get_config."""
    try:
        source = path.read_bytes()
        ast.parse(source)
    except OSError as error:
        known = [*names(), *(str(file) for file in path.parent.glob("*.py"))]
        nearest = difflib.get_close_matches(str(path), known, n=1, cutoff=0.8)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"give a file, or one of {', '.join(names())}."
        raise UserError(f"configuration file {path}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise UserError(f"configuration file {path} is not Python ({error}); give another.") from None
    except SyntaxError as error:
        line = f"line {error.lineno}: {error.msg}"
        raise UserError(f"configuration file {path} is not Python ({line}); correct it.") from None
    if b"get_config" not in source:
        raise UserError(f"configuration file {path} defines no get_config(); see configs/quickstart.py.")


def check_setting(name: str) -> None:
    """Raise UserError, with the nearest names, if a setting does not exist; `name` is dotted: train.steps."""
    known = list(leaves(default_config()))
    if name in known or any(k.startswith(f"{name}.") for k in known):
        return
    # The name may be misspelt or in the wrong section, so whole names and last parts are compared.
    last = {k: k.rsplit(".", 1)[-1] for k in known}
    alike = difflib.get_close_matches(name.rsplit(".", 1)[-1], set(last.values()), n=2, cutoff=0.7)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    nearest += [k for leaf in alike for k in known if last[k] == leaf and k not in nearest]
    meant = f"did you mean {' or '.join(f'config.{k}' for k in nearest[:4])}?"
    hint = meant if nearest else "sparse_vis/config/defaults.py lists all."
    raise UserError(f"--config.{name} is not a setting; {hint}")


def _where(error: Exception, file: pathlib.Path) -> str:
    """Type and message of an exception, with the line number in `file` that raised it."""
    # absl turns some exceptions into text that contains their traceback.
    text = "".join(traceback.format_exception(error))
    lines = re.findall(rf'File "[^"]*{re.escape(file.name)}", line (\d+)', text)
    # ConfigDict quotes its own message, whose last line holds its proposal.
    kind, _, message = text.strip().splitlines()[-1].partition(": ")
    message = kind + ": " + message.split("\\n")[-1].strip("'").rstrip(".")
    return f"line {lines[-1]}: {message}" if lines else message
