"""A report in headless Chromium: pointer and keyboard, dark, a phone, silence on console and network."""

from __future__ import annotations

import json
import shlex
import sys
import urllib.parse

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from sparse_vis.report import report as tool
from tests.browser import luminance, start
from tests.report.test_report import write_run
from tests.tiny_checkpoint import PATCH, SIZE, TOKENS

GRID = SIZE // PATCH


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a run")
    write_run(folder)
    with pytest.MonkeyPatch.context() as patch:
        flags = {"checkpoint": folder, "output": folder / "report.html", "gallery": 2, "voters": 4}
        patch.setattr(sys, "argv", ["report", *(f"--{name}={value}" for name, value in flags.items())])
        tool.main()
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    driver = start()
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    """The page on a screen of 1200 px, the pointer outside; `show` changes screen and colours."""

    def show(width=1200, scheme="light"):
        command = browser.execute_cdp_cmd
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        command("Emulation.setDeviceMetricsOverride", screen)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        reduced = {"name": "prefers-reduced-motion", "value": "reduce"}
        command("Emulation.setEmulatedMedia", {"features": [feature, reduced]})
        browser.get(page)
        return browser

    return show


def visible(driver, selector):
    """Numbers of the elements whose opacity is 1, among those that the selector finds."""
    script = "return [...document.querySelectorAll(arguments[0])].map(x => +getComputedStyle(x).opacity)"
    return [i for i, opacity in enumerate(driver.execute_script(script, selector)) if opacity == 1]


def test_nothing_leaves_the_file_and_nothing_complains(opened, page):
    driver = opened()
    driver.get_log("performance")
    driver.get_log("browser")
    driver.get(page)
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert page in sent and not [url for url in sent if url != page and not url.startswith("data:")]
    assert driver.get_log("browser") == []
    broken = "return [...document.images].filter(x => !x.complete || !x.naturalWidth).length"
    assert driver.execute_script(broken) == 0


def test_pointing_at_a_token_shows_its_map_and_edit(opened):
    driver = opened()
    assert visible(driver, ".tokens :is(.map, .edit, .words)") == []
    button = driver.find_elements(By.CSS_SELECTOR, ".tokens button")[3]  # after "all": token 2 of image A
    ActionChains(driver).move_to_element(button).perform()
    assert visible(driver, ".map:not(.hard)")[:1] == [2] and visible(driver, ".tokens .map.hard") == []
    assert visible(driver, ".edit.removed") == [2] and visible(driver, ".edit:is(.moved, .swapped)") == []
    # The map lies exactly over the image, the edit over the reconstruction.
    boxes = """
        const box = x => { const b = x.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] };
        const card = document.querySelector(".card"), button = card.querySelectorAll("button")[3];
        return [".map", ".edit.removed"].map(s => box(button.querySelector(s)))
          .concat([".seen", ".made"].map(s => box(card.querySelector(s))))"""
    over, edit, image, reconstruction = driver.execute_script(boxes)
    assert over == pytest.approx(image, abs=0.6) and edit == pytest.approx(reconstruction, abs=0.6)
    driver.find_element(By.CSS_SELECTOR, "[value=swapped]").click()
    ActionChains(driver).move_to_element(button).perform()
    assert visible(driver, ".edit.swapped") == [2] and visible(driver, ".edit.removed") == []
    assert "of B" in button.find_element(By.CSS_SELECTOR, ".words.swapped").get_attribute("textContent")


def test_the_keyboard_reaches_every_token(opened):
    driver = opened()
    driver.find_element(By.CSS_SELECTOR, "[value=removed]").send_keys(Keys.TAB)
    seen = []
    for _ in range(2 * (TOKENS + 1)):
        seen.append(driver.switch_to.active_element.get_attribute("aria-label"))
        assert len(visible(driver, ".tokens .map")) == 1
        driver.switch_to.active_element.send_keys(Keys.TAB)
    assert [label.split(",")[0] for label in seen[: TOKENS + 1]] == [
        "all tokens: hard segmentation", *(f"token {i}" for i in range(TOKENS))
    ]  # fmt: skip
    assert visible(driver, ".tokens .map") == []


