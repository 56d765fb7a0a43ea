"""Pictures that come to the page, in headless Chromium, and how it looks."""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from benchmarks.speed import explore_page, explore_recording
from sparse_vis.runtime.errors import UserError
from tests.browser import luminance, start
from tests.explore.page import FILE, SIDE, Page, computed, picture, same
from tests.tiny_checkpoint import TOKENS


def test_a_dropped_picture_is_shown_and_nothing_goes_elsewhere(page, loaded, address):
    same(page.shown, computed(loaded, []))
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    own = (address.partition("?")[0], "data:", "blob:")
    assert len(sent) > 3 and [url for url in sent if not url.startswith(own)] == []
    maps = "return [...document.querySelectorAll('#tokens canvas')].map(x => x.width)"
    assert page.run(maps) == [SIDE] * TOKENS
    page.until("!document.querySelector('.again').classList.contains('old')")
    said = page.run("return [...document.querySelectorAll('#tokens .again')].map(x => x.textContent)")
    for words, cosine in (text.split(":\n") for text in said):
        assert words == ("found again" if float(cosine) >= 0.95 else "not found") and float(cosine) <= 1
    assert len(said) == TOKENS
    page.run("about = async () => new Response('[0.951, 0.944, -0.2, null]')")
    page.run("askEncoder()")
    page.until("document.querySelector('#tokens .again').textContent === 'found again:\\n0.95'")
    said = page.run("return [...document.querySelectorAll('#tokens .again')].map(x => x.textContent)")
    assert said[1:4] == ["not found:\n0.94", "not found:\n-0.20", ""]


def test_bad_files_are_named_and_the_page_goes_on(page):
    page.run(FILE, base64.b64encode(b"no picture").decode(), "notes.txt", "drop")
    page.until("$('said').textContent.includes('notes.txt') && $('said').className === 'wrong'")
    assert "it is not an image" in page.find(By.ID, "said").text
    page.run(FILE, base64.b64encode(picture(size=(1001, 1000))[0]).decode(), "huge.png", "drop")
    page.until("$('said').textContent.includes('1,001,000 pixels')")
    page.give(picture(2)[0], "c.png", "paste")
    assert page.run("return view.current.name") == "c.png" and page.find(By.ID, "said").text == ""
    page.run(
        "openAll([new File(['x'], 'x.txt'), view.current.file])"
    )  # the error outlives what comes after it
    page.until("$('said').className === 'wrong' && !busy")
    assert "x.txt" in page.find(By.ID, "said").text


def test_what_is_no_picture_is_said_in_plain_words(page):
    def said(script):
        page.run(script)
        page.until("$('said').className === 'wrong' && !busy")
        text = page.find(By.ID, "said").text
        page.run("say('')")
        return text

    file = "const file = new File(['x'], 'photos'); "
    unreadable = "file.arrayBuffer = () => Promise.reject(new Error('x')); openAll([file]);"
    assert said(file + unreadable) == "photos cannot be read, or is a folder; choose a picture."
    large = "settings.maxBytes = 2 ** 20; openAll([new File([new Uint8Array(2 ** 20 + 1)], 'a.png')])"
    assert said(large) == "a.png has more than 1 MiB; give a smaller picture."
    event = "const data = new DataTransfer(); data.setData(%r, %r); "
    text = event % ("text/plain", "hello")
    paste = "document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }))"
    assert said(text + paste).startswith("There is no picture in what was pasted; save it as a file")
    drop = (
        "$('tokens').firstChild.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true }))"
    )
    assert said(text + drop).startswith("There is no picture in what was dropped; save it as a file")
    of_another_tab = event % ("application/x-token", json.dumps({"picture": "0", "side": SIDE, "token": 0}))
    assert said(of_another_tab + drop).startswith("The picture of this token is not open on this page; open")
    assert page.edits == []
    rocket = "document.querySelector('[data-example=\"rocket.jpg\"]').click()"
    gone = said("settings.token = 'of a server that was stopped';" + rocket)
    assert gone == "files/rocket.jpg cannot be loaded; start the server again and open its new address."


def test_the_keyboard_keeps_its_place(page):
    page.give(picture(1)[0], "b.png")
    page.find(By.CSS_SELECTOR, "#shelf .held").send_keys(Keys.ENTER)
    page.settled()
    assert page.run("return document.activeElement === document.querySelector('#shelf .held')")
    assert page.run("return view.current.name") == "a.png"
    page.find(By.CSS_SELECTOR, "[data-example]").send_keys(Keys.ENTER)
    page.until("view.pictures.length === 3")
    assert page.settled().run("return view.current.name") == "astronaut"


