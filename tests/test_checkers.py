from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from history_builder import CHECKS, T0, build
from history_mutations import altered, of_kind, rebuilt, without
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.checkers import registry
from simulator.checkers.anatomy import anatomy
from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.index import index_of
from simulator.checkers.judge import judge
from simulator.checkers.registry import BUILT_IN, CHECKERS, describe, register_check, run_checks
from simulator.checkers.results import same
from simulator.history import History, Op, read_history

VALID, UNKNOWN, INVALID = Verdict.VALID, Verdict.UNKNOWN, Verdict.INVALID


def of(**changes: Any) -> RunView:
    return RunView(*build(**changes))


def find(view: RunView, check: str) -> Finding:
    return run_checks(view, [check])[0]


def ops_of(view: RunView, *kinds: str) -> list[Op]:
    return view.history.of(*kinds)


def only(view: RunView, keep: Callable[[Op], bool]) -> RunView:
    return rebuilt(view, (op for op in view.history if keep(op)))


def with_op(view: RunView, after: Op, *more: Op) -> RunView:
    return rebuilt(view, (o for op in view.history for o in ([op, *more] if op is after else [op])))


# The judge and the registry


def test_a_good_run_is_valid_and_names_all_its_checks() -> None:
    judgement = judge(of())
    assert judgement.verdict is VALID
    assert [f.check for f in judgement.findings] == CHECKS
    assert judgement.victim == "worker-2"
    assert judgement.recovery["effect_s"] == pytest.approx(0.12)


def test_only_the_checks_of_the_spec_are_run() -> None:
    history, spec = build()
    judgement = judge(RunView(history, {**spec, "checks": ["healed", "evidence"]}))
    assert [f.check for f in judgement.findings] == ["healed", "evidence"]


def test_the_verdict_is_the_worst_and_invalid_outranks_unknown() -> None:
    view = of()
    blind = altered(view, of_kind(view, "attempts.complete"), dropped=1)
    assert judge(blind).verdict is UNKNOWN
    both = altered(blind, of_kind(blind, "steady", when="after"), ok=False)
    assert judge(both).verdict is INVALID


def test_a_check_that_breaks_says_unknown_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(view: RunView) -> Finding:
        raise ZeroDivisionError("of one's own making")

    monkeypatch.setattr(registry, "CHECKERS", dict(CHECKERS))
    register_check("mine", breaks)
    finding = find(of(), "mine")
    assert finding.verdict is UNKNOWN
    assert "ZeroDivisionError: of one's own making" in finding.summary


def test_two_checks_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="there is a check named 'healed' already"):
        register_check("healed", lambda view: Finding("healed", VALID, "whatever you say"))


def test_a_check_that_does_not_exist_is_unknown_and_names_the_nearest() -> None:
    finding = find(of(), "no_tasks_lost")
    assert finding.verdict is UNKNOWN
    assert "no_task_lost" in finding.summary


def test_every_check_says_in_one_line_what_it_claims() -> None:
    for name in BUILT_IN:
        assert 20 < len(describe(name)) < 100
        assert describe(name).endswith(".")


def test_ledger_lines_that_make_no_sense_end_unknown_not_in_a_crash() -> None:
    view = of()
    start = ops_of(view, "task.start")[5]
    broken = replace(start, data={"file": start.data["file"], "line": start.data["line"]})
    ops = [broken if op is start else op for op in view.history]
    judgement = judge(RunView(History(ops), view.spec))
    assert judgement.verdict is UNKNOWN
    assert all(p.note.startswith("not seen: the anatomy itself broke") for p in judgement.phases)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_part_of_a_run_is_never_valid_nor_a_crash(data: Any) -> None:
    """Cut anywhere, and with any kind of operation missing, a run does not pass."""
    history, spec = build()
    kinds = sorted({op.kind for op in history})
    gone = data.draw(st.sets(st.sampled_from(kinds), max_size=3))
    length = data.draw(st.integers(0, len(history) - 1))
    part = [op for op in history.ops[:length] if op.kind not in gone]
    judgement = judge(RunView(History(part), spec))
    assert judgement.verdict is not VALID
    assert not any("the check itself broke" in f.summary for f in judgement.findings)


