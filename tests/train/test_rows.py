"""Rows of metrics of a run that is killed or stopped anywhere, against those of one that is not."""

import contextlib
import json
import math

import jax
import numpy as np
import pytest

from sparse_vis.runtime.errors import UserError
from sparse_vis.train import checkpoint, log, loop
from sparse_vis.train.log import Averages, RunLog, Skipped
from sparse_vis.train.loop import Run, note_jump
from sparse_vis.train.mesh import make_mesh
from sparse_vis.train.optimizer import learning_rate
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import TrainState
from sparse_vis.types import Batch
from tests.train.test_log import NoBoard
from tests.train.tiny_config import get_config

STEPS, CLOCK = 23, ("time", "images_per_second", "input_wait_seconds")
BAD = (6, 13)  # steps whose total is not finite


class Killed(Exception):
    pass


class Stop:
    """A SIGTERM that comes in a given step."""

    def __init__(self, step=None):
        self.step = step

    def at(self, step):
        return step == self.step


def metrics_of(step):
    """What the step computes: a number of its own for every step."""
    total = math.nan if step in BAD else math.sqrt(step) / 3
    return {"total": np.float32(total), "bad_steps": float(sum(bad <= step for bad in BAD))}


@pytest.fixture
def small(monkeypatch):
    """The tiny configuration with rows, saves and health at steps that rarely coincide; no board."""
    monkeypatch.setattr(log, "TensorBoard", NoBoard)
    config = get_config()
    config.train.update(steps=STEPS, log_every=5, save_every=3, health_every=4)
    return config


def state_at(step):
    return TrainState(step=step, params=step, opt_state=None, teacher=None, bad_steps=0)


def start(config, workdir, saved, monkeypatch, kill=None):
    """A run whose step computes nothing, from the newest of what was saved."""
    run = Run.__new__(Run)
    step, data = saved[-1] if saved else (0, {"next_index": 0})
    run.config, run.workdir, run.recipe, run.mesh = config, workdir, build_recipe(config), make_mesh((-1, 1))
    run.state = state_at(step)
    run.step, run.began, run.position = step, step, data["next_index"]
    run.averages, run.matches = Averages(**data.get("averages", {})), data.get("matches")
    run.skipped, run.bad_row = Skipped(workdir, data.get("skipped", 0)), []
    run.tokenizer, run.seed = None, jax.numpy.uint32(0)
    run.source, run.probe = range(10), None
    run.manager = None
    images = Batch(*[np.zeros((4, 1, 1, 3), np.uint8), *3 * [np.zeros(4, np.int32)]])
    run._stream = lambda *_, **__: (x for x in [(images, [])])
    run.health = run.health_check()

    def measure(params, teacher, batch, before, seed):
        matches = np.full(before.shape, params // 2, np.int32)  # changes now and then
        return {"S_rank": params / 7, "match_changed": np.mean(matches != before)}, matches

    run.health.measure = measure

    def update(state, *_):
        if state.step + 1 == kill:
            raise Killed
        return state_at(state.step + 1), metrics_of(state.step + 1)

    def save(manager, state, data, config):
        assert state.step not in [step for step, _ in saved]  # Orbax would refuse it
        saved.append((state.step, json.loads(json.dumps(data))))

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(checkpoint, "finish", lambda manager: None)
    return run, update


def go(config, workdir, saved, monkeypatch, kill=None, stop=None, unreadable=None):
    """Train until the end, the kill, the SIGTERM, or an image after this step that cannot be read."""
    workdir.mkdir(exist_ok=True)
    run, update = start(config, workdir, saved, monkeypatch, kill)

    def next_batch(batches):
        if run.step == unreadable:
            raise Killed
        run.skipped.add([[("a.jpg", "why")]])

    run.next_batch = next_batch
    shown = RunLog(workdir, STEPS, 4, run.step, active=True)
    run.next_batch(None)
    with contextlib.suppress(Killed):
        run._steps(update, None, None, shown, Stop(stop))
    shown.close()
    return rows(workdir)


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{name: x for name, x in json.loads(line).items() if name not in CLOCK} for line in lines]


@pytest.mark.fast
def test_rows_average_the_steps_since_the_last(small, tmp_path, monkeypatch):
    found = go(small, tmp_path / "run", [], monkeypatch)
    assert [row["step"] for row in found] == [1, 5, 10, 15, 20, 23]
    for first, row in zip([1, 2, 6, 11, 16, 21], found, strict=True):
        steps = [step for step in range(first, row["step"] + 1) if step not in BAD]
        mean = sum(math.sqrt(step) / 3 for step in steps) / len(steps)
        assert row["total"] == pytest.approx(mean, rel=1e-6)
        assert row["epoch"] == row["step"] * 4 / 10  # of ten images
        assert row["skipped"] == row["step"] and row["bad_steps"] == sum(b <= row["step"] for b in BAD)
    # Every four steps, with the next row; the first measurement has nothing to compare its matches with.
    measured = [(row["step"], row.get("health/match_changed")) for row in found if "health/S_rank" in row]
    assert measured == [(5, None), (10, 1.0), (15, 1.0), (20, 1.0)]