def test_pictures_that_the_server_dropped_are_sent_again(page, monkeypatch):
    from sparse_vis.explore import shelf

    monkeypatch.setattr(shelf, "PICTURES", 1)
    monkeypatch.setattr(shelf, "ENCODED", 1)
    before = page.shown
    page.give(picture(1)[0], "b.png").give(picture(2)[0], "c.png")
    page.click("#shelf figure:first-child .held")
    np.testing.assert_array_equal(page.shown, before)
    monkeypatch.setattr(shelf, "ENCODED", 3)
    page.run("""
        const from = (i) => ({ picture: view.pictures[i].key, side: view.side, token: 1 });
        view.current.edits = [1, 2].map((i) => ({ kind: "replace", token: i, amount: 1, from: from(i) }));
        refresh();""")
    before = page.settled().shown
    page.give(picture(3)[0], "d.png").give(picture(4)[0], "e.png").give(picture(5)[0], "f.png")
    page.click("#shelf figure:first-child .held")  # needs three pictures that were dropped
    np.testing.assert_array_equal(page.shown, before)
    assert page.find(By.ID, "said").text == ""


def test_the_camera_takes_a_picture_and_is_closed(page):
    assert not page.find(By.ID, "video").is_displayed()
    page.find(By.ID, "camera").click()
    page.until("$('video').videoWidth > 0 && !$('taking').hidden")
    assert not page.find(By.ID, "camera").is_enabled()  # a second stream would stay open
    page.find(By.ID, "take").click()
    page.until("view.pictures.length === 2")
    page.settled()
    assert page.run("return [view.current.name, $('taking').hidden, $('video').srcObject]") == [
        "camera 1", True, None,
    ]  # fmt: skip
    assert page.shown.std() > 0
    assert page.run("return document.activeElement.id") == "camera"


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
    page.until("!document.querySelector('.again').classList.contains('old')")
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
    with pytest.raises(UserError, match=r"explore ended \(error: no model\); correct that"):
        explore_page.address_in(["error: no model\n"])


def test_the_recording_shows_each_edit_and_ends_with_a_replaced_token(address, monkeypatch, capsys, tmp_path):
    drivers, file = [], tmp_path / "film.webp"

    def starting(*flags):
        drivers.append(start(*flags))
        monkeypatch.setattr(drivers[-1], "quit", lambda: None)  # the page is looked at after the recording
        return drivers[-1]

    monkeypatch.setattr(explore_recording, "serving", lambda checkpoint: contextlib.nullcontext(address))
    monkeypatch.setattr(explore_recording, "start", starting)
    monkeypatch.setattr(explore_recording, "STEPS", 1)
    for name, token in {"MOVED": 0, "ERASED": 1, "REPLACED": 2, "TAKEN": 3}.items():
        monkeypatch.setattr(explore_recording, name, token)
    seen = []
    frame = explore_recording.Recorder.frame

    def noting(self, time=explore_recording.STEP):
        frame(self, time)
        seen.append([edit["kind"] for edit in self.driver.execute_script("return view.current.edits")])

    monkeypatch.setattr(explore_recording.Recorder, "frame", noting)
    monkeypatch.setattr(sys, "argv", ["explore_recording", f"--output={file}"])
    explore_recording.main()
    assert [kinds for kinds, _ in itertools.groupby(seen)] == [
        [], ["move"], ["move", "erase"], ["move"], [], ["replace"],
    ]  # fmt: skip
    edit = drivers[0].execute_script("return view.current.edits[0]")
    type(drivers[0]).quit(drivers[0])
    assert (edit["token"], edit["from"]["token"]) == (2, 3)
    with Image.open(file) as film:
        assert film.width == 720 and film.n_frames > 10 and film.info["loop"] == 0
    assert re.search(rf"{len(seen)} frames, \d+\.\d s", capsys.readouterr().out)
    for name in ("film.mp4", "absent/film.webp"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not a \.webp or \.gif file in a folder"):
            explore_recording.moving(str(tmp_path / name))


def test_everything_has_a_name_and_a_phone_scrolls_in_one_direction_only(page):
    page.give(picture(1)[0], 50 * "long" + ".png").token(0).click()
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {"button", "radio", "slider", "combobox", "region", "application", "image"}
    kinds = [(n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if not n.get("ignored")]
    assert named - {kind for kind, _ in kinds} == set()
    assert [kind for kind, name in kinds if kind in named and not name] == []
    screen = {"width": 360, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    assert page.run("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
