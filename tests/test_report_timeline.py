from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from history_builder import build
from hypothesis import given
from hypothesis import strategies as st
from report_samples import make_run

from simulator.checkers.base import RunView
from simulator.checkers.throughput import Curve
from simulator.history import History, Op
from simulator.report.run import Run, load_run
from simulator.report.story import story
from simulator.report.timeline import Outcome, Timeline, _bins, _packed, build_timeline


def run_of(history: History, spec: dict[str, Any] | None = None) -> Run:
    return Run(
        path=Path("run"), view=RunView(history, spec or {}), result={}, notices=(), judged=False,
        findings=(), phases=(),
    )  # fmt: skip


def timeline_of(*rows: tuple[float, str, str | None, dict[str, Any]]) -> Timeline:
    """A timeline of hand-written operations: time, kind, node, data."""
    return build_timeline(run_of(history_of(*rows)))


def history_of(*rows: tuple[float, str, str | None, dict[str, Any]]) -> History:
    sources = {
        "engine": "engine",
        "ray": "observer",
        "task": "ledger",
        "attempt": "ray",
        "driver": "driver",
    }
    ops = [
        Op(i, kind, sources.get(kind.split(".")[0], "orchestrator"), t, None, t, node, data)
        for i, (t, kind, node, data) in enumerate(rows)
    ]
    return History(ops)


def start(t: float, node: str, key: str, execution: str) -> tuple[float, str, str, dict[str, Any]]:
    return t, "task.start", node, {"key": key, "exec": execution, "nominal_s": 1.0}


def end(
    t: float, node: str, key: str, execution: str, *, ok: bool = True
) -> tuple[float, str, str, dict[str, Any]]:
    return t, "task.end", node, {"key": key, "exec": execution, "ok": ok}


def alive(t: float, node: str, identity: str) -> tuple[float, str, str, dict[str, Any]]:
    return t, "ray.node", node, {"ray_node_id": identity, "state": "ALIVE"}


def dead(t: float, node: str, identity: str) -> tuple[float, str, str, dict[str, Any]]:
    return t, "ray.node", node, {"ray_node_id": identity, "state": "DEAD"}


def states(timeline: Timeline, node: str) -> list[tuple[str, float]]:
    lane = next(lane for lane in timeline.lanes if lane.name == node)
    return [(span.state, round(span.start, 3)) for span in lane.spans]


def outcomes(timeline: Timeline) -> dict[tuple[str, int], tuple[Outcome, float]]:
    return {(e.key, e.attempt): (e.outcome, e.end) for e in timeline.executions}


def test_an_execution_ends_as_what_the_ledger_and_the_engine_say() -> None:
    found = outcomes(
        timeline_of(
            start(0, "a", "whole", "1"), end(1, "a", "whole", "1"),
            start(1, "a", "broken", "2"), end(2, "a", "broken", "2", ok=False),
            start(2, "b", "cut", "3"), (2.5, "engine.die", "b", {"exit_code": 137}),
            start(3, "a", "cut", "4"), end(4, "a", "cut", "4"),
            start(4, "a", "open", "5"), (5, "driver.end", None, {}),
        )
    )  # fmt: skip
    assert found == {
        ("whole", 1): (Outcome.COMPLETED, 1), ("broken", 1): (Outcome.FAILED, 2), ("cut", 1): (Outcome.CUT, 2.5),
        ("cut", 2): (Outcome.AGAIN, 4), ("open", 1): (Outcome.OPEN, 5),
    }  # fmt: skip


def test_a_worker_process_that_died_alone_is_cut_off_when_its_owner_learned_of_it() -> None:
    found = outcomes(
        timeline_of(
            start(0, "a", "t", "1"), (0.7, "attempt.failed", "a", {"key": "t", "error_type": "WORKER_DIED"}),
            start(1, "a", "t", "2"), end(2, "a", "t", "2"),
        )
    )  # fmt: skip
    assert found == {("t", 1): (Outcome.CUT, 0.7), ("t", 2): (Outcome.AGAIN, 2)}


def test_a_killed_node_is_unnoticed_then_dead_then_starting_then_alive() -> None:
    timeline = timeline_of(
        start(0, "a", "t", "1"), alive(0, "a", "n1"), alive(0, "b", "n2"), (1, "engine.die", "a", {}),
        dead(5, "a", "n1"), (6, "engine.start", "a", {}), alive(9, "a", "n3"),
        start(9, "a", "t", "2"), end(12, "a", "t", "2"),
    )  # fmt: skip
    assert [s for s, _ in states(timeline, "a")] == [
        "alive",
        "unnoticed",
        "dead",
        "starting",
        "alive",
    ]
    assert [t for _, t in states(timeline, "a")][1:] == [1, 5, 6, 9]
    assert [s for s, _ in states(timeline, "b")] == ["alive"]


def test_a_node_restarted_before_ray_noticed_is_starting_and_not_alive() -> None:
    timeline = timeline_of(
        start(0, "a", "t", "1"), alive(0, "a", "n1"), (1, "engine.die", "a", {}), (2, "engine.start", "a", {}),
        dead(5, "a", "n1"), alive(6, "a", "n2"), start(6, "a", "t", "2"), end(8, "a", "t", "2"),
    )  # fmt: skip
    assert [s for s, _ in states(timeline, "a")] == ["alive", "unnoticed", "starting", "alive"]


