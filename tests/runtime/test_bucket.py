"""Paths and locks in buckets, of gs:// and of s3://, against servers on this machine."""

import errno
import pickle
import threading
import time

import pytest

from sparse_vis.commands import outputs
from sparse_vis.commands.run import run
from sparse_vis.config.experiments import experiment
from sparse_vis.interop.step_folder import find_step, saved_steps
from sparse_vis.runtime import bucket_lock, files, lock
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.growing import GrowingObject
from sparse_vis.runtime.paths import as_path
from sparse_vis.runtime.tools import check_folder
from sparse_vis.train import checkpoint
from sparse_vis.train.stop import StopSignal


@pytest.fixture(params=["gs", "s3"])
def top(request, bucket, s3):
    return as_path(f"{request.param}://bucket/{request.node.name.split('[')[0]}")


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in (("HEARTBEAT", 0.05), ("LOOK", 0.02), ("DEAD", 1.0)):
        monkeypatch.setattr(bucket_lock, name, seconds)


def test_a_path_works_as_one_on_disk(top, tmp_path):
    file = top / "a" / "b.txt"
    assert not top.exists() and not top.is_dir() and not file.is_file()
    (top / "a").mkdir(parents=True)
    files.write_whole(file, "text")
    files.write_json(top / "c.json", {"x": 1})
    assert file.is_file() and not file.is_dir() and (top / "a").is_dir() and not (top / "a").is_file()
    assert [str(path) for path in top.iterdir()] == [f"{top}/a", f"{top}/c.json"]
    assert list(top.glob("*.json")) == [top / "c.json"] and list(top.glob("*/b.*")) == [file]
    assert (file.read_text(), file.read_bytes(1, 3), file.stat().st_size) == ("text", b"ex", 4)
    assert abs(file.stat().st_mtime_ns / 1e9 - time.time()) < 3600
    assert files.read_json(top / "c.json")["x"] == 1 and files.holds_files(top)
    assert files.file_sha256(file) == "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    assert {*top.objects()} == {"a/b.txt", "c.json"} and top.objects()["a/b.txt"][0] == 4
    assert file.resolve() == file.absolute() == pickle.loads(pickle.dumps(file)) == file
    with files.on_disk(file) as copy:
        assert copy.read_text() == "text" and copy.name == "b.txt"
    file.unlink()
    assert not (top / "a").exists()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError) as error:
        file.read_bytes()
    assert error.value.strerror == "no such object, or no such bucket" and error.value.filename == str(file)
    with pytest.raises(OSError, match="mode 'wb'"):
        file.open("wb")


def test_errors_of_clients_are_oserrors_with_a_reason(top):
    nowhere = as_path(f"{str(top)[:2]}://absent/x")
    for call in (
        lambda: nowhere.write_bytes(b""),
        lambda: nowhere.upload(__import__("pathlib").Path(__file__)),
    ):
        with pytest.raises(OSError) as error:
            call()
        assert error.value.strerror and isinstance(error.value.errno, int)
    with (
        pytest.raises(UserError, match=r"^cannot write to ..://absent \(.*bucket.*; give another --output"),
        lock.hold(nowhere.parent, "packing"),
    ):
        pass


def test_a_bucket_that_is_gone_is_one_sentence(monkeypatch):
    nowhere = as_path("gs://absent/run")

    def fails(*_):
        raise OSError(errno.EIO, "no route", "gs://absent/run/x")

    monkeypatch.setattr(type(nowhere), "_type", fails)
    assert saved_steps(nowhere) == "which steps are saved there is not known"
    with pytest.raises(
        SystemExit, match=r"^error: gs://absent/run/x cannot be used \(no route\); repeat .*credentials"
    ):
        command_line(fails)
    with pytest.raises(
        UserError, match=r"^--output=gs://absent/run cannot be reached \(no route.*credentials"
    ):
        check_folder(nowhere)


