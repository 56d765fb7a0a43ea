"""Edits on the page, in headless Chromium: what it shows is what Python computes."""

from __future__ import annotations

import json
import time

import numpy as np
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import sparse_vis
from sparse_vis.explore.saved import read_saved
from tests.explore.page import NAMES, PIXELS, SIDE, computed, expected, picture, same
from tests.tiny_checkpoint import TOKENS

DRAG = """
const data = new DataTransfer(), [from, onto] = arguments;
const fire = (target, type) =>
  target.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
fire(from, "dragstart"); fire(onto, "dragover"); fire(onto, "drop");"""


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
    drag = ActionChains(page.driver, duration=10)
    drag.move_to_element_with_offset(stage, round(patch / 2), round(patch / 2)).click_and_hold()
    for _ in range(24):
        drag = drag.move_by_offset(round(2 * patch / 24) or 1, 0)
    drag.move_to_element_with_offset(stage, round(2.5 * patch), round(-patch / 2)).release().perform()
    page.settled()
    assert page.edits == [{"kind": "move", "token": 2, "down": -1, "right": 2}]
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


def test_a_click_on_a_picture_chooses_its_token_and_with_alt_a_drag_copies(page, loaded):
    stage, patch = page.find(By.ID, "photograph"), page.find(By.ID, "photograph").size["width"] / SIDE
    right = round(2.5 * patch)  # the middle of column 6
    ActionChains(page.driver).move_to_element_with_offset(stage, right, -right).click().perform()
    winner = int(np.asarray(sparse_vis.encode(*loaded, picture(0)[1][None]).spatial[0])[SIDE + 6].argmax())
    assert page.run("return view.chosen") == winner and page.edits == []
    drag = ActionChains(page.driver).key_down(Keys.ALT)
    drag.move_to_element_with_offset(stage, round(patch / 2), round(patch / 2)).click_and_hold()
    drag.move_by_offset(round(2 * patch), 0).release().key_up(Keys.ALT).perform()
    assert page.settled().edits == [{"kind": "copy", "token": winner, "down": 0, "right": 2}]
    same(page.shown, computed(loaded, page.edits))
    page.press(Keys.ESCAPE)
    assert page.run("return view.chosen") is None


