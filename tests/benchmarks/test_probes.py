"""Benchmarks of probes and of the search for tokens: the same neighbours for all, and numbers kept."""

import json
import re
import time

import numpy as np
import pytest

from benchmarks.speed import probes, token_search
from sparse_vis.runtime.errors import UserError

WORDS = "--rows=600", "--queries=60", "--fitted=200", "--width=8", "--classes=5"


def start(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["probes", *WORDS, *arguments])
    probes.main()


def test_rows_are_measured_and_kept(monkeypatch, tmp_path, capsys):
    start(monkeypatch, "--only=kNN: scikit-learn", f"--json={tmp_path}/probes.json")
    found = json.loads((tmp_path / "probes.json").read_text())
    (near,) = found["found"]
    assert found["rows"] == 600 and 0.2 < near["accuracy"] <= 1 and near["memory"] > 2**24
    assert near["rows_per_second"] == pytest.approx(60 * 600 / near["seconds"])
    assert "| kNN: scikit-learn |" in capsys.readouterr().out
    probes.write_features(tmp_path, 600, 60, 8, 5)
    linear = probes.one_row("linear: scikit-learn", tmp_path, 200, 5)
    assert "accuracy" not in linear and 200 <= linear["rows_per_second"] * linear["seconds"] <= 2001


@pytest.mark.fast
def test_all_searches_vote_alike(tmp_path):
    probes.write_features(tmp_path, 600, 60, 8, 5)
    x, y, queries = (np.load(tmp_path / f"{name}.npy") for name in ("train_x", "train_y", "test_x"))
    cosine = probes.unit(queries) @ probes.unit(x).T
    order = np.argsort(-cosine, axis=1)[:, : probes.K]
    votes = np.exp(np.take_along_axis(cosine, order, 1) / 0.07)[:, :, None] * np.eye(5)[y[order]]
    expected = votes.sum(1).argmax(1)
    for name in ("ours_nearest", "sklearn_nearest"):
        np.testing.assert_array_equal(getattr(probes, name)(x, y, queries, 5), expected)


@pytest.mark.fast
def test_memory_is_what_the_process_holds_without_pages_of_files(tmp_path):
    before, path = probes.anonymous(), tmp_path / "x.npy"
    np.save(path, np.ones(2**25, np.float32))  # 128 MB

    def held():
        array = np.ones(2**24)  # as many bytes
        time.sleep(0.1)
        return array.sum()

    assert probes.largest_during(held)[2] - before > 100 * 2**20
    mapped = np.load(path, mmap_mode="r")
    assert probes.largest_during(lambda: mapped.sum())[2] - before < 50 * 2**20


@pytest.mark.fast
def test_an_unknown_row_is_one_sentence(monkeypatch):
    with pytest.raises(UserError, match="--only=kNN: other is unknown; choose from kNN: sparse_vis, "):
        start(monkeypatch, "--only=kNN: other")


@pytest.mark.fast
def test_searches_are_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(token_search, "SHARD", 20)
    monkeypatch.setattr(token_search.tempfile, "tempdir", str(tmp_path))
    words = "--images=50", "--tokens=3", "--width=8", "--searches=4"
    monkeypatch.setattr("sys.argv", ["token_search", *words])
    token_search.main()
    said = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"4 searches of 50 x 3 tokens of 8 numbers: median \d+ ms, slowest \d+ ms", said)
    manifest = token_search.write_extraction(tmp_path, 50, 3, 8)
    index = token_search.TokenIndex(tmp_path, manifest)
    images, tokens, cosines = index.nearest(np.arange(8.0), 50)
    expected = index.tokens @ np.arange(8.0) / np.linalg.norm(np.arange(8.0))
    np.testing.assert_array_equal(tokens, expected.argmax(1)[images])
    np.testing.assert_allclose(cosines, np.sort(expected.max(1))[::-1], rtol=1e-6)
