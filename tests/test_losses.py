"""What losing a node cost, on a recorded real run with three ways of dying: each finding, refuted and left open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from history_mutations import Mutated, altered, rebuilt, without
from recorded import HISTORIES, flips_exactly, load, verdicts

from simulator.checkers.base import RunView, Verdict
from simulator.checkers.costs import costs_of
from simulator.checkers.index import index_of
from simulator.checkers.losses import Loss, losses_of
from simulator.checkers.registry import run_checks
from simulator.experiment import load_experiment
from simulator.history import Op

INVALID, UNKNOWN, VALID = Verdict.INVALID, Verdict.UNKNOWN, Verdict.VALID


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return load(
        HISTORIES / "preemption" / "docker-spot-preemption", tmp_path_factory.mktemp("history")
    )


def of(view: RunView, way: str) -> Loss:
    return next(loss for loss in losses_of(view) if loss.way == way)


def test_the_original_is_valid_by_every_check(original: RunView) -> None:
    assert set(verdicts(original).values()) == {VALID}


def test_the_three_ways_of_dying_differ(original: RunView) -> None:
    killed, stopped, told = losses_of(original)
    assert [loss.way for loss in (killed, stopped, told)] == ["kill", "stop", "preempt, drained"]
    assert (len(killed.tasks_cut), len(stopped.tasks_cut), len(told.tasks_cut)) == (1, 1, 0)
    assert killed.killed is not None
    assert stopped.killed is None
    assert told.killed is not None
    assert told.notice_s == 10.0
    assert told.drained is not None
    assert told.injected < told.drained.when < told.killed.when
    assert not told.late_starts
    assert killed.dead is not None
    assert stopped.dead is not None
    # One that signs off is known to be gone sooner than one that does not.
    assert stopped.dead.when - stopped.injected < killed.dead.when - killed.injected


def the_last_task_is_never_done(view: RunView) -> Mutated:
    told = of(view, "preempt, drained")
    assert told.drained is not None
    # Its result is there all the same, which no execution explains any more.
    flips = {
        "drained_in_time": INVALID,
        "executions_explained": INVALID,
        "gentler_than_a_kill": INVALID,
    }
    return Mutated(without(view, told.drained.op), flips)


def nobody_saw_that_ray_was_told(view: RunView) -> Mutated:
    notice = of(view, "preempt, drained").fault.notice
    assert notice is not None
    flips = {"drained_in_time": UNKNOWN, "gentler_than_a_kill": UNKNOWN}
    return Mutated(altered(view, notice, verified=False, how="it did not show"), flips)


def it_was_not_the_fault_that_was_asked_for(view: RunView) -> Mutated:
    effect = of(view, "preempt, drained").fault.effect
    assert effect is not None
    return Mutated(altered(view, effect, verified=False), {"fault_hit_work": UNKNOWN})


def a_line_of_the_ledger_is_missing(view: RunView) -> Mutated:
    told = of(view, "preempt, drained")
    assert told.drained is not None
    kept = [op for op in view.history.ops if op is not told.drained.op]
    flips = dict.fromkeys(
        ("drained_in_time", "gentler_than_a_kill", "executions_explained", "evidence"), UNKNOWN
    )
    return Mutated(RunView(type(view.history)(kept), view.spec), flips)


def the_kill_hit_nothing(view: RunView) -> Mutated:
    """As if all that was under way on the killed node had been done just before."""
    killed = of(view, "kill")
    ends: list[Op] = []
    for execution in (*killed.cut, *killed.lost):
        start = execution.start_op
        ends.append(start)
    gone = {id(op) for op in ends} | {id(e.end_op) for e in killed.lost}
    ops = [op for op in view.history.ops if id(op) not in gone]
    return Mutated(rebuilt(view, ops), {"gentler_than_a_kill": UNKNOWN})


@pytest.mark.parametrize(
    "mutate",
    [
        the_last_task_is_never_done,
        nobody_saw_that_ray_was_told,
        it_was_not_the_fault_that_was_asked_for,
        a_line_of_the_ledger_is_missing,
        the_kill_hit_nothing,
    ],
)
def test_a_mutation_flips_exactly_the_checks_that_it_should(
    original: RunView, mutate: Callable[[RunView], Mutated]
) -> None:
    flips_exactly(original, mutate)


def test_a_run_without_a_notice_has_nothing_to_drain(tmp_path: Path) -> None:
    view = load(HISTORIES / "docker-node-failure", tmp_path)
    asked = RunView(view.history, {**view.spec, "checks": ["drained_in_time"]})
    assert verdicts(asked) == {"drained_in_time": UNKNOWN}


def priced(view: RunView, price: float, of: str = "spot") -> RunView:
    topology = dict(view.spec["topology"])
    topology["worker_groups"] = [
        {**group, "price": price} if group["group_name"] == of else group
        for group in topology["worker_groups"]
    ]
    return RunView(view.history, {**view.spec, "topology": topology})


def test_what_spot_machines_save_is_a_matter_of_their_price(original: RunView) -> None:
    cheap, dear = costs_of(original), costs_of(priced(original, 0.30))
    assert cheap is not None
    assert dear is not None
    assert cheap.why == dear.why == {}
    assert (cheap.worth_it, dear.worth_it) == (True, False)
    assert cheap.on_demand == dear.on_demand
    # A machine that is away is not paid for, so that the bill alone is lower at the same price too.
    assert cheap.saved is not None
    assert dear.saved is not None
    assert cheap.saved > dear.saved > 0
    for costs, price in ((cheap, 0.10), (dear, 0.30)):
        spot = next(g for g in costs.groups if g.name == "spot")
        assert costs.paid is not None
        assert costs.paid == pytest.approx(
            (spot.node_s * price + (costs.seconds or 0) * 0.30) / 3600
        )
    assert index_of(original).faults


# ---- where Ray's autoscaler replaces what was lost


@pytest.fixture(scope="module")
def replaced(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return load(HISTORIES / "growth" / "docker-hybrid-spot", tmp_path_factory.mktemp("history"))


def judged(view: RunView, *checks: str) -> dict[str, Verdict]:
    return verdicts(RunView(view.history, {**view.spec, "checks": list(checks)}))


def test_spot_machines_pay_only_below_the_price_of_others(replaced: RunView) -> None:
    assert judged(priced(replaced, 0.99, "gpu"), "spot_pays") == {"spot_pays": VALID}
    # At the same price, what went into the losses is too much.
    assert judged(priced(replaced, 1.00, "gpu"), "spot_pays") == {"spot_pays": INVALID}


def test_nobody_knows_whether_spot_pays_that_never_lost_a_machine_or_has_no_price(
    tmp_path: Path,
) -> None:
    load_experiment("hybrid_spot")  # whose check it is
    for name, why in (
        ("docker-autoscale-down", "no machine was lost"),
        ("docker-node-loss-replaced", "on_demand_price in its topology"),
    ):
        view = load(HISTORIES / "growth" / name, tmp_path)
        (found,) = run_checks(RunView(view.history, {**view.spec, "checks": ["spot_pays"]}))
        assert (found.verdict, why in found.summary) == (UNKNOWN, True), found


def test_the_successor_of_a_machine_that_is_to_go_may_come_before_it_has_gone(
    replaced: RunView,
) -> None:
    (loss,) = losses_of(replaced)
    assert loss.fault.notice is not None
    checks = ("launches_asked", "lost_replaced")
    assert set(judged(replaced, *checks).values()) == {VALID}
    # Of one that nobody had told Ray of, it would have been one too many, and no successor.
    unseen = altered(replaced, loss.fault.notice, verified=False)
    found = judged(unseen, *checks)
    assert found["launches_asked"] is INVALID
    assert found["lost_replaced"] is not VALID
