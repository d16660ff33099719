"""A real headless Chromium, driven by its own chromedriver."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.parts.host import unavailable

ARTEFACTS = Path(__file__).resolve().parents[2] / "build" / "artefacts"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


@contextmanager
def browser(folder: Path, width: int = 1280, height: int = 1500) -> Iterator[Chrome]:
    """One browser with a profile of its own in `folder`. Where there is none, laptops skip and CI fails."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        unavailable("no chromium with its chromedriver: install Debian's chromium and chromium-driver, or the like")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(executable_path=driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def resize(chrome: Chrome, width: int, height: int) -> None:
    """The page's own size, below the least that a window has, too."""
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def complaints(chrome: Chrome) -> list[dict[str, Any]]:
    """What the console has said since the last call, errors and warnings."""
    return [entry for entry in chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def keep_screenshot(chrome: Chrome, name: str) -> Path:
    """The whole page as a PNG among the run's artefacts."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    height = int(chrome.execute_script("return document.documentElement.scrollHeight"))
    width = int(chrome.execute_script("return innerWidth"))
    resize(chrome, width, height)
    path = ARTEFACTS / f"{name}.png"
    assert chrome.save_screenshot(str(path)), path
    return path


def store(chrome: Chrome) -> dict[str, str]:
    """What the page keeps in the tab."""
    return dict(json.loads(chrome.execute_script("return JSON.stringify(sessionStorage)")))
