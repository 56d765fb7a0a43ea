"""Record the use of the page of `explore`, as a moving picture for README.

    python -m benchmarks.speed.explore_recording --output=docs/images/explore.webp

Starts the tool, and in headless Chromium points at tokens of a photograph, moves the map of one, erases
another, undoes both, and drops a token of another photograph onto one.
All is the page's own work, except that pointer, headings and a dragged token are drawn into it, and unused
controls are hidden. Each frame is taken when the page has answered, so that the recording does not show its
speed, which explore_page.py measures.
"""

import argparse
import pathlib

from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from benchmarks.speed.explore_page import opened, screenshot, serving
from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import command_line
from sparse_vis.runtime.tools import Parser
from tests.browser import start

SHOWN, OTHER = "coffee", "astronaut"  # photographs of the package
# Tokens of pictures-tiny whose edits are easy to see; check the frames after changing model or photographs.
MOVED, ERASED, REPLACED, TAKEN = 6, 1, 5, 2
PAGE, WIDTH = 1040, 720  # widths of the page and of the recording, in pixels
STEPS, STEP = 6, 50  # frames of a movement, and ms for which each is shown
ASIDE = (PAGE / 2, 8.0)  # an empty place of the page
DRESS = """
const sheet = new CSSStyleSheet();  // the page allows no <style>
sheet.replaceSync(`
  html { overflow: hidden; }
  .kind, .note, #said, .bar label:has([type=range]), #tools fieldset:not(:first-child) { display: none; }
  [data-edit$=al], [data-edit=copy] { display: none; }
  body { padding: 20px 24px 8px; } .stages { grid-template-columns: 1fr 1fr; }
  #pointer { position: fixed; z-index: 2; width: 26px; pointer-events: none; overflow: visible; }
  #carried { position: fixed; z-index: 1; width: 56px; border-radius: 6px; pointer-events: none; }`);
document.adoptedStyleSheets.push(sheet);
document.body.insertAdjacentHTML("beforeend", `<svg id="pointer" viewBox="0 0 16 24">
  <path d="M1 1v18l4.5-4 3 7 3-1.3-3-6.7h6z" fill="black" stroke="white" stroke-width="1.6"/></svg>`);"""
PLACE = """
const [x, y] = arguments, put = (node, dx, dy) =>
  node && Object.assign(node.style, { left: `${x + dx}px`, top: `${y + dy}px` });
put($("pointer"), -1, -1); put($("carried"), 6, 10);"""
# Headless Chromium has no drag and drop, so that its events are sent to the page.
FIRE = """
const [type, x, y] = arguments, target = document.elementFromPoint(x, y);
window.carried ??= new DataTransfer();
target.dispatchEvent(new DragEvent(type, { dataTransfer: carried, bubbles: true, cancelable: true }));
if (type === "drop") return $("carried").remove();
if (type !== "dragstart") return;
const [from, copy] = [target.closest(".token").querySelector("canvas"), document.createElement("canvas")];
Object.assign(copy, { id: "carried", width: from.width, height: from.height });
copy.getContext("2d").drawImage(from, 0, 0);
document.body.append(copy);"""


def moving(text: str) -> pathlib.Path:
    """argparse `type` of a .webp or .gif file in an existing folder."""
    path = paths.path(text)
    if path.suffix not in (".webp", ".gif") or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a .webp or .gif file in a folder that exists")
    return path


