"""The driver of the `Hoard` workload: on every worker, more objects than its store holds, all of them read again.

A stream (`simulator.innode.stream`) of another kind. Each piece of work makes a block on one worker, by turns, and
adds its numbers up there. The block is kept; once a worker has as many as it is to keep, the oldest is
read again and given up for each new one. So a node whose store is smaller than that has to spill blocks
to its disk and to fetch them back all the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from simulator.innode.stream import Asked, Stream, main, preferring


class Hoard(Stream):
    """Submits, waits, records."""

    def __init__(self, run_id: str, spec: Mapping[str, Any]) -> None:
        super().__init__(run_id, spec)
        self.places: list[dict[str, Any]] = []  # options that lead to each worker
        self.kept: list[deque[tuple[int, Any]]] = []  # its blocks: their numbers and references
        self.new: dict[str, Any] = {}  # a block by the key of the task that adds it up

    def prepare(self, nodes: Mapping[str, str]) -> None:
        self.places = [preferring(node_id) for _, node_id in sorted(nodes.items())]
        self.kept = [deque() for _ in self.places]

    def look_at_objects(self) -> None:
        """They are read all the time."""

    def call_actors(self) -> None:
        """There are none."""

    def submit_next(self, number: int) -> None:
        length = int(self.spec["block_bytes"]) // 8
        worker = number % len(self.places)
        if len(self.kept[worker]) >= int(self.spec["kept"]):
            self._read_again(worker, length)
        made, used = f"b-{number}", f"s-{number}"
        self.out.write("driver.submit", key=made, fn="make_block", args=[number, length])
        self.submitted += 1
        place = self.places[worker]
        block = self.make_block.options(name=made, **place).remote(
            self.run_id, made, self.seconds, number, length
        )
        total = self.block_sum.options(name=used, **place).remote(self.run_id, used, 0.0, block)
        self.new[used] = block
        self.submit(used, "block_sum", [number, length], total, via=made)

    def _read_again(self, worker: int, length: int) -> None:
        number, block = self.kept[worker].popleft()
        key = f"r-{number}"
        total = self.block_sum.options(name=key, num_cpus=0, **self.places[worker]).remote(
            self.run_id, key, 0.0, block
        )
        self.submit(key, "block_sum", [number, length], total)

    def came_back(self, asked: Asked, *, failed: bool) -> None:
        block = self.new.pop(asked.key, None)
        if block is not None and not failed:
            number = int(asked.key.rpartition("-")[2])
            self.kept[number % len(self.places)].append((number, block))


if __name__ == "__main__":
    main(Hoard, __doc__)