@pytest.mark.parametrize("how", ["kill", "stop", "unreadable"])
def test_a_run_interrupted_anywhere_has_the_same_rows(small, tmp_path, monkeypatch, how):
    expected = go(small, tmp_path / "whole", [], monkeypatch)
    for step in range(1, STEPS):
        saved, workdir = [], tmp_path / f"{how}{step}"
        go(small, workdir, saved, monkeypatch, **{how: step})
        assert how == "kill" or saved[-1][0] == step
        go(small, workdir, saved, monkeypatch, kill=min(step + 4, STEPS))  # and again soon after
        assert go(small, workdir, saved, monkeypatch) == expected, step
        assert saved[-1][0] == STEPS


@pytest.mark.fast
@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_that_cannot_be_read_says_what_is_saved(small, tmp_path, monkeypatch, processes):
    """Of several processes, the others have their images and would not save."""
    saved = []
    run, update = start(small, tmp_path, saved, monkeypatch)

    def next_batch(batches):
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        raise UserError("cannot decode 'a.jpg'; remove it.")

    run.next_batch = next_batch
    with RunLog(tmp_path, STEPS, 4, 0, active=True) as shown, pytest.raises(UserError) as error:
        run._steps(update, None, None, shown, Stop())
    said = f"cannot decode 'a.jpg'; remove it (step 1 is saved in {tmp_path}; repeat the command to go on)."
    assert str(error.value) == (said if processes == 1 else "cannot decode 'a.jpg'; remove it.")
    assert [step for step, _ in saved] == [1] * (processes == 1)


@pytest.mark.fast
def test_metrics_that_cannot_be_written_end_the_run_in_a_sentence(small, tmp_path, monkeypatch):
    run, update = start(small, tmp_path, [], monkeypatch)
    run.next_batch = lambda batches: None
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(log, "keep_until", lambda *_: [])
    shown = RunLog(tmp_path, STEPS, 4, 0, active=True)
    sentence = r"^metrics cannot be written to .*metrics\.jsonl \({}; no step is saved there\); fix this and"
    with pytest.raises(UserError, match=sentence.format("No space left on device")):
        run._steps(update, None, None, shown, Stop())
    (tmp_path / "metrics.jsonl").unlink()  # as by someone who removes the whole workdir
    with pytest.raises(UserError, match=sentence.format("No such file or directory")):
        run._steps(update, None, None, shown, Stop())
    shown.close()


@pytest.mark.fast
def test_a_configuration_that_cannot_be_written_is_a_sentence(small, tmp_path):
    (tmp_path / "config.json.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"config\.json cannot be written \(No space left on device\)"):
        loop.write_config(small, tmp_path)


@pytest.mark.fast
def test_a_learning_rate_that_jumps_is_said(capsys):
    def rate(steps):
        return learning_rate(1e-2, 1e-3, 0.1, "cosine", steps)

    note_jump(rate(100), rate(100), 100)
    assert capsys.readouterr().out == ""
    note_jump(rate(100), rate(200), 100)
    # By hand: after warm-up of 20 steps, step 100 of 200 is 80/180 of the way down the cosine.
    following = 1e-3 + (1e-2 - 1e-3) * 0.5 * (1 + math.cos(math.pi * 80 / 180))
    last = 1e-3 + (1e-2 - 1e-3) * 0.5 * (1 + math.cos(math.pi * 89 / 90))
    assert (
        f"changes from {last:.3g} at the last step to {following:.3g} at the next" in capsys.readouterr().out
    )


@pytest.mark.fast
@pytest.mark.parametrize(
    "began,first,blamed,spared",
    [
        (
            0,
            1,
            ["check the images, and config.model.", "loss.student_temperature=0.12", "loss.koleo_image="],
            "peak_lr",
        ),
        (0, 7, ["config.optimizer.peak_lr"], "temperature"),
        (20, 21, ["changed since the checkpoint", "loss.sinkhorn_temperature="], "peak_lr"),
        (20, 22, ["config.optimizer.peak_lr"], "temperature"),
    ],
)
def test_numbers_that_are_bad_at_once_are_not_blamed_on_the_learning_rate(began, first, blamed, spared):
    run = Run.__new__(Run)
    run.config, run.began = get_config(), began
    remedy = run.remedy(first, "koleo_image")
    assert all(name in remedy for name in blamed) and spared not in remedy