def test_an_object_is_created_once(top):
    path = top / "once"
    made = []
    threads = [
        threading.Thread(target=lambda i=i: made.append((path.create(b"%d" % i), i))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [i for first, i in made if first]
    assert path.read_bytes() == b"%d" % winner


def test_a_growing_object_is_whole_after_sync_and_close(bucket):
    path = as_path("gs://bucket/growing")
    file = GrowingObject(path)
    file.write(b"one\n")
    file.flush()
    assert path.read_bytes() == b"one\n"
    file.write(b"two\n")
    file.flush()  # so soon after the last upload, it only collects
    assert path.read_bytes() == b"one\n"
    file.sync()
    assert path.read_bytes() == b"one\ntwo\n"
    file.close()
    again = GrowingObject(path)
    again.write(b"three\n")
    again.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_rows_wait_in_memory_while_a_bucket_cannot_be_reached(bucket):
    file = GrowingObject(as_path("gs://bucket/later"))
    file.path = as_path("gs://absent/later")
    file.write(b"row\n")
    file.flush()
    with pytest.raises(OSError):
        file.sync()
    file.path = as_path("gs://bucket/later")
    file.sync()
    assert file.path.read_bytes() == b"row\n"


def test_the_lock_of_a_living_process_is_respected(bucket, quick):
    folder = as_path("gs://bucket/locked")
    with lock.hold(folder, "training", "--workdir"):
        text = (folder / lock.LOCK).read_text()
        assert text.startswith("training, process ") and text.splitlines()[1].endswith(" 0")
        with (
            pytest.raises(UserError, match=r"^gs://bucket/locked is in use \(training, process .*--workdir"),
            lock.hold(folder, "training", "--workdir"),
        ):
            pass
        with lock.hold(folder, "evaluation", "--workdir", lock.EVALUATION_LOCK):
            pass
    assert not (folder / lock.LOCK).exists()


def test_the_lock_of_a_killed_process_is_taken_over(top, quick, capsys):
    (top / lock.LOCK).write_bytes(b"training, process 7\nits-own 31\n")
    with lock.hold(top, "training"):
        assert "its-own" not in (top / lock.LOCK).read_text()
    said = capsys.readouterr().out
    assert f"waiting up to 1 s for a sign of life of the holder of {top}/.lock (training, process 7)" in said
    assert said.endswith("note: took over the lock of a process that was killed (training, process 7)\n")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_holder_that_was_cut_off_ends_when_it_is_back(bucket, quick, monkeypatch, capsys):
    folder, ended = as_path("gs://bucket/cut"), []

    def leave(status):
        ended.append(status)
        raise SystemExit

    monkeypatch.setattr(bucket_lock.os, "_exit", leave)
    with lock.hold(folder, "training"):
        (folder / lock.LOCK).write_bytes(b"training, process 8\nits-own 0\n")
        deadline = time.monotonic() + 20
        while not ended and time.monotonic() < deadline:
            time.sleep(0.02)
    assert ended == [1] and "was taken over (training, process 8), as this" in capsys.readouterr().err
    assert "its-own" in (folder / lock.LOCK).read_text()  # that of the other stays


def test_a_training_in_s3_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^Orbax cannot save checkpoints to s3:// \(s3://b/r\); give a"):
        checkpoint.prepare(as_path("s3://b/r"))
    with pytest.raises(UserError, match=r"^Orbax cannot save"):  # before the lock, which asks the bucket
        run(experiment("quickstart"), as_path("s3://b/r"), "train", StopSignal())
    with pytest.raises(UserError, match=r"^Orbax cannot read checkpoints in s3:// \(s3://b/r\); copy it"):
        find_step(as_path("s3://b/r"))
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_input_is_not_called_an_unwritable_output(tmp_path):
    for place, error, message in (
        ("s3://b/x", OSError, "^.Errno 5. no credentials"),
        (f"{tmp_path}/x", UserError, f"^{tmp_path} cannot be written"),
    ):
        with pytest.raises(error, match=message), outputs.in_one_sentence(tmp_path):
            raise OSError(errno.EIO, "no credentials", place)
