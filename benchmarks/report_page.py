"""How large the report is, how fast it is written, loaded and panned, in headless Chromium.

    python benchmarks/report_page.py

Targets: a run of 1,000 tasks under 3 MB; with 100,000 tasks loaded in at most 3 s, and panned in at
most 100 ms a frame. Loaded means from the start of the navigation until the charts stand on the screen;
a frame is the time between two animation frames while each of them moves the view. Needs chromium,
chromedriver and selenium.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import ROOT, Figure, finish, load, parser

sys.path.append(str(ROOT / "tests"))

from report_samples import BIG, THOUSAND, make_run

from simulator.report import write_html

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
    chosen = parser(__doc__).parse_args()
    began_load, why = load(), ""
    found: dict[str, dict[str, Any]] = {"1,000 tasks": {}, "100,000 tasks": {}}
    try:
        chrome = browser()
    except RuntimeError as missing:
        why = str(missing)
    else:
        try:
            with tempfile.TemporaryDirectory() as folder:
                for name, plan in zip(found, (THOUSAND, BIG), strict=True):
                    run = Path(folder) / name.split()[0].replace(",", "")
                    tasks = make_run(run, **plan)["metrics"]["tasks"]
                    began = time.perf_counter()
                    page = write_html(run)
                    found[name] = {
                        "tasks": tasks,
                        "write_s": round(time.perf_counter() - began, 2),
                        "bytes": page.stat().st_size,
                        **measure(chrome, page),
                    }
            version = chrome.capabilities["browserVersion"]
        finally:
            chrome.quit()
    small, big = found.values()
    made = [
        Figure("report of 1,000 tasks, size", small.get("bytes", 0) / 1e6 if small else None, "MB",
               BYTES / 1e6, why=why, details=small),
        Figure("report of 100,000 tasks, loaded", big.get("load_s"), "s", LOAD_S, why=why, details=big),
        Figure("report of 100,000 tasks, slowest frame", big.get("frame_ms_max"), "ms", FRAME_MS, why=why),
    ]  # fmt: skip
    options = {} if why else {"chromium": version}
    return finish("report_page", made, began_load=began_load, options=options, save=chosen.save)


if __name__ == "__main__":
    sys.exit(main())
