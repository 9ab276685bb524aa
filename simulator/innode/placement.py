"""The driver of the `Placement` workload: tasks of several kinds, which compete for what the nodes offer.

Runs as a Ray job. It submits all tasks at once, the kinds in turn, so that at every moment more of each kind
wants to run than fits, and writes what it asked for and what came back. It does not say where anything should
run: that is Ray's to decide, and what is judged afterwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from simulator.innode import work
from simulator.innode.ledger import DRIVER, WORKLOAD, Ledger, read_json, root
from simulator.innode.stream import described


class Placement:
    """Submits, waits, records."""

    def __init__(self, run_id: str, spec: Mapping[str, Any]) -> None:
        self.run_id, self.spec = run_id, spec
        self.out = Ledger(run_id, DRIVER)
        self.pending: dict[Any, str] = {}
        self.submitted = self.results = self.failures = 0
        self.seconds = float(spec["task_seconds"])
        self.square_sum = ray.remote(max_retries=int(spec["max_retries"]))(work.square_sum)

    def submit(self, number: int, kind: Mapping[str, Any], key: str) -> None:
        """Ask for the number-th task of all, which is one of this kind."""
        count = int(self.spec["loop"])
        args = [number * count, count]
        self.out.write("driver.submit", key=key, fn="square_sum", args=args)
        self.submitted += 1
        remote = self.square_sum.options(name=key, **asked(kind))
        ref = remote.remote(self.run_id, key, self.seconds, *args, int(kind["company"]))
        self.pending[ref] = key

    def collect(self) -> None:
        """Wait for the first that comes back, and record all that did."""
        refs = list(self.pending)
        ray.wait(refs, num_returns=1)
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            key = self.pending.pop(ref)
            try:
                value = ray.get(ref)
            except Exception as error:  # noqa: BLE001 - whatever Ray says is what is recorded
                self.failures += 1
                self.out.write("driver.failure", key=key, **described(error))
            else:
                self.results += 1
                self.out.write("driver.result", key=key, value=value)

    def run(self) -> None:
        tasks = list(in_turn(self.spec["kinds"]))
        self.out.write(
            "driver.start",
            job_id=ray.get_runtime_context().get_job_id(),
            tasks=len(tasks),
            task_seconds=self.seconds,
            slots=int(ray.cluster_resources().get("CPU", 1)),
            max_retries=int(self.spec["max_retries"]),
        )
        for number, (kind, key) in enumerate(tasks, 1):
            self.submit(number, kind, key)
        self.out.write("driver.planned", tasks=len(tasks))
        while self.pending:
            self.collect()
        self.out.write(
            "driver.end", submitted=self.submitted, results=self.results, failures=self.failures
        )


def in_turn(kinds: list[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every task with its key: the first of each kind, the second of each kind, and so on."""
    for number in range(1, max((int(kind["count"]) for kind in kinds), default=0) + 1):
        for kind in kinds:
            if number <= int(kind["count"]):
                yield kind, f"{kind['name']}-{number}"


def asked(kind: Mapping[str, Any]) -> dict[str, Any]:
    """What a task of this kind asks Ray for."""
    demand = {n: float(a) for n, a in kind["resources"].items() if n not in kind["omits"]}
    return {
        "num_cpus": demand.pop("CPU", 0),
        "num_gpus": demand.pop("GPU", 0),
        "resources": demand,
        "label_selector": dict(kind["labels"]) or None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="id of the run; its folder below the ledger")
    run_id: str = parser.parse_args().run
    spec = read_json(root() / run_id / WORKLOAD)
    ray.init(address="auto", namespace=run_id, log_to_driver=False)
    Placement(run_id, spec).run()


if __name__ == "__main__":
    main()
