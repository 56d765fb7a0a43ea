"""The one command on a tiny checkpoint and scenes: its numbers against other ways to them, its record."""

import contextlib
import copy
import functools
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import sparse_vis
from sparse_vis.build import build_model
from sparse_vis.commands import run as main
from sparse_vis.config import settings
from sparse_vis.data.records import read_records
from sparse_vis.data.sources import FolderSource
from sparse_vis.evals import command, tasks
from sparse_vis.evals.classes import linear
from sparse_vis.evals.classes.linear import SweepProtocol
from sparse_vis.evals.dataset import open_data
from sparse_vis.evals.encoders import beside_encoder, check_beside, checksums, own_encoder
from sparse_vis.evals.maps.label_maps import check_every_map
from sparse_vis.evals.needs import without_unusable
from sparse_vis.evals.results import Results, cell, markdown, plain
from sparse_vis.evals.task import Result, Task
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import say_once
from sparse_vis.train.stop import StopSignal
from tests.tiny_checkpoint import PATCH, SIZE, TOKENS, tiny_config, write_checkpoints

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TASKS = ("scenes", "knn", "linear", "retrieval", "localization", "reconstruction")
BESIDE = ("untrained", "pixels", "mean_colour", "pca")
COLUMNS = ("psnr", "fg_ari", "best_iou", "prototype_usage")


def make_config(**changed):
    config = tiny_config()
    config.data.update(source="scenes", canvas=SIZE, threads=2)
    config.data.scenes.update(size=SIZE, train_records=100, eval_records=60)
    config.eval.update({"train_records": 40, "test_records": 30, "batch": 16} | changed)
    settings.check(config)
    return config