def test_pointing_at_the_image_finds_the_token_of_the_patch(opened):
    driver = opened()
    stage = driver.find_elements(By.CSS_SELECTOR, ".seen")[1]
    winners, side = json.loads(stage.get_attribute("data-winners")), stage.size["width"] / GRID
    for row, column in ((0, GRID - 1), (GRID - 1, 1)):
        x, y = ((column + 0.5) - GRID / 2) * side, ((row + 0.5) - GRID / 2) * side
        ActionChains(driver).move_to_element_with_offset(stage, round(x), round(y)).perform()
        on = driver.find_elements(By.CSS_SELECTOR, ".tokens .on")
        assert [b.get_attribute("data-token") for b in on] == [str(winners[row][column])]
        assert visible(driver, ".tokens .map:not(.hard)") == [TOKENS + winners[row][column]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(opened, scheme):
    driver = opened(scheme=scheme)
    script = """
        const ground = x => { for (; x; x = x.parentElement) {
          const c = getComputedStyle(x).backgroundColor; if (c !== "rgba(0, 0, 0, 0)") return c; } };
        return ["h1", ".note", "dt", "nav a", ".tokens button", ".said", "thead th", "td", "figcaption"]
          .map(s => document.querySelector(s)).map(x => [getComputedStyle(x).color, ground(x)])"""
    for colour, ground in driver.execute_script(script):
        low, high = sorted([luminance(colour), luminance(ground)])
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA
        assert (luminance(ground) > 0.5) == (scheme == "light")
    ink = "return getComputedStyle(document.querySelector('.curves svg text')).fill"
    assert (luminance(driver.execute_script(ink)) < 0.5) == (scheme == "light")


def test_a_phone_scrolls_in_one_direction_only(opened):
    driver = opened(width=360)
    assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    outside = """
        const all = "button, .stage:not(.still), .regions img, .curves svg, h1, h2, p";
        return [...document.querySelectorAll(all)]
          .map(x => x.getBoundingClientRect()).filter(b => b.left < 0 || b.right > 360).length"""
    assert driver.execute_script(outside) == 0
    button = driver.find_elements(By.CSS_SELECTOR, ".tokens button")[1]
    button.click()  # a tap
    assert visible(driver, ".tokens .map") == [1]


def test_the_command_of_explore_is_shown_and_copied_by_keyboard(opened, page):
    driver = opened()
    command, said = driver.find_element(By.ID, "command"), driver.find_element(By.ID, "copied")
    assert not command.is_displayed()
    driver.find_element(By.CSS_SELECTOR, ".explore summary").send_keys(Keys.ENTER)
    folder = urllib.parse.unquote(urllib.parse.urlparse(page).path).removesuffix("/report.html")
    words = ["python", "-m", "sparse_vis", "explore", f"--checkpoint={folder}"]
    assert shlex.split(command.text) == words and " " in folder
    allowed = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": allowed})
    button = driver.find_element(By.ID, "copy")
    button.send_keys(Keys.ENTER)
    WebDriverWait(driver, 5).until(lambda _: said.text == "Copied.")
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, (e) => done(String(e)))"
    assert driver.execute_async_script(read) == command.text
    # Where a browser refuses, the command is selected.
    driver.execute_script("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    button.send_keys(Keys.SPACE)
    WebDriverWait(driver, 5).until(lambda _: said.text == "Selected: press Ctrl+C.")
    assert driver.execute_script("return getSelection().toString()") == command.text


def test_everything_has_a_name_for_screen_readers(opened):
    driver = opened()
    assert driver.execute_script("return document.querySelectorAll('img:not([alt])').length") == 0
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {}
    for node in nodes:
        if not node.get("ignored"):
            name = node.get("name", {}).get("value", "")
            roles.setdefault(node["role"]["value"], []).append(name)
    assert len(roles["button"]) == 2 * (TOKENS + 1) and len(roles["radio"]) == 3
    for role in ("button", "radio", "image", "link", "region", "article"):
        assert all(roles[role]), role
    assert "image A" in roles["image"] and any(n.startswith("total: 90 at step 1") for n in roles["image"])
    doubled = """
        const ids = [...document.querySelectorAll("[id]")].map(x => x.id);
        return ids.length - new Set(ids).size"""
    assert driver.execute_script(doubled) == 0
