"""The command lines of all tools: one sentence for a wrong flag, and what --help says."""

import _thread
import errno
import logging
import os
import subprocess
import sys
import threading

import pytest
from absl import flags
from absl import logging as absl_logging

from sparse_vis.commands import pack
from sparse_vis.config.arguments import parse
from sparse_vis.config.defaults import default_config
from sparse_vis.data import scenes
from sparse_vis.runtime.errors import UserError, command_line, explained
from sparse_vis.runtime.tools import check_folder
from sparse_vis.train.stop import StopSignal


@pytest.mark.fast
@pytest.mark.parametrize(
    ("error", "reason"),
    (
        (OSError(errno.ENOSPC, "No space left", "/a/file"), "No space left"),
        (ValueError("first line\nsecond"), "first line"),
        (ValueError(), "ValueError"),
    ),
)
def test_an_error_becomes_a_sentence_with_its_reason(error, reason):
    into_one = explained((OSError, ValueError), "x cannot be read", "restore it.")
    with pytest.raises(UserError, match=rf"^x cannot be read \({reason}\); restore it\.$"), into_one:
        raise error
    said = explained(ValueError, "x cannot be read", "restore it.")
    with pytest.raises(UserError, match=r"^said already\.$"), said:
        raise UserError("said already.")  # a ValueError too
    with pytest.raises(KeyError), explained(OSError, "x cannot be read", "restore it."):
        raise KeyError("other")


def tools():
    import sparse_vis.commands.extract as extract
    from sparse_vis.commands import export
    from sparse_vis.report import report

    return {
        "extract": (extract, "docs/extraction.md"), "report": (report, "docs/visualization.md"),
        "export": (export, "docs/compatibility.md"), "pack": (pack, "docs/imagenet.md"),
        "data.scenes": (scenes, "docs/scenes.md"),
    }  # fmt: skip


@pytest.mark.fast
@pytest.mark.parametrize("name", ["extract", "report", "export", "pack", "data.scenes"])
def test_wrong_flags_are_one_sentence_and_help_names_the_page(name, monkeypatch, capsys):
    tool, page = tools()[name]
    program = f"python -m sparse_vis.{name}" if "." in name else f"python -m sparse_vis {name}"
    for arguments, sentence in (
        (["--outptu=x"], f"--outptu is not a flag of {program}; did you mean --output?"),
        (["--outp=x"], f"--outp is not a flag of {program}; did you mean --output?"),
        (["--zzz"], f"--zzz is not a flag of {program}; {program} --help lists the flags."),
    ):
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as stopped:
            command_line(tool.main)
        assert stopped.value.code == f"error: {sentence}"
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(
        UserError, match=r"arguments are required: .*--output; python .* --help lists the flags"
    ):
        tool.main()
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    shown = capsys.readouterr().out
    assert not stopped.value.code and page in shown and "(None" not in shown and "default: None" not in shown


@pytest.mark.fast
def test_an_output_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(
            UserError, match=rf"^--output={path} cannot be written \({tmp_path}/file is a file\)"
        ):
            check_folder(path)
    check_folder(tmp_path / "a" / "b")
    check_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]
    if os.getuid():  # root may write anywhere
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="no permission in"):
            check_folder(tmp_path / "a")


def test_scenes_end_with_one_line_and_status_1(tmp_path):
    command = [sys.executable, "-m", "sparse_vis.data.scenes", f"--output={tmp_path}/a.xyz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        f"error: --output={tmp_path}/a.xyz cannot be written (unknown file extension"
    )


class Late:
    """Raises where nobody can catch it, as tensorstore's threads do."""

    def __init__(self, message, kind=RuntimeError):
        self.message, self.kind = message, kind

    def __del__(self):
        raise self.kind(self.message)


@pytest.mark.fast
def test_what_follows_a_damaged_checkpoint_is_silent_and_all_else_is_not(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    command_line(lambda: None)
    Late("Event loop is closed")
    assert capsys.readouterr().err == ""
    Late("another")
    assert "RuntimeError: another" in capsys.readouterr().err


@pytest.mark.fast
def test_ctrl_c_where_python_drops_it_comes_again(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    came = threading.Event()
    monkeypatch.setattr(_thread, "interrupt_main", came.set)
    command_line(lambda: Late("", KeyboardInterrupt))
    assert came.wait(10) and capsys.readouterr().err == ""


@pytest.mark.fast
def test_the_program_is_named_and_a_value_of_thousands_of_characters_is_shortened(monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_integer("repeats", 1, "", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    for given, sentence in (("abc", "abc: .*'abc'"), ("9" * 5000, "9{1,60}….*")):
        sentence = f"^flag --repeats={sentence}; python x.py --help lists the flags.$"
        with pytest.raises(UserError, match=sentence) as refused:
            parse(["x.py", f"--repeats={given}"])
        assert len(str(refused.value)) < 300


@pytest.mark.fast
def test_futures_that_orbax_gives_up_are_not_printed_beside_the_sentence(caplog):
    command_line(lambda: None)
    for text in ("_GatheringFuture exception was never retrieved\nfuture: ...", "Task took 3 s"):
        logging.getLogger("asyncio").error(text)
    assert [record.getMessage() for record in caplog.records] == ["Task took 3 s"]
    # A library's mistake in its message is logging's to report, not the end of the tool.
    given = {"msg": "%d images", "args": ("many",), "levelno": logging.WARNING}
    assert absl_logging.get_absl_logger().filter(logging.makeLogRecord(given))


def test_a_full_disk_in_an_evaluation_is_one_sentence(monkeypatch, tmp_path):
    from sparse_vis.commands import run
    from sparse_vis.evals import command

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "make_plan", lambda config: None)
    monkeypatch.setattr(command, "evaluate", full)
    config = default_config()
    config.eval.tasks = ("knn",)
    with pytest.raises(UserError, match=r"stopped .*No space left on device.; finished tasks are kept"):
        run.run(config, tmp_path, "evaluate", StopSignal())