def evaluate(config, workdir):
    return command.evaluate(config, workdir, command.make_plan(config))


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """Of the linear probes, a tenth: what they find is tested in test_linear.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "SweepProtocol", functools.partial(SweepProtocol, steps=50))
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    write_checkpoints(workdir, {3: 1, 7: 2})
    other = tmp_path_factory.mktemp("other")
    write_checkpoints(other, {5: 2})
    config = make_config(tasks=TASKS, beside=(*BESIDE, str(other)))
    evaluate(config, workdir)
    return config, workdir, str(other), json.loads((workdir / "evaluation.json").read_text())["encoders"]


@pytest.fixture(scope="module")
def by_hand(measured):
    """Features and records of the four parts, read and encoded in one go by the notebook API."""
    config, workdir, *_ = measured
    model, params = sparse_vis.load(workdir)
    found = {}
    for name, part in open_data(config).parts.items():
        records = read_records(part.source, part.indices, size=SIZE, short_side=SIZE)
        features = sparse_vis.encode(model, params, records.image)
        found[name] = records, features, np.asarray(sparse_vis.reconstruct(model, params, features))
    return found


def test_a_model_of_pixels_can_be_probed_for_codes(measured, tmp_path):
    """Codes come from a tokenizer that the model lacks; one that cannot be read is said before training."""
    config = copy.deepcopy(measured[0])
    config.eval.update(tasks=("reconstruction_probe",), beside=())
    config.eval.reconstruction_probe.target = "vq"
    config.model.tokenizer.path = str(GOLDEN / "vq_p16.vqgan.safetensors")
    settings.check(config)
    command.make_plan(config)
    encoder, (model, _) = own_encoder(config, measured[1])
    assert encoder.about["step"] == 7 and model.tokenizer is None
    config.model.tokenizer.path = str(tmp_path / "absent.bin")
    with pytest.raises(UserError, match=r"absent\.bin is not a file; give the path of a weight file"):
        command.make_plan(config)


def test_a_classifier_that_is_not_there_is_one_sentence(measured):
    config = copy.deepcopy(measured[0])
    config.eval.update(tasks=("knn", "classifier"), beside=())
    with pytest.raises(UserError, match="'classifier' measures a classifier that exists only after fine-"):
        evaluate(config, measured[1])
    plan = command.make_plan(config)
    with pytest.raises(UserError, match=r"a classifier that has other classes than SceneSource.*; leave 'cl"):
        command.check_classifier(plan, ("cat", "dog"))
    command.check_classifier(plan, plan.data.parts["test"].source.classes)


def test_every_pair_has_its_result_settings_and_weights(measured):
    *_, other, encoders = measured
    assert list(encoders) == ["trained", *BESIDE, other]
    for entries in encoders.values():
        assert list(entries) == list(TASKS)
        for entry in entries.values():
            assert set(entry) == {"settings", "metrics", "absent", "details", "ran"}
            assert entry["metrics"] or entry["absent"]
            data = entry["settings"]["data"]
            assert data["parts"]["train"]["records"] == 40 and data["parts"]["one_test"]["records"] == 30
            assert "max_digits=1" in data["parts"]["one_train"]["of"] and data["image_size"] == SIZE
    knn = encoders["trained"]["knn"]
    assert knn["settings"]["encoder"]["step"] == 7 and knn["ran"]["from"].endswith("/checkpoints/7")
    assert knn["settings"]["protocol"] == {
        "k": [10, 20, 100, 200], "temperature": 0.07, "feature": "L2-normalised",
    }  # fmt: skip
    assert set(knn["ran"]) >= {"seconds", "device", "jax", "flax", "numpy", "python"}
    rates = encoders["pixels"]["linear"]["settings"]["protocol"]["learning_rates"]
    assert len(rates) == 13 and rates[0] == pytest.approx(1e-5) and rates[-1] == pytest.approx(0.1)


def test_the_same_weights_have_the_same_numbers(measured):
    *_, other, encoders = measured  # written from the same seed, to another folder, as another step
    for name in TASKS:
        ours, theirs = encoders["trained"][name], encoders[other][name]
        assert ours["metrics"] == theirs["metrics"] and ours["absent"] == theirs["absent"]
    crc = [entries["knn"]["settings"]["encoder"].get("crc32") for entries in encoders.values()]
    assert crc[0] == crc[-1] != crc[1] and crc[2] is None


def test_numbers_are_those_of_a_straight_computation(measured, by_hand):
    *_, encoders = measured
    records, _, reconstruction = by_hand["test"]
    true = records.image / 255
    psnr = np.mean(-10 * np.log10(np.mean((reconstruction - true) ** 2, axis=(1, 2, 3))))
    assert encoders["trained"]["reconstruction"]["metrics"][""]["psnr"] == pytest.approx(psnr, abs=1e-3)
    assert encoders["trained"]["scenes"]["metrics"][""]["psnr"] == pytest.approx(psnr, abs=1e-3)

    (train, known, _), (test, asked, _) = by_hand["one_train"], by_hand["one_test"]
    assert (train.label >= 0).all() and (test.label >= 0).all()
    for name, tokens in (("mean_S", "sparse"), ("cls", "cls"), ("mean_U", "dense")):
        x, queries = (np.asarray(getattr(f, tokens)).mean(1) for f in (known, asked))
        x, queries = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, queries))
        votes = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07))
        accuracy = votes.fit(x, train.label).score(queries, test.label)
        assert encoders["trained"]["knn"]["metrics"][name]["k20"] == pytest.approx(accuracy, abs=0.05)
        cosines = queries @ queries.T - 2 * np.eye(len(queries))
        same = test.label[cosines.argmax(1)] == test.label
        others = (test.label[:, None] == test.label).sum(1) > 1
        recall = encoders["trained"]["retrieval"]["metrics"][name]["recall1"]
        assert recall == pytest.approx(same[others].mean(), abs=0.05)


def test_what_does_not_apply_is_absent_with_its_reason(measured):
    *_, encoders = measured
    assert encoders["trained"]["knn"]["absent"] == dict.fromkeys(
        ("k100", "k200"), "there are only 40 training images"
    )
    quality = encoders["trained"]["reconstruction"]
    assert set(quality["metrics"][""]) == {"psnr", "ssim"}
    assert "config.eval.inception is not set" in quality["absent"]["rfid"]
    assert "alexnet-owt-7be5be79.pth" in quality["absent"]["lpips"]
    assert encoders["pixels"]["localization"]["metrics"] == {}
    assert encoders["pixels"]["localization"]["absent"] == {"localization": "the encoder has no spatial"}
    assert set(encoders["mean_colour"]["reconstruction"]["metrics"][""]) == {"psnr", "ssim"}


def test_the_scenes_table_has_its_columns_and_a_picture(measured):
    _, workdir, other, encoders = measured
    columns = {name: set(entries["scenes"]["metrics"].get("", ())) for name, entries in encoders.items()}
    assert columns["trained"] == columns["untrained"] == set(COLUMNS)
    assert columns["mean_colour"] == {"psnr"}
    assert columns["pixels"] == columns["pca"] == set()
    row, localized = (encoders["trained"][task]["metrics"][""] for task in ("scenes", "localization"))
    assert 0 < row["prototype_usage"] <= 1
    assert localized == {name: row[name] for name in ("fg_ari", "best_iou")}  # one name for each number
    assert (workdir / "localization.png").stat().st_size > 1000
    table = (workdir / "evaluation.md").read_text().split("## ")[1].splitlines()
    assert table[0] == "scenes" and [c.strip() for c in table[2].split("|")[2:-1]] == list(COLUMNS)
    assert [row.split("|")[1].strip() for row in table[4:8]] == [
        "trained",
        "untrained",
        "mean_colour",
        str(other),
    ]


def test_sets_of_labels_are_scored_by_map(measured):
    *_, encoders = measured
    found = encoders["trained"]["linear"]
    assert set(found["metrics"]) == {"chosen", "mean_S", "concat_S", "cls", "cls_mean_U"}
    assert 0 < found["metrics"]["chosen"]["map"] < 1
    assert found["details"]["sets"]["mean_average_precision"] == found["metrics"]["chosen"]["map"]
    assert found["details"]["feature"] in found["metrics"]


def counting(monkeypatch):
    """Notes which tasks are measured of whom."""
    seen = []

    def note(name, task):
        def measure(bench, config):
            seen.append((bench.encoder.name, name))
            return task.measure(bench, config)

        return Task(measure, task.needs, task.reads, task.reducers, task.protocol, task.networks)

    monkeypatch.setattr(command, "TASKS", {name: note(name, task) for name, task in tasks.TASKS.items()})
    return seen


def test_finished_pairs_are_skipped_and_changed_ones_are_not(measured, monkeypatch, capsys):
    config, workdir, other, encoders = measured
    config, seen = copy.deepcopy(config), counting(monkeypatch)
    say_once.cache_clear()
    command.make_plan(config)  # as before training
    evaluate(config, workdir)
    shown, written = capsys.readouterr().out, (workdir / "evaluation.md").read_text()
    assert seen == [] and "trained: knn was measured before" in shown
    for network in ("pt_inception-2015-12-05-6726825d.pth", "alexnet-owt-7be5be79.pth"):  # are not there
        assert shown.count(network) == 1 and written.count(network) == 1
    assert json.loads((workdir / "evaluation.json").read_text())["encoders"] == encoders
    config.eval.update(tasks=("reconstruction", "knn"), beside=("pixels",), test_records=20)
    evaluate(config, workdir)
    assert seen == [("trained", "reconstruction"), ("trained", "knn"), ("pixels", "knn")]
    after = json.loads((workdir / "evaluation.json").read_text())["encoders"]
    assert after["trained"]["knn"]["settings"]["data"]["parts"]["test"]["records"] == 20
    assert after["trained"]["linear"] == encoders["trained"]["linear"]  # not asked for, so kept
    assert after[other] == encoders[other]


def test_replaced_images_maps_and_weights_are_measured_again(tmp_path, monkeypatch):
    """Files of the same name and size, too: label maps with two classes exchanged often are."""
    draw = np.random.default_rng(0)
    for kind, value in (("images", 200), ("maps", 1)):
        for name in ("a/0", "a/1", "b/0", "b/1"):
            path = tmp_path / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((40, 40, 3) if kind == "images" else (40, 40), value, np.uint8)
            Image.fromarray(pixels).save(path)
    write_checkpoints(tmp_path / "run", {1: 1})
    config = make_config(tasks=("with_labels", "with_maps"))
    config.data.update(source="folder", path=str(tmp_path / "images"))
    config.eval.update(
        train_split="", test_split="", holdout=0.5, mask_classes=2, masks=str(tmp_path / "maps")
    )
    seen, one = [], Result({"": {"number": 1.0}})

    def task(name, need):
        measure = lambda bench, config: seen.append(name) or one  # noqa: E731
        return Task(measure, (need,), ("sparse",), lambda data: {}, lambda config: {})

    both = {"with_labels": task("with_labels", "label"), "with_maps": task("with_maps", "map")}
    monkeypatch.setattr(command, "TASKS", both)

    def measured_again():
        seen.clear()
        evaluate(config, tmp_path / "run")
        return list(seen)

    def change(path):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([draw.integers(256)]))
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))

    assert measured_again() == ["with_labels", "with_maps"]
    assert measured_again() == []
    change(tmp_path / "images" / "b" / "1.png")
    assert measured_again() == ["with_labels", "with_maps"]
    change(tmp_path / "maps" / "a" / "0.png")
    assert measured_again() == ["with_maps"]
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    write_checkpoints(tmp_path / "run", {1: 2})
    assert measured_again() == ["with_labels", "with_maps"]
    assert measured_again() == []


@pytest.fixture
def pictures(tmp_path):
    """A folder of grey images: train and test with three images each of classes a and b, and one beside."""
    for part in ("train", "test"):
        for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2", "0"):
            path = tmp_path / "images" / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), "grey").save(path)
            (tmp_path / "maps" / part / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 40), 1).save(tmp_path / "maps" / part / f"{name}.png")
    config = make_config()
    config.data.update(source="folder", path=str(tmp_path / "images"))
    config.eval.update(train_records=0, test_records=0)
    return config, tmp_path


@pytest.mark.fast
@pytest.mark.parametrize(
    "task,changed,sentence",
    [
        (
            "knn",
            {},
            r"at least 10 train images with a class; there are 6, .*: raise config.eval.train_records",
        ),
        ("linear", dict(train_records=5), r"at least 6 train images with a class; there are 4"),
        ("linear", dict(test_records=1), r"at least 1 test images with a class; there are 0"),
        ("retrieval", dict(test_records=1), r"at least 2 test images with a class; there are 0"),
        ("factorization", dict(test_records=1), "at least 2 test images; there are 1"),
    ],
)
def test_too_few_images_are_refused_before_any_is_encoded(pictures, task, changed, sentence):
    config, _ = pictures
    config.eval.update(tasks=(task,), **changed)
    with pytest.raises(UserError, match=f"'{task}' needs {sentence}.*leave '{task}' out"):
        command.make_plan(config)


@pytest.mark.fast
def test_one_class_is_refused_and_sets_of_classes_are_not_labels(pictures, monkeypatch):
    config, folder = pictures
    for part in ("train", "test"):
        shutil.rmtree(folder / "images" / part / "b")
    config.eval.tasks = ("retrieval",)
    with pytest.raises(UserError, match=r"'retrieval' needs test images of two classes; .* of class 'a'"):
        command.make_plan(config)

    class Sets(FolderSource):
        """As TFDS sources with a sequence of labels: classes, but none that is the image's."""

        def __getitem__(self, index):
            record = super().__getitem__(index)
            del record["label"]
            return record | {"labels": np.int32([0])}

    monkeypatch.setattr(
        "sparse_vis.data.sources.make_source", lambda name, **how: Sets(f"{how['path']}/{how['split']}")
    )
    config.eval.tasks = ("factorization", "rate")
    data = command.make_plan(config).data
    assert data.sets and data.classes == 1 and not data.single
    config.eval.tasks = ("knn",)
    with pytest.raises(UserError, match="'knn' needs one class per image"):
        command.make_plan(config)


