"""The page in headless Chromium: pictures come in and are edited; what is shown is what Python computes."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import sys
import threading
import time

import numpy as np
import pytest
import uvicorn
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import sparse_vis
from benchmarks.speed import explore_page
from sparse_vis.explore import server
from sparse_vis.explore.edits import replay
from sparse_vis.explore.explore import bound
from sparse_vis.explore.saved import read_saved
from sparse_vis.explore.shelf import Shelf
from sparse_vis.runtime.errors import UserError
from tests.browser import luminance, start
from tests.explore.test_server import PIXELS, SIDE, expected, picture
from tests.tiny_checkpoint import TOKENS

CAMERA = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
FILE = """
const bytes = Uint8Array.from(atob(arguments[0]), (x) => x.charCodeAt(0)), data = new DataTransfer();
data.items.add(new File([bytes], arguments[1]));
const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
const paste = new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
document.body.dispatchEvent({ drop, paste }[arguments[2]]);"""
DRAG = """
const data = new DataTransfer(), [from, onto] = arguments;
const fire = (target, type) =>
  target.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
fire(from, "dragstart"); fire(onto, "dragover"); fire(onto, "drop");"""


@pytest.fixture(scope="module")
def address(loaded):
    listening, token = bound(0), "a-token"
    number = listening.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "default_side", lambda shelf: SIDE)
        app = server.make_app(Shelf(*loaded, max_pixels=10**6), "tiny", token, number)
    running = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{number}/?token={token}"
    running.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser():
    driver = start(*CAMERA)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
        {"name": "prefers-reduced-motion", "value": "reduce"}]})  # fmt: skip
    yield driver
    driver.quit()


class Page:
    """The page in a browser, with what a reader does."""

    def __init__(self, driver):
        self.driver, self.run, self.find = driver, driver.execute_script, driver.find_element

    def until(self, script, seconds=20):
        deadline = time.monotonic() + seconds
        while not self.run(f"return {script}"):
            said = self.find(By.ID, "said").text
            assert time.monotonic() < deadline, f"not {script}; the page says {said!r}"
            time.sleep(0.01)

    def settled(self):
        self.until("!busy && !again")
        return self

    def give(self, file, name="a.png", how="drop"):
        count = self.run("return view.pictures.length")
        self.run(FILE, base64.b64encode(file).decode(), name, how)
        self.until(f"view.pictures.length > {count}")
        return self.settled()

    def token(self, number):
        return self.driver.find_elements(By.CSS_SELECTOR, "#tokens .token")[number]

    def press(self, *keys, hold=None):
        chain = ActionChains(self.driver)
        chain = chain.key_down(hold).send_keys(*keys).key_up(hold) if hold else chain.send_keys(*keys)
        chain.perform()
        return self.settled()

    def click(self, where):
        self.find(By.CSS_SELECTOR, where).click()
        return self.settled()

    @property
    def edits(self):
        return self.run("return view.current.edits")

    @property
    def shown(self):
        """Pixels of the reconstruction that the page shows."""
        source = self.find(By.CSS_SELECTOR, "#reconstruction img").get_attribute("src")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


@pytest.fixture
def page(browser, address):
    """The page on a screen of 1200 px, with one picture (seed 0)."""
    screen = {"width": 1200, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(address)
    browser.get_log("browser"), browser.get_log("performance")
    yield Page(browser).give(picture(0)[0])
    assert [entry for entry in browser.get_log("browser") if "status of 40" not in entry["message"]] == []


def computed(loaded, edits, seed=0):
    """Pixels after edits of the picture of a seed, by the package's functions."""
    out = sparse_vis.encode(*loaded, picture(seed)[1][None])
    S, L = replay(np.asarray(out.sparse[0]), np.asarray(out.spatial[0]), (SIDE, SIDE), edits)
    return np.uint8(np.rint(255 * expected(loaded, L @ S)))