class Recorder:
    """The page, a pointer on it, and the frames so far."""

    def __init__(self, driver: WebDriver):
        self.driver, self.at = driver, ASIDE
        self.frames: list[Image.Image] = []
        self.times: list[int] = []  # ms

    def frame(self, time: int = STEP) -> None:
        """Wait until the page has answered, and take a frame that is shown for `time` ms."""
        self.driver.execute_script(PLACE, *self.at)
        self.driver.execute_async_script("""
            const done = arguments[0], look = () => (busy || again ? setTimeout(look, 10)
              : requestAnimationFrame(() => setTimeout(done)));
            look();""")
        page = screenshot(self.driver, optimizeForSpeed=True)
        self.frames.append(page.resize((WIDTH, round(page.height * WIDTH / PAGE)), Image.Resampling.LANCZOS))
        self.times.append(time)

    def head(self, words: str) -> None:
        """Set the heading, which announces what comes."""
        self.driver.execute_script("document.querySelector('h1').textContent = arguments[0]", words)

    def mouse(self, kind: str, buttons: int = 0, at: tuple[float, float] | None = None) -> None:
        """Send a real event of the mouse, at the pointer or elsewhere."""
        x, y = at or self.at
        event = {"type": kind, "x": x, "y": y, "buttons": buttons}
        button = {} if kind == "mouseMoved" and not buttons else {"button": "left", "clickCount": 1}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event | button)

    def middle(self, selector: str, number: int = 0) -> tuple[float, float]:
        """The middle of an element of the page."""
        box = self.driver.find_elements(By.CSS_SELECTOR, selector)[number].rect
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def go(self, to: tuple[float, float], buttons: int = 0, *, carries: bool = False) -> None:
        """Move the pointer, slower near both ends.

        Only a drag moves the mouse at every step, so that tokens on the way do not flash.
        """
        begin = self.at
        if not buttons and not carries:
            self.mouse("mouseMoved", at=ASIDE)
        for i in range(1, STEPS + 1):
            part = (i / STEPS) ** 2 * (3 - 2 * i / STEPS)
            self.at = tuple(a + part * (b - a) for a, b in zip(begin, to, strict=True))
            if carries:
                self.driver.execute_script(FIRE, "dragover", *self.at)
            elif buttons or i == STEPS:
                self.mouse("mouseMoved", buttons)
            self.frame()

    def click(self, selector: str, number: int = 0, hold: int = 300) -> None:
        """Go to an element, click it, and show the result for `hold` ms."""
        self.go(self.middle(selector, number))
        self.mouse("mousePressed", 1)
        self.mouse("mouseReleased")
        self.frame(hold)


def play(film: Recorder) -> None:
    """Do all that the recording shows."""
    film.head("Open a picture")
    film.frame(500)
    film.go(film.middle(f"[data-example='{SHOWN}.jpg']"))
    opened(film.driver, f"{SHOWN}.jpg", 2)
    film.frame(700)
    film.head("Point at a token: where does it look?")
    film.go(film.middle("#tokens .token", ERASED))
    film.frame(400)
    film.click("#tokens .token", MOVED, hold=500)
    film.head("Drag its map")
    x, y = film.middle("#photograph")
    film.go((x, y))
    film.mouse("mousePressed", 1)
    film.go((x + PAGE / 17, y), 1)
    film.mouse("mouseReleased")
    film.frame(900)
    film.head("Erase another token")
    film.click("#tokens .token", ERASED, hold=200)
    film.click("[data-edit=erase]", hold=900)
    film.head("Undo")
    film.click("#undo", hold=250)
    film.click("#undo", hold=500)
    ActionChains(film.driver).send_keys(Keys.ESCAPE).perform()  # unselects the token
    film.head(f"Drop a token of “{OTHER}” onto one")
    film.go(film.middle("#shelf .small .token", TAKEN))
    film.driver.execute_script(FIRE, "dragstart", *film.at)
    film.go(film.middle("#tokens .token", REPLACED), carries=True)
    film.driver.execute_script(FIRE, "drop", *film.at)
    film.go(film.middle("#tools legend"))
    film.frame(1400)


def main() -> None:
    parser = Parser(prog=f"python -m {__spec__.name}", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=False, default="pictures-tiny")
    add("--output", required=True, type=moving, metavar="FILE", help="the moving picture, .webp or .gif")
    given = parser.parse_args()
    with serving(given.checkpoint) as address, start() as driver:
        driver.set_script_timeout(120)
        for count in (2, 1):  # with both pictures, to measure the final height of the page; then with one
            screen = {"width": PAGE, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            if count == 1:
                screen["height"] = driver.execute_script("return document.body.offsetHeight")
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            driver.get(address)
            driver.execute_script(DRESS)
            for number, name in enumerate((OTHER, SHOWN)[:count], start=1):
                opened(driver, f"{name}.jpg", number)
        film = Recorder(driver)
        play(film)
    first, *others = film.frames
    look = {"save_all": True, "append_images": others, "duration": film.times, "loop": 0}
    first.save(given.output, **look, quality=75, method=5)
    size = given.output.stat().st_size / 1e6
    print(f"wrote {given.output}: {len(film.frames)} frames, {sum(film.times) / 1000:.1f} s, {size:.2f} MB")


if __name__ == "__main__":
    command_line(main)