@pytest.mark.fast
def test_a_wrong_label_map_of_test_is_named_before_the_heads_are_trained(pictures):
    config, folder = pictures
    config.eval.update(tasks=("segmentation",), masks=str(folder / "maps"), mask_classes=2)
    Image.new("L", (40, 39), 1).save(folder / "maps" / "test" / "b" / "2.png")
    plan = command.make_plan(config)  # which looks at the first one only
    check_every_map(plan.data.parts["train"])
    with pytest.raises(UserError, match=r"b/2.png is uint8 of shape \(39, 40\)"):
        check_every_map(plan.data.parts["test"])
    (folder / "maps" / "test" / "b" / "2.png").unlink()
    with pytest.raises(UserError, match=r"b/2.png is missing"):
        command.make_plan(config)


@pytest.mark.fast
def test_images_that_cannot_be_used_are_refused_or_left_out(pictures, monkeypatch):
    config, folder = pictures
    config.eval.update(tasks=("factorization",))
    for name in ("train/0", "train/b/1", "test/a/2"):
        (folder / "images" / f"{name}.png").write_text("no image")
    with pytest.raises(
        UserError, match=r"'0\.png' .*, or pass --config\.data\.on_error=skip to leave it out\.$"
    ):
        command.make_plan(config)
    config.data.on_error = "skip"
    data = command.make_plan(config).data
    assert data.single and not data.sets
    (folder / "skipped.txt").write_text("old.png\tof the training\n")
    for again in (False, True):  # the second time nothing is added, nor decoded
        with monkeypatch.context() as patch:
            if again:
                patch.setattr("sparse_vis.evals.needs.decode", None)
            left = without_unusable(data, folder)
        names = [[part.source.names[i] for i in part.indices] for part in left.parts.values()]
        assert names == [
            ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/2.png"],
            ["0.png", "a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png"],
        ]
        assert [part["records"] for part in left.about["parts"].values()] == [5, 6]
        lines = (folder / "skipped.txt").read_text().splitlines()
        assert [line.split("\t")[0] for line in lines] == ["old.png", "0.png", "b/1.png", "a/2.png"]
    assert without_unusable(left, folder) is left
    Image.new("RGB", (40, 40), "grey").save(folder / "images" / "test" / "a" / "2.png")  # mended
    assert [len(part) for part in without_unusable(data, folder).parts.values()] == [5, 7]
    for path in (folder / "images" / "test").rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(
        UserError, match=r"^none of the 7 test images can be used; the first one: cannot decode '0\.png'"
    ):
        without_unusable(data, folder)


