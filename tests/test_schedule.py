"""Schedules: the same seed, the same plan."""

from __future__ import annotations

from random import Random

import pytest
from fakes import topology
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import BadInput, NotFound
from simulator.faults import Kill, Pause
from simulator.schedule import (
    After,
    AtEnd,
    Heal,
    Named,
    Never,
    RandomWorker,
    Step,
    WhenDeclaredDead,
    resolve,
    without,
)
from simulator.topology import Topology, WorkerGroup


@given(st.integers(), st.integers(1, 20))
def test_the_same_seed_draws_the_same_targets(seed: int, workers: int) -> None:
    steps = [Step(at, Kill(), RandomWorker()) for at in (3, 1, 2)]
    plans = [resolve(steps, topology(workers), Random(seed)) for _ in range(2)]
    assert plans[0] == plans[1]
    assert {node for p in plans[0] for node in p.nodes} <= {
        n.name for n in topology(workers).workers()
    }


def test_other_seeds_draw_other_targets() -> None:
    drawn = {
        resolve([Step(1, Kill(), RandomWorker())], topology(4), Random(seed))[0].nodes[0]
        for seed in range(50)
    }
    assert len(drawn) == 4


def test_the_draw_does_not_depend_on_the_order_of_the_groups() -> None:
    groups = [WorkerGroup(group_name=name, replicas=2) for name in ("a", "b")]
    steps = [Step(1, Kill(), RandomWorker())]
    there, back = (
        resolve(steps, Topology(worker_groups=g), Random(3)) for g in (groups, groups[::-1])
    )
    assert there == back


def test_steps_are_planned_in_the_order_of_time() -> None:
    steps = [Step(9, Kill(), Named("worker-1")), Step(2, Pause(), Named("worker-2"))]
    planned = resolve(steps, topology(), Random(0))
    assert [(p.id, p.step.at, *p.nodes) for p in planned] == [
        ("f2", 2, "worker-2"),
        ("f1", 9, "worker-1"),
    ]


def test_a_group_can_be_asked_for() -> None:
    both = Topology(
        worker_groups=[WorkerGroup(group_name="a"), WorkerGroup(group_name="b", replicas=3)]
    )
    drawn = {RandomWorker("b").resolve(both, Random(seed))[0] for seed in range(30)}
    assert drawn == {"b-1", "b-2", "b-3"}


def test_a_topology_without_workers_has_nobody_to_hit() -> None:
    with pytest.raises(BadInput, match="has no worker to hit"):
        RandomWorker().resolve(Topology(), Random(0))


def test_an_unknown_node_gives_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean worker-1"):
        Named("worker1").resolve(topology(1), Random(0))


def test_what_is_written_down_says_whom_when_and_how_it_is_undone() -> None:
    (planned,) = resolve([Step(10, Kill(), RandomWorker())], topology(1), Random(0))
    assert planned.to_data() == {
        "id": "f1",
        "step": "kill one @10s",
        "fault": "kill",
        "parameters": {"fault": "kill"},
        "target": "worker-1",
        "nodes": ["worker-1"],
        "peers": [],
        "asked": "one",
        "when": "10 s after the load began",
        "at_s": 10,
        "repetition": 1,
        "heal": "once Ray declared it dead",
        "undo": "start",
    }


@pytest.mark.parametrize(
    ("heal", "said", "undo"),
    [
        (WhenDeclaredDead(), "once Ray declared it dead", "resume"),
        (After(2.5), "2.5 s later", "resume"),
        (AtEnd(), "when the work is done", "resume"),
        (Never(), "not before the end", "nothing"),
    ],
)
def test_each_heal_is_written_in_words(heal: Heal, said: str, undo: str) -> None:
    (planned,) = resolve([Step(1, Pause(), Named("head"), heal)], topology(), Random(0))
    assert (planned.to_data()["heal"], planned.to_data()["undo"]) == (said, undo)


def test_what_stays_broken_is_not_waited_for() -> None:
    assert [n.name for n in without(topology(), ["worker-1"])] == ["head", "worker-2", "worker-3"]


@pytest.mark.parametrize("at", [-1.0, float("nan"), float("inf")])
def test_a_time_that_never_comes_is_refused(at: float) -> None:
    with pytest.raises(ValueError, match="a number from 0 on"):
        Step(at, Kill(), RandomWorker())
