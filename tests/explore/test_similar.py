"""Similar tokens of an extraction: exact, with the places they look at; and what is refused."""

from __future__ import annotations

import base64
import errno
import io
import json
import shutil
import signal
import sys

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import sparse_vis
from sparse_vis.explore import explore as tool
from sparse_vis.explore import token_index
from sparse_vis.explore.server import make_app
from sparse_vis.explore.shelf import Shelf
from sparse_vis.runtime.errors import UserError
from sparse_vis.viz import overlays
from tests.commands.test_extract import prepared
from tests.explore.page import NAMES, SIDE, opened, picture
from tests.tiny_checkpoint import PATCH, SIZE, TOKENS


def features(extracted, loaded):
    squares = np.stack([prepared(extracted / "images" / name) for name in NAMES])
    found = sparse_vis.encode(*loaded, squares)
    return squares, np.asarray(found.sparse), np.asarray(found.spatial)


@pytest.mark.parametrize("block", [2, 1024])
def test_the_nearest_tokens_are_those_of_all_pairs(extracted, loaded, monkeypatch, block):
    monkeypatch.setattr(token_index, "BLOCK", block)
    for file in (extracted / "features").glob(".tokens-*"):
        file.unlink()
    _, S, _ = features(extracted, loaded)
    query = S[4, 2] + 0.1
    cosines = S @ query / np.linalg.norm(S, axis=-1) / np.linalg.norm(query)
    order = np.argsort(-cosines.max(axis=1))[:3]
    found = opened(extracted, loaded).search(query, 3)
    assert [one["name"] for one in found] == [NAMES[i] for i in order]
    assert [one["token"] for one in found] == cosines.argmax(axis=1)[order].tolist()
    assert [one["cosine"] for one in found] == pytest.approx(cosines.max(axis=1)[order], abs=1e-5)


def test_a_token_is_shown_where_it_looks(extracted, loaded):
    squares, S, L = features(extracted, loaded)
    first = opened(extracted, loaded).search(S[5, 1], 1)[0]
    assert (first["name"], first["token"]) == ("5.png", 1) and first["cosine"] == pytest.approx(1)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(first["picture"]))))
    grid = (SIZE // PATCH,) * 2
    expected = overlays.lay_over(squares[5], overlays.token_overlay(L[5], 1, grid))
    assert np.abs(shown.astype(int) - expected).max() <= 1


def test_the_server_searches_for_the_edited_token(extracted, loaded):
    _, S, _ = features(extracted, loaded)
    edits = [{"kind": "replace", "token": 0, "vector": S[3, 2].tolist(), "amount": 1}]

    def client(gallery):
        app = make_app(Shelf(*loaded, max_pixels=10**6, gallery=gallery), "tiny", "t", 8765)
        return TestClient(app, base_url="http://127.0.0.1:8765", headers={"X-Token": "t"})

    with_gallery, without = client(opened(extracted, loaded)), client(None)
    assert 'id="similar"' in with_gallery.get("/").text and 'id="similar"' not in without.get("/").text
    key = with_gallery.post("/picture", content=picture()[0]).json()["picture"]
    without.post("/picture", content=picture()[0])
    asked = {"picture": key, "side": SIDE, "edits": edits}
    found = with_gallery.post("/similar/0", json=asked).json()
    assert len(found) == len(NAMES) and (found[0]["name"], found[0]["token"]) == ("3.png", 2)
    for answer in (
        without.post("/similar/0", json=asked),
        with_gallery.post(f"/similar/{TOKENS}", json=asked),
    ):
        assert answer.status_code == 400 and "start explore with --images" in answer.json()["error"]


def test_extractions_that_cannot_be_searched_are_refused(extracted, loaded, workdir, tmp_path):
    with pytest.raises(UserError, match=r"absent is not an extraction \(.*\); run extract first"):
        opened(extracted, loaded, folder=tmp_path / "absent")
    other = {**loaded[1], "decoder": {"x": np.ones(3, np.float32)}}
    with pytest.raises(UserError, match="is of another model; give the --checkpoint of that extraction"):
        opened(extracted, (loaded[0], other))
    with pytest.raises(UserError, match=r"cannot be read \(.*\); give its folder as --images"):
        opened(extracted, loaded, images=tmp_path)
    shutil.copytree(extracted / "features", tmp_path / "damaged")
    shard = sorted((tmp_path / "damaged").glob("*.parquet"))[1]
    for damage in (lambda: shard.write_bytes(shard.read_bytes()[:-100]), shard.unlink):
        damage()
        with pytest.raises(UserError, match=r"a file in .*damaged is damaged \(.*\); run extract again"):
            opened(extracted, loaded, folder=tmp_path / "damaged").search(np.ones(32, np.float32), 1)
    for change, sentence in (
        ({"shards": None}, "is not finished"),
        ({"outputs": {"cls": [1, 32]}}, "lacks sparse and spatial"),
    ):
        shutil.copytree(extracted / "features", tmp_path / "copy", dirs_exist_ok=True)
        manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text()) | change
        kept = {k: v for k, v in manifest.items() if v is not None and k != "checksum"}
        (tmp_path / "copy" / "manifest.json").write_text(json.dumps(kept))
        with pytest.raises(UserError, match=f"{sentence}; run extract"):
            opened(extracted, loaded, folder=tmp_path / "copy")