def test_an_evaluation_that_skips_measures_what_is_left(pictures):
    config, folder = pictures
    config.eval.update(tasks=("reconstruction",), batch=4)
    for part in ("train", "test"):
        for seed, path in enumerate(sorted((folder / "images" / part).rglob("*.png"))):
            noise = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(noise).save(path)
    (folder / "images" / "test" / "a" / "1.png").write_text("no image")
    found = []
    for on_error in ("skip", "stop"):
        workdir = folder / on_error
        write_checkpoints(workdir, {1: 1})
        config.data.on_error = on_error
        evaluate(config, workdir)
        entry = json.loads((workdir / "evaluation.json").read_text())["encoders"]["trained"]["reconstruction"]
        about = entry["settings"]["data"]["parts"]["test"]
        found.append((entry["metrics"], about["records"], about["images_sha256"]))
        (folder / "images" / "test" / "a" / "1.png").unlink(missing_ok=True)
    assert found[0] == found[1] and found[0][1] == 6
    assert (folder / "skip" / "skipped.txt").read_text().startswith("a/1.png\t")


@pytest.mark.fast
def test_top_5_of_five_classes_is_left_out_with_its_reason():
    rows = {"cls": {"accuracy": 0.5, "top5": 1.0}, "chosen": {"map": 0.2}}
    found = command._without_trivial(Result(rows, {"x": "y"}), 5)
    assert found.metrics == {"cls": {"accuracy": 0.5}, "chosen": {"map": 0.2}}
    assert found.absent == {"x": "y", "top5": "with 5 classes, the top five are all of them"}
    assert command._without_trivial(Result(rows), 6) == Result(rows)
    assert command._without_trivial(Result({"": {"psnr": 9}}), 0) == Result({"": {"psnr": 9}})