def test_nothing_proven_wrong_is_only_a_matter_of_where_the_run_was_cut() -> None:
    """A run that went well is never called invalid because it was killed somewhere."""
    history, spec = build()
    for length in range(0, len(history), 40):
        view = RunView(History(history.ops[:length]), spec)
        wrong = [f"{f.check}: {f.summary}" for f in judge(view).findings if f.verdict is INVALID]
        assert wrong == []


# no_task_lost


def test_tasks_that_fail_for_good_are_named_with_their_error() -> None:
    finding = find(of(retries=False), "no_task_lost")
    assert finding.verdict is INVALID
    assert finding.summary.startswith("2 of ")
    assert "NodeDiedError: Task failed because worker-2 died" in finding.details[0]


def test_of_a_long_message_the_line_that_tells_is_shown_without_its_colours() -> None:
    view = of(retries=False)
    failure = ops_of(view, "driver.failure")[0]
    message = "\x1b[36mray::look()\x1b[39m (pid=1)\n  At least one input\nray.ObjectLostError: gone"
    told = altered(view, failure, error="RayTaskError", message=message)
    assert find(told, "no_task_lost").details[0].endswith("RayTaskError: ray.ObjectLostError: gone")


def test_a_failure_is_invalid_even_if_the_driver_was_killed() -> None:
    view = of(retries=False)
    cut = only(view, lambda op: op.kind not in ("driver.end", "workload.end", "observer.end"))
    assert find(cut, "no_task_lost").verdict is INVALID


def test_missing_answers_of_a_killed_driver_are_unknown() -> None:
    view = of()
    last = ops_of(view, "driver.result")[-3:]
    cut = without(view, *last, *ops_of(view, "driver.end"))
    finding = find(cut, "no_task_lost")
    assert finding.verdict is UNKNOWN
    assert "its driver did not finish" in finding.summary


def test_nothing_submitted_is_unknown() -> None:
    view = of()
    empty = only(view, lambda op: op.source not in ("driver", "ledger"))
    assert find(empty, "no_task_lost").verdict is UNKNOWN
    assert find(empty, "results_right").verdict is UNKNOWN
    assert find(empty, "executions_explained").verdict is UNKNOWN


def test_a_call_that_failed_and_then_came_back_is_not_lost() -> None:
    view = of()
    result = ops_of(view, "driver.actor_result")[3]
    data = {**result.data, "error": "ActorUnavailableError", "message": "try again"}
    failure = replace(result, kind="driver.actor_failure", wall=result.wall - 0.001, data=data)
    assert find(with_op(view, result, failure), "no_task_lost").verdict is VALID
    lost = rebuilt(view, (failure if op is result else op for op in view.history))
    assert find(lost, "no_task_lost").verdict is INVALID


# results_right


def test_a_wrong_result_is_shown_beside_the_right_one() -> None:
    view = of()
    op = next(op for op in ops_of(view, "driver.result") if op.data["key"] == "t-2")
    finding = find(altered(view, op, value=7), "results_right")
    assert finding.verdict is INVALID
    assert "t-2: square_sum(200, 100) gave 7, not 6" in finding.summary
    assert finding.cites == [op.index]


def test_a_function_whose_right_value_is_not_known_is_unknown() -> None:
    view = of()
    submit = ops_of(view, "driver.submit")[4]
    finding = find(altered(view, submit, fn="my_own"), "results_right")
    assert finding.verdict is UNKNOWN
    assert "the right value of my_own is not known" in finding.summary


@pytest.mark.parametrize(
    ("value", "expected", "equal"),
    [
        (1, 1, True),
        (True, 1, False),
        (None, None, True),
        (None, 0, False),
        (0.1 + 0.2, 0.3, True),
        (0.3001, 0.3, False),
        ([1, [2.0]], (1, [2.0]), True),
        ([1], [1, 2], False),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ("1", 1, False),
    ],
)
def test_values_are_compared_as_json_keeps_them(value: Any, expected: Any, equal: bool) -> None:
    assert same(value, expected) is equal


# executions_explained


def victim_executions(view: RunView) -> list[Any]:
    return [e for e in index_of(view).tasks() if e.node == "worker-2" and e.end is not None]


def again(view: RunView, execution: Any, at: float, node: str = "worker-3") -> list[Op]:
    """START and END of a further execution at a time of the orchestrator's clock."""
    start, end = execution.start_op, execution.end_op
    file = f"{node}-1-1001.jsonl"
    return [
        replace(op, wall=at + 0.25 + i, node=node, data={**op.data, "exec": "feed", "file": file})
        for i, op in enumerate((start, end))
    ]


