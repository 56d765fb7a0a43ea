"""Which checkpoints stay, and that no damage of one goes unnoticed."""

import copy
import json
import random
import shutil
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_vis.config.defaults import default_config
from sparse_vis.interop import step_folder
from sparse_vis.runtime.errors import UserError
from sparse_vis.train import checkpoint
from sparse_vis.train.mesh import make_mesh, state_sharding
from sparse_vis.train.step import TrainState

# What Orbax's coroutines have to say when they are given up; command lines leave it out (errors.py).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(step):
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero + step, {"w": jnp.full(3, step, jnp.float32)}, (), None, zero)


@pytest.mark.fast
@pytest.mark.parametrize("keep,kept", [(2, [3, 4]), (1, [4])])
def test_the_newest_stay(tmp_path, keep, kept):
    checkpoint.prepare(tmp_path)
    with checkpoint.open_manager(tmp_path, keep) as manager:
        for step in range(1, 5):
            checkpoint.save(manager, state(step), {"next_index": 10 * step}, default_config())
        checkpoint.finish(manager)
        assert sorted(manager.all_steps()) == kept
        assert step_folder.find_step(tmp_path).name == str(kept[-1])


@pytest.mark.fast
def test_the_rest_of_a_killed_save_is_cleaned_up(tmp_path):
    checkpoint.prepare(tmp_path)
    left = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    left.mkdir()
    with checkpoint.open_manager(tmp_path, 1) as manager:
        checkpoint.save(manager, state(8), {"next_index": 0}, default_config())
        checkpoint.finish(manager)
        assert manager.all_steps() == [8] and not left.exists()


DATA = {"next_index": 123, "averages": {"sums": {"total": [1.5, 2]}, "steps": 2}}


@pytest.mark.fast
def test_a_training_that_goes_on_does_not_change_what_is_still_to_be_written():
    """Orbax writes in the background; else checksums and sums could disagree, and the step would be lost."""
    written, data = {}, copy.deepcopy(DATA)
    manager = types.SimpleNamespace(save=lambda step, args, force: written.update(args.data.item))
    checkpoint.save(manager, state(1), data, default_config())
    data["averages"]["sums"]["total"][0] += 1
    data["averages"]["sums"]["other"] = [0.0, 1]
    assert {name: written[name] for name in DATA} == DATA


@pytest.fixture
def saved(tmp_path):
    """A workdir with step 1, and the state in it."""
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(20, 8)).astype(np.float32), "b": jnp.arange(3, dtype=jnp.bfloat16)}
    teacher = {name: {"w": params["w"] + 1} for name in ("encoder", "sparse_head", "cls_head")}
    kept = state(1).replace(params=params, opt_state={"mu": jnp.asarray(params["w"]) / 2}, teacher=teacher)
    checkpoint.prepare(tmp_path)
    with checkpoint.open_manager(tmp_path, 1) as manager:
        checkpoint.save(manager, kept, DATA, default_config())
        checkpoint.finish(manager)
    return tmp_path, jax.device_get(kept)


def read_all(workdir, like):
    """Everything that is read of a checkpoint: to continue, and to load."""
    abstract = jax.eval_shape(lambda: like)
    with checkpoint.open_manager(workdir, 1) as manager:
        whole = checkpoint.restore(manager, abstract, state_sharding(make_mesh((-1, 1)), abstract))
    step = step_folder.find_step(workdir)
    return jax.device_get(
        (*whole, step_folder.restore_params(step, abstract.params))
    ), step_folder.read_config(step)


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(saved):
    workdir, kept = saved
    (state, data, params), config = read_all(*saved)
    assert data == DATA and config["train"]["keep"] == default_config().train.keep
    jax.tree.map(np.testing.assert_array_equal, (state, params), (kept, kept.params))
    expected = (state, data, params), config
    draw, refused = random.Random(0), set()
    files = sorted(
        path for path in (workdir / "checkpoints" / "1").rglob("*") if path.stat().st_size and path.is_file()
    )
    assert len(files) > 12
    for path in files:
        for _ in range(2):
            whole = path.read_bytes()
            bit = draw.randrange(8 * len(whole))
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                found = read_all(*saved)
                assert jax.tree.all(jax.tree.map(np.array_equal, found, expected)), (path, bit)
            except UserError as error:
                assert "1 is incomplete or damaged" in str(error) and "\n" not in str(error)
                refused.add(path.relative_to(workdir / "checkpoints" / "1").parts[0])
            path.write_bytes(whole)
    assert refused == {"params", "rest", "data", "config"}


