"""The simulated driver of the `Placement` workload: what `simulator.innode.placement` does, without a Ray.

It reads the same specification and writes the same lines; a change there needs one here, and the tests compare
the kinds and fields of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.backends.fake.driver import FakeDriver
from simulator.backends.fake.tasks import Outcome


class FakePlacement(FakeDriver):
    """Submits all tasks, the kinds in turn, and records what comes back."""

    def drive(self) -> None:
        tasks = [
            (kind, f"{kind['name']}-{number}")
            for number in range(1, max(int(k["count"]) for k in self.spec["kinds"]) + 1)
            for kind in self.spec["kinds"]
            if number <= int(kind["count"])
        ]
        self.out(
            "driver.start",
            job_id=self.ray_job_id,
            tasks=len(tasks),
            task_seconds=self.spec["task_seconds"],
            slots=self.slots(),
            max_retries=self.spec["max_retries"],
        )
        self.waiting = len(tasks)
        for number, (kind, key) in enumerate(tasks, 1):
            self._submit(number, kind, key)
        self.out("driver.planned", tasks=len(tasks))

    def _submit(self, number: int, kind: Mapping[str, Any], key: str) -> None:
        count = int(self.spec["loop"])
        args = [number * count, count]
        self.out("driver.submit", key=key, fn="square_sum", args=args)
        self.submitted += 1
        if key in self.world.script.forgotten:
            self.waiting -= 1  # its owner goes on as if it had never asked
        self.tasks.submit(
            key,
            "square_sum",
            args,
            lambda outcome: self._came_back(key, outcome),
            seconds=float(self.spec["task_seconds"]),
            max_retries=int(self.spec["max_retries"]),
            demand={n: float(a) for n, a in kind["resources"].items() if n not in kind["omits"]},
            labels=kind["labels"],
        )

    def _came_back(self, key: str, outcome: Outcome) -> None:
        self.waiting -= 1
        if outcome.error is not None:
            self.failures += 1
            self.out("driver.failure", key=key, error=outcome.error, message=outcome.message)
        else:
            self.results += 1
            self.out("driver.result", key=key, value=outcome.value)
        if not self.waiting:
            self.finish()