@pytest.mark.fast
def test_models_of_the_same_parameters_are_told_apart():
    config = tiny_config()
    known = checksums(build_model(config), {})
    assert checksums(build_model(config), {}) == known
    config.model.spatial_temperature = 0.1
    assert checksums(build_model(config), {}) != known


def test_what_is_finished_survives_a_later_failure(measured, tmp_path, monkeypatch):
    config = copy.deepcopy(measured[0])
    config.eval.update(tasks=("knn", "retrieval"), beside=())
    write_checkpoints(tmp_path, {2: 4})

    def fail(bench, config):
        raise RuntimeError("power cut")

    failing = Task(fail, ("label",), ("sparse",), lambda data: {}, lambda e: {})
    monkeypatch.setattr(command, "TASKS", {**tasks.TASKS, "retrieval": failing})
    with pytest.raises(RuntimeError, match="power cut"):
        evaluate(config, tmp_path)
    assert list(Results(tmp_path).encoders["trained"]) == ["knn"]
    assert [p.name for p in tmp_path.glob("*.partial")] == []
    seen = counting(monkeypatch)
    evaluate(config, tmp_path)
    assert seen == [("trained", "retrieval")]


@pytest.mark.fast
@pytest.mark.parametrize("process,tasks", [(0, ("knn",)), (1, ("knn",)), (0, ()), (1, ())])
@pytest.mark.parametrize("mode", ["evaluate", "train"])
def test_of_several_processes_all_evaluate_and_then_leave(monkeypatch, tmp_path, process, tasks, mode):
    done = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: done.append("left"))
    monkeypatch.setattr(command, "make_plan", lambda config: done.append("plan"))
    monkeypatch.setattr(command, "check_classifier", lambda *_: None)
    monkeypatch.setattr(command, "evaluate", lambda *_: done.append("evaluate"))
    monkeypatch.setattr(main, "train", lambda *_: done.append("train"))
    monkeypatch.setattr(main, "held", lambda *_: contextlib.nullcontext())  # which waits for the others
    with StopSignal() as stop:
        if mode == "evaluate" and not tasks:
            with pytest.raises(UserError, match="needs tasks"):
                main.run(make_config(tasks=tasks), tmp_path, mode, stop)
            return
        main.run(make_config(tasks=tasks), tmp_path, mode, stop)
    first = [*(["plan"] if tasks else []), "train"] if mode == "train" else []
    assert done == [*first, *(["plan", "evaluate"] if tasks else []), "left"]