@pytest.mark.fast
def test_the_sentence_holds_the_cause_and_is_alone_however_long_the_path(saved, monkeypatch, caplog):
    workdir = saved[0] / ("a long name: of a folder, " * 6) / ("and another " * 10)
    shutil.copytree(saved[0] / "checkpoints", workdir / "checkpoints")
    late = []
    monkeypatch.setattr(sys, "unraisablehook", late.append)
    step = workdir / "checkpoints" / "1"
    manifest, [tree] = step / "params" / "manifest.ocdbt", (step / "params" / "d").iterdir()
    shapes = jax.eval_shape(lambda: saved[1].params)
    for path, words in (
        (manifest, r'"params/manifest.ocdbt": .*Length in header \({}\) does not match actual length \({}\)'),
        (tree, r'\[0, {}\) of local file "params/d/\w+": .* is not valid for value of size {}\)'),
    ):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=words.format(len(content), len(content) // 2)) as error:
            step_folder.restore_params(step, shapes)
        assert "…" not in str(error.value)
        path.write_bytes(content)
    time.sleep(0.1)  # tensorstore's threads
    sys.unraisablehook(types.SimpleNamespace(object=None, exc_value=RuntimeError("Event loop is closed")))
    assert not late and not caplog.records
    sys.unraisablehook(types.SimpleNamespace(object=None, exc_value=RuntimeError("another")))
    assert len(late) == 1


@pytest.mark.fast
def test_the_cause_behind_orbax_s_own_error_is_said():
    error = Exception(
        "Encountered error while reading array index: (slice(0, 32, 1)). See full TensorStore …"
    )
    error.__cause__ = ValueError(
        'OUT_OF_RANGE: Error reading "head.kernel/0.0" in OCDBT database at local file '
        '"/a: b/checkpoints/1/params/": Requested byte range [82, 84) is not valid for value of size 47'
    )
    expected = "Requested byte range [82, 84) is not valid for value of size 47"
    assert step_folder.reason_of(error) == expected


@pytest.mark.fast
@pytest.mark.parametrize("item,name", [("params", "params/w"), ("rest", "rest/opt_state/mu")])
def test_other_numbers_in_well_formed_files_are_refused_by_name(saved, item, name):
    """A single bit of one value, written by Orbax itself."""
    workdir, kept = saved
    wrong = np.array(kept.params["w"] / 2 if item == "rest" else kept.params["w"])
    wrong.view(np.uint32)[7, 3] ^= 1
    wrong = (
        kept.replace(opt_state={"mu": wrong})
        if item == "rest"
        else kept.replace(params={**kept.params, "w": wrong})
    )
    checkpoint.prepare(workdir / "other")
    with checkpoint.open_manager(workdir / "other", 1) as manager:
        checkpoint.save(manager, jax.tree.map(jnp.asarray, wrong), DATA, default_config())
        checkpoint.finish(manager)
    shutil.rmtree(workdir / "checkpoints" / "1" / item)
    shutil.copytree(workdir / "other" / "checkpoints" / "1" / item, workdir / "checkpoints" / "1" / item)
    with pytest.raises(UserError, match=rf"checkpoints/1 is .* \(the checksum of {name} differs"):
        read_all(*saved)


@pytest.mark.fast
def test_a_changed_digit_of_position_or_configuration_is_refused(saved):
    for item, before, after in (("data", "123", "132"), ("config", '"keep": 2', '"keep": 3')):
        path = saved[0] / "checkpoints" / "1" / item / "metadata"
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))
        with pytest.raises(UserError, match=rf"\(the checksum of {item} differs"):
            read_all(*saved)
        path.write_text(text)
    read_all(*saved)