def effect_of(view: RunView) -> Op:
    return ops_of(view, "fault.effect")[0]


def test_an_answer_in_transit_when_its_node_died_explains_a_retry() -> None:
    view = of()
    effect = effect_of(view)
    died = view.history.at(effect)
    before = [e for e in victim_executions(view) if e.end < died and e.key.startswith("t-")]
    last = max(before, key=lambda e: e.end)
    result = index_of(view).results[last.key]
    started, ended = again(view, last, died + 0.8)
    late = replace(result, wall=ended.wall + 0.01)
    # As if it had ended just before the node died: its owner never heard.
    end = replace(last.end_op, wall=effect.wall - 0.05)
    ops = [end if op is last.end_op else late if op is result else op for op in view.history]
    position = ops.index(effect) + 1
    changed = rebuilt(view, [*ops[:position], started, ended, *ops[position:]])
    assert find(changed, "executions_explained").verdict is VALID
    # The same, but its owner had the answer before.
    ops = [end if op is last.end_op else op for op in view.history]
    told = rebuilt(view, [*ops[:position], started, ended, *ops[position:]])
    assert find(told, "executions_explained").verdict is INVALID


def test_a_block_whose_consumer_had_not_come_back_may_be_made_again() -> None:
    view = of()
    effect = effect_of(view)
    died = view.history.at(effect)
    index = index_of(view)
    blocks = [e for e in victim_executions(view) if e.key.startswith("p-") and e.end < died]
    block = max(blocks, key=lambda e: e.end)
    extra = again(view, block, died + 0.8)
    early = with_op(view, effect, *extra)
    # Its consumer had come back before the node died: nobody needed it any more.
    assert index.at(index.results[block.key]) < died
    assert find(early, "executions_explained").verdict is INVALID
    result = index.results[block.key]
    late = replace(result, wall=extra[-1].wall + 1.0)
    needed = rebuilt(early, (late if op.data == result.data else op for op in early.history))
    finding = find(needed, "executions_explained")
    assert finding.verdict is VALID
    assert finding.metrics["rebuilt"] == 2


def test_a_kept_object_is_rebuilt_though_nobody_asks_for_it() -> None:
    view = of()
    kept = [op for op in view.history if op.data.get("key") == "block-worker-2"]
    assert len([op for op in kept if op.kind == "task.start"]) == 2
    unasked = rebuilt(view, (o for o in view.history if o.data.get("key") != "look-worker-2"))
    finding = find(unasked, "executions_explained")
    assert (finding.verdict, finding.metrics["rebuilt"]) == (VALID, 1)


def test_a_failed_attempt_explains_one_further_execution_and_not_two() -> None:
    view = of()
    index = index_of(view)
    once = next(e for e in index.tasks() if e.key.startswith("t-") and e.node == "worker-1")
    assert once.end is not None
    failed = replace(
        ops_of(view, "attempt.failed")[0],
        wall=once.end + 0.25 + 0.05,
        node="worker-1",
        data={"key": once.key, "task_id": "x", "attempt": 0, "error_type": "WORKER_DIED"},
    )
    first = again(view, once, once.end + 0.1)
    last = ops_of(view, "attempts.complete")[0]
    assert find(with_op(view, last, *first), "executions_explained").verdict is INVALID
    explained = with_op(view, last, *first, failed)
    finding = find(explained, "executions_explained")
    assert finding.verdict is VALID
    assert finding.metrics["after_failed_attempt"] == 1
    second = [replace(op, wall=op.wall + 3, data={**op.data, "exec": "beef"}) for op in first]
    assert find(with_op(view, last, *first, failed, *second), "executions_explained").verdict is (
        INVALID
    )


def test_a_second_execution_may_be_explained_by_an_attempt_that_ray_dropped() -> None:
    view = of()
    once = next(e for e in index_of(view).tasks() if e.key == "t-3")
    assert once.end is not None
    last = ops_of(view, "attempts.complete")[0]
    twice = with_op(view, last, *again(view, once, once.end + 0.1))
    assert find(twice, "executions_explained").verdict is INVALID
    dropped = altered(twice, of_kind(twice, "attempts.complete"), dropped=3)
    assert find(dropped, "executions_explained").verdict is UNKNOWN