def test_bad_input_is_named_before_anything_is_read(tmp_path):
    def refused(match, **changed):
        with pytest.raises(UserError, match=match) as error:
            config = make_config(**changed)
            evaluate(config, tmp_path / "nothing")
        assert "\n" not in str(error.value)

    refused("'lineal', which is not a task; use linear", tasks=("lineal",))
    refused("not a task; use scenes or knn or linear", tasks=("zzz",))
    refused("'runs/absent', which is neither a path nor", tasks=("knn",), beside=("runs/absent",))
    refused("names '', which is neither a path nor", tasks=("knn",), beside=("",))
    (tmp_path / "file.txt").write_text("no weights")
    with pytest.raises(UserError, match=r"file.txt is not a released .safetensors file"):
        command.make_plan(make_config(tasks=("knn",), beside=(str(tmp_path / "file.txt"),)))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    refused("empty holds no complete checkpoint", tasks=("knn",), beside=(str(tmp_path / "empty"),))
    refused("holds no checkpoint and config.init names no weights", tasks=("knn",))
    refused(r"holdout=0 does not fit .*train_split=test and .*test_split=test;", train_split="test")
    refused("eval.holdout=1.5", train_split="test", holdout=1.5)
    refused("give each name once", tasks=("knn", "knn"))
    for name, kind, least in (("linear", "train", 6), ("retrieval", "test", 2)):
        few = {"tasks": (name,), f"{kind}_records": least - 1}
        refused(rf"'{name}' needs at least {least} {kind} images.*raise config\.eval\.{kind}_records", **few)
    refused("scenes have no split 'train2'.*config.eval.train_split", tasks=("knn",), train_split="train2")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.fast
def test_the_model_of_the_package_can_stand_beside(monkeypatch):
    monkeypatch.chdir("/")
    config = make_config()
    config.model.image_size = 48  # patches of 6
    check_beside("scenes-tiny", config)
    found = beside_encoder("scenes-tiny", config, None, open_data(config).parts["train"])
    assert found.name == "scenes-tiny" and "sparse" in found.gives


def test_another_architecture_is_refused(measured):
    config = copy.deepcopy(measured[0])
    config.model.tokens = TOKENS + 1
    with pytest.raises(UserError, match="was trained with another architecture"):
        evaluate(config, measured[1])
    assert config.model.patch == PATCH