def test_a_paused_node_that_was_declared_dead_is_dead_after_it_goes_on() -> None:
    timeline = timeline_of(
        start(0, "a", "t", "1"), alive(0, "a", "n1"), (1, "engine.pause", "a", {}), dead(5, "a", "n1"),
        (6, "engine.unpause", "a", {}), end(8, "a", "t", "1"),
    )  # fmt: skip
    assert [s for s, _ in states(timeline, "a")] == ["alive", "paused", "dead"]


def fault(t: float, kind: str, **data: Any) -> tuple[float, str, str, dict[str, Any]]:
    return t, f"fault.{kind}", "a", {"id": "f1", "fault": "kill", **data}


def test_a_fault_lasts_until_its_node_is_back_and_not_until_it_was_healed() -> None:
    rows = [
        start(0, "a", "t", "1"), alive(0, "a", "n1"), fault(1, "inject"), fault(1.2, "effect", verified=True),
        fault(3, "healed", verified=True),
    ]  # fmt: skip
    last = start(7, "b", "t", "2")
    assert timeline_of(*rows, alive(6, "a", "n2"), last).faults[0].end == 6
    assert timeline_of(*rows, last).faults[0].end is None


def test_only_work_under_way_counts_as_hit() -> None:
    timeline = timeline_of(
        start(0, "a", "before", "1"), end(0.5, "a", "before", "1"), start(0.6, "a", "hit", "2"),
        start(0.6, "b", "elsewhere", "3"), fault(1, "inject"), fault(1.2, "effect", verified=True),
        end(2, "b", "elsewhere", "3"),
    )  # fmt: skip
    assert timeline.faults[0].hit == 1


def test_a_fault_whose_effect_was_not_seen_says_so() -> None:
    run = run_of(history_of(start(0, "a", "t", "1"), fault(1, "inject"), end(2, "a", "t", "1")))
    timeline = build_timeline(run)
    assert not timeline.faults[0].verified
    assert (
        story(run, timeline)
        == "a was killed 1.00 s into the work, but that it took effect was not seen."
    )


def test_a_store_is_whole_when_it_runs_whatever_ray_says() -> None:
    nodes = [{"name": "head", "role": "head"}, {"name": "a", "role": "store"}]
    timeline = timeline_of(
        (0, "cluster.nodes", None, {"nodes": nodes}), start(0, "head", "t", "1"),
        fault(1, "inject"), (1, "engine.die", "a", {}), fault(1.2, "effect", verified=True),
        (3, "engine.start", "a", {}), fault(4, "healed", verified=True), end(8, "head", "t", "1"),
    )  # fmt: skip
    assert states(timeline, "a") == [("dead", 1), ("alive", 3)]
    assert timeline.faults[0].end == 4


def test_nodes_stand_head_first_and_then_by_number() -> None:
    timeline = timeline_of(
        start(0, "worker-10", "t", "1"), start(0, "worker-2", "u", "2"), start(0, "head", "v", "3")
    )
    assert [lane.name for lane in timeline.lanes] == ["head", "worker-2", "worker-10"]


def test_the_levels_are_those_that_judged_the_recovery(tmp_path: Path) -> None:
    result = make_run(tmp_path / "run")
    curve = build_timeline(load_run(tmp_path / "run")).throughput
    assert curve.before == pytest.approx(result["metrics"]["baseline_total"])
    assert {round(g, 4) for g in curve.goal if g is not None} == {
        round(0.95 * result["metrics"][name], 4)
        for name in ("baseline_total", "baseline_surviving")
    }


def test_clock_offsets_are_applied(tmp_path: Path) -> None:
    # The builder's sources are a quarter of a second ahead of the orchestrator, which injects.
    make_run(tmp_path / "run", effect_s=0.12)
    band = build_timeline(load_run(tmp_path / "run")).faults[0]
    assert band.start - band.injected == pytest.approx(0.12, abs=0.001)


def test_a_run_without_a_fault_has_no_level_and_a_story() -> None:
    history, spec = build(fault=None)
    timeline = build_timeline(run_of(history, spec))
    assert timeline.faults == []
    assert timeline.throughput.before is None
    assert story(run_of(history, spec), timeline) == (
        "No fault was injected: this experiment breaks nothing."
    )


times = st.floats(0, 100, allow_nan=False)


@given(st.lists(st.tuples(times, times, st.sampled_from(["a", "b"]), st.booleans()), max_size=40))
def test_no_two_executions_share_a_row_at_the_same_time(
    raw: list[tuple[float, float, str, bool]],
) -> None:
    given_ones = [
        (min(a, b), max(a, b), str(i), node, Outcome.COMPLETED, 1, call)
        for i, (a, b, node, call) in enumerate(raw)
    ]
    placed = _packed(sorted(given_ones, key=lambda e: e[0]))
    assert {(e.key, e.start, e.end, e.node, e.call) for e in placed} == {
        (key, start, end, node, call) for start, end, key, node, _, _, call in given_ones
    }
    for before, after in pairwise(placed):
        if (before.node, before.call, before.row) == (after.node, after.call, after.row):
            assert before.end <= after.start


spans = st.tuples(times, st.floats(0.01, 20), st.floats(0.1, 2)).map(
    lambda s: (s[0], s[0] + s[1], s[2])
)


@given(st.lists(spans, max_size=20), st.sampled_from([0.1, 0.5, 1.0, 7.0]))
def test_bins_hold_all_the_work_of_the_curve(
    pieces: list[tuple[float, float, float]], step: float
) -> None:
    curve = Curve(pieces)
    count = int(130 / step) + 1
    total = sum(_bins(curve, 0.0, step, count)) * step
    assert total == pytest.approx(curve.work(0, 130), rel=1e-3, abs=1e-3 * count)
