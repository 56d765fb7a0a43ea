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


def luminance(colour: str) -> float:
    """Relative luminance, from 0 to 1, of a colour as CSS writes it, rgb(…)."""
    parts = [float(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