def test_the_file_of_tokens_is_written_again_if_it_is_damaged(extracted, loaded, tmp_path, monkeypatch):
    folder, query = tmp_path / "features", np.ones(32, np.float32)
    shutil.copytree(extracted / "features", folder)
    wanted = opened(extracted, loaded, folder=folder).search(query, 2)
    [file] = folder.glob(".tokens-*")
    whole = file.read_bytes()
    for damaged in (whole[:-8], b"", b"no array"):
        file.write_bytes(damaged)
        assert opened(extracted, loaded, folder=folder).search(query, 2) == wanted
        assert file.read_bytes() == whole
    np.save(file, np.zeros((2, 3), np.float32))
    assert opened(extracted, loaded, folder=folder).search(query, 2) == wanted
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]  # as of earlier versions
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert opened(extracted, loaded, folder=folder).search(query, 2) == wanted

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file.unlink()
    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    with pytest.raises(
        UserError, match=r"cannot be written into .* \(No space left on device\); give a copy"
    ):
        opened(extracted, loaded, folder=folder)


def test_a_gallery_needs_its_images(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["explore", "--gallery=features"])
    with pytest.raises(UserError, match="--gallery needs --images, the folder of the extraction's images"):
        tool.main()


def test_a_folder_of_images_alone_is_extracted_first(extracted, workdir, tmp_path, monkeypatch, capsys):
    (tmp_path / "table:x").mkdir()  # no address
    for name in NAMES[:3]:
        shutil.copy(extracted / "images" / name, tmp_path / "table:x" / f"ä '{name}")
    (tmp_path / "table:x" / "broken.png").write_bytes(b"no image")

    def serve(shelf, name, listening):
        listening.close()
        assert shelf.letterbox and shelf.gallery.manifest["letterbox"]
        served.append((shelf.gallery.search(np.ones(shelf.gallery.index.shape[1]), 99), shelf.gallery.folder))

    def explore(folder):
        given = f"--checkpoint={workdir}", f"--images={folder}", "--letterbox"
        monkeypatch.setattr(sys, "argv", ["explore", *given])
        tool.main()

    served = []
    monkeypatch.setattr(tool, "serve", serve)
    monkeypatch.setattr(tool.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    explore("./table:x")
    ((found, folder),) = served
    assert {one["name"] for one in found} == {f"ä '{name}" for name in NAMES[:3]}
    assert folder.is_relative_to(tmp_path / "temporary") and not [*(tmp_path / "temporary").iterdir()]
    assert "\nleft out: broken.png\t" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"empty' holds no image \(.*\); put images there or correct --images\.$"
    ):
        explore("empty")
    (tmp_path / "empty" / "packed.json").touch()
    with pytest.raises(
        UserError, match="--images=empty holds packed images; give the folder that was packed"
    ):
        explore("empty")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_temporary_folder_goes_when_the_command_is_ended(workdir, tmp_path, monkeypatch, number):
    def ended(*_):
        assert [*(tmp_path / "temporary").iterdir()]
        signal.raise_signal(number)

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tool.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(tool, "extracted", ended)
    monkeypatch.setattr(sys, "argv", ["explore", f"--checkpoint={workdir}", f"--images={tmp_path}"])
    before = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            tool.main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert not [*(tmp_path / "temporary").iterdir()]
