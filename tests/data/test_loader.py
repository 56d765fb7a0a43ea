import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from sparse_vis.data import loader
from sparse_vis.data.loader import train_batches
from sparse_vis.data.sources import FolderSource
from sparse_vis.runtime.errors import UserError


@dataclass(frozen=True)
class Numbered:
    """Records whose pixels say which record they are; those in `bad` cannot be read."""

    count: int
    bad: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise UserError(f"cannot decode 'record {index}'; repair or remove it")
        return {"image": np.full((9, 10 + index % 3, 3), index, np.uint8), "name": f"record {index}"}


def batches(source, start=0, stop=6, **changes):
    """Steps start to stop, of four images each."""
    arguments = dict(
        global_batch=4, seed=1, start_index=4 * start, steps=stop - start, canvas=16, min_side=8,
        workers=0, threads=2, on_error="stop", process_index=0, process_count=1,
    )  # fmt: skip
    return train_batches(source, **{**arguments, **changes})


def numbers(found):
    """Which record each image is, by its pixels: (steps, b)."""
    return np.stack([batch.image[:, 0, 0, 0] for batch, _ in found])


def assert_same(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for (a, skipped_a), (b, skipped_b) in zip(found, expected, strict=True):
        assert skipped_a == skipped_b
        for name in ("image", "height", "width", "index"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.fast
def test_batches_are_filled_canvases_with_consecutive_positions():
    batch, skipped = list(batches(Numbered(13)))[2]
    assert skipped == []
    assert batch.image.shape == (4, 16, 16, 3) and batch.image.dtype == np.uint8
    assert batch.height.dtype == batch.width.dtype == np.int32 and batch.index.dtype == np.uint32
    np.testing.assert_array_equal(batch.index, [8, 9, 10, 11])
    for image, height, width in zip(batch.image, batch.height, batch.width, strict=True):
        assert height == 9 and width == 10 + image[0, 0, 0] % 3
        assert (image[:height, :width] == image[0, 0]).all()
        assert image[height:].max() == 0 and image[:, width:].max() == 0


@dataclass(frozen=True)
class Counted(Numbered):
    """Also lists which records were read."""

    read: list[int] = field(default_factory=list)

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


@pytest.mark.fast
@pytest.mark.parametrize("canvas, kept", [(16, 8), (512, 1)])  # 768 bytes, and 0.75 MiB of the cache's 1 MiB
def test_canvases_in_the_cache_are_not_read_again(canvas, kept):
    source = Counted(8)
    found = list(batches(source, canvas=canvas, cache=1, threads=1))  # three epochs
    assert len(source.read) == 8 + 2 * (8 - kept) and {*source.read[:8]} == {*range(8)}
    assert_same(found, batches(Numbered(8), canvas=canvas))


@pytest.mark.fast
def test_a_bad_record_is_replaced_in_every_epoch_with_a_cache():
    bad = Numbered(8, bad=(3,))
    assert_same(batches(bad, cache=1, on_error="skip"), batches(bad, on_error="skip"))


@pytest.mark.fast
def test_every_epoch_is_a_new_permutation():
    epochs = numbers(batches(Numbered(40), stop=30)).reshape(3, 40)
    for epoch in epochs:
        assert sorted(epoch) == list(range(40))
    orders = {epoch.tobytes() for epoch in epochs} | {np.arange(40, dtype=np.uint8).tobytes()}
    assert len(orders) == 4
    assert (numbers(batches(Numbered(40), stop=10, seed=2)).ravel() != epochs[0]).any()


@pytest.mark.fast
def test_any_start_gives_the_rest_of_the_stream():
    whole = list(batches(Numbered(13), stop=9))
    for start in (1, 4, 8):
        assert_same(batches(Numbered(13), start, 9), whole[start:])
    assert list(batches(Numbered(13), 9, 9)) == []


@pytest.mark.fast
def test_another_batch_size_continues_the_same_stream():
    whole = list(batches(Numbered(13), stop=6))
    rest = list(batches(Numbered(13), start=2, steps=8, global_batch=2))
    np.testing.assert_array_equal(numbers(rest).ravel(), numbers(whole).ravel()[8:])
    np.testing.assert_array_equal(np.concatenate([batch.index for batch, _ in rest]), np.arange(8, 24))


@pytest.mark.fast
class Distant(Numbered):
    """The same at the other end of a network: each record takes 20 ms to come."""

    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)


def test_threads_wait_for_distant_records_together():
    seconds = {}
    for threads in (1, 8):
        began = time.perf_counter()
        assert len(list(batches(Distant(13), stop=16, threads=threads))) == 16
        seconds[threads] = time.perf_counter() - began
    assert seconds[1] > 16 * 4 * 0.02 and seconds[8] < seconds[1] / 2  # an eighth on an idle machine


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_threads_do_not_change_the_stream(threads):
    assert_same(batches(Numbered(13), threads=threads), batches(Numbered(13)))


@pytest.mark.fast
def test_processes_share_one_global_batch():
    source = Numbered(13, bad=(5,))
    whole = list(batches(source, on_error="skip"))
    parts = [list(batches(source, on_error="skip", process_index=k, process_count=2)) for k in (0, 1)]
    for (expected, skipped), (left, skipped_left), (right, skipped_right) in zip(whole, *parts, strict=True):
        assert skipped == skipped_left + skipped_right
        for name in ("image", "height", "width", "index"):
            both = np.concatenate([getattr(left, name), getattr(right, name)])
            np.testing.assert_array_equal(both, getattr(expected, name))


def test_workers_do_not_change_the_stream_nor_does_a_resume_with_them():
    source = Numbered(13, bad=(5,))
    whole = list(batches(source, on_error="skip"))
    assert_same(batches(source, start=1, workers=2, threads=1, on_error="skip"), whole[1:])


@pytest.mark.fast
def test_the_next_usable_record_stands_in_and_is_counted():
    plain = numbers(batches(Numbered(13))).ravel()
    found = list(batches(Numbered(13, bad=(5, 7)), on_error="skip"))
    wrong = [position for position in range(24) if plain[position] in (5, 7)]
    skipped = [images for _, rows in found for images in rows]
    assert len(wrong) >= 2 and len(skipped) == len(wrong)
    # The numbered source cannot say the name of a record that it cannot read.
    assert {name: reason for images in skipped for name, reason in images} == {
        f"#{n}": f"cannot decode 'record {n}'; repair or remove it" for n in (5, 7)
    }
    beyond = numbers(batches(Numbered(13), stop=8)).ravel()
    for position, number in enumerate(numbers(found).ravel()):
        rest = [n for n in beyond[position:] if n not in (5, 7)]
        assert number == rest[0]
    np.testing.assert_array_equal(np.concatenate([b.index for b, _ in found]), np.arange(24))


@pytest.mark.fast
@pytest.mark.parametrize("count", [1, 3])
def test_nothing_usable_is_an_error_not_a_loop(count):
    with pytest.raises(
        UserError, match=f"none of the {count} images can be used; the first one: cannot decode 'record "
    ) as error:
        list(batches(Numbered(count, bad=tuple(range(count))), on_error="skip", threads=1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_single_good_image_is_always_found(count):
    """Shuffled epochs of N may keep it at the start of one and at the end of the next, 2N - 2 apart."""
    source = Numbered(count, bad=tuple(range(count - 1)))
    for seed in range(5):
        found = batches(source, stop=2, seed=seed, on_error="skip", threads=1)
        assert (numbers(found) == count - 1).all()


@pytest.fixture
def folder(tmp_path):
    for number in range(8):
        Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / f"{number}.jpg")
    data = (tmp_path / "6.jpg").read_bytes()
    (tmp_path / "6.jpg").write_bytes(data[: len(data) // 2])
    return tmp_path


def assert_names_the_file(folder, **changes):
    with pytest.raises(UserError) as error:
        list(batches(FolderSource(str(folder)), canvas=32, **changes))
    message = str(error.value)
    assert message.startswith("cannot decode '6.jpg'") and "\n" not in message
    assert "--config.data.on_error=skip" in message
    assert error.value.__cause__ is None and error.value.__suppress_context__


@pytest.mark.fast
def test_a_truncated_file_stops_with_one_sentence_or_is_replaced(folder):
    assert_names_the_file(folder)
    found = list(batches(FolderSource(str(folder)), canvas=32, on_error="skip", stop=4))
    skipped = [image for _, rows in found for images in rows for image in images]
    assert [name for name, _ in skipped] == ["6.jpg"] * 2  # two epochs of eight


def test_a_truncated_file_stops_workers_too(folder):
    assert_names_the_file(folder, workers=1)


@pytest.mark.fast
def test_an_image_smaller_than_a_patch_is_enlarged():
    for batch, skipped in batches(Numbered(4), min_side=12):  # of 9 x 10, 9 x 11 and 9 x 12
        assert skipped == [] and (batch.height == 12).all()
        np.testing.assert_array_equal(
            batch.width, [round(12 / 9 * (10 + i % 3)) for i in batch.image[:, 0, 0, 0]]
        )


@dataclass(frozen=True)
class Odd(Numbered):
    """A source of one's own, whose records have keys that nothing here knows."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"caption": f"number {index}", "weight": object()}


@pytest.mark.fast
def test_other_keys_of_a_record_are_left_alone():
    assert_same(batches(Odd(13)), batches(Numbered(13)))


PARENT = """
import multiprocessing, os, signal, sys
from sparse_vis.data import loader
from sparse_vis.data.loader import train_batches
from sparse_vis.data.scenes import SceneSource, SceneSpec

if __name__ == "__main__":
    source = SceneSource(SceneSpec(size=32), split="test", seed=0)
    settings = dict(global_batch=4, seed=0, start_index=0, steps=10**6, canvas=32, min_side=8, workers=1)
    stream = train_batches(
        source, **settings, threads=1, on_error="stop", process_index=0, process_count=1
    )
    next(stream)
    with open(sys.argv[1], "w") as file:
        print(*(child.pid for child in multiprocessing.active_children()), file=file)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    script, pids = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    done = subprocess.run([sys.executable, str(script), str(pids)], env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    (worker,) = map(int, pids.read_text().split())
    deadline = time.monotonic() + 10
    while _alive(worker):
        if time.monotonic() > deadline:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("a worker outlived its parent")
        time.sleep(0.1)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.fast
def test_a_worker_that_ended_is_a_sentence_and_what_was_kept_is_freed():
    """Known by Grain's words."""

    class Ended:
        def __iter__(self):
            return self

        def __next__(self):
            raise RuntimeError(
                "Worker process was terminated unexpectedly with exit code -9. Search the logs"
            )

        def close(self):
            pass

    with pytest.raises(UserError, match=r"has ended with exit code -9: see its own error above; if"):
        next(loader._iterate(Ended(), kept := {0: "canvas"}))
    assert not kept