def test_work_cut_off_without_a_fault_is_not_explained() -> None:
    view = of()
    once = next(e for e in index_of(view).tasks() if e.key == "t-3")
    assert once.end is not None
    assert once.end_op is not None
    retried = again(view, once, once.end + 0.1)
    ops = [o for op in view.history for o in (retried if op is once.end_op else [op])]
    finding = find(rebuilt(view, ops), "executions_explained")
    assert finding.verdict is INVALID
    assert "cut off, and no fault did it" in finding.summary


def test_a_node_that_was_given_up_may_do_belatedly_what_is_done_elsewhere() -> None:
    view = of()
    effect = effect_of(view)
    dead = next(op for op in ops_of(view, "ray.node") if op.data["state"] == "DEAD")
    late = view.history.at(dead) + 1.0  # it is back as a new one four seconds later
    tasks = [e for e in index_of(view).tasks() if e.key.startswith("t-") and e.node == "worker-1"]
    whole = [(e, e.end) for e in tasks if e.end is not None]
    cut = next(e for e, end in whole if e.start > view.history.at(effect) and end < late)
    finding = find(with_op(view, dead, *again(view, cut, late, "worker-2")), "executions_explained")
    assert (finding.verdict, finding.metrics["belated"]) == (VALID, 1), finding
    # Elsewhere, or in its new life, nothing explains it.
    elsewhere = with_op(view, dead, *again(view, cut, late, "worker-3"))
    assert find(elsewhere, "executions_explained").verdict is INVALID
    anew = with_op(view, dead, *again(view, cut, late + 6.0, "worker-2"))
    assert find(anew, "executions_explained").verdict is INVALID
    # Nor does anything explain what had been done before the node failed.
    done = next(e for e, end in whole if end < view.history.at(effect) - 1.0)
    repeated = with_op(view, dead, *again(view, done, late, "worker-2"))
    assert find(repeated, "executions_explained").verdict is INVALID


def test_an_end_that_arrives_before_its_start_still_belongs_to_it() -> None:
    view = of()
    execution = next(e for e in index_of(view).tasks() if e.key == "t-3")
    start, end = execution.start_op, execution.end_op
    ops = list(view.history)
    i, j = ops.index(start), ops.index(end)  # type: ignore[arg-type]
    ops[i], ops[j] = ops[j], ops[i]
    swapped = RunView(History(ops), view.spec)
    index = index_of(swapped)
    assert index.ends_without_start == []
    assert index.executions["t-3"][0].whole


# fault_hit_work


def test_a_fault_after_the_work_says_how_long_after() -> None:
    finding = find(of(idle_before_fault=True), "fault_hit_work")
    assert finding.verdict is UNKNOWN
    assert "hit no work: the work was over" in finding.summary


def test_a_kept_object_alone_is_worth_hitting() -> None:
    view = of()
    cut = {e.key for e in index_of(view).executions_on("worker-2") if e.end is None}
    quiet = only(view, lambda op: op.data.get("key") not in cut)
    finding = find(quiet, "fault_hit_work")
    assert finding.verdict is VALID
    assert "the only copy of 1 object" in finding.summary
    copied = altered(
        quiet,
        next(op for op in ops_of(quiet, "driver.object") if op.data["nodes"] == ["worker-2"]),
        nodes=["head", "worker-2"],
    )
    assert find(copied, "fault_hit_work").verdict is UNKNOWN


def test_an_object_whose_owner_has_ended_is_nothing_to_lose() -> None:
    view = of()
    cut = {e.key for e in index_of(view).executions_on("worker-2") if e.end is None}
    quiet = only(view, lambda op: op.data.get("key") not in cut)
    end, effect = ops_of(quiet, "driver.end")[0], effect_of(quiet)
    early = replace(end, wall=effect.wall - 1.0)
    over = rebuilt(quiet, (early if op is end else op for op in quiet.history))
    assert find(over, "fault_hit_work").verdict is UNKNOWN


def test_an_idle_node_is_said_to_have_been_idle() -> None:
    view = of()
    late = {
        e.exec
        for e in index_of(view).executions_on("worker-2")
        if e.end is None or e.end > T0 + 20.0
    }
    idle = only(view, lambda op: op.data.get("exec") not in late)
    no_object = only(idle, lambda op: op.kind != "driver.object")
    finding = find(no_object, "fault_hit_work")
    assert finding.verdict is UNKNOWN
    assert "worker-2 had been idle for" in finding.summary
    never = only(no_object, lambda op: op.node != "worker-2" or op.source != "ledger")
    assert "nothing ever ran on worker-2" in find(never, "fault_hit_work").summary


