"""What people look at: a run directory as a web page, in the terminal, and as JUnit XML.

Every function here needs the run directory alone, no cluster and no network, so a report can be
made again years later.
"""

from __future__ import annotations

from simulator.report.html import write_html
from simulator.report.junit import junit_xml
from simulator.report.repeats import render_repeats, summarise
from simulator.report.run import Run, load_run
from simulator.report.terminal import render_terminal

__all__ = [
    "Run",
    "junit_xml",
    "load_run",
    "render_repeats",
    "render_terminal",
    "summarise",
    "write_html",
]
