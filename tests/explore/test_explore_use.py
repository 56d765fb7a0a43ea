"""What a newcomer does on the page, in headless Chromium: histories, replacements, fingers, keys, closing."""

from __future__ import annotations

import base64

import numpy as np
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import sparse_vis
from tests.explore.page import SIDE, computed, picture, same
from tests.explore.test_explore_page import DRAG

UNLOAD = (
    "const e = new Event('beforeunload', { cancelable: true }); dispatchEvent(e); return e.defaultPrevented"
)
POWER = "$('temperature').value = -1; $('temperature').dispatchEvent(new Event('input'))"


def test_moves_and_scales_of_one_token_are_one_edit_and_vanish_there_and_back(page):
    before = page.shown
    page.token(0).click()
    stage = page.find(By.ID, "photograph")
    patch = stage.size["width"] / SIDE
    drag = ActionChains(page.driver).move_to_element(stage).click_and_hold()
    drag.move_by_offset(round(3 * patch), 0).release().perform()
    page.settled().press(Keys.ARROW_DOWN)
    assert page.edits == [{"kind": "move", "token": 0, "down": 1, "right": 3}]
    page.press(Keys.ARROW_UP)
    drag = ActionChains(page.driver).move_to_element(stage).click_and_hold()
    drag.move_by_offset(-round(3 * patch), 0).release().perform()
    assert page.settled().edits == [] and not page.find(By.ID, "undo").is_enabled()
    np.testing.assert_array_equal(page.shown, before)
    page.press("+", "+", "-")
    assert page.edits == [{"kind": "scale", "token": 0, "factor": 1.25}]
    assert page.press("-").edits == []
    # Of two tokens there are two edits, and each step is undone alone.
    page.run("nudge(0, 0, 1); nudge(1, 0, 1); nudge(1, 0, 1)")
    assert [edit["right"] for edit in page.settled().edits] == [1, 2]
    page.click("#undo")
    assert page.edits == [{"kind": "move", "token": 0, "down": 0, "right": 1}]
    # Coarser, the move rounds to nothing; it is not lost.
    assert page.run("return editsOf(view.current, 2)[0].right") == 0
    page.run("setSide(2); setSide(8)")
    assert page.edits[0]["right"] == 1


def test_reset_takes_back_edits_and_temperature_and_is_undone(page, loaded):
    before = page.shown
    page.run(POWER)
    page.settled().token(2).click()
    page.press(Keys.DELETE)
    both = page.shown
    same(both, computed(loaded, [{"kind": "temper", "power": 2}, {"kind": "erase", "token": 2}]))
    page.click("#reset")
    np.testing.assert_array_equal(page.shown, before)
    assert page.run("return [$('temperature').value, $('reset').disabled]") == ["0", True]
    np.testing.assert_array_equal(page.click("#undo").shown, both)
    page.click("#undo").click("#undo")
    np.testing.assert_array_equal(page.shown, before)
    page.run(POWER)
    np.testing.assert_array_equal(page.settled().click("#reset").shown, before)  # the temperature alone


def test_keys_work_after_a_control_was_used_but_for_those_that_it_needs(page):
    page.token(1).click()
    page.click("[name=brush][value='1']").press(Keys.DELETE)
    assert [edit["kind"] for edit in page.edits] == ["erase"]
    page.press(Keys.ARROW_DOWN)  # the next choice of brush
    assert len(page.edits) == 1 and page.find(By.CSS_SELECTOR, "[name=brush][value='0']").is_selected()
    page.find(By.ID, "source").send_keys("m")  # no mirror: letters choose in a list
    assert len(page.settled().edits) == 1
    page.press(Keys.ESCAPE)
    assert page.run("return view.chosen") is None


