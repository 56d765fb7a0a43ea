"""The page as a reader uses it, and what it has to show."""

from __future__ import annotations

import base64
import io
import time

import numpy as np
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

import sparse_vis
from sparse_vis.explore.edits import replay
from sparse_vis.explore.similar import Extraction
from tests.tiny_checkpoint import PATCH

SIDE = 8  # patches
PIXELS = SIDE * PATCH
SCREEN = {"width": 1200, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
NAMES = [f"{i}.png" for i in range(7)]  # of the extraction
FILE = """
const bytes = Uint8Array.from(atob(arguments[0]), (x) => x.charCodeAt(0)), data = new DataTransfer();
data.items.add(new File([bytes], arguments[1]));
const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
const paste = new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
document.body.dispatchEvent({ drop, paste }[arguments[2]]);"""


def picture(seed=0, size=(PIXELS, PIXELS), form="PNG"):
    """Bytes of a picture, and its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue(), pixels


def expected(loaded, Z):
    """Pixels of features, by the package's notebook interface."""
    model, params = loaded
    features = sparse_vis.encode(model, params, np.zeros((1, PIXELS, PIXELS, 3), np.uint8))
    decoded = sparse_vis.reconstruct(model, params, features.replace(lowrank=Z[None]))
    return np.asarray(decoded[0])


def computed(loaded, edits, seed=0):
    """Pixels after edits of the picture of a seed, by the package's functions."""
    out = sparse_vis.encode(*loaded, picture(seed)[1][None])
    S, L = replay(np.asarray(out.sparse[0]), np.asarray(out.spatial[0]), (SIDE, SIDE), edits)
    return np.uint8(np.rint(255 * expected(loaded, L @ S)))


def same(found, pixels):
    assert found.shape == pixels.shape and np.abs(found.astype(int) - pixels.astype(int)).max() <= 1


def opened(extracted, loaded, **changes):
    """The extraction, ready to be searched."""
    given = {"folder": extracted / "features", "images": extracted / "images", **changes}
    return Extraction(**given, model=loaded[0], params=loaded[1], max_pixels=10**6)


class Page:
    """The page in a browser, with what a reader does."""

    def __init__(self, driver):
        self.driver, self.run, self.find = driver, driver.execute_script, driver.find_element

    def until(self, script, seconds=60):
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
        return self.run("return editsOf({ ...view.current, power: 1 })")

    @property
    def shown(self):
        """Pixels of the reconstruction that the page shows."""
        source = self.find(By.CSS_SELECTOR, "#reconstruction img").get_attribute("src")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"))
