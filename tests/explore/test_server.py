"""The page's server: who may ask, what it answers, bad pictures, and the command that starts it."""

from __future__ import annotations

import base64
import concurrent.futures
import importlib.util
import io
import json
import re
import socket
import sys

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

import sparse_vis
from sparse_vis.explore import explore as tool
from sparse_vis.explore import shelf as shelves
from sparse_vis.explore.page import default_side
from sparse_vis.explore.saved import read_saved
from sparse_vis.explore.server import EXAMPLES, FILES, LARGEST_FILE, make_app
from sparse_vis.explore.shelf import Shelf
from sparse_vis.runtime.errors import UserError
from tests.documents import ROOT, python_blocks
from tests.explore.page import SIDE, expected, picture
from tests.tiny_checkpoint import PATCH, TOKENS

HOST, TOKEN = "http://127.0.0.1:8765", "the-token"


@pytest.fixture
def shelf(loaded):
    return Shelf(*loaded, max_pixels=10**6)


@pytest.fixture
def client(shelf):
    app = make_app(shelf, "a <tiny> model", TOKEN, 8765)
    return TestClient(app, base_url=HOST, headers={"X-Token": TOKEN})


def put(client, file):
    return client.post("/picture?name=a.png", content=file).json()["picture"]


def edit(client, key, *edits, side=SIDE):
    answer = client.post("/edit", json={"picture": key, "side": side, "edits": edits})
    assert answer.status_code == 200, answer.text
    return answer.json()


def pixels_of(found):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found["picture"]))))


def test_letterbox_shows_the_whole_picture_in_a_border(loaded):
    shelf, file = Shelf(*loaded, max_pixels=10**6, letterbox=True), io.BytesIO()
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, :20] = 255  # not in the centred square
    Image.fromarray(wide).save(file, "PNG")
    pixels = shelf.encoded(shelf.put(file.getvalue(), "wide"), SIDE).pixels
    third = SIDE * PATCH // 3
    assert (pixels[: third - 1] == (124, 116, 104)).all() and (pixels[1 - third :] == (124, 116, 104)).all()
    assert (pixels[SIDE * PATCH // 2, :2] > 200).all() and (pixels[SIDE * PATCH // 2, -2:] < 50).all()


def test_the_page_shows_what_python_computes(client, loaded):
    file, pixels = picture()
    key = put(client, file)
    found, out = edit(client, key), sparse_vis.encode(*loaded, pixels[None])
    decoded = np.asarray(sparse_vis.reconstruct(*loaded, out)[0])
    np.testing.assert_allclose(pixels_of(found), 255 * decoded, atol=0.51)
    mse = np.mean((pixels_of(found) / 255.0 - pixels / 255.0) ** 2)
    assert found["psnr"] == pytest.approx(-10 * np.log10(mse), abs=1e-4)
    L = np.asarray(out.spatial[0])
    maps = np.frombuffer(base64.b64decode(found["maps"]), np.uint8).reshape(TOKENS, -1)
    np.testing.assert_allclose(maps.T / 255 * found["peaks"], L, atol=1 / 255)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(found["winners"]), np.uint8), L.argmax(1))
    np.testing.assert_allclose(found["shares"], L.mean(axis=0), rtol=1e-5)
    photograph = client.post("/photograph", json={"picture": key, "side": SIDE, "edits": []}).content
    np.testing.assert_array_equal(Image.open(io.BytesIO(photograph)), pixels)


def test_an_edit_and_a_token_of_another_picture(client, loaded):
    (one, pixels), (two, others) = picture(0), picture(1)
    key, other = put(client, one), put(client, two)
    out = sparse_vis.encode(*loaded, pixels[None])
    S, L = np.array(out.sparse[0]), np.array(out.spatial[0])
    S[2] = np.asarray(sparse_vis.encode(*loaded, others[None]).sparse[0, 1])
    L[:, 3] = 0
    L /= L.sum(axis=1, keepdims=True)
    taken = {"picture": other, "side": SIDE, "token": 1}
    edits = [{"kind": "replace", "token": 2, "from": taken, "amount": 1}, {"kind": "erase", "token": 3}]
    found = edit(client, key, *edits)
    np.testing.assert_allclose(pixels_of(found), 255 * expected(loaded, L @ S), atol=0.6)
    assert found["peaks"][3] == 0 and min(found["peaks"][:3]) > 0


def test_what_the_encoder_finds_again(client, loaded):
    file, pixels = picture()
    key, asked = put(client, file), [{"kind": "erase", "token": 0}]
    found = client.post("/again", json={"picture": key, "side": SIDE, "edits": asked}).json()
    again = sparse_vis.encode(*loaded, pixels_of(edit(client, key, *asked))[None]).sparse[0]
    S = np.asarray(sparse_vis.encode(*loaded, pixels[None]).sparse[0])
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(again, S, strict=True)]
    assert found[1:] == pytest.approx(cosines[1:], abs=1e-4)
    assert found[0] is None


