"""The work that the workloads do: slow to compute, quick to verify.

A task computes by a loop what a closed formula also gives, so that a checker can recompute every result
of a run offline. Each function holds its slot for a nominal time and computes for a small part of it
only: nodes of a simulated cluster share the host's cores, and tasks that burned CPU would speed up on the
survivors when a node dies, so that throughput would say nothing.
"""

from __future__ import annotations

import json
import os
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from simulator.innode.ledger import identity, ledger, root

#: How long a task waits for another of its kind beside it, seconds.
COMPANY_S = 60.0


def _squares_below(n: int) -> int:
    return (n - 1) * n * (2 * n - 1) // 6


def _square_sum(start: int, count: int) -> int:
    return _squares_below(start + count) - _squares_below(start)


def _block_sum(seed: int, length: int) -> int:
    return _squares_below(length) + seed * length


#: What each function must return for its arguments. ``make_block``'s value stays in the object store and
#: does not come back to the owner, which records it as null.
EXPECTED: dict[str, Callable[..., Any]] = {
    "square_sum": _square_sum,
    "make_block": lambda seed, length: None,
    "block_sum": _block_sum,
    # The n-th call of a counter adds n: in order and exactly once, it returns 1 + 2 + ... + n.
    "counter_add": lambda n: n * (n + 1) // 2,
}


def expected_value(fn: str, args: Sequence[Any]) -> Any:
    """The right result of ``fn(*args)``; KeyError for a function that is not known here."""
    return EXPECTED[fn](*args)


def _facts() -> dict[str, Any]:
    import ray

    context = ray.get_runtime_context()
    return {
        "task_id": context.get_task_id(),
        "demand": dict(context.get_assigned_resources()),
        "gpu_ids": sorted(map(str, context.get_accelerator_ids()["GPU"])),
    }


def _hold(since: float, seconds: float) -> None:
    left = since + seconds - time.monotonic()
    if left > 0:
        time.sleep(left)


def _await_company(run_id: str, key: str, gpu_ids: Sequence[str], company: int) -> None:
    """Hold on until so many of this task's kind are on the same GPUs at once, if they never were.

    Ends after `COMPANY_S`: whoever waits holds what others may need.
    """
    if company < 2:
        return
    kind = root() / run_id / "company" / key.rpartition("-")[0]
    here, met = kind / "-".join([identity()[0], *gpu_ids]), kind / "met"
    here.mkdir(mode=0o777, parents=True, exist_ok=True)
    mine = here / key
    mine.touch()
    end = time.monotonic() + COMPANY_S
    while not met.exists() and time.monotonic() < end:
        if sum(1 for _ in here.iterdir()) >= company:
            met.touch()
        else:
            time.sleep(0.05)
    mine.unlink(missing_ok=True)


def square_sum(
    run_id: str, key: str, seconds: float, start: int, count: int, company: int = 1
) -> int:
    """Sum of the squares from `start` on, `count` of them, one by one."""
    facts = _facts()
    with ledger(run_id).execution(key, "square_sum", seconds, **facts):
        begun = time.monotonic()
        total = 0
        for k in range(start, start + count):
            total += k * k
        _hold(begun, seconds)
        _await_company(run_id, key, facts["gpu_ids"], company)
    return total


def make_block(run_id: str, key: str, seconds: float, seed: int, length: int) -> bytes:
    """A block of `length` numbers of 8 bytes; large enough, it lives in the node's object store."""
    with ledger(run_id).execution(key, "make_block", seconds, **_facts()):
        begun = time.monotonic()
        block = array("Q", (k * k + seed for k in range(length))).tobytes()
        _hold(begun, seconds)
    return block


def block_sum(run_id: str, key: str, seconds: float, block: bytes) -> int:
    """The sum of a block's numbers."""
    with ledger(run_id).execution(key, "block_sum", seconds, **_facts()):
        begun = time.monotonic()
        total = sum(memoryview(block).cast("Q"))
        _hold(begun, seconds)
    return total


class Counter:
    """A stateful actor that survives its node: it keeps a checkpoint outside, and counts each call once.

    Ray runs ``__init__`` again on another node and repeats the call that was in flight; whether
    that call had been executed before its node died, only the checkpoint knows.
    """

    def __init__(self, run_id: str, name: str) -> None:
        self._run_id, self._name = run_id, name
        self._path = root() / run_id / "state" / f"{name}.json"
        self._path.parent.mkdir(mode=0o777, parents=True, exist_ok=True)
        self._calls, self._total = 0, 0
        if self._path.exists():
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            self._calls, self._total = saved["calls"], saved["total"]
        ledger(run_id).write(
            "actor.start",
            actor=name,
            pid=os.getpid(),
            exec=os.urandom(8).hex(),
            restored=self._calls,
        )

    def add(self, n: int) -> int:
        """Add n as the n-th call; a repeated call changes nothing. Returns the total."""
        with ledger(self._run_id).call(self._name, f"{self._name}/{n}"):
            if n == self._calls + 1:
                self._calls, self._total = n, self._total + n
                part = self._path.with_suffix(".part")
                part.write_text(json.dumps({"calls": self._calls, "total": self._total}))
                part.replace(self._path)
        return self._total
