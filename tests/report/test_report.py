"""The report's parts against other ways to them; its command line on runs, released files, bad input."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax, softmax

import sparse_vis
from sparse_vis.config.defaults import default_config
from sparse_vis.data.scenes import SceneSource, SceneSpec
from sparse_vis.data.sources import FolderSource, open_input
from sparse_vis.data.tfds import TfdsSource
from sparse_vis.evals.results import Results
from sparse_vis.evals.task import Result
from sparse_vis.ops.token_maps import move_token, with_map
from sparse_vis.report import report as tool
from sparse_vis.report.gallery import (
    decode,
    edited,
    gallery_first,
    make_pages,
    make_pairs,
    nearest_tokens,
    partners,
    sideways,
)
from sparse_vis.report.images import UNKNOWN, encode_all, name_images, read_images
from sparse_vis.report.report import left_out
from sparse_vis.report.tables import evaluation_tables, health_table
from sparse_vis.runtime.errors import UserError, command_line
from tests.tiny_checkpoint import SIZE, TOKENS, tiny_config, write_checkpoints

GOLDEN = Path(__file__).parent.parent / "golden"
rng = np.random.default_rng(0)


def write_run(workdir: Path) -> None:
    """A checkpoint with the files that training and evaluations leave beside it."""
    write_checkpoints(workdir, {7: 1})
    health = {"health/S_rank_in_image": 1.01, "health/L_coverage": 0.9}
    rows = [{"step": s, "time": 1.0, "total": 90.0 / s, "reconstruction": 0.5, **health} for s in (1, 5, 7)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = Results(workdir)
    for encoder, accuracy in (("trained", 0.875), ("pixels", 0.3125)):
        results.add(encoder, "knn", {}, Result({"cls": {"k20": accuracy}}), {"from": None})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("a.png", (90, 60)), ("b.jpg", (60, 90)), ("c.png", (40, 40))):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(folder / name)
    return folder


def run(monkeypatch, capsys, **flags):
    """The command line: (exit message or None, standard output)."""
    monkeypatch.setattr(sys, "argv", ["report", *(f"--{name}={value}" for name, value in flags.items())])
    try:
        command_line(tool.main)
    except SystemExit as end:
        return end.code, capsys.readouterr().out
    return None, capsys.readouterr().out


@pytest.mark.fast
def test_removing_a_token_is_a_softmax_over_the_others():
    logits = rng.normal(size=(6, 4)).astype(np.float32) * 5
    found = with_map(softmax(logits, axis=1), 1, np.zeros(6, np.float32))
    assert (found[:, 1] == 0).all()
    np.testing.assert_allclose(found[:, [0, 2, 3]], softmax(logits[:, [0, 2, 3]], axis=1), rtol=2e-5)
    alone = with_map(np.float32([[0, 1, 0]]), 1, np.zeros(1, np.float32))  # nobody else was there
    np.testing.assert_array_equal(alone, [[0.5, 0, 0.5]])


@pytest.mark.fast
def test_a_moved_map_goes_where_there_is_room_and_rows_still_sum_to_one():
    L = np.float32([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.2, 0.8]] * 2)
    step = sideways(L, 0, (2, 4))
    assert step == 1
    column = move_token(L, 0, (0, step), (2, 4))[:, 0]
    np.testing.assert_array_equal(column.reshape(2, 4), np.float32([[0, 0.9, 0.2, 0.2]] * 2))
    mirrored = L.reshape(2, 4, 2)[:, ::-1].reshape(8, 2)
    step = sideways(mirrored, 0, (2, 4))
    assert step == -1
    column = move_token(mirrored, 0, (0, step), (2, 4))[:, 0]
    np.testing.assert_array_equal(column.reshape(2, 4), np.float32([[0.2, 0.2, 0.9, 0]] * 2))
    L = softmax(rng.normal(size=(8, 3)), axis=1).astype(np.float32)
    moved = move_token(L, 2, (0, sideways(L, 2, (2, 4))), (2, 4))
    np.testing.assert_allclose(moved.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(moved[:, 0] / moved[:, 1], L[:, 0] / L[:, 1], rtol=1e-4)


@pytest.mark.fast
def test_a_swap_changes_what_and_not_where():
    S, other = rng.normal(size=(2, 3, 5)).astype(np.float32)
    L = softmax(rng.normal(size=(4, 3)), axis=1).astype(np.float32)
    found = edited(S, L, other, (2, 2))["swapped"]
    np.testing.assert_allclose(found[1] - L @ S, np.outer(L[:, 1], other[1] - S[1]), atol=1e-5)


def test_images_are_paired_and_their_tokens_matched():
    assert partners(4) == [1, 0, 3, 2] and partners(3) == [1, 0, 1] and partners(1) == [None]
    S = rng.normal(size=(1, 5, 8)).astype(np.float32)
    order = np.array([3, 0, 4, 1, 2])
    pairs = make_pairs(np.concatenate([S, S[:, order]]), np.zeros((2, 6, 5), np.float32))
    assert [pair.other for pair in pairs] == ["B", "A"]
    np.testing.assert_array_equal(order[pairs[0].match], np.arange(5))
    np.testing.assert_array_equal(pairs[1].partner, S[0, order])


def test_encoding_decoding_and_prototypes_agree_with_the_notebook_api(workdir):
    model, params = sparse_vis.load(workdir)
    images = rng.integers(0, 256, (18, SIZE, SIZE, 3), dtype=np.uint8)  # more than a batch
    out = sparse_vis.encode(model, params, images)
    found = encode_all(model, params, images, 0.12)
    np.testing.assert_allclose(found.L, out.spatial, atol=1e-5)
    pixels = decode(model, params, np.asarray(out.lowrank), (SIZE, SIZE))
    np.testing.assert_allclose(pixels, sparse_vis.reconstruct(model, params, out), atol=1e-5)

    logits = found.embedding @ np.asarray(params["sparse_head"]["prototypes"]) / 0.12
    np.testing.assert_array_equal(found.winner, logits.argmax(axis=-1))
    prototypes = np.asarray(params["sparse_head"]["prototypes"])
    pages = make_pages(found, prototypes, 0.12, pages=3, regions=2)
    wins = np.bincount(found.winner.ravel(), minlength=16)
    assert [page.wins for page in pages] == sorted(wins, reverse=True)[: len(pages)]
    p = np.exp(log_softmax(logits, axis=-1))[..., pages[0].number]  # (18, r)
    votes = np.stack([found.L[i] @ p[i] for i in range(18)])
    assert pages[0].images == list(np.argsort(-votes.max(axis=1))[:2])
    np.testing.assert_allclose(pages[0].maps[0], votes[pages[0].images[0]], rtol=1e-3, atol=1e-6)


@pytest.mark.fast
def test_tables_have_every_encoder_and_health_its_words(workdir):
    (table,) = evaluation_tables(Results(workdir).encoders)
    assert (table.title, table.head) == ("knn", ["encoder", "of", "k20"])
    assert table.rows == [["trained", "cls", "0.875"], ["pixels", "cls", "0.3125"]]
    metrics = {"health/L_coverage": (np.array([50, 100]), np.array([0.9, 0.5]))}
    health = health_table({"L_coverage": 0.75, "S_rank_in_image": 1.02}, metrics, tokens=8)
    assert health.head == ["measure", "these images", "training, step 100", "what"]
    assert ["L_coverage", "0.75", "0.5"] in [row[:3] for row in health.rows]
    assert health.notes == [
        "on these images: the tokens of an image are nearly alike (S_rank_in_image 1). docs/training.md "
        "names the remedies."
    ]
    assert health_table({"L_coverage": 0.75}, {}, tokens=8).notes == ["Nothing looks like collapse."]


def test_a_report_of_a_run_and_then_of_the_checkpoint_alone(workdir, tmp_path, monkeypatch, capsys):
    output = tmp_path / "report.html"
    code, printed = run(monkeypatch, capsys, checkpoint=workdir, output=output, gallery=2, voters=17)
    assert code is None
    assert re.search(r"^encoding: 17/17 images  \S+ images/s  ETA 0:00:00$", printed, re.M)
    assert re.search(r"^editing: 2/2 images", printed, re.M)
    page = output.read_text()
    assert page.count("<article") == 2 and page.count('data-token="') == 2 * TOKENS
    for word in (
        "Held-out images (the model was trained on split &#39;train&#39;): scenes, split &#39;test&#39;",
        "0.3125",
        "the tokens of an image are nearly alike",
        "step 7",
    ):
        assert word in page
    assert "Absent" not in page and not re.search(r'(src|href)="(?!data:|#)', page)
    bare = tmp_path / "bare"
    shutil.copytree(workdir / "checkpoints", bare / "checkpoints")
    code, _ = run(
        monkeypatch, capsys, checkpoint=bare, output=output, gallery=1, voters=1
    )  # replaces its own
    assert code is None
    page = output.read_text()
    assert (
        f"there is no {bare / 'metrics.jsonl'}" in page and f"there is no {bare / 'evaluation.json'}" in page
    )
    assert "removed" in page and 'value="swapped"' not in page  # a single image has no partner
    assert [path.name for path in tmp_path.glob("report*")] == ["report.html"]


def test_a_report_of_the_model_of_the_package_looks_at_scenes(tmp_path, monkeypatch, capsys):
    output = tmp_path / "report.html"
    code, _ = run(monkeypatch, capsys, checkpoint="scenes-tiny", output=output, gallery=2, voters=2)
    page = output.read_text()
    assert (
        code is None
        and "Held-out images" in page
        and "scenes, split &#39;test&#39;" in page
        and page.count("<article") == 2
    )
    shown = re.findall(r"PSNR (\d+\.\d) dB", page)
    assert float(shown[0]) > 15, "scenes that it was not trained for are reconstructed worse"


def test_a_released_vq_file_without_its_tokenizer_on_a_grid_that_is_not_square(
    tmp_path, photos, monkeypatch, capsys
):
    for name in ("config.json", "vq_p16.safetensors"):
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    flags = dict(checkpoint=tmp_path / "vq_p16.safetensors", output=tmp_path / "report.html", size="40x66")
    code, _ = run(monkeypatch, capsys, **flags)
    assert code == "error: a released file does not say where its images are; give --images=FOLDER."
    code, _ = run(monkeypatch, capsys, **flags, images=photos)
    assert code is None
    page = (tmp_path / "report.html").read_text()
    assert "reconstructs through a VQ tokenizer, whose weights were not found; give --tokenizer=FILE" in page
    assert "a released file comes without evaluation.json" in page
    assert f"{UNKNOWN} (a released file does not say" in page and "eld-out" not in page
    winners = [json.loads(found) for found in re.findall(r"data-winners=\"(\[\[.*?\]\])\"", page)]
    assert np.shape(winners) == (3, 2, 4) and page.count("--aspect: 2.0") == 3  # 32 x 64 px are whole patches
    assert 'class="edit' not in page
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "aa.png").write_text("no image")
    flags |= {"images": tmp_path / "in", "tokenizer": GOLDEN / "vq_p16.vqgan.safetensors", "gallery": 2}
    code, printed = run(monkeypatch, capsys, **flags, **{"on-error": "skip"})
    assert code is None and "skipped: aa.png\tcannot decode" in printed
    page = (tmp_path / "report.html").read_text()
    assert "1 skipped, which cannot be used: aa.png" in page
    assert 'class="edit swapped' in page and "whose weights were not found" not in page


@pytest.mark.fast
def test_the_gallery_is_spread_over_the_classes():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    order = gallery_first(labels, 5)
    assert sorted(order) == list(range(10)) and labels[order[:5]].tolist() == [0, 0, 1, 1, 2]
    assert gallery_first(labels, 3)[:3].tolist() == [0, 6, 9]
    assert gallery_first(np.full(10, -1), 5)[:5].tolist() == [0, 2, 4, 6, 8]
    assert gallery_first(np.full(2, -1), 5).tolist() == [0, 1]


@pytest.mark.fast
def test_images_that_cannot_be_used_are_refused_or_left_out_and_listed(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "aa.png").write_text("no image")
    source = FolderSource(str(tmp_path / "in"))
    with pytest.raises(UserError, match=r"'aa\.png' .*, or pass --on-error=skip\.$"):
        read_images(source, np.arange(4), (8, 8), "stop")
    found = read_images(source, np.arange(4), (8, 8), "skip")
    assert found.names == ["a.png", "b.jpg", "c.png"] and found.rows.tolist() == [0, 2, 3]
    alone = read_images(FolderSource(str(photos)), np.arange(3), (8, 8), "stop")
    np.testing.assert_array_equal(found.pixels, alone.pixels)
    assert left_out(found.skips) == "; 1 skipped, which cannot be used: aa.png" and left_out([]) == ""
    with pytest.raises(
        UserError, match=r"^none of the 1 images can be used; the first one: cannot decode 'aa\.png'"
    ):
        read_images(source, np.array([1]), (8, 8), "skip")


@pytest.mark.fast
@pytest.mark.fast
def test_a_page_with_a_name_that_is_not_utf8_ends_as_any_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "make_contents", lambda arguments: None)
    monkeypatch.setattr(tool, "render", lambda contents: "<p>Mu\udcf1oz")
    status, out = run(monkeypatch, capsys, checkpoint="run", output=tmp_path / "r.html")
    assert status is None and out.startswith(f"wrote {tmp_path / 'r.html'}, 0.0 MB")
    assert (tmp_path / "r.html").read_bytes() == b"<p>Mu\\udcf1oz"


def test_what_is_known_of_images_is_said(tmp_path, photos):
    """Training folder, part of it, linked and copied images, others; packed, scenes; another beginning."""
    (tmp_path / "train" / "cats").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "c.png"):
        shutil.copy(photos / name, tmp_path / "train" / "cats" / name)
    config = tiny_config()
    config.data.update(source="folder", path=str(tmp_path), split="train")

    def known(folder, config=config):
        source = FolderSource(str(folder))
        return name_images(config, source, range(len(source)))

    assert known(tmp_path / "train") == known(tmp_path / "train" / "cats") == "Training images"
    (tmp_path / "link").symlink_to(tmp_path / "train")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "x.png").symlink_to(tmp_path / "train" / "cats" / "a.png")
    assert known(tmp_path / "link") == known(tmp_path / "links") == known(photos) == "Training images"
    other = tmp_path / "other"
    other.mkdir()
    for number, name in enumerate(("a.png", "new.png")):  # a name that is in training, with other content
        Image.fromarray(rng.integers(0, 256, (9, 9 + number, 3), dtype=np.uint8)).save(other / name)
    held_out = known(other)
    assert held_out.startswith("Held-out images (none of them, by name and content, is in")
    assert "weights" not in held_out
    shutil.copy(photos / "b.jpg", other / "b.jpg")
    assert known(other) == "1 of 3 are training images"
    (other / "b.jpg").unlink()
    config.init = "mae.pth"
    assert "what the weights of mae.pth had seen is not known" in known(other)
    config.data.path = str(tmp_path / "gone")
    assert known(other).startswith(UNKNOWN) and "gone/train" in known(other)
    pictures = tmp_path / "pictures"
    for kind, file in (("photographs", "a.jpg"), ("objects", "food/a.png")):
        (pictures / kind / "train" / file).parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(
            pictures / kind / "train" / file
        )
    config.data.update(source="pictures", path=str(pictures))
    assert known(pictures / "photographs") == known(pictures / "objects") == "Training images"
    assert known(other).startswith("Held-out images") and "objects/train" in known(other)
    (tmp_path / "list.txt").write_text("train/cats/a.png\nother/new.png\n")
    table = open_input(f"table:{tmp_path}/list.txt")
    config.data.update(source="folder", path=str(tmp_path), split="train")
    assert name_images(config, table, range(2)) == "1 of 2 are training images"
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(photos / "a.png", "a.png")
    tars = open_input(f"webdataset:{tmp_path}/t.tar")
    unknown = name_images(config, tars, range(1))
    assert unknown == f"{UNKNOWN} (the model was trained on folder)"
    config.data.update(source=f"webdataset:{tmp_path}/t.tar", path="", split="")
    assert name_images(config, tars, range(1)) == "Training images"
    config.data.update(source="scenes", split="train")
    assert known(other).startswith("Held-out images (the model was trained on generated scenes")
    scenes = SceneSource(SceneSpec(), split="train", seed=0)
    assert name_images(config, scenes, range(3)) == "Training images"
    assert name_images(None, scenes, range(3)).startswith(UNKNOWN)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"checkpoint": "nothing"}, "checkpoint nothing does not exist; give a workdir"),
        ({"checkpoint": "pictures-tiny"}, "does not say where its images are; give --images=FOLDER."),
        ({"output": "{tmp}"}, "is a folder; give the name of an HTML file"),
        ({"output": "{tmp}/no/report.html"}, "no/report.html does not exist; make it or give another"),
        ({"output": "{tmp}/mine.html"}, "mine.html exists and is not a report; give another name"),
        ({"gallery": 0}, "argument --gallery: '0' is not a whole number of at least 1; "),
        ({"images": "nowhere"}, "folder 'nowhere' does not exist; give --images"),
        (
            {"images": "table:no.csv"},
            "table 'no.csv' cannot be read (No such file or directory); correct --images",
        ),
        ({"images": "nowhere", "split": "x"}, "--split=x is only for an --images that begins with tfds: or"),
        ({"split": "x"}, "--split=x belongs to --images; give both, or leave it out."),
        (
            {"size": "4x99"},
            "--size=4x99 is smaller than a patch of the model (8 pixels); enlarge it.",
        ),
        ({"size": "48x8193"}, "'48x8193' is not a size; give HEIGHTxWIDTH in pixels, at most 8192 each"),
    ],
)
def test_bad_input_is_named_before_any_work(flags, message, workdir, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.html").write_text("<html>not a report</html>")
    (tmp_path / "old.html").write_text('<meta name="generator" content="sparse_vis.report">old')
    flags = {"checkpoint": workdir, "output": tmp_path / "old.html", **flags}
    flags = {name: str(value).replace("{tmp}", str(tmp_path)) for name, value in flags.items()}
    code, printed = run(monkeypatch, capsys, **flags)
    assert code.startswith("error: ") and message in code and "encoded" not in printed
    assert (tmp_path / "old.html").read_text().endswith("old")
    assert (tmp_path / "mine.html").read_text() == "<html>not a report</html>"


@pytest.mark.fast
def test_the_nearest_token_of_every_other_image_is_found():
    S = np.zeros((4, 2, 3), np.float32)
    S[0] = [[1, 0, 0], [0, 1, 0]]
    S[1] = [[0, 0, 2], [3, 3, 0]]  # cosine sqrt(1/2) with the query
    S[2] = [[5, 0, 0], [0, 0, 1]]
    S[3] = [[-1, 0, 0], [0, 0, 0]]
    found = nearest_tokens(S, 0, 0, 2)
    assert [near[:2] for near in found] == [(2, 0), (1, 1)]
    np.testing.assert_allclose([cosine for *_, cosine in found], [1, np.sqrt(0.5)], rtol=1e-6)
    assert [image for image, *_ in nearest_tokens(S, 2, 0, 9)] == [0, 1, 3]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("split", "trained", "other", "words"),
    [
        ("train", "train", "mnist", "Training images"),
        ("train", "train", "emnist", "Held-out images"),
        ("test", "train[:90%]", "mnist", "Held-out images"),
        ("test", "all", "mnist", UNKNOWN),
        ("train[90%:]", "train[:90%]", "mnist", UNKNOWN),
    ],
)
def test_splits_of_a_data_set_are_held_out_if_they_certainly_are(monkeypatch, split, trained, other, words):
    source, training = (TfdsSource.__new__(TfdsSource) for _ in range(2))
    source.name, training.name = other, "mnist"
    source.split, training.split, source.classes = split, trained, ()
    monkeypatch.setattr("sparse_vis.report.images.build_source", lambda *_: training)
    config = default_config()
    config.data.source = "tfds:mnist"
    assert name_images(config, source, np.arange(2)).startswith(words)
