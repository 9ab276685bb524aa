from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from history_builder import MANDATORY, Plan, beginnings, build
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.checkers.anatomy import PHASES, anatomy
from simulator.checkers.base import RunView
from simulator.checkers.index import index_of
from simulator.checkers.phases import Anatomy
from simulator.checkers.throughput import Curve
from simulator.history import History


def of(**changes: Any) -> Anatomy:
    return anatomy(RunView(*build(**changes)))


def test_the_phases_are_those_of_the_reference_in_its_order() -> None:
    assert list(PHASES) == [p.name for p in of().phases] == MANDATORY


@pytest.mark.parametrize(
    ("phase", "parameter"),
    [
        ("effect", "effect_s"),
        ("first_failure", "failure_s"),
        ("actor_alive", "actor_s"),
        ("declared_dead", "dead_s"),
        ("rejoined", "rejoin_s"),
    ],
)
def test_a_phase_is_counted_from_the_injection_across_clocks(phase: str, parameter: str) -> None:
    plan = Plan()
    found = anatomy(RunView(*build(plan))).phase(phase)
    # The sources' clocks are 0.25 s ahead of the orchestrator's.
    assert found.seconds == pytest.approx(getattr(plan, parameter), abs=1e-4)
    assert found.cites
    assert found.uncertainty >= 0.002


def test_what_the_observer_sees_is_uncertain_by_its_period() -> None:
    found = of()
    assert found.phase("declared_dead").uncertainty == pytest.approx(0.102)
    assert found.phase("effect").uncertainty == pytest.approx(0.002)


def test_objects_are_rebuilt_when_their_consumer_came_back() -> None:
    plan = Plan()
    history, spec = build(plan)
    found = anatomy(RunView(history, spec)).phase("objects_rebuilt")
    assert found.seconds == pytest.approx(plan.rebuilt_s + 0.024, abs=1e-4)
    kinds = {history.ops[i].kind for i in found.cites}
    assert kinds == {
        "fault.inject",
        "driver.object",
        "task.start",
        "task.end",
        "driver.object_back",
    }


def test_the_first_retry_is_elsewhere_and_after_the_injection() -> None:
    history, spec = build()
    found = anatomy(RunView(history, spec))
    retry = history.ops[found.phase("first_retry").cites[-1]]
    assert retry.kind == "task.start"
    assert retry.node != found.victim
    assert 0.0 < (found.phase("first_retry").seconds or 0.0) < 2.0


def test_the_first_retry_may_have_to_wait_for_the_node_that_takes_the_victims_place() -> None:
    """All else is busy in a small cluster: what was cut off starts again where it was, on a new node."""
    history, spec = build()
    index = index_of(RunView(history, spec))
    found = anatomy(RunView(history, spec))
    hit = {e.key for e in index.executions_on(found.victim) if e.end is None}
    later = {
        op.index
        for key in hit
        for e in index.executions[key]
        if e.node != found.victim
        for op in (e.start_op, e.end_op)
        if op is not None
    }

    def moved(by: float) -> Anatomy:
        ops = (
            replace(op, node=found.victim, wall=op.wall + by) if op.index in later else op
            for op in history
        )
        return anatomy(RunView(History(ops), spec))

    assert found.victim is not None
    assert found.injected_at is not None
    first, again = index.engine_starts(found.victim)
    assert index.at(first) < found.injected_at
    until = index.at(again) - found.injected_at
    phase = moved(until).phase("first_retry")
    assert phase.seconds is not None
    assert phase.seconds > until > 0
    # Before it was started again it is the old node that says so: that is no recovery.
    assert moved(0.0).phase("first_retry").note.startswith("not seen: none of the tasks")


def test_a_task_that_was_taken_but_not_started_is_retried_too() -> None:
    """The node died between taking a task and its START: only Ray's record says it was there."""
    history, spec = build()
    index = index_of(RunView(history, spec))
    gone = {e.start_op.index for e in index.executions_on("worker-2") if e.end is None}
    found = anatomy(RunView(History(op for op in history if op.index not in gone), spec))
    phase = found.phase("first_retry")
    assert phase.seconds == anatomy(RunView(history, spec)).phase("first_retry").seconds
    assert {history.ops[i].kind for i in phase.cites} == {
        "fault.inject",
        "attempt.failed",
        "task.start",
    }


