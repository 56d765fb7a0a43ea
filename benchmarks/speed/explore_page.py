"""Time edits on the page of `explore`, from the key to the new picture, in headless Chromium.

    python -m benchmarks.speed.explore_page --screenshot=docs/images/explore.jpg

Starts the tool, opens two of the package's photographs, and moves the map of a token by arrow keys, one at a
time. --screenshot saves the page with a map moved to the right.
"""

import base64
import contextlib
import io
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

from PIL import Image
from selenium.webdriver.remote.webdriver import WebDriver

from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.tools import Parser, positive
from tests.browser import start

PHOTOGRAPHS = "chelsea.jpg", "coffee.jpg"
PAUSE = 700  # ms between edits, in which the page also encodes the last result again
OPEN = "document.querySelector(`[data-example='${arguments[0]}']`).click();"
# Press one arrow key after the other; time each until the browser draws the frame with the new picture.
TIMED = """
const [count, pause, done] = arguments, times = [], number = settings.tokens - 2;
const token = document.querySelectorAll("#tokens .token")[number];
(async () => {
  token.click();
  for (let i = 0; i < count; i++) {
    await new Promise((go) => setTimeout(go, pause));
    const drawn = new Promise((go) => new MutationObserver((_, observer) => {
      observer.disconnect();
      requestAnimationFrame(() => setTimeout(() => go(performance.now())));
    }).observe($("reconstruction"), { childList: true }));
    const begun = performance.now(), key = i % 2 ? "ArrowLeft" : "ArrowRight";
    token.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    times.push(await drawn - begun);
  }
  nudge(number, 0, 8);
  setTimeout(() => done(times), 3 * pause);
})();"""


@contextlib.contextmanager
def serving(checkpoint: str) -> Iterator[str]:
    """Run the tool; yields its address."""
    command = [sys.executable, "-m", "sparse_vis", "explore", f"--checkpoint={checkpoint}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tool:
        try:
            yield address_in(tool.stdout)
        finally:
            tool.terminate()


def address_in(lines: Iterable[str]) -> str:
    """The address that the tool prints once it serves the page."""
    said = []
    for line in lines:
        said.append(line)
        if found := re.search(r"http://127\.0\.0\.1\S+", line):
            return found[0]
    why = "".join(said[-3:]).strip() or "it printed nothing"
    raise UserError(f"explore ended ({why}); correct that and repeat.")


def opened(driver: WebDriver, name: str, count: int) -> None:
    """Open one of the package's photographs and wait until it is shown as the `count`-th."""
    driver.execute_script(OPEN, name)
    deadline = time.monotonic() + 120
    while not driver.execute_script(f"return view.pictures.length === {count} && !busy && !again"):
        if time.monotonic() > deadline:
            raise UserError(f"{name} was not shown within two minutes; see what the page says.")
        time.sleep(0.05)


def screenshot(driver: WebDriver, **options) -> Image.Image:
    """What the browser shows; `options`: of Page.captureScreenshot in Chromium's protocol."""
    data = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", **options})["data"]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def whole_page(driver: WebDriver) -> Image.Image:
    """The whole page, as the browser draws it."""
    script = "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    width, height = driver.execute_script(script)
    driver.execute_script("scrollTo(0, 0)")
    size = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    return screenshot(driver, captureBeyondViewport=True, clip=size)


def main() -> None:
    parser = Parser(prog=f"python -m {__spec__.name}", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=False, default="pictures-tiny")
    add("--edits", type=positive, default=30, metavar="N", help="timed edits (%(default)s)")
    add("--screenshot", type=paths.path, metavar="FILE", help="image file for the page after them")
    given = parser.parse_args()
    with serving(given.checkpoint) as address, start("--window-size=1280,1000") as driver:
        driver.get(address)
        driver.set_script_timeout(600)
        for count, name in enumerate(PHOTOGRAPHS, start=1):
            opened(driver, name, count)
        times = driver.execute_async_script(TIMED, given.edits, PAUSE)
        if given.screenshot:
            whole_page(driver).save(given.screenshot, quality=85)
        pixels = driver.execute_script("return $('reconstruction').querySelector('img').naturalWidth")
    late = sorted(times)[round(0.9 * (len(times) - 1))]
    print(
        f"{len(times)} edits of {given.checkpoint} at {pixels}x{pixels} px: "
        f"median {statistics.median(times):.0f} ms, 9 of 10 within {late:.0f} ms"
    )


if __name__ == "__main__":
    command_line(main)
