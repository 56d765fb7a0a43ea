"""What a run reports."""

import contextlib
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_vis.losses.reconstruction import pixel_mse, psnr_of
from sparse_vis.runtime.errors import UserError
from sparse_vis.train import log
from sparse_vis.train.log import Averages, RunLog


def means(*window):
    averages = Averages()
    averages.add(window)
    return averages.means()


def step_metrics(total, bad_steps=0.0):
    return {"bad_steps": bad_steps, "koleo_image": total / 2, "learning_rate": 0.5, "total": total}


class NoBoard:
    def __init__(self, folder, rows):
        self.rows, self.written = rows, []

    def write(self, step, numbers, pictures=None):
        self.written.append((step, numbers))

    def close(self, failed=False):
        pass


@pytest.fixture
def still(monkeypatch):
    """A clock that stands until it is moved, and no TensorBoard files."""
    clock = [100.0]
    monkeypatch.setattr(log.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(log, "TensorBoard", NoBoard)
    return clock


@pytest.mark.fast
def test_a_line_has_step_speed_time_left_and_loss_and_the_file_every_term(still, tmp_path, capsys):
    shown = RunLog(tmp_path, steps=100, batch=8, first=10, active=True)
    still[0] += 4
    row = shown.report(
        30, means(step_metrics(1.0), step_metrics(3.0)), {"skipped": 2.0, "input_wait_seconds": 0.0}
    )
    shown.close()
    assert row["total"] == 2 and row["images_per_second"] == 40
    line = capsys.readouterr().out
    assert line == "step 30/100  30%  40.0 images/s  ETA 0:00:14  total 2  skipped 2\n"
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line.pop("time") and line == {"step": 30, **row}
    assert shown.board.written == [(30, row)]


ROW = {"images_per_second": 40.0, "total": 20.62, "epoch": 1.234, "reconstruction": 0.01}
MORE = {"reconstruction_psnr": 20.0, "health/S_rank": 5.126, "skipped": 3.0, "bad_steps": 2.0}


@pytest.mark.fast
def test_a_line_shows_what_there_is(tmp_path):
    shown = RunLog(tmp_path, steps=200_000, batch=8, first=0, active=False)
    line = shown.line(50_000, ROW)
    start = "step 50000/200000  25%  epoch 1.23  40.0 images/s  ETA 8:20:00"  # 1,200,000 images left
    assert line == f"{start}  total 20.62  reconstruction 0.01"
    assert shown.line(50_000, ROW | {**MORE, "skipped": 0.0, "bad_steps": 0.0}) == (
        "step 50000/200000  epoch 1.23  40.0 images/s  ETA 8:20:00  total 20.62  PSNR 20.00 dB  S_rank 5.13"
    )  # the percentage would not fit
    assert shown.line(50_000, ROW | MORE).endswith("total 20.62  PSNR 20.00 dB  skipped 3  bad_steps 2")


@pytest.mark.fast
def test_a_line_has_the_kNN_of_the_newest_probe(still, tmp_path, capsys):
    shown = RunLog(tmp_path, steps=9, batch=8, first=0, active=True)
    for step, knn in ((2, 0.5), (4, 0.61234)):
        shown.add_probe(step, {"psnr": 18.0, "knn": knn}, np.zeros((8, 8, 3), np.uint8), 0.0)
    shown.close()
    assert shown.line(5, ROW).endswith("total 20.62  reconstruction 0.01  kNN 0.612")
    assert "probe at step 4:  psnr 18  knn 0.6123\n" in capsys.readouterr().out


@pytest.mark.fast
def test_the_longest_lines_fit(tmp_path):
    """A run of weeks on many chips, at its beginning, with all that a line may show."""
    shown = RunLog(tmp_path, steps=140_750, batch=2048, first=0, active=False)
    row = ROW | MORE | {"images_per_second": 234.5, "epoch": 249.96, "health/S_rank": 1012.3}
    shown.probed = {"probe": "kNN 0.612"}
    line = shown.line(1, row)
    assert len(line) <= 100 and "ETA 14d 5h" in line and "skipped 3  bad_steps 2" in line


@pytest.mark.fast
def test_decibels_are_those_of_the_pixels():
    """Against the definition, on 8-bit values: 20 log10(255 / root mean squared error)."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 3, 8, 8, 3))
    db = psnr_of(float(pixel_mse(jnp.asarray(a / 255, jnp.float32), jnp.asarray(b / 255, jnp.float32))))
    assert db == pytest.approx(20 * np.log10(255 / np.sqrt(np.mean((a - b) ** 2))), abs=1e-4)
    assert psnr_of(0.01) == pytest.approx(20) and psnr_of(0.0) == 100


@pytest.mark.fast
def test_a_run_says_once_that_input_is_the_bottleneck(still, tmp_path, capsys):
    shown = RunLog(tmp_path, steps=100, batch=8, first=0, active=True)
    for step, waited in ((10, 0.3), (20, 1.2), (30, 2.0)):
        still[0] += 4
        shown.report(step, means(step_metrics(1.0)), {"input_wait_seconds": waited})
    shown.close()
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    (note,) = notes
    assert note.startswith("note: data loading is the bottleneck: 30% of the time")
    assert "config.data.workers" in note


@pytest.mark.fast
def test_bad_numbers_are_left_out_and_counted(still, tmp_path):
    shown = RunLog(tmp_path, steps=9, batch=8, first=0, active=True)
    row = shown.report(2, means(step_metrics(1.0), step_metrics(math.nan, 1.0)), {})
    assert row["total"] == 1 and row["bad_steps"] == 1
    row = shown.report(3, means(step_metrics(math.inf, 2.0)), {})
    assert "total" not in row and "koleo_image" not in row and row["bad_steps"] == 2
    shown.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and text.count("\n") == 2


@pytest.mark.fast
def test_a_restart_reports_repeated_steps_once(still, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "total": 1}\n{"step": 4, "total": 2}\n{"step": 6, "total": 3}\n{"step": 8, "to'
    )
    shown = RunLog(tmp_path, steps=9, batch=8, first=4, active=True)
    shown.report(6, means(step_metrics(5.0)), {})
    shown.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["total"]) for row in rows] == [(2, 1), (4, 2), (6, 5)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.fast
def test_only_the_main_process_writes(still, tmp_path, capsys):
    shown = RunLog(tmp_path, steps=9, batch=8, first=0, active=False)
    assert shown.report(1, means(step_metrics(1.0)), {})["total"] == 1
    shown.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_tensorboard_reads_the_numbers_also_of_a_run_that_was_killed(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def report(first, numbers):
        """Go on from a step and report {step: total}; what TensorBoard reads then."""
        shown = RunLog(tmp_path, steps=9, batch=8, first=first, active=True)
        for step, total in numbers.items():
            shown.report(step, means(step_metrics(total)), {})
        shown.close()
        events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        return [(e.step, e.value) for e in events.Scalars("total")]

    assert report(0, {1: 3.0, 2: 6.0, 3: 9.0}) == [(1, 3), (2, 6), (3, 9)]
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert report(2, {3: 8.0}) == [(1, 3), (2, 6), (3, 8)]  # step 3 was reported twice
    (newest,) = set((tmp_path / "tensorboard").iterdir()) - {file}
    newest.write_bytes(newest.read_bytes()[:-5])  # a kill in the middle of writing
    found = report(3, {4: 7.0})
    assert found == [(1, 3), (2, 6), (3, 8), (4, 7)]


@pytest.mark.fast
def test_damaged_lines_of_metrics_are_left_out_and_said(still, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "total": 1}\n{"st\xffp": 2, "total": 2}\n{"step": 3, "total": 3}\n')
    shown = RunLog(tmp_path, steps=9, batch=8, first=3, active=True)
    shown.close()
    assert path.read_text() == '{"step": 1, "total": 1}\n{"step": 3, "total": 3}\n'
    assert [row["step"] for row in shown.board.rows] == [1, 3]
    assert capsys.readouterr().out == f"note: 1 damaged lines of {path} were skipped.\n"


@pytest.mark.fast
def test_where_tensorboard_files_cannot_be_written_a_note_says_so_once(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    shown = RunLog(tmp_path, steps=9, batch=8, first=0, active=True)
    for step in (1, 2):
        shown.report(step, means(step_metrics(1.0)), {})
    shown.close()
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "metrics.jsonl has all" in notes[0]
    assert "TensorBoard files are no longer written" in notes[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.fast
@pytest.mark.parametrize("error", [None, UserError, KeyboardInterrupt])
def test_trackers_learn_whether_an_error_ends_the_run(still, tmp_path, error):
    ends, tracker = [], NoBoard(tmp_path, [])
    tracker.close = ends.append
    shown = RunLog(tmp_path, steps=9, batch=8, first=0, active=True)
    shown.writers.append(tracker)
    with contextlib.suppress(UserError, KeyboardInterrupt), shown:
        if error:
            raise error
    assert ends == [error is not None]
