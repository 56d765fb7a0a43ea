"""The page without a server, in headless Chromium: what the browser computes is what Python computes."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import sparse_vis
from sparse_vis.data.decode import decode, fitted
from sparse_vis.explore import ort_web, static_page
from sparse_vis.explore.edits import KINDS, replay
from sparse_vis.explore.page import EXAMPLES
from sparse_vis.explore.saved import read_saved
from sparse_vis.explore.shelf import Shelf
from tests.explore.page import PIXELS, SIDE, Page, computed, expected, picture, same
from tests.explore.test_edits import GRID, MANY, L, S


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's own server of files, which notes only errors."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(loaded, tmp_path_factory):
    """The page of the tiny model in a folder of a server, which has other folders too."""
    folder = tmp_path_factory.mktemp("host")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_page, "default_side", lambda model: SIDE)
        size = static_page.write(*loaded, "tiny", 10**6, ort_web.fetched(), folder / "a" / "page")
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
    """The page without a picture."""
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
    assert said == "edit 3: token 2 is the only one left; keep another one too."
    said = still.execute_script(refused % (started, json.dumps(last[:1] * 1001)))
    assert said == "These are more than 1000 edits; take some back."
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
    static.run("view.power = 2; refresh()")
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
    static.until("document.querySelectorAll('.understood')[0].textContent !== '…'")
    said = [float(x.text.split()[-1]) for x in static.driver.find_elements(By.CSS_SELECTOR, ".understood")]
    wanted = [token["cosine"] for token in shelf.understood(key, SIDE, edits)]
    assert said == pytest.approx(wanted, abs=0.02)


def test_a_token_of_another_picture_and_what_is_saved(static, loaded, tmp_path):
    static.give(picture(1)[0], "b.png")
    static.token(1).click()
    static.find(By.ID, "source").send_keys("token 3 of a.png")
    static.click("#replace")
    static.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    for button, name in (("#png", "edited.png"), ("#npz", "edited.npz")):
        static.click(button)
        deadline = time.monotonic() + 10
        while not (tmp_path / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    vector = np.asarray(sparse_vis.encode(*loaded, picture(0)[1][None]).sparse[0, 3])
    saved = read_saved(tmp_path / "edited.npz")
    np.testing.assert_allclose(saved.edited.S[1], vector, atol=1e-4)
    shown = np.asarray(Image.open(tmp_path / "edited.png").convert("RGB"))
    np.testing.assert_array_equal(shown, static.shown)
    same(shown, np.uint8(np.rint(255 * expected(loaded, saved.edited.L @ saved.edited.S))))


def test_what_is_wrong_is_said(static):
    assert not static.find(By.ID, "side").is_enabled()
    assert static.find(By.CSS_SELECTOR, "[for=side]").text == f"{SIDE} × {SIDE} patches, {PIXELS} px"
    for file, said in ((b"no picture", "is no picture that this browser reads"),
                       (picture(size=(1001, 1000))[0], "more than 1000000 pixels")):  # fmt: skip
        static.run("say('')")
        static.run(
            "const bytes = Uint8Array.from(atob(arguments[0]), (x) => x.charCodeAt(0));"
            "openAll([new File([bytes], 'x.png')])", base64.b64encode(file).decode(),
        )  # fmt: skip
        static.until(f"$('said').textContent.includes('{said}')")
