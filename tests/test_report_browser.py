"""The report in a real browser; skipped where headless Chromium or selenium is not installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_samples import make_run

from simulator.report import write_html

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None or importlib.util.find_spec("selenium") is None,
    reason="needs chromium, chromedriver and selenium",
)

FRAME = "const done = arguments[arguments.length - 1]; requestAnimationFrame(() => requestAnimationFrame(done));"
PICTURE = "return [...document.querySelectorAll('canvas')].map((c) => c.toDataURL())"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--disable-gpu", "--window-size=1280,1000"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    make_run(tmp_path / "run")
    browser.get(write_html(tmp_path / "run").as_uri())
    browser.execute_async_script(FRAME)
    return browser


def picture(page: Any) -> list[str]:
    page.execute_async_script(FRAME)
    found: list[str] = page.execute_script(PICTURE)
    return found


def press(page: Any, key: str) -> None:
    page.execute_script(
        "document.querySelector('#chart-area').dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))",
        key,
    )


def test_it_draws_both_charts_and_reports_no_error(page: Any) -> None:
    assert len(picture(page)) == 2
    assert len(set(picture(page))) == 2
    assert page.get_log("browser") == []


def test_text_of_a_task_does_not_run(page: Any) -> None:
    assert page.title == "valid: node_failure"


def test_keys_zoom_move_and_go_back_to_the_whole_run(page: Any) -> None:
    whole = picture(page)
    press(page, "+")
    zoomed = picture(page)
    press(page, "ArrowRight")
    moved = picture(page)
    press(page, "0")
    assert len({whole[0], zoomed[0], moved[0]}) == 3
    assert len({whole[1], zoomed[1], moved[1]}) == 3
    assert picture(page) == whole


def test_wheel_drag_and_double_click_zoom_and_go_back(page: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    over = page.find_elements("css selector", ".u-over")[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", over)
    whole = picture(page)[0]
    drag = ActionChains(page).move_to_element_with_offset(over, -100, 0)
    drag.click_and_hold().move_by_offset(120, 0).release().perform()
    dragged = picture(page)[0]
    ActionChains(page).double_click(over).perform()
    assert picture(page)[0] == whole
    ActionChains(page).scroll_from_origin(ScrollOrigin.from_element(over), 0, -60).perform()
    assert len({whole, dragged, picture(page)[0]}) == 3


def test_the_pointer_on_a_bar_tells_what_it_is(page: Any) -> None:
    from selenium.webdriver import ActionChains

    over = page.find_elements("css selector", ".u-over")[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", over)
    ActionChains(page).move_to_element_with_offset(over, -100, -60).perform()
    tip = page.find_element("css selector", "#tip").text
    assert "completed" in tip
    assert "execution 1 of this work, on head" in tip


def test_the_theme_changes_page_and_charts_together(page: Any) -> None:
    def background() -> str:
        colour: str = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return colour

    button = page.find_element("css selector", "#theme")
    seen = []
    for _ in range(3):
        button.click()
        seen.append((button.text, background(), picture(page)[0]))
    looks = {text: (colour, chart) for text, colour, chart in seen}
    assert looks["Theme: light"][0] != looks["Theme: dark"][0]
    assert looks["Theme: light"][1] != looks["Theme: dark"][1]
    assert looks["Theme: auto"] in (looks["Theme: light"], looks["Theme: dark"])


def test_what_a_program_did_is_drawn_too(browser: Any, tmp_path: Path) -> None:
    from test_checkers_program import made

    browser.get(write_html(made(tmp_path)).as_uri())
    browser.execute_async_script(FRAME)
    assert len(set(picture(browser))) == 2
    assert browser.get_log("browser") == []
    metrics = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [400, 768, 1280])
def test_nothing_sticks_out_sideways(page: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.refresh()
    page.execute_async_script(FRAME)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