def test_a_skipped_fault_gives_its_reason() -> None:
    view = of(fault=None)
    skipped = Op(0, "fault.skipped", "orchestrator", T0 + 20, None, T0 + 20, "worker-2",
                 {"id": "f1", "fault": "kill", "why": "no node was busy"})  # fmt: skip
    end = ops_of(view, "run.end")[0]
    finding = find(with_op(view, end, skipped), "fault_hit_work")
    assert finding.verdict is UNKNOWN
    assert finding.summary == "kill of worker-2 was skipped: no node was busy"


def test_a_scheduled_fault_that_was_never_injected_is_unknown() -> None:
    history, spec = build(fault=None)
    schedule = [{"id": "f1", "fault": "kill", "target": "busiest", "when": "after warm-up"}]
    finding = find(RunView(history, {**spec, "schedule": schedule}), "fault_hit_work")
    assert finding.verdict is UNKNOWN
    assert finding.summary == "kill of busiest was scheduled and never injected"


def test_a_run_without_any_fault_asked_for_is_valid() -> None:
    judgement = judge(of(fault=None))
    assert judgement.verdict is VALID
    said = {f.check: f.summary for f in judgement.findings}
    assert said["fault_hit_work"] == said["recovers"] == "no fault was asked for"


# recovers


def test_a_mandatory_phase_that_was_not_seen_is_named_with_its_reason() -> None:
    finding = find(of(comes_back=False), "recovers")
    assert finding.verdict is UNKNOWN
    assert finding.summary == ("node rejoined: not seen: worker-2 did not join again (and 1 more)")


def test_a_phase_that_is_not_mandatory_may_be_missing() -> None:
    history, spec = build(comes_back=False)
    wanted = [p for p in spec["mandatory_phases"] if p not in ("rejoined", "full_throughput")]
    finding = find(RunView(history, {**spec, "mandatory_phases": wanted}), "recovers")
    assert finding.verdict is VALID


def test_too_late_outranks_not_seen() -> None:
    history, spec = build(comes_back=False)
    finding = find(RunView(history, {**spec, "recovery_timeout_s": 2.0}), "recovers")
    assert finding.verdict is INVALID
    assert "2 s are allowed" in finding.summary


def test_late_is_unknown_where_a_blind_observer_may_only_have_seen_it_late() -> None:
    history, spec = build()
    phases = anatomy(RunView(history, spec)).phases
    rejoined = next(p.seconds for p in phases if p.name == "rejoined")
    assert rejoined is not None
    spec = {
        **spec,
        "mandatory_phases": [p.name for p in phases if p.seconds and p.seconds <= rejoined],
        "recovery_timeout_s": rejoined - 0.001,
    }
    view = RunView(history, spec)
    assert find(view, "recovers").verdict is INVALID

    back = index_of(view).rejoin("worker-2", anatomy(view).injected_at or 0.0)
    assert back is not None
    assert back.source == "observer"
    blind = replace(back, kind="observer.blind", wall=back.wall - 2.0, node=None, data={})
    seeing = replace(blind, kind="observer.seeing", wall=back.wall - 0.01)
    finding = find(with_op(view, history.ops[back.index - 1], blind, seeing), "recovers")
    assert finding.verdict is UNKNOWN
    assert "node rejoined was seen only after" in finding.summary
    assert "did not answer the observer" in finding.summary

    # Blind long before and seeing again since: what came too late came too late.
    begun = replace(blind, wall=back.wall - 8.0)
    over = replace(seeing, wall=back.wall - 4.0)
    early = with_op(view, history.ops[back.index - 1], begun, over)
    assert find(early, "evidence").verdict is UNKNOWN
    assert find(early, "recovers").verdict is INVALID


def test_a_phase_that_nobody_knows_is_unknown() -> None:
    history, spec = build()
    spec = {**spec, "mandatory_phases": ["effect", "paradise"]}
    finding = find(RunView(history, spec), "recovers")
    assert finding.verdict is UNKNOWN
    assert "paradise" in finding.summary


def test_a_fault_without_any_phase_to_see_proves_nothing() -> None:
    history, spec = build()
    assert find(RunView(history, {**spec, "mandatory_phases": []}), "recovers").verdict is UNKNOWN


# healed


