"""Any Ray program, unchanged, as an experiment: the claim is that it ends well whatever breaks.

Unlike the experiments that stand in files of their own, this one is made of what was said on the command
line: the program, and the faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulator.checkers.registry import OF_PROGRAMS
from simulator.experiment import Experiment
from simulator.experiment import Params as BaseParams
from simulator.schedule import Step
from simulator.topology import Topology
from simulator.workload import Script

#: Of more faults than this, only their number is part of the claim.
NAMED = 2


class Chaos(Experiment):
    """A program under faults.

    Parameters
    ----------
    script
        What runs.
    steps
        What breaks; nothing for an undisturbed run.
    may_lose_tasks
        Whether tasks may fail for good, because the program deals with that by itself.
    """

    name = "chaos"

    class Params(BaseParams):
        script: str
        arguments: tuple[str, ...] = ()
        timeout_s: float = 1800.0
        may_lose_tasks: bool = False

    def __init__(
        self, script: Script, steps: Sequence[Step] = (), *, may_lose_tasks: bool = False
    ) -> None:
        self.script, self.steps = script, tuple(steps)
        self.claim = f"{script.program.script} ends well {_whatever(self.steps)}."
        left_out = {"attempts_recovered"} if may_lose_tasks else set()
        self.checks = tuple(check for check in OF_PROGRAMS if check not in left_out)
        self.params = self.Params(
            script=script.program.script,
            arguments=tuple(script.program.arguments),
            timeout_s=script.timeout_s,
            may_lose_tasks=may_lose_tasks,
        )

    def undisturbed(self) -> Chaos:
        """The same program, and nothing that breaks."""
        return Chaos(self.script, may_lose_tasks=self.params.may_lose_tasks)

    def workload(self, params: Any) -> Script:
        return self.script

    def schedule(self, params: Any, topology: Topology) -> Sequence[Step]:
        return self.steps

    def mandatory_phases(self, params: Any) -> Sequence[str]:
        """None: when a program recovers, its own end says."""
        return ()

    def recovery_timeout(self, params: Any) -> float:
        return self.script.timeout_s


def _whatever(steps: Sequence[Step]) -> str:
    if not steps:
        return "while nothing is broken"
    if len(steps) > NAMED:
        return f"although {len(steps)} faults strike the cluster"
    return "although " + " and ".join(f"{step.fault} strikes {step.target}" for step in steps)
