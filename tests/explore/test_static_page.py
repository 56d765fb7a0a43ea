"""The page without a server, in headless Chromium: what the browser computes is what Python computes."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import importlib.util
import io
import json
import re
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import sparse_vis
from sparse_vis.data.decode import decode, fitted
from sparse_vis.explore import explore, static_page
from sparse_vis.explore.edits import KINDS, replay
from sparse_vis.explore.page import EXAMPLES
from sparse_vis.explore.saved import read_saved
from sparse_vis.explore.shelf import Shelf
from sparse_vis.runtime.errors import UserError
from tests.explore.page import FILE, SCREEN, SIDE, Page, computed, expected, picture, same
from tests.explore.test_edits import GRID, MANY, L, S
from tests.tiny_checkpoint import TOKENS


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's own server of files, which notes only errors."""

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(handler):
    """The address of a server on this computer."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def address(loaded, tmp_path_factory):
    """The page of the tiny model in a folder of a server, which has other folders too."""
    folder = tmp_path_factory.mktemp("host")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_page, "default_side", lambda model: SIDE)
        size = static_page.write(*loaded, "tiny", 10**6, static_page.fetched(), folder / "a" / "page")
    files = [path for path in (folder / "a" / "page").rglob("*") if path.is_file()]
    assert size == sum(path.stat().st_size for path in files)
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/a/page/"
        server.shutdown()


@pytest.fixture(scope="module")
def still(browser, address):
    """The page without a picture, on a screen of 1200 px."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SCREEN)
    browser.get(address)
    browser.get_log("browser")
    yield browser
    assert browser.get_log("browser") == []


@pytest.fixture
def static(still):
    still.refresh()
    return Page(still).give(picture(0)[0])


def arrays(driver, script, *given):
    """What a script gives, {name: list of numbers}, as arrays."""
    return {name: np.float32(values) for name, values in driver.execute_script(script, *given).items()}


def test_edits_are_those_of_python(still):
    script = """
    const [S, L, r, d, grid, edits] = arguments;
    const found = replay({ S: Float32Array.from(S), L: Float32Array.from(L), r, d, grid }, edits);
    return { S: [...found.S], L: [...found.L] };"""
    given = S.ravel().tolist(), L.ravel().tolist(), *S.shape, GRID
    half = {"kind": "mirror", "token": 2, "axis": "horizontal"}
    lists = [[edit] for edit in MANY] + [MANY, [half], [MANY[-1], {**MANY[-2], "token": 1}]]
    assert {edit["kind"] for edit in MANY} == set(KINDS)
    for edits in lists:
        found, now = arrays(still, script, *given, edits), replay(S, L, GRID, edits)
        np.testing.assert_allclose(found["L"].reshape(L.shape), now.L, atol=1e-6)
        np.testing.assert_allclose(found["S"].reshape(S.shape), now.S, rtol=1e-6)
    last = [{"kind": "erase", "token": token} for token in (1, 0, 2)]
    refused = "try { replay(%s, %s) } catch (error) { return error.message }"
    started = "{ S: [], L: Float32Array.from([0.5, 0.25, 0.25]), r: 3, d: 0, grid: [1, 1] }"
    said = still.execute_script(refused % (started, json.dumps(last)))
    assert said == "edit 3: token 2 is the only one left; one must stay."
    said = still.execute_script(refused % (started, json.dumps(last[:1] * 1001)))
    assert said == "There are more than 1000 edits; undo some."
    far = [{"kind": "move", "token": 0, "down": -1001, "right": 0}]
    assert "edit 1: the map moves by more than 1000" in still.execute_script(
        refused % (started, json.dumps(far))
    )


def test_saved_arrays_are_read_back(still, tmp_path):
    script = """
    const [S, L, r, d, grid, edits, done] = arguments;
    const found = { S: Float32Array.from(S), L: Float32Array.from(L), r, d, grid };
    npz(found, edits).then(async (file) => done(base64(new Uint8Array(await file.arrayBuffer()))));"""
    given = S.ravel().tolist(), L.ravel().tolist(), *S.shape, GRID, MANY
    (tmp_path / "a.npz").write_bytes(base64.b64decode(still.execute_async_script(script, *given)))
    saved, now = read_saved(tmp_path / "a.npz"), replay(S, L, GRID, MANY)
    assert saved.edits == MANY and saved.grid == GRID
    for found, wanted in zip([saved.S, saved.L, *saved.edited], [S, L, *now], strict=True):
        np.testing.assert_array_equal(found, wanted)


