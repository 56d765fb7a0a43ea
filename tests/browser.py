"""Headless Chromium."""

from __future__ import annotations

import shutil

import pytest
from selenium import webdriver

FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")


def start(*flags: str) -> webdriver.Chrome:
    """A browser that keeps its logs of console and network; `quit` ends it."""
    places = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if None in places.values():
        pytest.fail("Chromium is missing: apt-get install chromium chromium-driver, as CONTRIBUTING.md says.")
    options = webdriver.ChromeOptions()
    options.binary_location = places["chromium"]
    for flag in (*FLAGS, *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(places["chromedriver"]))
