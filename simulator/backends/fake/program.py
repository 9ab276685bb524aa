"""A simulated program of a user's: a map over tasks, as a script of a few lines would do it.

It knows nothing of a run; of its tasks only what Ray would remember is kept, and what it reports with
`ray_sim.effect`, if it is told to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.backends.fake.ray import FakeJob
from simulator.backends.fake.tasks import Outcome, Tasks
from simulator.backends.fake.world import FakeNode, World


class _Unrecorded(Tasks):
    """Tasks that write nothing to the ledger but the effects that they report."""

    def __init__(self, world: World, run_id: str, home: FakeNode, *, effects: bool) -> None:
        super().__init__(world, run_id, home)
        self._effects = effects

    def _write(self, node: FakeNode, kind: str, **data: Any) -> None:
        if kind == "task.end" and self._effects:
            super()._write(node, "program.effect", key=data["key"], pid=1, task_id=None)


@dataclass(frozen=True)
class FakeProgram:
    """What the script does; put it into `FakeBackend.programs` under the script's name.

    Attributes
    ----------
    tasks, seconds, max_retries
        How many tasks it maps over, how long each takes, and how often Ray may try one again.
    effects, plan
        Whether each task reports an effect, and whether the driver says how many there are to be.
    """

    tasks: int = 24
    seconds: float = 1.0
    max_retries: int = 3
    effects: bool = False
    plan: bool = False

    def __call__(
        self, world: World, run_id: str, ray_job_id: str, ended: Callable[[str, str], None]
    ) -> FakeJob:
        return _Map(self, world, run_id, ray_job_id, ended)


class _Map:
    def __init__(
        self,
        program: FakeProgram,
        world: World,
        run_id: str,
        ray_job_id: str,
        ended: Callable[[str, str], None],
    ) -> None:
        self.program, self.ray_job_id, self._ended = program, ray_job_id, ended
        self._world, self._run_id = world, run_id
        self._home = world.drivers.get(ray_job_id, world.head)
        self.tasks: Tasks = _Unrecorded(world, run_id, self._home, effects=program.effects)
        self._left = program.tasks
        self._over = False

    def begin(self) -> None:
        if self.program.plan:
            data = {"name": "effects", "value": self.program.tasks, "pid": 1, "task_id": None}
            home = self._home
            self._world.write(self._run_id, f"{home.name}.jsonl", home, "program.mark", **data)
        for number in range(1, self.program.tasks + 1):
            self.tasks.submit(
                f"square-{number}",
                "square_sum",
                [number, 10],
                self._came_back,
                seconds=self.program.seconds,
                max_retries=self.program.max_retries,
            )

    def _came_back(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._end("FAILED", f"Job entrypoint command failed: {outcome.error}")
            return
        self._left -= 1
        if not self._left:
            self._end("SUCCEEDED", "Job finished successfully.")

    def stop(self) -> None:
        self._end("STOPPED", "Job was intentionally stopped.")

    def _end(self, status: str, message: str) -> None:
        if not self._over:
            self._over = True
            self.tasks.stop()
            self._ended(status, message)
