"""Finds the smallest part of a failing run's schedule that still makes it fail.

Delta debugging: parts of the schedule are tried, each by a whole run on one cluster, until no single
fault can be left out. What could not be judged did not fail: a smaller schedule must be seen to fail.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simulator.backends.base import Backend
from simulator.checkers.base import Verdict
from simulator.cluster import Cluster
from simulator.errors import BadInput, CannotRun, Problem
from simulator.runner.replay import replay_request
from simulator.runner.request import Listener
from simulator.runner.runner import Runner
from simulator.schedule import PlannedFault
from simulator.store import RunDir, Store


@dataclass
class Shrunk:
    """What came of shrinking.

    Attributes
    ----------
    plan
        The smallest set of faults that was seen to fail.
    runs
        How many runs that took.
    complete
        No single fault can be left out of it; False where the budget ended before that was known.
    smallest
        The run with that plan.
    """

    plan: list[PlannedFault]
    runs: int = 0
    complete: bool = False
    smallest: RunDir | None = None


def shrink_run(
    backend: Backend,
    store: Store,
    run: RunDir,
    *,
    budget: int,
    listener: Listener | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Shrunk:
    """Shrink the schedule of a run whose verdict is invalid.

    A part fails if one of the checks that the run failed is invalid again. All runs share one cluster,
    which is taken down at the end.

    Raises
    ------
    BadInput
        The run did not fail, or cannot be replayed.
    CannotRun
        With its whole schedule it did not fail again, or a run could not be carried out.
    """
    failed = _failed(run.result() or {})
    if not failed:
        verdict = (run.result() or {}).get("verdict", "not judged")
        raise BadInput(
            Problem(
                f"run {run.path.name}",
                f"did not fail: it is {verdict}",
                "shrink one that is invalid",
            )
        )
    request = replay_request(run)
    name = f"shrink-{secrets.token_hex(3)}"
    request = replace(request, name=name, keep=True)
    runner = Runner(backend, store, listener=listener)
    failing: dict[tuple[str, ...], RunDir] = {}
    total = len(request.plan or ())

    def fails(plan: Sequence[PlannedFault]) -> bool:
        nonlocal request
        say(f"trying {len(plan)} of {total} faults: {', '.join(p.id for p in plan) or 'none'}")
        result = runner.run(replace(request, plan=plan))
        request = replace(request, name=None, reuse=name, keep=False)
        if result["status"] != "completed":
            raise CannotRun(
                f"a run of the shrinking was {result['status']}", why=str(result["error"] or "")
            )
        same = bool(failed & _failed(result))
        say(f"  {result['verdict']}: " + ("it fails still" if same else "it does not fail so"))
        if same:
            failing[_ids(plan)] = RunDir(Path(result["run_dir"]))
        return same

    try:
        plan = list(request.plan or ())
        if not fails(plan):
            raise CannotRun(
                f"run {run.path.name} did not fail again",
                why="with its whole schedule, on the same targets, it came out otherwise",
                remedy="What makes it fail is not in its faults alone; see how often it does: replay --repeat 10",
            )
        shrunk = Shrinker(fails, budget).shrink(plan)
    finally:
        if any(c.name == name for c in backend.clusters()):
            Cluster(backend, name).down()
    return replace(shrunk, runs=shrunk.runs + 1, smallest=failing[_ids(shrunk.plan)])


def _failed(result: Mapping[str, Any]) -> set[str]:
    """The checks that a run did not pass."""
    invalid = Verdict.INVALID.value
    return {f["check"] for f in result.get("findings", ()) if f["verdict"] == invalid}


def _ids(plan: Sequence[PlannedFault]) -> tuple[str, ...]:
    return tuple(p.id for p in plan)


class _BudgetSpent(Exception):
    """No more runs are allowed."""


@dataclass
class Shrinker:
    """The algorithm: Zeller and Hildebrandt's ddmin, over the faults of a schedule.

    Parameters
    ----------
    fails
        Runs with these faults and no others; whether it failed the same way. What could not be judged
        did not fail.
    budget
        How many runs it may take.
    """

    fails: Callable[[Sequence[PlannedFault]], bool]
    budget: int
    runs: int = 0
    known: dict[tuple[str, ...], bool] = field(default_factory=dict)

    def shrink(self, plan: Sequence[PlannedFault]) -> Shrunk:
        """The smallest part of a plan that is known to fail as a whole."""
        smallest = list(plan)
        try:
            parts = 2
            while len(smallest) > 1:
                size = -(-len(smallest) // parts)
                pieces = [smallest[i : i + size] for i in range(0, len(smallest), size)]
                rests = [[f for f in smallest if f not in piece] for piece in pieces]
                # Of two halves each is the rest of the other.
                found = next((c for c in (*pieces, *rests) if c and self._fails(c)), None)
                if found is not None:
                    parts = 2 if found in pieces else max(parts - 1, 2)
                    smallest = found
                elif parts >= len(smallest):
                    break
                else:
                    parts = min(parts * 2, len(smallest))
        except _BudgetSpent:
            return Shrunk(smallest, self.runs)
        return Shrunk(smallest, self.runs, complete=True)

    def _fails(self, plan: Sequence[PlannedFault]) -> bool:
        key = _ids(plan)
        if key not in self.known:
            if self.runs >= self.budget:
                raise _BudgetSpent
            self.runs += 1
            self.known[key] = self.fails(plan)
        return self.known[key]