def same(found, pixels):
    assert found.shape == pixels.shape and np.abs(found.astype(int) - pixels.astype(int)).max() <= 1


def test_a_dropped_picture_is_shown_and_nothing_goes_elsewhere(page, loaded, address):
    same(page.shown, computed(loaded, []))
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    own = (address.partition("?")[0], "data:", "blob:")
    assert len(sent) > 3 and [url for url in sent if not url.startswith(own)] == []
    maps = "return [...document.querySelectorAll('#tokens canvas')].map(x => x.width)"
    assert page.run(maps) == [SIDE] * TOKENS
    page.until("!document.querySelector('.understood').textContent.startsWith('…')")
    assert "understood" in page.token(0).text


def test_a_token_is_erased_by_key_and_edits_are_undone_and_done_again(page, loaded):
    before = page.shown
    page.token(1).click()
    page.press(Keys.DELETE)
    assert page.edits == [{"kind": "erase", "token": 1}]
    erased = page.shown
    same(erased, computed(loaded, page.edits))
    assert (erased != before).any() and "erased" in page.token(1).text
    page.press("z", hold=Keys.CONTROL)
    np.testing.assert_array_equal(page.shown, before)
    np.testing.assert_array_equal(page.click("#redo").shown, erased)
    page.click("#reset")
    assert page.edits == [] and not page.find(By.ID, "reset").is_enabled()
    np.testing.assert_array_equal(page.shown, before)


def test_a_map_is_dragged_one_request_at_a_time(page, loaded):
    page.token(2).click()
    page.driver.get_log("performance")
    stage = page.find(By.ID, "reconstruction")
    patch = stage.size["width"] / SIDE
    drag = ActionChains(page.driver, duration=10).move_to_element(stage).click_and_hold()
    for _ in range(24):
        drag = drag.move_by_offset(round(2 * patch / 24) or 1, 0)
    drag.move_to_element_with_offset(stage, round(2.2 * patch), round(-patch)).release().perform()
    page.settled()
    assert [edit["kind"] for edit in page.edits] == ["move"] and page.edits[0]["token"] == 2
    assert page.edits[0]["right"] in (2, 3) and page.edits[0]["down"] == -1
    same(page.shown, computed(loaded, page.edits))
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    open_, most = set(), 0
    for event in events:
        asked = event["params"].get("request", {}).get("url", "").endswith("/edit")
        if event["method"] == "Network.requestWillBeSent" and asked:
            open_.add(event["params"]["requestId"])
        elif event["method"] == "Network.loadingFinished":
            open_.discard(event["params"]["requestId"])
        most = max(most, len(open_))
    assert most == 1


def test_keys_and_buttons_edit_the_map_of_the_chosen_token(page, loaded):
    page.token(0).send_keys(Keys.ENTER)
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    page.press(Keys.ARROW_LEFT, hold=Keys.SHIFT)
    assert page.edits == [{"kind": "move", "token": 0, "down": 2, "right": -4}]  # one edit, not three
    page.press("+").press("m").click("[data-edit=copy]").click("[data-edit=vertical]").click("[data-edit=up]")
    assert [edit["kind"] for edit in page.edits] == ["move", "scale", "mirror", "copy", "mirror", "move"]
    same(page.shown, computed(loaded, page.edits))


def test_a_stroke_paints_and_removes(page, loaded):
    page.token(3).click()
    stage = page.find(By.ID, "photograph")
    for value in "10":
        page.find(By.CSS_SELECTOR, f"[name=brush][value='{value}']").click()
        chain = ActionChains(page.driver).move_to_element(stage).click_and_hold()
        chain.move_by_offset(40, 0).release().perform()
        page.settled()
    assert [(edit["kind"], edit["amount"]) for edit in page.edits] == [("paint", 1), ("paint", 0)]
    assert len(page.edits[0]["patches"]) > 4
    same(page.shown, computed(loaded, page.edits))
    stage.send_keys(Keys.ARROW_LEFT, " ")  # the brush by keyboard
    assert len(page.settled().edits) == 3


