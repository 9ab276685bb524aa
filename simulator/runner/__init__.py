"""One run from start to finish.

Its rooms: `request` is what is asked, `interrupts` what Ctrl-C means, `live` what a run holds and
records while it goes on, `injection` its faults, `runner` the order in which all that happens, and
`judging` what comes out; `replay` does a run again, and `shrink` again with less. They import each other
in this direction only: request, live, injection, runner, replay, shrink; interrupts and judging stand alone.
"""

from __future__ import annotations

from simulator.runner.interrupts import Interrupts
from simulator.runner.judging import EXIT_ORDER, exit_code, judge_run, run_view
from simulator.runner.replay import replay_request
from simulator.runner.request import Listener, RunRequest
from simulator.runner.runner import Runner
from simulator.runner.shrink import Shrunk, shrink_run

__all__ = [
    "EXIT_ORDER",
    "Interrupts",
    "Listener",
    "RunRequest",
    "Runner",
    "Shrunk",
    "exit_code",
    "judge_run",
    "replay_request",
    "run_view",
    "shrink_run",
]