@pytest.mark.fast
def test_a_checkpoint_without_checksums_loads_with_a_note(saved, capsys):
    """As earlier versions wrote it."""
    workdir, kept = saved
    path = workdir / "checkpoints" / "1" / "data" / "metadata"
    path.write_text(json.dumps({"next_index": 7}))
    (state, data, _), _ = read_all(*saved)
    jax.tree.map(np.testing.assert_array_equal, state, kept)
    assert data == {"next_index": 7}
    notes = capsys.readouterr().out.splitlines()
    assert notes and all(line.startswith("note: ") and "without checksums" in line for line in notes)


@pytest.mark.fast
def test_a_reader_whose_step_is_removed_takes_the_newer_one(saved):
    workdir, _ = saved
    read = []

    def retention(step):
        """While step 1 is read, the run saves step 2 and removes step 1."""
        read.append(step.name)
        if step.name == "1":
            step.rename(step.with_name("2"))
        return step_folder.read_config(step)

    assert step_folder.read_newest(workdir, retention)["name"] == "default" and read == ["1", "2"]
    shutil.rmtree(workdir / "checkpoints" / "2" / "config")
    # Nothing newer is there.
    with pytest.raises(UserError, match=r"2 is incomplete or damaged \(it lacks config"):
        step_folder.read_newest(workdir, step_folder.read_config)
    with pytest.raises(UserError, match="1 is incomplete"):  # a step folder means that step
        step_folder.read_newest(workdir / "checkpoints" / "1", step_folder.read_config)


@pytest.mark.fast
def test_a_part_of_a_checkpoint_that_lacks_an_array_is_refused(saved):
    """Of the parameters all that is there has to be wanted; of the rest, only the EMA copy is read."""
    workdir, kept = saved
    step, shapes = step_folder.find_step(workdir), jax.eval_shape(lambda: kept.params)
    for wrong in ({**shapes, "more": shapes["b"]}, {"w": shapes["w"]}, {**shapes, "w": shapes["b"]}):
        with pytest.raises(UserError, match="1 is incomplete or damaged"):
            step_folder.restore_params(step, wrong)
    parts = {name: {"w": shapes["w"]} for name in kept.teacher}
    jax.tree.map(np.testing.assert_array_equal, step_folder.restore_teacher(step, parts), kept.teacher)
    with pytest.raises(UserError, match="rest lacks teacher/cls_head/b"):
        step_folder.restore_teacher(step, {**parts, "cls_head": shapes})


# As tensorstore says it, shortened in the middle.
FULL = (
    'RESOURCE_EXHAUSTED: Error writing "w1/0.0" in OCDBT database at local file "/run/6.tmp/ocdbt": '
    'Failed writing: "/run/6.tmp/d/d471": Failed to write 2222339 bytes to file 7: No space left '
    "on device [os_error_code='28']"
)


@pytest.mark.fast
@pytest.mark.parametrize("error", [ValueError(FULL), OSError(28, "No space left on device", "/run/6.tmp")])
@pytest.mark.parametrize("left,said", [(True, "steps saved there: 1"), (False, "no step is saved there")])
def test_a_save_that_fails_says_what_is_left(saved, monkeypatch, error, left, said):
    workdir, kept = saved
    with checkpoint.open_manager(workdir, 1) as manager:

        def fail(*_, **__):
            raise error

        monkeypatch.setattr(manager, "save", fail)
        if not left:
            shutil.rmtree(workdir)
        with pytest.raises(UserError, match=rf"No space left on device; {said}\); fix this and repeat the"):
            checkpoint.save(manager, jax.tree.map(jnp.asarray, kept), DATA, default_config())