def test_a_token_of_another_picture_is_dragged_onto_one_or_chosen(page, loaded):
    page.give(picture(1)[0], "b.png")
    other = page.driver.find_elements(By.CSS_SELECTOR, "#shelf .small .token")
    assert len(other) == TOKENS
    page.run(DRAG, other[3], page.token(1))
    page.settled()
    vector = np.asarray(sparse_vis.encode(*loaded, picture(0)[1][None]).sparse[0, 3]).tolist()
    swap = {"kind": "replace", "token": 1, "vector": vector, "amount": 1}
    same(page.shown, computed(loaded, [swap], seed=1))
    dragged = page.shown
    page.click("#reset")
    page.token(1).click()
    page.find(By.ID, "source").send_keys("token 3 of a.png")
    page.click("#replace")
    np.testing.assert_array_equal(page.shown, dragged)
    page.run("$('amount').value = 0.5; $('amount').dispatchEvent(new Event('input'))")
    page.settled()
    same(page.shown, computed(loaded, [swap, {**swap, "amount": 0.5}], seed=1))  # shown, not yet done
    page.run("$('amount').dispatchEvent(new Event('change'))")
    page.settled()
    assert [edit["amount"] for edit in page.edits] == [0.5]
    same(page.shown, computed(loaded, [{**swap, "amount": 0.5}], seed=1))


def test_bad_files_are_named_and_the_page_goes_on(page):
    page.run(FILE, base64.b64encode(b"no picture").decode(), "notes.txt", "drop")
    page.until("$('said').textContent.includes('notes.txt') && $('said').className === 'wrong'")
    assert "it is not an image" in page.find(By.ID, "said").text
    page.run(FILE, base64.b64encode(picture(size=(1001, 1000))[0]).decode(), "huge.png", "drop")
    page.until("$('said').textContent.includes('1,001,000 pixels')")
    page.give(picture(2)[0], "c.png", "paste")
    assert page.run("return view.current.name") == "c.png" and page.find(By.ID, "said").text == ""


def test_an_impossible_edit_is_said_and_taken_back(page):
    for token in range(TOKENS):
        page.run(f"commit({{kind: 'erase', token: {token}}})")
        page.settled()
    assert "is the only one left" in page.find(By.ID, "said").text and len(page.edits) == TOKENS - 1


def test_pictures_that_the_server_dropped_are_sent_again(page, monkeypatch):
    from sparse_vis.explore import shelf

    monkeypatch.setattr(shelf, "PICTURES", 1)
    monkeypatch.setattr(shelf, "ENCODED", 1)
    before = page.shown
    page.give(picture(1)[0], "b.png").give(picture(2)[0], "c.png")
    page.click("#shelf figure:first-child .held")
    np.testing.assert_array_equal(page.shown, before)


def test_resolution_and_temperature(page):
    page.token(0).click()
    page.click("[data-edit=right]")
    page.run("$('side').value = 16; $('side').dispatchEvent(new Event('change'))")
    page.settled()
    assert page.shown.shape == (2 * PIXELS, 2 * PIXELS, 3)
    assert page.edits == [{"kind": "move", "token": 0, "down": 0, "right": 2}]
    before = page.shown
    page.run("$('temperature').value = -1; $('temperature').dispatchEvent(new Event('input'))")
    page.settled()
    assert (page.shown != before).any()
    assert page.find(By.CSS_SELECTOR, "[for=temperature]").text == "τ = 0.030"


def test_files_are_saved_and_read_back(page, loaded, tmp_path):
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.token(1).click()
    page.press(Keys.ARROW_RIGHT, Keys.DELETE)
    for button, name in (("#png", "edited.png"), ("#npz", "edited.npz")):
        page.click(button)
        deadline = time.monotonic() + 10
        while not (tmp_path / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "edited.png")), page.shown)
    saved = read_saved(tmp_path / "edited.npz")
    assert [edit["kind"] for edit in saved.edits] == ["move", "erase"]
    same(page.shown, np.uint8(np.rint(255 * expected(loaded, saved.edited.L @ saved.edited.S))))


