"""The language of schedules: for now, one fault of one node at a time, and when it is started again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from simulator.errors import BadInput, Problem
from simulator.faults import FAULTS
from simulator.schedule.steps import After, Heal, Step, WhenDeclaredDead
from simulator.schedule.targets import Named, RandomWorker, Target

_STEP = re.compile(r"(\w+) ([\w-]+) @([\d.]+)s(?: restart \+([\d.]+)s)?")


def read_schedule(faults: Sequence[str], file: Path | None = None) -> list[Step]:
    """What ``--fault`` and ``--schedule`` ask for.

    Raises
    ------
    BadInput
        Lists every problem.
    """
    texts = list(faults)
    if file is not None:
        texts += [t for t in file.read_text(encoding="utf-8").splitlines() if t.strip()]
    steps, problems = [], []
    for text in texts:
        found = _STEP.fullmatch(text.strip())
        if found is None or found[1] not in FAULTS:
            problems.append(Problem(f'--fault "{text}"', "is not understood", "kill worker @20s"))
            continue
        target: Target = RandomWorker() if found[2] == "worker" else Named(found[2])
        heal: Heal = After(float(found[4])) if found[4] else WhenDeclaredDead()
        steps.append(Step(float(found[3]), FAULTS[found[1]](), target, heal))
    if problems:
        raise BadInput(problems)
    return steps
