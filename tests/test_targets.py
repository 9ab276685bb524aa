"""Whom a fault hits: drawn with the seed, never the driver's node unless it is named, or told by the cluster."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from fakes import cluster_up, fake, topology
from hypothesis import given
from hypothesis import strategies as st

from simulator.backends.fake import FakeBackend
from simulator.cluster import Cluster
from simulator.errors import BadInput, CannotRun, NotFound
from simulator.faults import FAULTS, Kill, Partition, Pause
from simulator.history import History, Op
from simulator.rayapi import RayActor, RunningTask
from simulator.schedule import (
    After,
    All,
    Busiest,
    HolderOfMostObjects,
    Labelled,
    Look,
    Majority,
    Minority,
    Named,
    NodeOfActor,
    NodeOfTask,
    Offering,
    RandomWorker,
    Several,
    Step,
    Target,
    Together,
    misplaced,
    resolve,
)
from simulator.topology import Gcs, Head, Topology, WorkerGroup

SHAPE = Topology(
    name="shape",
    head=Head(resources={"CPU": 1, "GPU": 1}, labels={"zone": "a"}),
    worker_groups=[
        WorkerGroup(group_name="cpu", replicas=3, labels={"zone": "a"}),
        WorkerGroup(group_name="gpu", replicas=2, resources={"GPU": 1}, labels={"zone": "b"}),
    ],
)
WORKERS = ["cpu-1", "cpu-2", "cpu-3", "gpu-1", "gpu-2"]

DRAWN = [
    RandomWorker(), RandomWorker("gpu"), All(), All("cpu"), Minority(), Minority("cpu"), Majority(),
    Majority("gpu"), Several(2), Several(2, "cpu"), Labelled("zone", "a"), Offering("GPU"), Named("cpu"),
]  # fmt: skip


WITH_REDIS = SHAPE.model_copy(update={"gcs": Gcs.REDIS})
WITH_DRIVER = SHAPE.model_copy(update={"driver_node": True})


def op(index: int, kind: str, node: str | None, source: str = "ledger", **data: Any) -> Op:
    return Op(index, kind, source, index, None, index, node, data)


def history(*ops: tuple[str, str | None, dict[str, Any]]) -> History:
    return History(
        op(i, kind, node, "observer" if kind.startswith("ray.") else "ledger", **data)
        for i, (kind, node, data) in enumerate(ops)
    )


@pytest.fixture
def cluster() -> Cluster:
    return cluster_up(fake())


def ids(cluster: Cluster) -> dict[str, str]:
    return {n.name: n.ray_node_id or "" for n in cluster.status().nodes}


def look(cluster: Cluster, recorded: History | None = None, driver: str = "head") -> Look:
    return Look(cluster, lambda: recorded or History(), driver)


# -- drawn from the topology ---------------------------------------------------------------------------


@given(st.integers(), st.sampled_from(DRAWN))
def test_the_same_seed_draws_the_same_workers_and_never_the_head(seed: int, target: Target) -> None:
    drawn = [target.resolve(SHAPE, Random(seed)) for _ in range(2)]
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert set(drawn[0]) <= set(WORKERS)


@pytest.mark.parametrize(
    ("target", "count", "among"),
    [
        (RandomWorker(), 1, WORKERS),
        (RandomWorker("gpu"), 1, WORKERS[3:]),
        (Named("gpu"), 1, WORKERS[3:]),
        (All(), 5, WORKERS),
        (All("cpu"), 3, WORKERS[:3]),
        (Minority(), 2, WORKERS),  # of the six nodes, the head among them
        (Minority("cpu"), 1, WORKERS[:3]),
        (Majority(), 4, WORKERS),
        (Majority("cpu"), 2, WORKERS[:3]),
        (Several(3), 3, WORKERS),
        (Several(2, "gpu"), 2, WORKERS[3:]),
        (Labelled("zone", "a"), 3, WORKERS[:3]),
        (Offering("GPU"), 2, WORKERS[3:]),
        (Named("head"), 1, ["head"]),
        (Together((Named("head"), All("gpu"), Named("gpu-1"))), 3, ["head", *WORKERS[3:]]),
    ],
    ids=str,
)
def test_each_target_draws_so_many_of_those(target: Target, count: int, among: list[str]) -> None:
    seen: set[str] = set()
    for seed in range(60):
        drawn = target.resolve(SHAPE, Random(seed))
        assert len(drawn) == len(set(drawn)) == count
        seen |= set(drawn)
    assert target.early
    assert seen == set(among)


@given(st.integers(), st.sampled_from(DRAWN))
def test_a_driver_node_is_hit_only_by_its_name(seed: int, target: Target) -> None:
    assert set(target.resolve(WITH_DRIVER, Random(seed))) <= set(WORKERS)
    assert Named("driver").resolve(WITH_DRIVER, Random(seed)) == ("driver",)


@given(st.integers(), st.sampled_from(DRAWN))
def test_the_store_is_hit_only_by_its_name(seed: int, target: Target) -> None:
    assert set(target.resolve(WITH_REDIS, Random(seed))) <= set(WORKERS)
    assert Named("redis").resolve(WITH_REDIS, Random(seed)) == ("redis",)


def test_a_cluster_without_a_store_has_none_to_hit() -> None:
    with pytest.raises(NotFound, match="redis"):
        Named("redis").resolve(SHAPE, Random(1))


def test_a_partition_leaves_the_store_where_it_is_unless_it_is_named() -> None:
    plain = Step(1.0, Partition(), Named("head"), After(5))
    assert "redis" not in resolve([plain], WITH_REDIS, Random(1))[0].peers
    against = Step(1.0, Partition(), Named("head"), After(5), against=Named("redis"))
    assert resolve([against], WITH_REDIS, Random(1))[0].peers == ("redis",)
    other = Step(1.0, Partition(), Named("redis"), After(5))
    assert resolve([other], WITH_REDIS, Random(1))[0].peers == (
        "cpu-1",
        "cpu-2",
        "cpu-3",
        "gpu-1",
        "gpu-2",
        "head",
    )


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_only_faults_that_make_sense_there_hit_the_store(fault: str) -> None:
    able = {
        "kill", "stop", "restart", "pause", "partition", "disconnect",
        "loss", "bandwidth", "delay", "reorder", "duplicate",
    }  # fmt: skip
    step = Step(1.0, FAULTS[fault](), Named("redis"), After(60))
    refused = misplaced(resolve([step], WITH_REDIS, Random(1)), WITH_REDIS)
    assert (fault in able) is not bool(refused)
    if refused:
        assert "is where the head keeps its tables" in str(refused[0])


def test_a_driver_node_is_among_those_that_a_partition_cuts_off() -> None:
    step = Step(1.0, Partition(), Named("cpu-1"), After(5))
    assert "driver" in resolve([step], WITH_DRIVER, Random(1))[0].peers


def test_the_order_of_the_groups_does_not_matter() -> None:
    turned = SHAPE.model_copy(update={"worker_groups": SHAPE.worker_groups[::-1]})
    for target in DRAWN:
        assert target.resolve(SHAPE, Random(3)) == target.resolve(turned, Random(3))


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 10])
def test_minority_and_majority_are_less_and_more_than_half_and_together_all(workers: int) -> None:
    shape = topology(workers)
    nodes = [n.name for n in shape.nodes()]
    if len(nodes) < 3:
        with pytest.raises(BadInput, match="of 2 nodes there is no minority; it takes 3 nodes"):
            Minority().resolve(shape, Random(0))
        return
    few = Minority().resolve(shape, Random(1))
    assert 0 < len(few) < len(nodes) / 2
    rest = Majority().across(shape, Random(1), None, few)
    assert len(rest) > len(nodes) / 2
    assert "head" in rest if len(nodes) % 2 else set(rest) <= set(nodes) - set(few)


def test_the_far_side_may_be_the_head_and_is_never_the_near_side() -> None:
    for seed in range(20):
        far = RandomWorker().across(SHAPE, Random(seed), None, ["cpu-1", "gpu-1"])
        assert far[0] in {"head", "cpu-2", "cpu-3", "gpu-2"}
    assert Named("head").across(SHAPE, Random(0), None, ["head"]) == []
    assert All().across(SHAPE, Random(0), None, WORKERS[1:]) == ["cpu-1", "head"]
    assert Named("gpu").across(SHAPE, Random(0), None, ["gpu-1"]) == ["gpu-2"]
    both = Together((Named("head"), Named("cpu-1"), All("cpu")))
    assert both.across(SHAPE, Random(0), None, ["cpu-2"]) == ("head", "cpu-1", "cpu-3")


@pytest.mark.parametrize(
    ("target", "error", "what"),
    [
        (Named("wroker"), NotFound, "no node or group named 'wroker'"),
        (Named("cpu1"), NotFound, "did you mean cpu-1 or cpu"),
        (RandomWorker("gpus"), NotFound, "no group named 'gpus': did you mean gpu?"),
        (All("head"), NotFound, "no group named 'head'"),
        (Several(6), BadInput, "target random(6): is 6 nodes, and topology shape has 5 to hit"),
        (Several(3, "gpu"), BadInput, "is 3 nodes, and topology shape has 2 to hit"),
        (Minority("gpu"), BadInput, "of 2 nodes there is no minority"),
        (Labelled("zone", "c"), BadInput, "no worker with the label zone=c: there is zone=a, zone=b"),
        (Offering("TPU"), BadInput, "no worker that offers TPU: there is CPU, GPU; the head is hit only"),
    ],
)  # fmt: skip
def test_who_is_not_there_is_told_with_who_is(
    target: Target, error: type[Exception], what: str
) -> None:
    with pytest.raises(error) as caught:
        target.resolve(SHAPE, Random(0))
    assert what in str(caught.value)


def test_only_the_head_has_it_and_the_head_is_not_meant() -> None:
    with pytest.raises(BadInput, match="no worker that offers GPU: there is CPU"):
        Offering("GPU").resolve(topology(), Random(0))
    with pytest.raises(BadInput, match="has no worker to hit"):
        All().resolve(topology(0), Random(0))


def test_no_count_below_one_is_a_target() -> None:
    with pytest.raises(ValueError, match="use 1 or more"):
        Several(0)


# -- the driver's node ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [Named("worker-1"), Together((Named("worker-1"), All()))])
def test_a_node_that_is_named_is_hit_though_the_driver_runs_there(
    cluster: Cluster, target: Target
) -> None:
    (planned,) = resolve([Step(1, Kill(), target)], topology(), Random(0))
    assert "worker-1" in planned.resolve(topology(), look(cluster, driver="worker-1")).nodes


def test_the_drivers_node_is_spared_by_all_that_does_not_name_it(cluster: Cluster) -> None:
    (planned,) = resolve([Step(1, Kill(), All())], topology(), Random(0))
    spared = planned.resolve(topology(), look(cluster, driver="worker-2"))
    assert spared.nodes == ("worker-1", "worker-3")
    (alone,) = resolve([Step(1, Kill(), RandomWorker())], topology(1), Random(0))
    with pytest.raises(CannotRun, match="worker-1 is the node that the driver runs on"):
        alone.resolve(topology(1), look(cluster, driver="worker-1"))
    assert All().resolve(topology(), Random(0), look(cluster, driver="worker-1")) == [
        "worker-2",
        "worker-3",
    ]


# -- told by the running cluster -----------------------------------------------------------------------

LATE = [NodeOfActor("A"), NodeOfTask("f"), Busiest(), HolderOfMostObjects()]


@pytest.mark.parametrize("target", LATE, ids=str)
def test_what_only_the_cluster_can_tell_is_left_open_by_the_plan(target: Target) -> None:
    (planned,) = resolve([Step(1, Pause(), target)], topology(), Random(0))
    assert (planned.nodes, planned.to_data()["target"]) == ((), str(target))
    assert not Together((Named("head"), target)).early
    with pytest.raises(CannotRun, match="known only while the cluster runs"):
        target.resolve(topology(), Random(0))


def actor(
    identity: str, state: str, node: str | None, name: str = ""
) -> tuple[str, str | None, Any]:
    data = {"actor_id": identity, "name": name, "class": "Trainer", "state": state, "restarts": 0}
    return "ray.actor", node, data


def test_an_actor_is_found_by_its_name_or_its_class_where_it_was_last_seen_alive(
    cluster: Cluster,
) -> None:
    seen = look(
        cluster,
        history(
            actor("a", "ALIVE", "worker-1", "one"),
            actor("b", "ALIVE", "worker-2", "Trainer"),
            actor("c", "ALIVE", "worker-3"),
            actor("a", "RESTARTING", None, "one"),
            actor("a", "ALIVE", "worker-3", "one"),
            actor("c", "DEAD", None),
        ),
    )
    assert NodeOfActor("one").resolve(topology(), Random(0), seen) == ("worker-3",)
    # The name comes first, though others are of a class of that name.
    assert NodeOfActor("Trainer").resolve(topology(), Random(0), seen) == ("worker-2",)
    with pytest.raises(NotFound, match="no living actor named 'two': there is Trainer, one"):
        NodeOfActor("two").resolve(topology(), Random(0), seen)


def test_of_several_that_fit_one_is_drawn_with_the_seed(cluster: Cluster) -> None:
    ops = [actor(name, "ALIVE", name) for name in ("worker-2", "head", "worker-1")]
    seen = look(cluster, history(*ops))
    drawn = {NodeOfActor("Trainer").resolve(topology(), Random(i), seen)[0] for i in range(20)}
    assert drawn == {"worker-1", "worker-2"}  # the driver's node fits, and is spared
    again = look(cluster, history(*ops[::-1]))
    for i in range(20):
        target = NodeOfActor("Trainer")
        assert target.resolve(topology(), Random(i), seen) == target.resolve(
            topology(), Random(i), again
        )


def test_an_actor_beside_the_driver_is_not_hit_but_may_be_on_the_far_side(cluster: Cluster) -> None:
    seen = look(cluster, history(actor("a", "ALIVE", "head")))
    target = NodeOfActor("Trainer")
    with pytest.raises(
        CannotRun, match=r"it is head, where the driver runs\. name the node .*: head"
    ):
        target.resolve(topology(), Random(0), seen)
    assert target.across(topology(), Random(0), seen, ["worker-1"]) == ("head",)
    assert target.across(topology(), Random(0), seen, ["head"]) == ()


def test_ray_is_asked_for_actors_where_the_observer_saw_none(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = [RayActor("a", "", "Trainer", ids(cluster)["worker-2"]), RayActor("b", "", "T", "gone")]
    monkeypatch.setattr(type(cluster.ray), "living_actors", lambda self: alive)
    assert NodeOfActor("Trainer").resolve(topology(), Random(0), look(cluster)) == ("worker-2",)


def started(execution: str, node: str, fn: str = "work") -> tuple[str, str, Any]:
    return "task.start", node, {"exec": execution, "key": f"t-{execution}", "fn": fn}


def test_tasks_are_found_in_the_ledger_until_they_end_or_their_node_dies(cluster: Cluster) -> None:
    seen = look(
        cluster,
        history(
            started("1", "worker-1"),
            started("2", "worker-2"),
            started("3", "worker-3"),
            started("4", "worker-3", fn="other"),
            ("task.end", "worker-1", {"exec": "1"}),
            ("engine.die", "worker-2", {}),
        ),
    )
    assert NodeOfTask("work").resolve(topology(), Random(0), seen) == ("worker-3",)
    assert NodeOfTask("t-4").resolve(topology(), Random(0), seen) == ("worker-3",)
    with pytest.raises(NotFound, match="no running task named 'works': did you mean work"):
        NodeOfTask("works").resolve(topology(), Random(0), seen)


def test_the_busiest_runs_most_tasks_and_the_drivers_node_does_not_count(cluster: Cluster) -> None:
    seen = look(
        cluster,
        history(
            *(started(f"h{i}", "head") for i in range(9)),
            started("1", "worker-1"),
            started("2", "worker-2"),
            started("3", "worker-2"),
            ("call.start", "worker-1", {"exec": "4", "key": "c/1", "actor": "c"}),
            ("call.end", "worker-1", {"exec": "4", "key": "c/1", "actor": "c"}),
        ),
    )
    for i in range(9):
        assert Busiest().resolve(topology(), Random(i), seen) == ("worker-2",)
    idle = look(cluster, history(started("1", "head")))
    with pytest.raises(CannotRun, match="nothing runs on any node but the driver's"):
        Busiest().resolve(topology(), Random(0), idle)


def test_ray_is_asked_for_tasks_where_nothing_writes_a_ledger(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ids(cluster)
    running = [
        RunningTask("work", "mine.work", at["worker-1"]),
        RunningTask("A.call", "A.call", at["worker-3"], of_actor=True),
        RunningTask("work", "mine.work", at["worker-3"]),
        RunningTask("work", "mine.work", "gone"),
    ]
    monkeypatch.setattr(type(cluster.ray), "running_tasks", lambda self: running)
    assert NodeOfTask("A.call").resolve(topology(), Random(0), look(cluster)) == ("worker-3",)
    assert Busiest().resolve(topology(), Random(0), look(cluster)) == ("worker-3",)
    drawn = {
        NodeOfTask("mine.work").resolve(topology(), Random(i), look(cluster)) for i in range(9)
    }
    assert drawn == {("worker-1",), ("worker-3",)}


def test_the_holder_of_most_objects_is_told_by_ray(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ids(cluster)
    held = {at["head"]: 9, at["worker-1"]: 2, at["worker-2"]: 5, at["worker-3"]: 5, "gone": 99}
    monkeypatch.setattr(type(cluster.ray), "objects_held", lambda self: held)
    drawn = {HolderOfMostObjects().resolve(topology(), Random(i), look(cluster)) for i in range(20)}
    assert drawn == {("worker-2",), ("worker-3",)}
    monkeypatch.setattr(type(cluster.ray), "objects_held", lambda self: {at["worker-1"]: 0})
    with pytest.raises(CannotRun, match="no node but the driver's holds any object"):
        HolderOfMostObjects().resolve(topology(), Random(0), look(cluster))


def test_a_cluster_that_does_not_answer_resolves_nothing(cluster: Cluster) -> None:
    assert isinstance(cluster.backend, FakeBackend)
    cluster.backend.crash("c", "head")
    with pytest.raises(CannotRun):
        Busiest().resolve(topology(), Random(0), look(cluster))