def turned():
    """A photograph as a phone stores it: on its side, with the turn in its EXIF data."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    with Image.open(EXAMPLES["chelsea.jpg"]) as image:
        image.save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()


def transparent():
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (61, 90, 4), np.uint8)
    pixels[..., 3] = 255 * (pixels[..., 3] > 127)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("size", [32, 240])
@pytest.mark.parametrize("form", ["photograph", "odd", "small", "turned", "transparent"])
def test_pictures_are_resized_as_pillow_does(still, form, size):
    file = {
        "photograph": EXAMPLES["coffee.jpg"].read_bytes, "odd": lambda: picture(1, (301, 458))[0],
        "small": lambda: picture(2, (20, 33))[0], "turned": turned, "transparent": transparent,
    }[form]()  # fmt: skip
    script = """
    const [file, size, done] = arguments, bytes = Uint8Array.from(atob(file), (x) => x.charCodeAt(0));
    squareOf({ file: new Blob([bytes]), name: "a" }, size).then((pixels) => done(base64(pixels)));"""
    given = base64.b64encode(file).decode(), size
    found = np.frombuffer(base64.b64decode(still.execute_async_script(script, *given)), np.uint8)
    wanted = fitted(decode({"image": file, "name": "a"}), (size, size), letterbox=False)
    apart = np.abs(found.reshape(size, size, 3).astype(int) - wanted)
    assert apart.max() <= (2 if form == "turned" else 1)  # Chromium turns a JPEG before it is RGB


def test_tokens_maps_and_pixels_are_those_of_python(static, loaded):
    found = static.run("return [...held.values()].map(({ S, L }) => ({ S: [...S], L: [...L] }))[0]")
    out = sparse_vis.encode(*loaded, picture(0)[1][None])
    for name, wanted in (("S", out.sparse), ("L", out.spatial)):
        np.testing.assert_allclose(np.float32(found[name]), np.asarray(wanted).ravel(), atol=1e-4)
    same(static.shown, computed(loaded, []))


def test_edits_on_the_page(static, loaded):
    shelf = Shelf(*loaded, max_pixels=10**6)
    key = shelf.put(picture(0)[0], "a.png")
    static.token(2).click()
    static.press(Keys.ARROW_DOWN, "+").click("[data-edit=copy]")
    static.run("setPower(2)")
    static.settled()
    edits = static.run("return editsOf(view.current)")
    assert [edit["kind"] for edit in edits] == ["temper", "move", "scale", "copy"]
    same(static.shown, computed(loaded, edits))
    wanted, found = shelf.shown(key, SIDE, edits), static.run("return view.current.found")
    assert found["psnr"] == pytest.approx(wanted["psnr"], abs=0.05)
    for name in ("peaks", "shares"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4)
    for name in ("maps", "winners"):
        values = static.run(f"return [...view.current.found.{name}]")
        same(np.uint8(values), np.frombuffer(base64.b64decode(wanted[name]), np.uint8))
    static.until("!document.querySelector('.again').classList.contains('old')")
    said = [float(x.text.split()[-1]) for x in static.driver.find_elements(By.CSS_SELECTOR, ".again")]
    wanted = shelf.again(key, SIDE, edits)
    assert said == pytest.approx(wanted, abs=0.02)


def test_a_token_of_another_picture_and_what_is_saved(static, loaded, tmp_path):
    static.give(picture(1)[0], "b.png")
    static.token(1).click()
    Select(static.find(By.ID, "source")).select_by_visible_text("token 3 of a.png")
    static.settled()
    static.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    for button, name in (("#png", "b-edited.png"), ("#npz", "b-edited.npz")):
        static.click(button)
        deadline = time.monotonic() + 10
        while not (tmp_path / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    vector = np.asarray(sparse_vis.encode(*loaded, picture(0)[1][None]).sparse[0, 3])
    saved = read_saved(tmp_path / "b-edited.npz")
    np.testing.assert_allclose(saved.edited.S[1], vector, atol=1e-4)
    shown = np.asarray(Image.open(tmp_path / "b-edited.png").convert("RGB"))
    np.testing.assert_array_equal(shown, static.shown)
    same(shown, np.uint8(np.rint(255 * expected(loaded, saved.edited.L @ saved.edited.S))))


def test_what_is_wrong_is_said(static):
    assert not static.find(By.ID, "side").is_displayed()
    static.run(FILE, base64.b64encode(b"no picture").decode(), "x.png", "drop")
    static.until("$('said').textContent.startsWith('x.png is not a picture that this browser reads; give')")
    # Refused without being decoded.
    static.run("settings.maxPixels = 4095; createImageBitmap = async () => { throw new Error('decoded') }")
    static.run(FILE, base64.b64encode(picture(1)[0]).decode(), "y.png", "paste")
    static.until("$('said').textContent === 'y.png has more than 4095 pixels; shrink it.'")
    for token in range(TOKENS):
        static.run(f"commit({{kind: 'erase', token: {token}}})")
        static.settled()
    assert "is the only one left" in static.find(By.ID, "said").text
    assert len(static.edits) == TOKENS - 1


def test_missing_and_damaged_files_of_the_page_are_said(static):
    def said(script):
        static.run(f"attempt(async () => {{ {script} }})")
        static.until("$('said').className === 'wrong'")
        return static.find(By.ID, "said").text

    static.run("arrived = whole = 0; arriving(settings.runtime)")
    static.until(r"/^Loading the model: 1\d of 1\d MB\.$/.test($('said').textContent)")
    gone = said("await fileOf('rocket2.jpg')")
    assert gone == "files/rocket2.jpg cannot be loaded; reload the page."
    static.run("say(''); programs = null; ort.InferenceSession.create = async () => { throw new Error('x') }")
    damaged = said("await loaded('encoder')")
    assert damaged.startswith("The model does not start, as a file of this page is missing or damaged")
    static.driver.get_log("browser")  # has both


def refused(monkeypatch, *flags):
    """The sentence with which the command refuses its flags, before it loads a model."""
    monkeypatch.setattr(sys, "argv", ["sparse_vis explore", *flags])
    monkeypatch.setattr(sparse_vis.api, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError) as error:
        explore.main()
    return str(error.value)


def test_the_command_writes_the_page_and_says_how_large_it_is(monkeypatch, tmp_path, workdir, capsys):
    for name in static_page.FILES:
        (tmp_path / name).write_text(name)
    page, called = tmp_path / "my page", f"--checkpoint={workdir}"
    monkeypatch.setattr(sys, "argv", ["explore", called, f"--export={page}", f"--runtime={tmp_path}"])
    explore.main()
    size = sum(path.stat().st_size for path in page.rglob("*") if path.is_file())
    wrote, serve = capsys.readouterr().out.splitlines()[-2:]
    assert wrote == f"wrote {page}, {size / 1e6:.1f} MB"
    assert serve.startswith(f"python -m http.server --bind=127.0.0.1 --directory='{page}' serves it")
    text = (page / "index.html").read_text()
    named = {*re.findall(r"files/([\w.-]+)", text)}
    by_scripts = {"encoder.onnx", "decoder.onnx", *static_page.FILES[1:]}
    assert {path.name for path in (page / "files").iterdir()} == named | by_scripts
    assert not re.search(r"https?://|token=", text)
    assert (page / "files" / static_page.FILES[2]).read_text() == static_page.FILES[2]
    said = refused(monkeypatch, f"--export={page}")
    assert said == f"--export={page} contains files; give a new or empty folder."


def test_mistakes_of_the_command(monkeypatch, tmp_path, loaded):
    given = f"--export={tmp_path / 'page'}"
    said = refused(monkeypatch, given, f"--runtime={tmp_path}")
    assert f"is not onnxruntime-web@1.30.0 ({tmp_path / static_page.FILES[0]}: No such file" in said
    assert refused(monkeypatch, "--runtime=x") == "--runtime is for --export; give both, or neither."
    said = refused(monkeypatch, given, "--gallery=x", "--images=y")
    assert said == "--gallery needs the server; leave out --gallery, or --export."
    said = refused(monkeypatch, given, "--letterbox")
    assert said == "--letterbox needs the server; leave out --letterbox, or --export."
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name))
    assert refused(monkeypatch, given) == '--export needs the package onnx; run pip install -e ".[onnx]".'
    model, params = loaded
    vq = model.clone(decoder=model.decoder.clone(codes=4))
    with pytest.raises(UserError, match="a reconstructs through a VQ tokenizer, which --export lacks"):
        static_page.write(vq, params, "a", 1, {}, tmp_path)
    monkeypatch.setattr(static_page, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="the encoder of a has more than 2 GiB, too much for ONNX; leave"):
        static_page.write(model, params, "a", 1, {}, tmp_path)
    monkeypatch.undo()
    (tmp_path / "files").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.*\); free disk space, or give another"):
        static_page.write(model, params, "a", 1, {}, tmp_path)


class Registry(http.server.BaseHTTPRequestHandler):
    """A registry of one package, as npm asks for it."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as package:
            files = {f"dist/{name}": name.encode() for name in static_page.FILES}
            files["package.json"] = b'{"name": "onnxruntime-web", "version": "1.30.0"}'
            for name, content in files.items():
                entry = tarfile.TarInfo(f"package/{name}")
                entry.size = len(content)
                package.addfile(entry, io.BytesIO(content))
        here = f"http://127.0.0.1:{self.server.server_address[1]}/a.tgz"
        version = {"name": "onnxruntime-web", "version": "1.30.0", "dist": {"tarball": here}}
        about = {"name": "onnxruntime-web", "versions": {"1.30.0": version}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(archive.getvalue() if self.path == "/a.tgz" else json.dumps(about).encode())


def test_another_package_and_none_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    with served(Registry) as host:
        monkeypatch.setenv("npm_config_registry", host)
        with pytest.raises(UserError, match=r"npm fetched an unknown onnxruntime-web@1\.30\.0 \(SHA-512 "):
            static_page.fetched()
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"npm cannot fetch onnxruntime-web@.* \(.*ECONNREFUSED.*--runtime"):
        static_page.fetched()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="with npm, which is missing; install it, or give --runtime=FOLDER"):
        static_page.fetched()