def test_the_documented_code_prints_cosines(capsys):
    code = python_blocks(ROOT / "docs" / "explore.md")[1]
    small = code.replace("30", str(SIDE)).replace("48", str(SIDE + 1))  # fewer patches: 30 take 20 s of CPU
    exec(compile(small, "docs/explore.md", "exec"), {})
    spans = re.findall(r": ([01]\.\d\d) to ([01]\.\d\d)$", capsys.readouterr().out, re.M)
    assert len(spans) == 4 and all(0.5 < float(low) <= float(high) <= 1 for low, high in spans), spans


def test_what_is_saved_is_read_back_and_replayed(client, shelf, tmp_path):
    key, other = put(client, picture(0)[0]), put(client, picture(1)[0])
    taken = {"picture": other, "side": SIDE, "token": 0}
    edits = [{"kind": "temper", "power": 2}, {"kind": "replace", "token": 1, "from": taken, "amount": 0.5}]
    answer = client.post("/save", json={"picture": key, "side": SIDE, "edits": edits})
    (tmp_path / "a.npz").write_bytes(answer.content)
    saved, (_, now) = read_saved(tmp_path / "a.npz"), shelf.edited(key, SIDE, edits)
    np.testing.assert_array_equal(saved.edited.L, now.L)
    np.testing.assert_array_equal(saved.edited.S, now.S)
    assert len(saved.edits[1]["vector"]) == saved.S.shape[1] and saved.grid == (SIDE, SIDE)


REFUSED = {
    "no token": ({"X-Token": ""}, "token is missing"),
    "wrong token": ({"X-Token": "the-tokem"}, "token is missing or wrong"),
    "strange token": ({"X-Token": "ÿ".encode("latin-1")}, "token is missing or wrong"),
    "another host": ({"Host": "example.org:8765"}, "answers to 127.0.0.1 and localhost only"),
    "another port": ({"Host": "127.0.0.1:80"}, "answers to 127.0.0.1 and localhost only"),
    "another origin": ({"Origin": "http://example.org"}, "comes from another page"),
    "another server here": ({"Origin": "http://127.0.0.1:80"}, "comes from another page"),
    "a sandbox": ({"Origin": "null"}, "comes from another page"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_strangers_are_refused_whatever_they_ask_for(client, name):
    headers, sentence = REFUSED[name]
    for method, path in (("GET", "/"), ("GET", "/files/draw.js"), ("POST", "/picture"), ("GET", "/absent")):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 403 and sentence in answer.text
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_the_page_and_its_files(client):
    answer = client.get(f"/?token={TOKEN}", headers={"X-Token": "", "Host": "localhost:8765"})
    assert answer.status_code == 200 and "Explore a &lt;tiny&gt; model" in answer.text
    assert client.get("/", headers={"Origin": HOST}).status_code == 200
    names = re.findall(r"files/([\w.]+)\?token=the-token", answer.text)
    assert {*names} == {*FILES, *EXAMPLES}
    for name in names:
        got = client.get(f"/files/{name}")
        assert got.status_code == 200 and got.headers["Cache-Control"] == "no-store"
        assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert client.get("/files/..%2Fserver.py").status_code == 404
    assert client.get("/files/server.py").status_code == 404
    assert not re.search(r"https?://", answer.text)  # nothing from elsewhere


def test_browsers_leave_out_port_80(shelf):
    client = TestClient(make_app(shelf, "a", TOKEN, 80), base_url="http://127.0.0.1")
    headers = {"X-Token": TOKEN, "Origin": "http://127.0.0.1"}
    assert client.get("/", headers=headers).status_code == 200
    assert client.get("/", headers={**headers, "Host": "example.org"}).status_code == 403


def sentence_of(answer, status=400):
    assert answer.status_code == status
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (b"", "it is empty"),
        (b"no picture", "cannot decode 'a.png' .*it is not an image"),
        (picture()[0][:900], "cannot decode 'a.png'"),
        (picture(size=(1001, 1000))[0], "has 1,001,000 pixels, more than the limit of 1,000,000"),
    ],
)
def test_bad_pictures_are_refused_in_a_sentence(client, file, sentence):
    assert re.search(sentence, sentence_of(client.post("/picture?name=a.png", content=file)))


def test_a_body_is_not_read_beyond_its_limit(client):
    sent = []

    def parts():
        for _ in range(200):
            sent.append(2**20)
            yield bytes(2**20)

    assert "more than 32 MiB" in sentence_of(client.post("/picture?name=a.png", content=parts()))
    assert LARGEST_FILE == 32 * 2**20
    assert "more than 4 MiB" in sentence_of(client.post("/edit", content=b" " * (2**22 + 1)))