def test_a_run_cut_off_before_the_heal_is_unknown() -> None:
    view = of()
    cut = only(view, lambda op: op.kind not in ("fault.healed", "run.end"))
    assert find(cut, "healed").verdict is UNKNOWN


# evidence


def test_a_blind_observer_is_excused_while_the_head_is_down_and_not_longer() -> None:
    view = of()
    injected = view.history.at(ops_of(view, "fault.inject")[0])
    end = view.history.at(ops_of(view, "fault.healed")[0])

    def blind(op: Op) -> Op:
        at = view.history.at(op)
        if op.kind == "observer.beat" and injected < at < end:
            return replace(op, data={**op.data, "gcs": False})
        return op

    unseen = rebuilt(view, map(blind, view.history))
    assert "the GCS did not answer" in find(unseen, "evidence").summary

    before = [op for op in view.history.of("observer.beat") if view.history.at(op) < injected - 5]
    assert find(altered(view, before[0], gcs=False), "evidence").verdict is VALID

    def on_head(ops: Iterable[Op]) -> Iterable[Op]:
        return (replace(op, node="head") if op.kind.startswith("fault.") else op for op in ops)

    assert find(rebuilt(view, on_head(unseen.history)), "evidence").verdict is VALID


def test_an_observer_that_came_late_or_left_early_has_not_seen_the_run() -> None:
    view = of()
    start = ops_of(view, "observer.start")[0]
    late = rebuilt(
        view, (replace(op, wall=op.wall + 30) if op is start else op for op in view.history)
    )
    assert "after the first injection" in " ".join(find(late, "evidence").details)
    end = ops_of(view, "observer.end")[0]
    early = rebuilt(
        view, (replace(op, wall=op.wall - 10) if op is end else op for op in view.history)
    )
    assert "the observer ended" in " ".join(find(early, "evidence").details)


def went_down(
    view: RunView, node: str, when: float, kind: str = "engine.die", **data: Any
) -> Finding:
    """What `evidence` says where something befell a node at this time."""
    op = Op(0, kind, "orchestrator", when, None, when, node, data)
    return find(with_op(view, ops_of(view, "run.end")[0], op), "evidence")


def when(view: RunView, kind: str, **data: Any) -> float:
    return view.history.at(of_kind(view, kind, **data))


@pytest.mark.parametrize("fault", [None, "kill"])
def test_a_node_that_died_by_itself_is_named_with_its_exit_code(fault: str | None) -> None:
    view = of(fault=fault)
    found = went_down(view, "worker-1", T0 + 30.0, exit_code=137)
    assert found.verdict is UNKNOWN
    told = "worker-1 died by itself (exit code 137), no fault of this run did it"
    assert told in found.details
    assert went_down(view, "worker-1", T0 + 30.0, "engine.pause").verdict is UNKNOWN


def test_what_befalls_a_node_from_its_injection_to_its_heal_is_the_faults_doing() -> None:
    view = of()
    healed = when(view, "fault.healed")
    stop_before_a_restart = went_down(view, "worker-2", when(view, "fault.heal") + 0.1, exit_code=0)
    assert stop_before_a_restart.verdict is VALID
    assert went_down(view, "worker-2", healed + 0.5).verdict is UNKNOWN
    assert went_down(view, "worker-2", when(view, "fault.inject") - 0.5).verdict is UNKNOWN
    assert went_down(view, "worker-2", healed + 0.5, "engine.start").verdict is VALID


def test_what_befalls_a_node_before_and_after_the_run_is_not_its_concern() -> None:
    view = of()
    before, after = (when(view, "steady", when=w) for w in ("before", "after"))
    assert went_down(view, "worker-1", before - 0.1).verdict is VALID
    assert went_down(view, "worker-1", after + 0.1).verdict is VALID
    # Nobody looked before: then all of it counts.
    unseen = without(view, of_kind(view, "steady", when="before"))
    assert went_down(unseen, "worker-1", before - 0.1).verdict is UNKNOWN


def test_a_fault_on_the_head_takes_the_others_with_it_until_they_are_back() -> None:
    view = of()
    ops = [
        replace(op, node="head") if op.kind.startswith("fault.") and op.node == "worker-2" else op
        for op in view.history
    ]
    headless = rebuilt(view, ops)
    injected = when(headless, "fault.inject")
    assert went_down(headless, "worker-1", injected + 2.0).verdict is VALID
    assert went_down(headless, "worker-1", injected - 2.0).verdict is UNKNOWN