def test_the_list_and_the_slider_show_and_change_the_replacement_of_a_token(page, loaded):
    page.give(picture(1)[0], "b.png")
    other = page.driver.find_elements(By.CSS_SELECTOR, "#shelf .small .token")
    page.run(DRAG, other[3], page.token(1))
    page.settled().token(1).click()
    shown = "return [$('source').selectedOptions[0].text, $('amount').value, $('amount').disabled]"
    assert page.run(shown) == ["token 3 of a.png", "1", False]
    page.run("$('amount').value = 0.9; $('amount').dispatchEvent(new Event('input'))")
    page.run("$('amount').dispatchEvent(new Event('change'))")
    vector = np.asarray(sparse_vis.encode(*loaded, picture(0)[1][None]).sparse[0, 3]).tolist()
    swap = {"kind": "replace", "token": 1, "vector": vector, "amount": 0.9}
    same(page.settled().shown, computed(loaded, [swap], seed=1))
    assert [(e["token"], e["amount"], e["from"]["token"]) for e in page.edits] == [(1, 0.9, 3)]
    page.token(0).click()
    assert page.run(shown) == ["itself", "1", True]
    # A click on a token of another picture replaces the chosen one, if there is one.
    page.click("#shelf .small .token:nth-child(3)")
    assert page.run(shown) == ["token 2 of a.png", "1", False] and len(page.edits) == 2
    Select(page.find(By.ID, "source")).select_by_visible_text("itself")
    assert [edit["token"] for edit in page.settled().edits] == [1]
    page.press(Keys.ESCAPE).click("#shelf .small .token")
    assert page.find(By.ID, "said").text.startswith("Choose a token of the large picture first")


def test_a_finger_scrolls_until_a_token_is_chosen(page):
    page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        box = page.run("return $('photograph').getBoundingClientRect().toJSON()")
        place = {"x": round(box["x"] + 30), "y": round(box["y"] + 100)}
        touch = {**place, "gestureSourceType": "touch"}
        swipe = {**touch, "yDistance": -80, "speed": 2000}
        # Headless Chromium does not scroll by touch: only what the page allows, and what it makes of a swipe.
        allowed = "return getComputedStyle($('photograph')).touchAction"
        page.driver.execute_cdp_cmd("Input.synthesizeScrollGesture", swipe)
        assert page.run(allowed) == "auto" and page.settled().edits == []
        assert page.run("return view.chosen") is None
        page.driver.execute_cdp_cmd("Input.synthesizeTapGesture", touch)
        page.until("view.chosen !== null")
        assert page.run(allowed) == "none"
        page.driver.execute_cdp_cmd("Input.synthesizeScrollGesture", swipe)
        page.until("view.current.edits.length === 1")
        assert page.settled().edits[0]["down"] < 0
    finally:
        page.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_the_decoded_picture_is_never_covered_and_maps_keep_their_scale(page):
    page.token(0).send_keys(Keys.DELETE)  # by keyboard: the focus stays on the token
    assert page.run("return document.querySelectorAll('#reconstruction canvas').length") == 0
    page.settled().token(1).click()
    pixel = """
        const copy = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        copy.drawImage(document.querySelectorAll("#tokens canvas")[1], 0, 0);
        return [...copy.getImageData(0, 0, 1, 1).data]"""
    before = page.run(pixel)
    page.run(f"commit({{ kind: 'paint', token: 1, patches: [{SIDE * SIDE - 1}], amount: 1 }})")
    assert sum(before[:3]) > 0 and np.abs(np.subtract(page.settled().run(pixel), before)).max() <= 2
    for token in (2, 3):
        page.run(f"commit({{ kind: 'erase', token: {token} }})")
    assert min(page.settled().run(pixel)[:3]) > 150  # alone: L is 1 everywhere, which is light and not black


