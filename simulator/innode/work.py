"""The work that the workloads do: slow to compute, quick to verify.

A task computes by a loop what a closed formula also gives, so that a checker can recompute every result
of a run offline. Each function holds its slot for a nominal time and computes for a small part of it
only: nodes of a simulated cluster share the host's cores, and tasks that burned CPU would speed up on the
survivors when a node dies, so that throughput would say nothing.
"""

from __future__ import annotations

import json
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from simulator.innode.ledger import identity, ledger, root

#: How long a task waits for another of its kind beside it, seconds.
COMPANY_S = 60.0
#: What a post asks for, and what a bundle of the group reserves: however many posts run on a node, they leave
#: room for its bundle, so that these wait for a node and never for each other.
POST_CPU, BUNDLE_CPU = 0.99, 0.01
#: Name of the placement group, and how long the last roll call of its bundles may take, seconds: one whose
#: node is gone, and which fits nowhere else, is never placed again.
GROUP, LAST_CALL_S = "everywhere", 20.0
#: How often an actor that promises to be the only one of its name says that it lives, seconds.
TICK_S = 0.25


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
    "post": lambda n: n * n,
    "charge": lambda n: n * n,
    "roll_call": lambda n: n * n,
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


def _effect(run_id: str, key: str, *, idempotent: bool) -> None:
    """A deed in the outside world, which outlives the node: a line of the ledger.

    With an idempotency key, the outside world refuses to have it done twice: a file of that name can be
    made only once, and its making is the deed and the record of it in one.
    """
    book, facts = ledger(run_id), {"key": key, "pid": os.getpid(), "task_id": _task_id()}
    if not idempotent:
        book.write("program.effect", **facts)
        return
    folder = root() / run_id
    part = folder / f".effect-{key}-{os.urandom(4).hex()}.part"
    part.write_bytes(book.line("program.effect", **facts))
    with suppress(FileExistsError):
        os.link(part, folder / f"effect-{key}.jsonl")
    part.unlink()


def _task_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_task_id())


def post(run_id: str, key: str, seconds: float, n: int, effect: str, *, idempotent: bool) -> int:
    """Do the deed `effect`, and be busy with it for a while afterwards: who is cut off has done it."""
    with ledger(run_id).execution(key, "post", seconds, **_facts()):
        begun = time.monotonic()
        _effect(run_id, effect, idempotent=idempotent)
        _hold(begun, seconds)
    return n * n


def roll_call(run_id: str, key: str, n: int) -> int:
    """Says by being there that the bundle of a placement group that it was sent to can be used."""
    with ledger(run_id).execution(key, "roll_call", 0.0, **_facts()):
        return n * n


def nothing() -> None:
    """Done at once: that it came back says that tasks can run."""


class Counter:
    """A stateful actor that survives its node: it keeps a checkpoint outside, and counts each call once.

    Ray runs ``__init__`` again on another node and repeats the call that was in flight; whether
    that call had been executed before its node died, only the checkpoint knows.
    """

    def __init__(self, run_id: str, name: str) -> None:
        self._run_id, self._name = run_id, name
        # Lines are only ever added: an incarnation that Ray has given up may still be called where it is cut off, and
        # what it writes is behind what its successor wrote.
        self._path = root() / run_id / "state" / f"{name}.jsonl"
        self._path.parent.mkdir(mode=0o777, parents=True, exist_ok=True)
        self._calls, self._total = max(_checkpoints(self._path), default=(0, 0))
        self._incarnation = _begin_incarnation(run_id, name, restored=self._calls)

    def add(self, n: int) -> int:
        """Add n as the n-th call; a repeated call changes nothing. Returns the total."""
        with ledger(self._run_id).call(self._name, f"{self._name}/{n}", self._incarnation):
            if n == self._calls + 1:
                self._calls, self._total = n, self._total + n
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([self._calls, self._total]) + "\n")
        return self._total


def _checkpoints(path: Path) -> Iterator[tuple[int, int]]:
    """Calls and total of every checkpoint; a line that was cut off by a death is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        with suppress(ValueError):
            calls, total = json.loads(line)
            yield calls, total


def _begin_incarnation(run_id: str, name: str, restored: int) -> str:
    """Write that a new incarnation of this actor lives; returns its id."""
    incarnation = os.urandom(8).hex()
    ledger(run_id).write(
        "actor.start", actor=name, pid=os.getpid(), exec=incarnation, restored=restored
    )
    return incarnation


class Teller:
    """An actor that is to be the only one of its name at any moment, and whose calls are not to be repeated.

    As long as it lives it says so, whether it is called or not: an incarnation that Ray has replaced, on a
    node that Ray cannot reach, is called by nobody, and can still do things to the outside world.
    """

    def __init__(self, run_id: str, name: str) -> None:
        self._run_id, self._name = run_id, name
        self._incarnation = _begin_incarnation(run_id, name, restored=0)
        threading.Thread(target=self._live, name="ticks", daemon=True).start()

    def _live(self) -> None:
        n = 0
        while True:
            n += 1
            ledger(self._run_id).write(
                "actor.tick", actor=self._name, incarnation=self._incarnation, n=n
            )
            time.sleep(TICK_S)

    def charge(self, n: int, seconds: float) -> int:
        """The n-th charge; it takes a while, and must not happen twice."""
        with ledger(self._run_id).call(self._name, f"{self._name}/{n}", self._incarnation):
            time.sleep(seconds)
        return n * n


class Holder:
    """An actor that does nothing, and holds what it was given while it lives."""

    def hold(self) -> bool:
        return True
