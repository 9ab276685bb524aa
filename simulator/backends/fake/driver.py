"""What simulated drivers have in common: their specification, their file of the ledger, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from simulator.backends.fake.tasks import Tasks
from simulator.backends.fake.world import World


class FakeDriver:
    """A driver on a node of the cluster; subclasses say in `drive` what it does.

    Parameters
    ----------
    ended
        Told ``(status, message)`` when the driver is over.
    """

    def __init__(
        self,
        world: World,
        run_id: str,
        ray_job_id: str,
        ended: Callable[[str, str], None],
    ) -> None:
        self.world, self.run_id, self.ended = world, run_id, ended
        self.ray_job_id = ray_job_id
        self.home = world.drivers.get(ray_job_id, world.head)
        self.tasks = Tasks(world, run_id, self.home)
        self.spec = self.read("workload.json")
        self.submitted = self.results = self.failures = 0
        self.over = False

    def begin(self) -> None:
        if self.spec:
            self.drive()
        else:
            self._end("FAILED", "Job entrypoint command failed: there is no workload.json")

    def drive(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """The job was stopped from outside."""
        self._end("STOPPED", "Job was intentionally stopped.")

    def finish(self) -> None:
        """Everything came back."""
        self.out(
            "driver.end", submitted=self.submitted, results=self.results, failures=self.failures
        )
        self._end("SUCCEEDED", "Job finished successfully.")

    def _end(self, status: str, message: str) -> None:
        if not self.over:
            self.over = True
            self.tasks.stop()
            self.ended(status, message)

    def slots(self) -> int:
        """CPUs of all nodes that the GCS holds alive."""
        alive = [n for n in self.world.nodes.values() if n.believed_alive]
        return sum(int(n.spec.resources.get("CPU", 0)) for n in alive)

    def out(self, kind: str, **data: Any) -> None:
        self.world.write(self.run_id, "driver.jsonl", self.home, kind, **data)

    def read(self, name: str) -> Mapping[str, Any]:
        raw = self.world.files.get(f"{self.run_id}/{name}")
        data = json.loads(raw) if raw else {}
        return data if isinstance(data, dict) else {}
