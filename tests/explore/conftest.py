"""A server in a thread, a browser, and the page in it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import uvicorn
from PIL import Image

from sparse_vis.explore import server
from sparse_vis.explore.explore import bound
from sparse_vis.explore.shelf import Shelf
from tests.browser import start
from tests.commands.test_extract import run as extract
from tests.explore.page import NAMES, SCREEN, SIDE, Page, opened, picture

CAMERA = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"


@pytest.fixture(scope="module")
def extracted(workdir, tmp_path_factory):
    """An extraction of seven images in three shards, and their folder."""
    folder = tmp_path_factory.mktemp("extracted")
    (folder / "images").mkdir()
    for i, name in enumerate(NAMES):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    extract(workdir, folder / "images", folder / "features")
    return folder


@pytest.fixture(scope="module")
def address(loaded, extracted):
    listening, token = bound(0), "a-token"
    number = listening.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "default_side", lambda shelf: SIDE)
        shelf = Shelf(*loaded, max_pixels=10**6, gallery=opened(extracted, loaded))
        app = server.make_app(shelf, "tiny", token, number)
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


@pytest.fixture
def page(browser, address):
    """The page on a screen of 1200 px, with one picture (seed 0)."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SCREEN)
    browser.get(address)
    browser.get_log("browser"), browser.get_log("performance")
    yield Page(browser).give(picture(0)[0])
    assert [entry for entry in browser.get_log("browser") if "status of 40" not in entry["message"]] == []