def test_the_camera_takes_a_picture_and_is_closed(page):
    assert not page.find(By.ID, "video").is_displayed()
    page.find(By.ID, "camera").click()
    page.until("$('video').videoWidth > 0 && !$('taking').hidden")
    page.find(By.ID, "take").click()
    page.until("view.pictures.length === 2")
    page.settled()
    assert page.run("return [view.current.name, $('taking').hidden, $('video').srcObject]") == [
        "camera 1", True, None,
    ]  # fmt: skip
    assert page.shown.std() > 0


def test_two_tabs_do_not_see_each_other_and_one_may_close(page, address, loaded):
    driver, first = page.driver, page.driver.current_window_handle
    page.token(0).click()
    page.press(Keys.DELETE)
    driver.switch_to.new_window("tab")
    driver.get(address)
    other = Page(driver).give(picture(0)[0])
    same(other.shown, computed(loaded, []))
    driver.execute_script("for (let i = 0; i < 5; i++) commit({kind: 'move', token: 0, down: i, right: 0})")
    driver.close()  # while the server works
    driver.switch_to.window(first)
    same(page.press("z", hold=Keys.CONTROL).shown, computed(loaded, []))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(page, scheme):
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.give(picture(1)[0], "b.png").token(0).click()
    page.until("!document.querySelector('.understood').textContent.startsWith('…')")
    script = """
        const ground = x => { for (; x; x = x.parentElement) {
          const c = getComputedStyle(x).backgroundColor; if (c !== "rgba(0, 0, 0, 0)") return c; } };
        return [...document.querySelectorAll("h1, .kind, .note, figcaption, legend, label, output, .token b, "
          + ".token span, .held, #png, select, #tools button")]
          .filter(x => x.innerText && !x.closest(".small"))
          .map(x => [x.innerText, getComputedStyle(x).color, ground(x)])"""
    found = page.run(script)
    assert len(found) > 40
    for text, colour, ground in found:
        low, high = sorted([luminance(colour), luminance(ground)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, colour, ground)  # WCAG AA
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) > 0.5) == (scheme == "light")


def test_the_benchmark_times_edits_and_saves_the_page(address, monkeypatch, capsys, tmp_path):
    # In place of a process: the server of these tests.
    monkeypatch.setattr(explore_page, "serving", lambda checkpoint: contextlib.nullcontext(address))
    monkeypatch.setattr(explore_page, "PAUSE", 20)
    monkeypatch.setattr(sys, "argv", ["explore_page", "--edits=3", f"--screenshot={tmp_path / 'page.png'}"])
    explore_page.main()
    found = re.fullmatch(
        r"3 edits of pictures-tiny at 64x64 px: median (\d+) ms, 9 of 10 within (\d+) ms\n",
        capsys.readouterr().out,
    )
    assert 0 < int(found[1]) <= int(found[2]) < 20_000
    with Image.open(tmp_path / "page.png") as page:
        assert page.width > 1000 and len(page.getcolors(10**7)) > 100
    assert explore_page.address_in(["compiling\n", f"open {address} in a browser; Ctrl-C\n"]) == address
    with pytest.raises(UserError, match=r"explore ended \(error: no model\); mend that"):
        explore_page.address_in(["error: no model\n"])


def test_everything_has_a_name_and_a_phone_scrolls_in_one_direction_only(page):
    page.give(picture(1)[0], "b.png").token(0).click()
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {"button", "radio", "slider", "combobox", "region", "application", "image"}
    kinds = [(n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if not n.get("ignored")]
    assert named - {kind for kind, _ in kinds} == set()
    assert [kind for kind, name in kinds if kind in named and not name] == []
    screen = {"width": 360, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    assert page.run("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
