"""Parse the command line of main.py; every mistake becomes an error of one sentence."""

from __future__ import annotations

import ast
import difflib
import os
import pathlib
import re
import traceback

from absl import flags
from ml_collections import ConfigDict

from sparse_vis.config.defaults import default_config
from sparse_vis.config.experiments import file_of, names
from sparse_vis.config.settings import at, leaves
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import fault, local
from sparse_vis.runtime.tools import unknown_flag

CONFIG_FLAGS = ("--config", "-config")


class PathParser(flags.ArgumentParser):
    """absl parser of a flag whose value is a path; expands ~."""

    def parse(self, argument: str | pathlib.Path) -> pathlib.Path:
        if wrong := fault(str(argument)):
            raise ValueError(f"it {wrong}")
        return pathlib.Path(local(argument, ""))


def _with_file(argument: str, before: str) -> str:
    """The argument with the value of --config turned into a file path; other arguments stay as they are.

    Args:
        argument: one argument of the command line. before: the argument before it.
    """
    flag, equals, value = argument.partition("=") if before not in CONFIG_FLAGS else ("", "", argument)
    if before not in CONFIG_FLAGS and not (equals and flag in CONFIG_FLAGS):
        return argument
    name, colon, rest = value.partition(":")  # get_config() receives the text after the colon
    return f"{flag}{equals}{file_of(os.path.expanduser(name))}{colon}{rest}"


def parse(arguments: list[str]) -> list[str]:
    """Parse absl's flags, including --config and its overrides.

    Args:
        arguments: sys.argv, the program's name first.

    Returns:
        A list with the program's name alone.

    Raises:
        UserError: a wrong flag, configuration file, setting or value.
    """
    settings = [m[1] for a in arguments[1:] if (m := re.match(r"--?(?:no)?config\.([^=]+)", a))]
    arguments = [_with_file(*pair) for pair in zip(arguments, ["", *arguments[:-1]], strict=True)]
    file = config_file(arguments)
    if file is not None:
        check_config_file(file)
    elif settings:
        raise UserError(f"--config.{settings[0]} changes a configuration file: add --config=NAME before it.")
    for name in settings:
        check_setting(name)
    try:
        rest = flags.FLAGS(arguments)
    except flags.Error as error:
        raise UserError(explain(error, file, f"python {arguments[0]}")) from None
    except Exception as error:  # whatever the user's own get_config() raises
        raise UserError(f"configuration file {file} fails: {where(error, file)}; correct it.") from None
    if file is not None and not isinstance(flags.FLAGS["config"].value, ConfigDict):
        raise UserError(f"get_config() of {file} returns no ConfigDict; end it with `return config`.")
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value.")
    return rest


def config_file(arguments: list[str]) -> pathlib.Path | None:
    """The path in --config=FILE or --config FILE, without a `:argument` of get_config(); None if absent."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in CONFIG_FLAGS and (equals or following):
            return pathlib.Path(local(value if equals else following, "--config").split(":")[0])
    return None


def check_config_file(path: pathlib.Path) -> None:
    """Refuse a configuration file that is missing, is not Python, or defines no get_config.

    Args:
        path: configuration file.

    Raises:
        UserError: names the file and a remedy.
    """
    try:
        source = path.read_bytes()
        ast.parse(source)
    except OSError as error:
        known = [*names(), *(str(file) for file in path.parent.glob("*.py"))]
        nearest = difflib.get_close_matches(str(path), known, n=1, cutoff=0.8)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"give a file, or one of {', '.join(names())}."
        raise UserError(f"configuration file {path}: {error.strerror}; {remedy}") from None
    except SyntaxError as error:
        raise UserError(
            f"configuration file {path} is not Python (line {error.lineno}: {error.msg}); correct it."
        ) from None
    except ValueError as error:
        raise UserError(f"configuration file {path} is not Python ({error}); give another.") from None
    if b"get_config" not in source:
        raise UserError(
            f"configuration file {path} defines no get_config(); write one as in configs/quickstart.py."
        )


def check_setting(name: str) -> None:
    """Refuse a setting that does not exist.

    Args:
        name: dotted name, as after `--config.`.

    Raises:
        UserError: names the nearest settings.
    """
    known = list(leaves(default_config()))
    if name in known or any(k.startswith(f"{name}.") for k in known):
        return
    # A misspelt name, or one in the wrong section: whole names and last parts are compared.
    last = {k: k.rsplit(".", 1)[-1] for k in known}
    alike = difflib.get_close_matches(name.rsplit(".", 1)[-1], set(last.values()), n=2, cutoff=0.7)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    nearest += [k for leaf in alike for k in known if last[k] == leaf and k not in nearest]
    hint = (
        f"did you mean {' or '.join(f'config.{k}' for k in nearest[:4])}?"
        if nearest
        else "that file lists all."
    )
    raise UserError(f"--config.{name} is no setting of sparse_vis/config/defaults.py: {hint}")


def where(error: Exception, file: pathlib.Path) -> str:
    """Type and message of an exception, with the line number in `file` that raised it."""
    # absl turns some exceptions into text that contains their traceback.
    text = "".join(traceback.format_exception(error))
    lines = re.findall(rf'File "[^"]*{re.escape(file.name)}", line (\d+)', text)
    # ConfigDict quotes its own message, whose last line holds its proposal.
    kind, _, message = text.strip().splitlines()[-1].partition(": ")
    message = kind + ": " + message.split("\\n")[-1].strip("'").rstrip(".")
    return f"line {lines[-1]}: {message}" if lines else message


def explain(error: flags.Error, file: pathlib.Path | None, program: str) -> str:
    """absl's message as one sentence with a remedy.

    Args:
        error: from absl. file: value of --config, if given. program: how the user started it.
    """
    if isinstance(error, flags.UnrecognizedFlagError):
        return unknown_flag(f"--{error.flagname}", [f"--{name}" for name in flags.FLAGS], program)
    if file is not None and str(error).startswith(f"flag --config={file}"):
        return f"configuration file {file} fails: {where(error, file)}; correct it."
    message = " ".join(str(error).split()).rstrip(".")
    message = re.sub(r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is no whole number", message)
    message = re.sub(r"could not convert string to float: ('.*')", r"\1 is no number", message)
    message = re.sub(r"\S{200,}", lambda word: f"{word[0][:60]}…", message)
    override = re.match(r"flag --config\.([\w.]+)=", message)
    if override is None:
        return f"{message}; {program} --help shows the flags."
    value = at(default_config(), override[1])
    if isinstance(value, ConfigDict):
        return f"{message}; set its parts one by one, e.g. --config.{override[1]}.{next(iter(value))}=VALUE."
    return f"{message}; give a value of the kind of the default, {value!r}."