def test_throughput_is_back_one_window_after_the_effect_when_survivors_never_stopped() -> None:
    plan = Plan()
    found = anatomy(RunView(*build(plan)))
    width = found.metrics["throughput_window_s"]
    assert width == 3.0
    assert found.phase("throughput").seconds == pytest.approx(plan.effect_s + width, abs=0.2)
    assert found.phase("throughput").uncertainty == pytest.approx(width / 2 + 0.002)
    full = found.phase("full_throughput").seconds
    assert full is not None
    # Never before a whole window after the node came back, nor much later.
    assert plan.rejoin_s + width <= full < plan.rejoin_s + width + 1.5


def test_baselines_are_the_busy_slots_before_the_fault() -> None:
    metrics = of().metrics
    assert metrics["baseline_total"] == pytest.approx(4.0, rel=0.03)
    assert metrics["baseline_surviving"] == pytest.approx(3.0, rel=0.03)


def test_a_survivor_that_slows_down_keeps_throughput_from_being_back() -> None:
    history, spec = build(comes_back=False, after_s=12.0)
    index = index_of(RunView(history, spec))
    injected = next(f.inject for f in index.injected())
    assert injected is not None
    slow = {
        e.end_op.index
        for e in index.tasks()
        if e.node == "worker-1" and e.end_op is not None and (e.end or 0.0) > index.at(injected)
    }
    without = History(op for op in history if op.index not in slow)
    found = anatomy(RunView(without, spec)).phase("throughput")
    assert found.seconds is None
    assert found.note.startswith("not seen: no window of 3 s reached 2.8")


def test_a_node_that_stays_away_has_not_rejoined() -> None:
    found = of(comes_back=False)
    assert found.missing == ["rejoined", "full_throughput"]
    for name in found.missing:
        assert found.phase(name).note == "not seen: worker-2 did not join again"
    assert found.metrics["restart_to_rejoin_s"] is None
    assert found.recovery["rejoined_s"] is None


def test_a_pause_that_nobody_notices_is_no_recovery() -> None:
    found = of(fault="pause")
    assert found.phase("effect").seen
    assert found.phase("declared_dead").note == "not seen: worker-2 was not declared DEAD"
    assert not found.phase("first_retry").seen
    assert found.metrics["work_seconds_lost"] == 0


def test_without_a_fault_every_phase_says_so() -> None:
    found = of(fault=None)
    assert {p.note for p in found.phases} == {"not seen: no fault was injected"}
    assert found.injected_at is None
    assert found.metrics["tasks"] > 50


def test_a_fault_after_the_work_is_done_has_no_retry_and_no_throughput() -> None:
    found = of(idle_before_fault=True)
    assert found.phase("declared_dead").seen
    assert found.phase("first_retry").note == "not seen: no task was under way on worker-2"
    assert found.phase("actor_alive").note == "not seen: no actor lived on worker-2"
    assert found.phase("throughput").note.startswith("not seen: no window")


def test_a_baseline_needs_more_than_two_tasks_one_after_the_other() -> None:
    found = of(inject_at=2.0)
    assert found.phase("throughput").seconds is None
    assert "too short for a baseline" in found.phase("throughput").note


def test_a_baseline_of_many_short_tasks_needs_a_second_all_the_same() -> None:
    # Seen on a real cluster: 0.14 s before a fault gave a third of what the nodes could do, which a
    # cluster that was not back would have reached.
    for phase in ("throughput", "full_throughput"):
        found = of(task_seconds=0.05, inject_at=0.5)
        assert found.phase(phase).seconds is None
        assert "too short for a baseline" in found.phase(phase).note
        assert of(task_seconds=0.05, inject_at=3.0).phase(phase).seen


def test_figures_of_a_run_whose_lost_work_is_known() -> None:
    plan = Plan()
    view = RunView(*build(plan))
    found = anatomy(view)
    cut = [e for e in index_of(view).tasks() if e.end is None]
    assert found.metrics["tasks_cut_off"] == len(cut) == 1
    assert found.injected_at is not None
    ran = found.injected_at + plan.effect_s - cut[0].start
    assert found.metrics["work_seconds_lost"] == pytest.approx(ran, abs=1e-4)
    assert found.metrics["restart_to_rejoin_s"] == pytest.approx(plan.rejoin_s - plan.restart_s)
    assert found.metrics["executions"] == found.metrics["tasks"] + found.metrics["retries"] + 1
    assert found.metrics["rebuilds"] == 1