@pytest.mark.fast
def test_a_file_of_another_form_is_written_anew(tmp_path, capsys):
    path = tmp_path / "evaluation.json"
    path.write_text('{"trained": {"psnr": 3}}')
    assert Results(tmp_path).encoders == {}
    assert "was written by another version" in capsys.readouterr().out
    results = Results(tmp_path)
    results.add("e", "t", {"k": (1, 2)}, Result({"": {"x": 0.5, "y": float("nan")}}), {})
    again = Results(pathlib.Path(tmp_path))
    assert again.metrics("e", "t") == {"": {"x": 0.5, "y": None}}
    assert again.finished("e", "t", {"k": [1, 2]}) and not again.finished("e", "t", {"k": [1]})
    for text in ("{", "[]", path.read_text().replace('"x": 0.5', '"x": 0.7')):
        path.write_text(text)
        with pytest.raises(UserError, match=r"evaluation\.json cannot be used .*delete it to measure"):
            Results(tmp_path)


@pytest.mark.fast
def test_tables():
    assert markdown([["a", "of"], ["1", "long"]]) == ["| a |   of |", "|--:|-----:|", "| 1 | long |"]
    assert [cell(x) for x in (None, 0.12345, 1234.0, 1, 23.4567)] == ["-", "0.1235", "1234", "1", "23.46"]
    assert plain({"a": (np.int64(1), float("inf"))}) == {"a": [1, None]}


def test_a_folder_with_a_share_held_out_and_label_maps(tmp_path):
    """Every task that a folder of classes allows, and a refusal of those that it does not."""
    rng = np.random.default_rng(0)
    for c, name in enumerate(("red", "green")):
        for i in range(20):
            which = rng.integers(0, 2, (2, 3)).astype(np.uint8).repeat(24, axis=0).repeat(24, axis=1)
            pixels = np.zeros((48, 72, 3), np.uint8)
            pixels[..., c] = 80 + 100 * which + rng.integers(0, 20)
            for kind, array in (("images", pixels), ("maps", which)):
                (tmp_path / kind / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / kind / name / f"{i}.png")
    write_checkpoints(tmp_path / "run", {1: 3})
    config = tiny_config()
    config.data.update(source="folder", path=str(tmp_path / "images"), canvas=80, threads=2)
    lacking = ("scenes", "localization", "objects", "classifier")
    names = tuple(name for name in tasks.TASKS if name not in lacking)
    config.eval.update(
        tasks=names, beside=("pixels",), train_split="", test_split="", holdout=0.25, batch=8,
        masks=str(tmp_path / "maps"), mask_classes=2, train_records=0, test_records=0,
    )  # fmt: skip
    config.eval.linear_published.update(epochs=15, learning_rate=0.05, batch_size=15)
    config.eval.segmentation.update(epochs=2, batch=10)
    config.eval.reconstruction_probe.update(epochs=2, width=16, layers=1, heads=2, mlp_dim=32, batch_size=15)
    settings.check(config)
    evaluate(config, tmp_path / "run")
    found = Results(tmp_path / "run").encoders
    parts = found["trained"]["knn"]["settings"]["data"]["parts"]
    assert {name: part["records"] for name, part in parts.items()} == {"train": 30, "test": 10}
    assert found["pixels"]["knn"]["metrics"]["mean_U"]["k10"] == 1  # red and green
    assert found["pixels"]["linear_published"]["metrics"]["mean_U"]["accuracy"] == 1
    assert found["pixels"]["linear"]["metrics"]["chosen"]["accuracy"] == 1
    ours = {name: set(entry["metrics"]) for name, entry in found["trained"].items()}
    assert ours["linear_published"] == {"mean_S"}
    assert ours["reconstruction_probe"] == {"Z, random crops", "Z, centre"}
    assert ours["segmentation"] == {
        f"{x}, {head}" for x in ("U", "Z", "SL") for head in ("published", "linear")
    }
    assert ours["reconstruction"] == {""} and "class in L" in ours["factorization"]
    protocol = found["trained"]["linear_published"]["settings"]["protocol"]
    assert protocol["departures"]["dtype"] == {"released": "bfloat16", "here": "float32"}
    assert protocol["clip"] == 5.0 and protocol["schedule"] == "constant" and protocol["validation"] == 0.1
    losses = found["trained"]["reconstruction_probe"]["details"]["losses"]
    assert len(losses) == 2 and losses[1] < losses[0]
    for name, need in (("localization", "true instance masks"), ("scenes", "true instance masks")):
        config.eval.tasks = (name,)
        with pytest.raises(UserError, match=f"'{name}' needs {need}.*FolderSource.*leave '{name}' out"):
            command.make_plan(config)