def test_keys_and_buttons_edit_the_map_of_the_chosen_token(page, loaded):
    page.token(0).send_keys(Keys.ENTER)
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    page.press(Keys.ARROW_LEFT, hold=Keys.SHIFT)
    assert page.edits == [{"kind": "move", "token": 0, "down": 2, "right": -4}]  # one edit, not three
    page.press("+").press("m").click("[data-edit=copy]").click("[data-edit=vertical]").click("[data-edit=up]")
    assert [edit["kind"] for edit in page.edits] == ["move", "scale", "mirror", "copy", "mirror", "move"]
    same(page.shown, computed(loaded, page.edits))
    page.click("[data-edit=copy]").press(Keys.ARROW_UP)
    assert page.edits[6:] == [{"kind": "copy", "token": 0, "down": -1, "right": SIDE // 4}]  # moved on


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
    Select(page.find(By.ID, "source")).select_by_visible_text("token 3 of a.png")
    page.settled()
    np.testing.assert_array_equal(page.shown, dragged)
    page.run("$('amount').value = 0.5; $('amount').dispatchEvent(new Event('input'))")
    page.settled()
    same(page.shown, computed(loaded, [{**swap, "amount": 0.5}], seed=1))  # shown, not yet done
    assert [edit["amount"] for edit in page.edits] == [1]
    page.run("$('amount').dispatchEvent(new Event('change'))")
    page.settled()
    assert [edit["amount"] for edit in page.edits] == [0.5]
    same(page.shown, computed(loaded, [{**swap, "amount": 0.5}], seed=1))


def test_similar_tokens_of_a_gallery_are_shown(page):
    page.token(2).click()
    page.click("#similar")
    page.until("document.querySelectorAll('#found img').length > 0")
    captions = [x.text for x in page.driver.find_elements(By.CSS_SELECTOR, "#found figcaption")]
    assert len(captions) == len(NAMES)
    assert {caption.split(",")[0].split(" of ")[1] for caption in captions} == {*NAMES}
    cosines = [float(caption.rsplit(" ", 1)[1]) for caption in captions]
    assert cosines == sorted(cosines, reverse=True)
    page.until("[...document.querySelectorAll('#found img')].every(x => x.naturalWidth === 32)")
    page.token(0).click()
    assert page.find(By.CSS_SELECTOR, "#found h2").text == "Most similar to token 2 of a.png"


def test_an_impossible_edit_is_said_and_taken_back(page):
    for token in range(TOKENS):
        page.run(f"commit({{kind: 'erase', token: {token}}})")
        page.settled()
    assert "is the only one left" in page.find(By.ID, "said").text and len(page.edits) == TOKENS - 1
    page.click("#undo")
    # The second comes before the first is answered.
    page.run("commit({kind: 'erase', token: 9}); commit({kind: 'erase', token: 0})")
    page.settled()
    assert len(page.edits) == TOKENS - 2
    page.run("""
        const stroke = { kind: "paint", token: 3, patches: [0], amount: 1 };
        view.current.edits = Array(999).fill(madeNow(stroke));
        commit(stroke);""")
    page.settled()
    page.run("$('temperature').value = 1; $('temperature').dispatchEvent(new Event('input'))")
    assert "There are more than 1000 edits" in page.settled().find(By.ID, "said").text
    assert len(page.edits) == 1000 and page.run("return view.current.power") == 1  # which is at fault


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
    page.run("commit({kind: 'paint', token: 1, patches: [0, 17, 200], amount: 1})")
    page.settled().press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    before = page.edits
    for side in (8, 16):  # there and back: nothing is lost
        page.run(f"setSide({side}); refresh()")
        page.settled()
    assert page.edits == before and before[-1]["right"] == 3


def test_the_brush_of_the_keyboard_stays_inside_and_a_drag_is_not_interrupted(page):
    page.token(0).click()
    page.find(By.CSS_SELECTOR, "[name=brush][value='1']").click()
    page.run(f"place = [{2 * SIDE}, {2 * SIDE}]")  # of a finer resolution
    page.find(By.ID, "photograph").send_keys(" ")
    assert SIDE * SIDE - 1 in page.settled().edits[0]["patches"]
    outlined = "return !$('photograph').querySelector('.outline').hidden"
    assert page.run(outlined)
    page.find(By.ID, "width").send_keys(Keys.CONTROL, "z")  # also while a slider has the focus
    assert page.settled().edits == []
    page.find(By.ID, "photograph").send_keys(" ")
    assert page.settled().run(outlined)  # still seen after painting
    page.press(Keys.TAB)
    assert not page.run(outlined)
    page.run("drag = { token: 0, row: 0, column: 0, down: 1, right: 1, moved: true }; setSide(view.side)")
    assert page.run("return drag") is None  # rows and columns of another resolution
    page.run("""
        const asked = ask;
        ask = async (...given) => {
          await new Promise((done) => setTimeout(done, 800));
          return asked(...given);
        };
        window.said = [];
        new MutationObserver(() => said.push($("said").textContent)).observe($("said"), { childList: true });
        view.preview = { kind: "move", token: 0, down: 1, right: 0 };
        refresh();""")
    assert page.settled().run("return said") == []


def test_files_are_saved_and_read_back(page, loaded, tmp_path):
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.token(1).click()
    page.press(Keys.ARROW_RIGHT, Keys.DELETE)
    for button, name in (("#png", "a-edited.png"), ("#npz", "a-edited.npz")):
        page.click(button)
        deadline = time.monotonic() + 10
        while not (tmp_path / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a-edited.png")), page.shown)
    saved = read_saved(tmp_path / "a-edited.npz")
    assert [edit["kind"] for edit in saved.edits] == ["move", "erase"]
    same(page.shown, np.uint8(np.rint(255 * expected(loaded, saved.edited.L @ saved.edited.S))))