def test_a_node_that_ray_gave_up_by_itself_is_named() -> None:
    view = of()
    dead = {"ray_node_id": "id-worker-1-1", "state": "DEAD"}
    found = went_down(view, "worker-1", T0 + 30.0, "ray.node", **dead)
    assert found.verdict is UNKNOWN
    assert "Ray declared worker-1 dead by itself, no fault of this run did it" in found.details
    # One that was dead already when the observer first looked.
    older = {**dead, "ray_node_id": "id-worker-1-0"}
    assert went_down(view, "worker-1", T0 + 30.0, "ray.node", **older).verdict is VALID


def test_ray_may_learn_late_of_a_node_that_a_fault_took() -> None:
    view = of()
    dead = of_kind(view, "ray.node", state="DEAD")
    late = replace(dead, wall=dead.wall + 20.0)
    told = rebuilt(view, (late if op is dead else op for op in view.history))
    assert find(told, "evidence").verdict is VALID


def test_a_lost_line_is_named_by_file_and_number() -> None:
    view = of()
    gone = ops_of(view, "task.end")[20]
    lossy = RunView(History(op for op in view.history if op is not gone), view.spec)
    finding = find(lossy, "evidence")
    assert f"{gone.data['file']}: line {gone.data['line']} missing" in finding.summary


def test_a_line_received_twice_is_unknown() -> None:
    view = of()
    twice = ops_of(view, "driver.planned", "driver.end")[0]
    history = History([o for op in view.history for o in ([op, op] if op is twice else [op])])
    assert "was received twice" in find(RunView(history, view.spec), "evidence").summary


# Reading what is to be judged


def test_a_history_file_is_judged_as_what_was_in_memory(tmp_path: Path) -> None:
    history, spec = build()
    path = tmp_path / "history.jsonl"
    path.write_text("".join(op.to_json() + "\n" for op in history), encoding="utf-8")
    read = read_history(path)
    assert read.truncated is None
    before, after = judge(RunView(history, spec)), judge(RunView(read, spec))
    assert [(f.check, f.verdict, f.summary, f.cites) for f in after.findings] == [
        (f.check, f.verdict, f.summary, f.cites) for f in before.findings
    ]
    assert after.recovery == pytest.approx(before.recovery, abs=1e-5)


@pytest.mark.parametrize("place", [3, 999, 1000, 1001, 1200])
def test_a_line_that_cannot_be_read_is_left_out_and_named(tmp_path: Path, place: int) -> None:
    history, spec = build()
    lines = [op.to_json() + "\n" for op in history]
    lines[place] = lines[place][:40] + "\n"
    path = tmp_path / "history.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    read = read_history(path)
    assert len(read) == len(history) - 1
    assert read.truncated == f"1 lines of history.jsonl cannot be read (line {place + 1})"
    assert judge(RunView(read, spec)).verdict is not VALID


def test_two_halves_of_an_operation_are_not_taken_for_one(tmp_path: Path) -> None:
    history, _ = build()
    lines = [op.to_json() + "\n" for op in history.ops[:5]]
    # Joined by a comma, these two would be one JSON value.
    lines[1:2] = ['{"a": [1\n', "2]}\n"]
    path = tmp_path / "history.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    read = read_history(path)
    assert len(read) == 4
    assert read.truncated is not None
    assert "2 lines" in read.truncated


def test_a_cut_last_line_is_reported(tmp_path: Path) -> None:
    history, _ = build()
    text = "".join(op.to_json() + "\n" for op in history)
    path = tmp_path / "history.jsonl"
    path.write_text(text[:-20], encoding="utf-8")
    read = read_history(path)
    assert len(read) == len(history) - 1
    assert read.truncated == (
        f"line {len(history)} of history.jsonl is cut off; judged up to line {len(history) - 1}"
    )


# The reference


def test_the_reference_names_every_check_phase_and_figure() -> None:
    docs = Path(__file__).parent.parent / "docs" / "reference"
    checks = (docs / "checks.md").read_text(encoding="utf-8")
    anatomy = (docs / "anatomy.md").read_text(encoding="utf-8")
    judgement = judge(of())
    assert [name for name in BUILT_IN if f"| `{name}` |" not in checks] == []
    assert [p.name for p in judgement.phases if f"| `{p.name}` |" not in anatomy] == []
    assert [name for name in judgement.metrics if f"`{name}`" not in anatomy] == []