def test_wrong_requests_are_refused_in_a_sentence(client):
    key = put(client, picture()[0])
    good = {"picture": key, "side": SIDE, "edits": []}
    for body in (b"", b"[", b"{}", b"[1]", b"7", b"\xff", b"[" * 100_000):
        assert "not JSON with picture, side and edits" in sentence_of(client.post("/edit", content=body))
    for side in ("8", 8.5, True, None):
        answer = client.post("/edit", json={**good, "side": side})
        assert "not JSON with picture, side and edits" in sentence_of(answer)
    for side in (7, 49):
        assert "is not from 8 to 48" in sentence_of(client.post("/edit", json={**good, "side": side}))
    for place in (
        3,
        {},
        {"picture": key, "side": SIDE, "token": 99},
        {"picture": key, "side": SIDE, "token": "a"},
    ):
        edits = [{"kind": "replace", "token": 0, "amount": 1, "from": place}]
        assert "from is not a picture" in sentence_of(client.post("/edit", json={**good, "edits": edits}))
    for path in ("/edit", "/save", "/again"):
        answer = client.post(path, json={**good, "edits": [{"kind": "erase", "token": TOKENS}]})
        assert sentence_of(answer) == "edit 1: token of erase is not the number of a token; change it."
        for name in ("absent", "\ud800"):  # also a name that UTF-8 does not have
            body = json.dumps({**good, "picture": name})
            gone = sentence_of(client.post(path, content=body), 404)
            assert gone == "the server does not hold this picture any more; open it again."


def test_pictures_used_longest_ago_are_dropped_and_may_come_again(client, monkeypatch):
    monkeypatch.setattr(shelves, "PICTURES", 2)
    monkeypatch.setattr(shelves, "ENCODED", 1)
    first, second = put(client, picture(0)[0]), put(client, picture(1)[0])
    before = edit(client, first)
    put(client, picture(2)[0])  # the second is the one used longest ago
    edit(client, first)
    answer = client.post("/edit", json={"picture": second, "side": SIDE, "edits": []})
    assert answer.status_code == 404
    assert put(client, picture(1)[0]) == second
    edit(client, second)
    assert edit(client, first) == before


def test_many_requests_at_once_get_the_answers_that_they_get_alone(client):
    keys = [put(client, picture(seed)[0]) for seed in range(3)]
    asked = [
        (key, {"kind": "move", "token": 0, "down": down, "right": 0}) for key in keys for down in range(4)
    ]
    alone = [edit(client, *one) for one in asked]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda one: edit(client, *one), asked)) == alone


def refused(monkeypatch, *flags):
    """The sentence with which the command refuses its flags."""
    monkeypatch.setattr(sys, "argv", ["sparse_vis explore", *flags])
    with pytest.raises(UserError) as error:
        tool.main()
    return str(error.value)


def test_the_command_serves_this_computer_alone(monkeypatch, capsys, workdir):
    served = {}

    def run(self, sockets):
        served.update(address=sockets[0].getsockname(), app=self.config.app, config=self.config)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr("sparse_vis.explore.server.default_side", lambda shelf: SIDE)
    monkeypatch.setattr(sys, "argv", ["sparse_vis explore", f"--checkpoint={workdir}", "--max-pixels=10"])
    tool.main()
    assert 0 < served["config"].timeout_graceful_shutdown < 60  # Ctrl-C ends it also during an upload
    out = capsys.readouterr().out
    port, token = re.search(r"open http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32}) in a browser", out).groups()
    assert served["address"] == ("127.0.0.1", int(port))
    client = TestClient(served["app"], base_url=f"http://127.0.0.1:{port}")
    assert client.get(f"/?token={token}").status_code == 200 and client.get("/").status_code == 403


def test_what_is_wrong_is_said_before_the_model_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(sparse_vis.api, "load", lambda *_, **__: pytest.fail("loaded"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(monkeypatch, f"--port={port}")
        assert re.fullmatch(rf"--port={port} cannot be used \(.*\); give another\.", said)
    assert "'70000' is not a whole number from 0 to 65535" in refused(monkeypatch, "--port=70000")
    assert "'6000' is a port that browsers do not open" in refused(monkeypatch, "--port=6000")
    for flag in ("gallery", "images", "export", "runtime"):
        said = refused(monkeypatch, f"--{flag}=gs://bucket/x")
        assert f"--{flag}: 'gs://bucket/x' is an address, not a path; mount it as a folder" in said
    given = {"--gallery": tmp_path, "--images": tmp_path}
    for flag in given:
        both = [f"{name}={folder}" for name, folder in {**given, flag: tmp_path / "absent"}.items()]
        said = f"{flag}={tmp_path / 'absent'} is not a folder; give another {flag}."
        assert refused(monkeypatch, *both) == said
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    assert refused(monkeypatch) == 'explore needs uvicorn; run pip install -e ".[explore]".'


def test_a_vq_model_needs_its_tokenizer(monkeypatch, loaded):
    model, params = loaded
    vq = model.clone(decoder=model.decoder.clone(codes=4))
    monkeypatch.setattr(sparse_vis.api, "load", lambda *_, **__: (vq, params))
    said = refused(monkeypatch, "--checkpoint=runs/vq")
    assert said.startswith("runs/vq reconstructs through a VQ tokenizer") and "--tokenizer=FILE" in said


def test_a_side_that_is_possible_is_chosen_first(loaded):
    model, _ = loaded
    for patch, side in ((PATCH, 30), (4, 48), (40, 8)):
        larger = model.clone(encoder=model.encoder.clone(patch=patch))
        assert default_side(larger) == side
