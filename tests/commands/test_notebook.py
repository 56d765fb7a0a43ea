"""`sparse_vis.train` in this process: interrupted, continued, and with wrong arguments."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import sparse_vis
from sparse_vis.build import build_source
from sparse_vis.commands import notebook
from sparse_vis.config import settings
from sparse_vis.config.defaults import default_config
from sparse_vis.runtime import progress
from sparse_vis.runtime.errors import UserError
from sparse_vis.train import loop
from sparse_vis.train.stop import StopCall

TINY, LAST = pathlib.Path(__file__).parent.parent / "train" / "tiny_config.py", 24
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 24, 30, 3), dtype=np.uint8)


@jax.jit
def small_step(state, batch, tokenizer, seed):
    """Moves all parameters by a number of its own for every batch and step; the real one takes long to trace.

    (tests/train/test_resume.py continues trainings with the real one.)
    """
    by = 1e-4 * jnp.sin(batch.image.astype(jnp.float32).mean() + state.step)
    params = jax.tree.map(lambda x: x * (1 - by) + by, state.params)
    metrics = {"total": jnp.linalg.norm(params["encoder"]["queries"]), "bad_steps": jnp.float32(0)}
    return state.replace(step=state.step + 1, params=params), metrics


def test_a_call_that_was_interrupted_goes_on_and_ends_as_one_that_was_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "compile_step", lambda *_: small_step)
    short = {"train__save_every": LAST, "train__health_every": 0}

    def uninterrupted():  # in another thread, where no signal can be handled
        return sparse_vis.train(IMAGES, TINY, workdir=tmp_path / "whole", **short)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        model, params, history = pool.submit(uninterrupted).result()
    monkeypatch.chdir(tmp_path)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def interrupting(text):
        if text.startswith("step 3/"):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(progress, "update", interrupting)
        sparse_vis.train(IMAGES, TINY, **short)
    assert "Ctrl-C: saved step 4 in runs/tiny; repeat the" in capsys.readouterr().out
    again, found, whole = sparse_vis.train(IMAGES, TINY, **short)
    assert "continuing runs/tiny at step 4\n" in capsys.readouterr().out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    assert again == model
    jax.tree.map(np.testing.assert_array_equal, found, params)
    np.testing.assert_array_equal(whole["total"][0], np.arange(LAST) + 1)  # also the steps before Ctrl-C
    np.testing.assert_array_equal(whole["total"][1], history["total"][1])
    assert np.isfinite(sparse_vis.encode(again, found, IMAGES).sparse).all()

    # Nobody named the workdir: other images or settings must not continue that run, nor pass for it.
    with pytest.raises(UserError, match=r"^runs/tiny holds a run of other .*train\.steps: 24 -> 30\); give"):
        sparse_vis.train(IMAGES, TINY, **short | {"train__steps": 30})
    with pytest.raises(
        UserError, match=r"data\.path: ndarray of 9 images, checksum \w+ -> ndarray of 9 images, checksum"
    ):
        sparse_vis.train(IMAGES[::-1], TINY, **short)


@pytest.mark.fast
def test_signals_that_save_nothing_go_to_the_handlers_before():
    received = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        with StopCall() as stop:
            signal.raise_signal(signal.SIGINT)  # before the first step
        assert received == [signal.SIGINT] and not stop.received
        with StopCall() as stop:
            stop.keep = True
            signal.raise_signal(signal.SIGINT)
            assert stop.received and received == [signal.SIGINT]
            signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT] * 2
        stop.end()
        assert received == [signal.SIGINT] * 3
    finally:
        signal.signal(signal.SIGINT, before)


NO_SETTING = r"^train__stepz is not a setting; did you mean train__steps"
GROUP = r"^train is a group of settings; give one of them, e\.g\. train__batch"
CONFIG = r"^a configuration is the name of an experiment \(.*quickstart.*\), .* ConfigDict, not "


@pytest.mark.fast
@pytest.mark.parametrize(
    ("data", "given", "sentence"),
    [
        (IMAGES, {"train__stepz": 3}, NO_SETTING),
        (IMAGES, {"train": 3}, GROUP),
        (IMAGES, {"train__steps": "many"}, r"^train__steps='many' is not a whole number"),
        (IMAGES, {"train__steps": np.int64(0)}, r"^train__steps=0 is too small; it must be at least"),
        (IMAGES, {"config": "folder_smal"}, r"folder_smal: No such file .*; did you mean folder_small\?"),
        (IMAGES, {"workdir": "az://a/b"}, r"^workdir=az://a/b is an address, not a path"),
        (IMAGES, {"data__path": "photos"}, r"^data__path is not a setting of sparse_vis\.train; give the"),
        (IMAGES.transpose(0, 3, 1, 2), {}, r"^images have shape \(9, 3, 24, 30\); .*transpose\(0, 2, 3, 1"),
        (IMAGES * 1.0, {}, r"^images reach from 0 to 255; give uint8, or float .*, e\.g\. images / 255"),
        (3, {}, r"^a int is not a data set; give an object with __len__ and __getitem__"),
        ([], {}, r"^the list with the images is empty"),
        (np.array(["a.png", "b.png"]), {}, r"^cannot read 'a.png' \(No such file or directory\)"),
        ("nowhere", {}, r"^folder 'nowhere' does not exist; give data the folder of your images"),
        ("", {}, r"^data is not set; give data=FOLDER"),
        (IMAGES, {"config": None}, CONFIG + "None; give one"),
        (IMAGES, {"config": {}}, CONFIG + "{}; give one"),
        (IMAGES, {"workdir": 3}, r"^workdir is a int, not a path; give one"),
        (IMAGES, {"model__width": 15}, r"^model__width=15 is not a multiple of its heads \(2\); change one"),
        (IMAGES, {"finetune__classes": ("a", "b")}, r"^finetune__classes is set, so this is a fine-tuning"),
        ([*IMAGES, "no.png"], {}, r"^cannot read 'no\.png' .*, or pass data__on_error=skip to use the next"),
        ([*IMAGES, None], {}, r"^the image of item 9 of the list .*, or pass data__on_error=skip to use the"),
    ],
)
def test_wrong_arguments_are_one_sentence_before_any_work(tmp_path, monkeypatch, data, given, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        sparse_vis.train(data, **{"config": TINY, **given})
    assert not list(tmp_path.rglob("checkpoints/*"))


@pytest.mark.fast
def test_sentences_name_the_arguments_of_the_call():
    for of_main, of_call in (
        ("set --config.data.split= (empty)", "set data__split= (empty)"),
        ("give --config.data.path the folder", "give data the folder"),
        ("a/config.json: give --config=configs/NAME.py", "a/config.json: give config=configs/NAME.py"),
        ("lower config.optimizer.peak_lr.", "lower optimizer__peak_lr."),
        ("another --workdir; repeat the command.", "another workdir; repeat the call."),
    ):
        assert notebook.in_python(of_main) == of_call


@pytest.mark.fast
def test_data_are_named_in_the_configuration_or_described(tmp_path):
    def chosen(data):
        config = default_config()
        source = notebook.choose_images(config, data)
        return source, (config.data.source, config.data.path, config.data.split)

    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "packed.json").touch()
    assert chosen(tmp_path) == (None, ("folder", str(tmp_path), ""))
    assert chosen(tmp_path / "packed") == (None, ("packed", str(tmp_path / "packed"), ""))
    assert chosen("table:photos.csv#label=") == (None, ("table:photos.csv#label=", "", ""))
    for same in (IMAGES / 255, jnp.asarray(IMAGES), list(IMAGES)):
        source, (kind, path, _) = chosen(same)
        assert kind == "object" and len(source) == len(IMAGES)
        np.testing.assert_array_equal(source[4]["image"], IMAGES[4])
        assert path.partition(" of ")[2] == chosen(IMAGES)[1][1].partition(" of ")[2]


class Items:
    """A data set that makes its items; `images_sha256` is known of some."""

    classes = ("a", "b")

    def __init__(self, images, sha256=None):
        self.images, self.images_sha256 = images, sha256

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 2


@pytest.mark.fast
def test_items_of_an_object_are_read_again_in_every_epoch():
    """They may be random transformations, as often those of torchvision's data sets are."""
    config, read = default_config(), []

    class Noted(Items):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    source = notebook.choose_images(config, Noted(IMAGES))
    config.data.update(canvas=32, threads=1, cache=1024)
    read.clear()
    run = types.SimpleNamespace(config=config, source=source)
    assert len(list(loop.Run._stream(run, size=3, position=0, steps=6, workers=0))) == 6
    assert sorted(read) == sorted(2 * [*range(9)])