def test_a_live_anatomy_never_takes_back_a_phase_and_ends_as_the_whole_one() -> None:
    history, spec = build()
    final = anatomy(RunView(history, spec))
    seen: set[str] = set()
    for beginning in [*beginnings(history, 25), history]:
        found = anatomy(RunView(beginning, spec))
        now = {p.name for p in found.phases if p.seen}
        assert seen <= now
        seen = now
    assert seen == set(MANDATORY)
    assert final.missing == []


def test_the_runner_can_wait_for_all_that_is_knowable_while_the_work_runs() -> None:
    history, spec = build()
    live = History(op for op in history if not op.kind.startswith("attempt"))
    found = anatomy(RunView(live, spec))
    assert found.missing == ["first_failure"]
    assert found.waiting_for == []
    assert "Ray's records of attempts are not in the history" in found.phase("first_failure").note


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_beginning_of_a_history_and_no_missing_kind_breaks_the_anatomy(data: Any) -> None:
    history, spec = build()
    kinds = sorted({op.kind for op in history})
    gone = data.draw(st.sets(st.sampled_from(kinds), max_size=5))
    length = data.draw(st.integers(0, len(history)))
    found = anatomy(
        RunView(History(op for op in history.ops[:length] if op.kind not in gone), spec)
    )
    for phase in found.phases:
        assert phase.seen or phase.note.startswith("not seen: ")
        assert phase.seconds is None or phase.seconds >= 0


spans = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 20), st.sampled_from([0.25, 0.5, 1.0])).map(
        lambda span: (span[0] / 2, (span[0] + span[1]) / 2, span[2])
    ),
    max_size=12,
)


@given(spans, st.integers(0, 40), st.integers(1, 10), st.sampled_from([0.3, 0.95, 1.9]))
def test_the_first_window_is_the_first_of_a_fine_grid(
    pieces: list[tuple[float, float, float]], since: int, width: int, wanted: float
) -> None:
    curve = Curve(pieces)

    def mean(begin: float) -> float:
        overlaps = (max(0.0, min(e, begin + width) - max(s, begin)) * p for s, e, p in pieces)
        return sum(overlaps) / width

    found = curve.first_window(since, width, wanted)
    grid = [since + i / 16 for i in range(16 * 60)]
    first = next((begin for begin in grid if mean(begin) >= wanted), None)
    if first is None:
        # The mean is linear between half seconds, and the grid has all of those.
        assert found is None
    else:
        assert found is not None
        assert found <= first + 1e-6
        assert mean(found) >= wanted - 1e-6
        assert found > first - 1 / 16 - 1e-6


@given(spans)
def test_work_is_the_same_whole_or_in_parts(pieces: list[tuple[float, float, float]]) -> None:
    curve = Curve(pieces)
    parts = sum(curve.work(a, b) for a, b in pairwise(range(0, 50, 7)))
    assert parts == pytest.approx(curve.work(0, 49))
    assert curve.work(-10, 100) == pytest.approx(sum((e - s) * p for s, e, p in pieces))


@given(spans, st.integers(1, 6))
def test_the_lowest_window_is_no_higher_than_any_other(
    pieces: list[tuple[float, float, float]], width: int
) -> None:
    curve = Curve(pieces)
    lowest = curve.lowest(0, 40, width)
    assert lowest is not None
    means = [curve.mean(i / 4, i / 4 + width) for i in range(4 * (40 - width) + 1)]
    assert lowest == pytest.approx(min(means), abs=1e-6)


def test_a_window_far_from_1970_is_found_as_near() -> None:
    near = Curve([(1.0, 5.0, 1.0), (2.25, 9.5, 1.0)])
    far = Curve([(1.8e9 + 1.0, 1.8e9 + 5.0, 1.0), (1.8e9 + 2.25, 1.8e9 + 9.5, 1.0)])
    found = near.first_window(0.0, 2.0, 1.9)
    again = far.first_window(1.8e9, 2.0, 1.9)
    assert found is not None
    assert again is not None
    assert again - 1.8e9 == pytest.approx(found, abs=1e-5)
