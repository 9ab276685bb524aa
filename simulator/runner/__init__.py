"""One run from start to finish.

Its rooms: `request` is what is asked, `interrupts` what Ctrl-C means, `live` what a run holds and
records while it goes on, `injection` its faults, `runner` the order in which all that happens, and
`judging` what comes out. They import each other in this direction only: request, live, injection,
runner; interrupts and judging stand alone.
"""

from __future__ import annotations

from simulator.runner.interrupts import Interrupts
from simulator.runner.judging import EXIT_ORDER, exit_code, judge_run, run_view
from simulator.runner.request import Listener, RunRequest
from simulator.runner.runner import Runner

__all__ = [
    "EXIT_ORDER",
    "Interrupts",
    "Listener",
    "RunRequest",
    "Runner",
    "exit_code",
    "judge_run",
    "run_view",
]
