"""The checks that single experiments bring along, on small histories: what each finds, and when it says unknown."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.registry import run_checks
from simulator.experiment import load_experiment
from simulator.history import History, Op

VALID, UNKNOWN, INVALID = Verdict.VALID, Verdict.UNKNOWN, Verdict.INVALID

Row = tuple[float, str, str | None, dict[str, Any]]

STRUCK: list[Row] = [
    (10.0, "fault.inject", "worker-1", {"id": "f1"}),
    (11.0, "fault.effect", "worker-1", {"id": "f1", "verified": True}),
]
HEALED: Row = (30.0, "fault.healed", "worker-1", {"id": "f1", "verified": True})
GIVEN_UP: Row = (15.0, "ray.node", "worker-1", {"state": "DEAD"})


def judge(experiment: str, check: str, rows: list[Row], *settings: str) -> Finding:
    loaded = load_experiment(experiment)
    params = loaded.parse_params(settings).model_dump()
    rows = sorted(rows, key=lambda row: row[0])
    history = History(
        Op(i, kind, "orchestrator", when, when, when, node, data)
        for i, (when, kind, node, data) in enumerate(rows)
    )
    (found,) = run_checks(RunView(history, {"params": params}), [check])
    return found


# ---- worker_pause


@pytest.mark.parametrize(
    ("survived", "rows", "verdict"),
    [
        ("true", STRUCK, VALID),
        ("true", [*STRUCK, GIVEN_UP], INVALID),
        ("false", [*STRUCK, GIVEN_UP], VALID),
        ("false", STRUCK, INVALID),
        ("false", [GIVEN_UP], UNKNOWN),
    ],
)
def test_given_up_if_and_only_if_the_pause_was_long(
    survived: str, rows: list[Row], verdict: Verdict
) -> None:
    check = "given_up_only_after_a_long_pause"
    assert judge("worker_pause", check, rows, f"survived={survived}").verdict is verdict


# ---- slow_node


def task(key: str, asked: float, came: float | None, fn: str = "square_sum") -> list[Row]:
    rows: list[Row] = [(asked, "driver.submit", None, {"key": key, "fn": fn})]
    return rows if came is None else [*rows, (came, "driver.result", None, {"key": key})]


QUICK, LATE = task("t-1", 9, 9.5), task("t-2", 12, 18)


def late_but_alive(rows: list[Row], *settings: str) -> Finding:
    return judge("slow_node", "late_but_alive", rows, *settings)


def test_a_slow_node_makes_tasks_late_and_is_not_given_up() -> None:
    found = late_but_alive([*STRUCK, *QUICK, *LATE])
    assert found.verdict is VALID
    assert found.summary == "1 of 2 tasks were late, the slowest took 6.0 s"
    found = late_but_alive([*STRUCK, *LATE, GIVEN_UP])
    assert (found.verdict, found.summary) == (INVALID, "worker-1 was declared dead")


def test_slowness_that_nobody_felt_shows_nothing() -> None:
    assert late_but_alive([*STRUCK, *QUICK]).verdict is UNKNOWN
    assert late_but_alive([*STRUCK, *QUICK, *task("t-3", 12, None)]).verdict is UNKNOWN
    assert late_but_alive([*STRUCK, *task("c-8", 12, 18, "block_sum")]).verdict is UNKNOWN
    assert late_but_alive(LATE).verdict is UNKNOWN


def test_the_first_of_two_copies_counts() -> None:
    rows = [*STRUCK, *LATE, *task("t-2-copy", 14, 14.6)]
    found = late_but_alive(rows, "speculate=true")
    assert found.verdict is VALID
    assert (found.metrics["longest_s"], found.metrics["longest_without_copies_s"]) == (2.6, 6.0)
    assert "1 of 1 copies were first" in found.summary


@pytest.mark.parametrize("copy", [[], task("t-2-copy", 14, 19), task("t-2-copy", 14, None)])
def test_copies_that_overtook_nothing_show_nothing(copy: list[Row]) -> None:
    assert late_but_alive([*STRUCK, *LATE, *copy], "speculate=true").verdict is UNKNOWN


# ---- disk_full


def failure(when: float, error: str = "RayTaskError(OutOfDiskError)") -> Row:
    return when, "driver.failure", None, {"key": "b-1", "error": error, "message": "no room"}


AFTER: Row = (40.0, "driver.result", None, {"key": "b-9"})


@pytest.mark.parametrize(
    ("rows", "verdict", "said"),
    [
        ([*STRUCK, HEALED, AFTER, failure(12)], VALID, "1 failed while the disk was full"),
        ([*STRUCK, HEALED, AFTER, failure(32)], VALID, "1 failed while the disk was full"),
        ([*STRUCK, HEALED, AFTER, failure(9)], INVALID, "b-1 failed for want of disk when there"),
        ([*STRUCK, HEALED, AFTER, failure(36)], INVALID, "b-1 failed for want of disk when there"),
        (
            [*STRUCK, HEALED, AFTER, failure(12), failure(13, "WorkerCrashedError")],
            INVALID,
            "b-1 failed with WorkerCrashedError",
        ),
        ([failure(13, "WorkerCrashedError")], INVALID, "b-1 failed with WorkerCrashedError"),
        ([*STRUCK, HEALED, AFTER], UNKNOWN, "nothing failed, so everything fitted"),
        ([*STRUCK, HEALED, failure(12)], UNKNOWN, "nothing came back after there was room"),
        ([*STRUCK, AFTER, failure(12)], UNKNOWN, "nothing came back after there was room"),
        ([failure(12), AFTER], UNKNOWN, "no disk was seen to be full"),
    ],
)
def test_only_what_does_not_fit_fails(rows: list[Row], verdict: Verdict, said: str) -> None:
    found = judge("disk_full", "only_what_does_not_fit_fails", rows)
    assert (found.verdict, said in found.summary) == (verdict, True), found.summary