def test_pictures_are_closed_and_edits_are_not_lost_unasked(page):
    assert not page.run(UNLOAD)
    page.give(picture(1)[0], "b.png").give(picture(2)[0], "c.png").click("#shelf figure:first-child .held")
    page.token(0).click()
    Select(page.find(By.ID, "source")).select_by_visible_text("token 1 of b.png")
    replaced = page.settled().shown
    assert page.run(UNLOAD)
    for name in ("b.png", "c.png"):
        page.click(f"[aria-label='close {name}']")
    assert page.run("return $('source').selectedOptions[0].text") == "token 1 of b.png"
    texts = [option.text for option in Select(page.find(By.ID, "source")).options]
    assert page.run("return view.current.name") == "a.png" and not any("c.png" in text for text in texts)
    page.press("m").click("#undo")
    np.testing.assert_array_equal(page.shown, replaced)  # closed, b.png still gives its token
    page.click("[aria-label='close a.png']")
    assert not page.find(By.ID, "work").is_displayed() and not page.run(UNLOAD)
    assert page.find(By.ID, "said").text == "Drop a picture here, or open one above."
    page.run("document.querySelector('[data-example]').click()")
    page.until("view.current && !busy && !again")
    assert page.find(By.ID, "work").is_displayed() and page.edits == []


def test_a_refusal_takes_back_what_was_refused_and_nothing_else(page):
    page.run("for (const token of [1, 2, 3]) commit({ kind: 'erase', token })")
    kept = page.settled().edits
    page.run("commit({ kind: 'erase', token: 0 }); undo()")  # undone before the server refuses it
    assert page.settled().edits == kept and page.find(By.ID, "said").text == ""
    page.run("redo()")
    assert page.settled().edits == kept
    assert page.find(By.ID, "said").text == "Token 0 is the only one left; one must stay."
    # The copy that the server accepted is gone with the one that it refuses; the picture shows that.
    page.click("#undo").run("copyMap(0); ")
    page.settled().run("nudge(0, 1000, 0)")
    page.settled().run("nudge(0, 1, 0)")
    shown = page.settled().shown
    assert [edit["kind"] for edit in page.edits] == ["erase", "erase"]
    np.testing.assert_array_equal(shown, page.click("#reset").click("#undo").shown)


def test_a_resolution_that_the_edits_do_not_allow_is_left_again(page):
    page.run("setSide(16); refresh()")
    page.settled().run("nudge(0, 15, 0); for (const token of [1, 2, 3]) commit({ kind: 'erase', token })")
    kept, shown = page.settled().edits, page.shown
    page.run("setSide(8); refresh()")  # the map of token 0 leaves the picture, and token 3 is the last
    assert "Token 3 is the only one left" in page.settled().find(By.ID, "said").text
    assert page.run("return [view.side, +$('side').value]") == [16, 16] and page.edits == kept
    np.testing.assert_array_equal(page.shown, shown)
    # No list has moves by more than 1000 patches.
    assert page.run("return atSide({ kind: 'move', side: 8, down: -900, right: 5 }, 48)") == {
        "kind": "move", "down": -1000, "right": 30,
    }  # fmt: skip


def test_pictures_that_come_while_the_page_works_are_all_on_the_shelf(page):
    script = """
        const files = arguments[0].map((text, i) => new File([bytesOf(text)], `${i}.png`));
        setSide(8 + 2 * (view.side === 8)); // the page works, for a while
        refresh();
        openAll(files);"""
    page.run(script, [base64.b64encode(picture(seed)[0]).decode() for seed in (1, 2, 3)])
    page.until("view.pictures.length === 4")
    names = [each.text for each in page.settled().driver.find_elements(By.CSS_SELECTOR, "#shelf .held")]
    assert names == ["a.png", "0.png", "1.png", "2.png"]


def test_a_picture_that_is_closed_while_it_is_shown_stays_closed(page):
    wait = """
        const { decode } = HTMLImageElement.prototype;
        HTMLImageElement.prototype.decode = async function () {
          if (this.alt === arguments_.alt) closePicture(view.current);
          return decode.call(this);
        };"""
    for alt in ("photograph", "reconstruction"):
        page.run(wait.replace("arguments_.alt", repr(alt)) + "setSide(view.side === 8 ? 10 : 8); refresh()")
        page.until("!view.current && !busy && !again")
        assert not page.find(By.ID, "work").is_displayed()
        page.driver.refresh()
        page.give(picture(0)[0])
        assert page.driver.find_elements(By.CSS_SELECTOR, "#shelf .held")
