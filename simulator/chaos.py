"""Any Ray program, unchanged, as an experiment: the claim is that it ends well whatever breaks.

Unlike the experiments that stand in files of their own, this one is made of what was said on the command
line: the program, and the faults. Its parameters hold all of that, so that a run can be done again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from simulator.checkers.registry import OF_PROGRAMS
from simulator.errors import BadInput, Problem
from simulator.experiment import Experiment
from simulator.experiment import Params as BaseParams
from simulator.jobs import plan_program, read_runtime_env
from simulator.schedule import Step, parse_schedule
from simulator.topology import Topology
from simulator.workload import Script

#: Of more faults than this, only their number is part of the claim.
NAMED = 2

#: Stands where a variable's value was: a value that was given on the command line may be a secret.
NOT_KEPT = "(not kept)"


class Chaos(Experiment):
    """A program under faults.

    Parameters
    ----------
    script
        What runs.
    steps
        What breaks; nothing for an undisturbed run.
    may_lose_tasks
        Whether `attempts_recovered` is left out: the program deals with lost tasks by itself.
    said
        How script, working_dir and runtime_env were given, where that is to be kept.
    """

    name = "chaos"

    class Params(BaseParams):
        """What was asked for.

        Attributes
        ----------
        script, working_dir, runtime_env
            As they were given; the last without the values of variables.
        faults
            In the language of schedules.
        """

        script: str
        arguments: tuple[str, ...] = ()
        working_dir: str | None = None
        runtime_env: str | None = None
        faults: tuple[str, ...] = ()
        timeout_s: float = 1800.0
        may_lose_tasks: bool = False

    def __init__(
        self,
        script: Script,
        steps: Sequence[Step] = (),
        *,
        may_lose_tasks: bool = False,
        said: Mapping[str, str | None] | None = None,
    ) -> None:
        self.script, self.steps, self._said = script, tuple(steps), dict(said or {})
        self.claim = f"{script.program.script} ends well {_whatever(self.steps)}."
        left_out = {"attempts_recovered"} if may_lose_tasks else set()
        self.checks = tuple(check for check in OF_PROGRAMS if check not in left_out)
        given: dict[str, Any] = {"script": script.program.script, **self._said}
        if given.get("runtime_env") is not None:
            given["runtime_env"] = without_secrets(given["runtime_env"])
        self.params = self.Params(
            arguments=tuple(script.program.arguments),
            faults=tuple(map(str, self.steps)),
            timeout_s=script.timeout_s,
            may_lose_tasks=may_lose_tasks,
            **given,
        )

    def undisturbed(self) -> Chaos:
        """The same program, and nothing that breaks."""
        return Chaos(self.script, may_lose_tasks=self.params.may_lose_tasks, said=self._said)

    @classmethod
    def again(cls, params: Params) -> Chaos:
        """The same program, as it is here now, and the same faults.

        Raises
        ------
        BadInput
            The program is gone, or what it needs was not kept.
        """
        if params.runtime_env is not None and NOT_KEPT in params.runtime_env:
            raise BadInput(
                Problem(
                    "runtime_env",
                    "the values of its variables were given on the command line, and are not kept",
                    "give them in a file (--runtime-env FILE), or run chaos again with them",
                )
            )
        env = None if params.runtime_env is None else read_runtime_env(params.runtime_env)
        program = plan_program(
            params.script, params.arguments, working_dir=params.working_dir, runtime_env=env
        )
        steps = [step for text in params.faults for step in parse_schedule(text, "faults")]
        return cls(
            Script(program, params.timeout_s),
            steps,
            may_lose_tasks=params.may_lose_tasks,
            said=params.model_dump(include={"script", "working_dir", "runtime_env"}),
        )

    def workload(self, params: Any) -> Script:
        return self.script

    def schedule(self, params: Any, topology: Topology) -> Sequence[Step]:
        return self.steps

    def mandatory_phases(self, params: Any) -> Sequence[str]:
        """None: when a program recovers, its own end says."""
        return ()

    def recovery_timeout(self, params: Any) -> float:
        return self.script.timeout_s


def without_secrets(runtime_env: str) -> str:
    """A runtime_env as it may stand in a report: of variables in JSON on the command line, only the names."""
    if not runtime_env.lstrip().startswith("{"):
        return runtime_env
    env = json.loads(runtime_env)
    if isinstance(env.get("env_vars"), dict):
        env["env_vars"] = dict.fromkeys(env["env_vars"], NOT_KEPT)
    return json.dumps(env)


def _whatever(steps: Sequence[Step]) -> str:
    if not steps:
        return "while nothing is broken"
    if len(steps) > NAMED:
        return f"although {len(steps)} faults strike the cluster"
    return "although the cluster gets: " + "; ".join(map(str, steps))