@pytest.mark.fast
def test_a_change_of_any_image_or_label_is_another_description(tmp_path):
    def path_of(data):
        notebook.choose_images(config := default_config(), data)
        return config.data.path

    images = np.random.default_rng(1).integers(0, 256, (40, 4, 5, 3), np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(40)]
    for file, image in zip(files, images, strict=True):
        PIL.Image.fromarray(image).save(file)
    pairs = [(image, i % 2) for i, image in enumerate(images)]
    opened = [PIL.Image.open(file) for file in files]
    everything = {"array": images, "list": [*images], "pairs": pairs, "files": files, "opened": opened}
    before = {name: path_of(data) for name, data in everything.items()}
    assert before == {name: path_of(data) for name, data in everything.items()}  # nothing is used up
    assert len({*before.values()}) == 4  # files that Pillow has opened are known by their paths
    for row in range(40):
        other = images.copy()
        other[row, 3, 4, 2] += 1
        assert path_of(other) != before["array"] and path_of([*other]) != before["list"]
        assert path_of([*pairs[:row], (images[row], 5), *pairs[row + 1 :]]) != before["pairs"]
    assert path_of(images.transpose(0, 2, 1, 3)) != before["array"]
    os.utime(files[7], (1, 1))
    assert path_of(files) != before["files"] and path_of(opened) != before["opened"]
    other = images.copy()
    other[1] += 1  # which is not among the sixteen
    assert path_of(Items(images)) == path_of(Items(other)) and "of 16 of them" in path_of(Items(images))
    assert path_of(Items(images, "1")) != path_of(Items(images, "2"))


@pytest.mark.fast
def test_main_says_how_to_continue_a_run_of_images_in_memory():
    config = default_config()
    notebook.choose_images(config, IMAGES)
    settings.check(config)
    with pytest.raises(UserError, match=r"sparse_vis\.train as ndarray of 9 .*, checksum \w{16}; call it"):
        build_source(config, "")


@pytest.mark.fast
def test_a_worker_that_runs_the_callers_script_again_says_what_to_do(monkeypatch):
    """As Python does in a new process, if the script does not ask whether it is the main one."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(
        SystemExit, match=r'^error: .*put the call below `if __name__ == "__main__":`, or set'
    ):
        sparse_vis.train(IMAGES, TINY, data__workers=1)
