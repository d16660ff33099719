"""The live page in a real browser, while the demo runs behind it; screenshots are kept in build/artefacts."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from tests.parts.browser import browser, complaints, keep_screenshot, resize, store
from tests.server.processes import SERVE, make_policy, serving, wait_for

OPS = "ops-ops-ops-ops-ops"
HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("browser")) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def demo(chrome: Chrome) -> Iterator[str]:
    """The address that `croupier demo` prints first."""
    del chrome  # without a browser there is no need for the demo
    command = [sys.executable, "-c", SERVE, "demo", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.match(r"\s+watch it\s+(http://\S+/)$", line):
                    yield found[1]
                    break
            else:
                raise AssertionError("the demo said no address")
            process.terminate()
            rest = process.stdout.read()
            assert process.wait(60) == 0, rest
        finally:
            process.kill()


def text(chrome: Chrome, css: str) -> str:
    """What a reader sees of an element."""
    return str(chrome.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", css))


def press(chrome: Chrome, css: str) -> None:
    chrome.find_element(By.CSS_SELECTOR, css).click()


def figures(chrome: Chrome, css: str) -> list[float]:
    return [float(each.replace(",", "")) for each in re.findall(r"\d[\d,.]*", text(chrome, css))]


def soon(true: Callable[[], object]) -> None:
    wait_for(lambda: bool(true()), 30)


def opened(chrome: Chrome, url: str) -> None:
    chrome.get("about:blank")  # so that a hash alone is a new page, too
    complaints(chrome)
    resize(chrome, 1280, 1000)
    chrome.get(url)


def test_numbers_move_while_the_demo_runs(chrome: Chrome, demo: str) -> None:
    opened(chrome, demo)
    soon(lambda: text(chrome, "#state").startswith("Live"))
    assert text(chrome, "#policies button[aria-pressed=true]").startswith("films")
    soon(lambda: "explore (this policy's own)" in text(chrome, "#rate") and "exploit" in text(chrome, "#rate"))
    soon(lambda: len(figures(chrome, "#traffic .legend")) == 2 and min(figures(chrome, "#traffic .legend")) > 1)
    shown = figures(chrome, "#policies button[aria-pressed=true]")
    learned = figures(chrome, "#outcomes")
    soon(lambda: figures(chrome, "#policies button[aria-pressed=true]") > shown)
    soon(lambda: figures(chrome, "#outcomes") > learned)
    assert "All there" in text(chrome, "#health")
    assert len(chrome.find_elements(By.CSS_SELECTOR, "#arms tr")) == 10
    press(chrome, "#more")
    assert len(chrome.find_elements(By.CSS_SELECTOR, "#arms tr")) == 50
    press(chrome, "#more")
    assert not complaints(chrome)


def test_what_one_tries_is_answered_and_learned(chrome: Chrome, demo: str) -> None:
    opened(chrome, f"{demo}#headlines")
    soon(lambda: text(chrome, "#policies button[aria-pressed=true]").startswith("headlines"))
    assert not chrome.find_element(By.ID, "tell").is_displayed()
    soon(lambda: text(chrome, "#segment"))
    press(chrome, "#ask button")
    soon(lambda: text(chrome, "#answer").startswith("200"))
    asked = text(chrome, "#ask-curl")
    assert '"policy":"headlines"' in asked
    told = text(chrome, "#tell-curl")
    assert f"{demo}v1/feedback" in told
    for line, status in ((asked, '"decision_id"'), (told, '{"results":[{"status":"accepted"}]}')):
        assert status in subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    press(chrome, "#tell button")
    soon(lambda: text(chrome, "#told").startswith("202"))
    assert "accepted" in text(chrome, "#told")
    chrome.find_element(By.ID, "k").send_keys(Keys.CONTROL + "a" + Keys.NULL + "99")
    press(chrome, "#ask button")
    soon(lambda: text(chrome, "#answer").startswith("422"))
    assert not chrome.find_element(By.ID, "tell").is_displayed()
    assert len(complaints(chrome)) == 1, "only the browser's own line for the 422"


def test_one_may_choose_by_keyboard(chrome: Chrome, demo: str) -> None:
    opened(chrome, demo)
    soon(lambda: text(chrome, "#policies"))
    order = []
    for _ in range(40):
        ActionChains(chrome).send_keys(Keys.TAB).perform()
        focused: Any = chrome.switch_to.active_element
        order.append(focused.get_attribute("id") or focused.get_attribute("data-name") or focused.text)
        assert chrome.execute_script("return getComputedStyle(document.activeElement).outlineStyle") != "none"
        if order[-1] == "headlines":
            focused.send_keys(Keys.ENTER)
            break
    assert order[:2] == ["Skip to the figures", "API"]
    assert order[-4:] == ["theme", "films", "freshness-probe", "headlines"]
    soon(lambda: text(chrome, "#policies button[aria-pressed=true]").startswith("headlines"))
    soon(lambda: "explore" in text(chrome, "#rate"))
    chart = chrome.find_element(By.CSS_SELECTOR, "#rate > svg")
    chart.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert " at " in " " + text(chrome, "#rate .legend").replace("\n", " ")
    assert "explore" in (chart.get_attribute("aria-label") or "")


def test_light_dark_and_a_phone_and_a_screenshot_after_30_s(chrome: Chrome, demo: str) -> None:
    opened(chrome, demo)
    soon(lambda: text(chrome, "#state").startswith("Live"))
    wait_for(lambda: re.search(r"up ([3-9]\d s|\d+ min)", text(chrome, "#footer")) is not None, 60)

    def dark() -> bool:
        return bool(chrome.execute_script("return document.documentElement.classList.contains('dark')"))

    before = dark()
    soon(lambda: re.search(r"\d/s", text(chrome, "#health")))
    keep_screenshot(chrome, "live-page-after-30-s")
    resize(chrome, 1280, 1000)
    press(chrome, "#theme")
    assert dark() != before
    chrome.refresh()
    soon(lambda: text(chrome, "#state").startswith("Live"))
    assert dark() != before, "it is remembered"
    press(chrome, "#policies button[data-name=headlines]")
    soon(lambda: "explore" in text(chrome, "#rate"))
    keep_screenshot(chrome, "live-page-other-theme")
    resize(chrome, 320, 700)
    soon(lambda: chrome.execute_script("return innerWidth") == 320)
    assert chrome.execute_script("return document.documentElement.scrollWidth") == 320
    keep_screenshot(chrome, "live-page-phone")
    resize(chrome, 1280, 1000)
    press(chrome, "#theme")


def test_a_stream_is_open_only_while_somebody_looks(chrome: Chrome, demo: str) -> None:
    opened(chrome, demo)
    soon(lambda: text(chrome, "#state").startswith("Live"))
    hide = "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true});"
    chrome.execute_script(hide + "document.dispatchEvent(new Event('visibilitychange'));", True)
    assert chrome.execute_script("return stream.signal.aborted")
    still = text(chrome, "#footer")
    chrome.execute_script(hide + "document.dispatchEvent(new Event('visibilitychange'));", False)
    soon(lambda: text(chrome, "#footer") != still)


def test_an_empty_server_says_how_to_begin_and_ids_are_only_text(chrome: Chrome, tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        opened(chrome, server.url)
        soon(lambda: text(chrome, "#first"))
        subprocess.run(["sh", "-c", text(chrome, "#first")], capture_output=True, check=True)
        soon(lambda: text(chrome, "#policies button").startswith("headlines"))
        with httpx.Client(base_url=server.url) as http:
            make_policy(http, "other", {"algorithm": "ucb1", "arms": [HOSTILE, "b"]})
        soon(lambda: chrome.find_elements(By.CSS_SELECTOR, "[data-name=other]"))
        press(chrome, "[data-name=other]")
        soon(lambda: HOSTILE in text(chrome, "#arms"))
        press(chrome, "#ask button")
        soon(lambda: text(chrome, "#answer").startswith("200"))
        assert chrome.title == "croupier"
        assert not chrome.find_elements(By.CSS_SELECTOR, "main img")
        assert not complaints(chrome)
        assert server.stop() == 0
        soon(lambda: "trying again" in text(chrome, "#state"))


def test_a_server_with_keys_asks_for_one(chrome: Chrome, tmp_path: Path) -> None:
    with serving(tmp_path / "data", api_keys=f"web:recommend:web-web-web-web-web,ops:admin:{OPS}") as server:
        opened(chrome, server.url)
        for key, then in (("wrong-wrong-wrong-wrong", "key"), ("web-web-web-web-web", "admin"), (OPS, "")):
            soon(lambda: chrome.find_element(By.ID, "login").is_displayed())
            chrome.find_element(By.ID, "key").send_keys(key + Keys.ENTER)
            soon(lambda then=then: then in text(chrome, "#login-why"))  # type: ignore[misc]
        soon(lambda: text(chrome, "#state").startswith("Live"))
        assert not chrome.find_element(By.ID, "login").is_displayed()
        assert '"Authorization: Bearer $KEY"' in text(chrome, "#first")
        assert OPS not in chrome.page_source
        assert store(chrome) == {"api_key": OPS}
