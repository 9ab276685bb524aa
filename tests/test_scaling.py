"""Worker groups made larger and smaller, on the fake backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import Lab, cluster_spec, cluster_up, fake

from simulator.backends.base import Check
from simulator.backends.fake import FakeBackend
from simulator.cluster import Cluster, Plan
from simulator.errors import BadInput, CannotRun, NodeStartFailed, NotFound
from simulator.scaling import Removal, scale
from simulator.topology import WorkerGroup, override


@pytest.fixture
def backend() -> FakeBackend:
    return fake()


def states(cluster: Cluster) -> dict[str, str]:
    return {n.name: n.state for n in cluster.status().nodes}


def grouped(backend: FakeBackend, **limits: int) -> Cluster:
    """Workers, and a group "big" of one."""
    spec = cluster_spec(workers=2)
    big = WorkerGroup.model_validate({"group_name": "big", "resources": {"CPU": 2}, **limits})
    topology = spec.topology.model_copy(
        update={"worker_groups": [*spec.topology.worker_groups, big]}
    )
    cluster = Cluster(backend, "c")
    cluster.up(replace(spec, topology=topology))
    return cluster


def test_more_are_made_started_and_waited_for(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    plans: list[Plan] = []
    done = scale(cluster, {"worker": 3}, on_plan=plans.append)
    assert done.added == ("worker-2", "worker-3")
    assert not done.removed
    assert str(plans[0]) == "create worker-2, worker-3; start worker-2, worker-3"
    assert states(cluster) == dict.fromkeys(["head", "worker-1", "worker-2", "worker-3"], "alive")


def test_fewer_are_those_with_the_lowest_numbers(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=12)
    done = scale(cluster, {"worker": 9})
    assert [r.node for r in done.removed] == ["worker-12", "worker-11", "worker-10"]
    assert len(cluster.record().nodes) == 10
    assert all(not r.running and not r.unknown for r in done.removed)
    gone = {n.message for n in cluster.ray.nodes() if not n.alive}
    assert gone == {"received SIGTERM"}


def test_a_name_that_comes_again_is_a_new_node(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=2)
    before = {n.ray_node_id for n in cluster.ray.nodes()}
    scale(cluster, {"worker": 1})
    scale(cluster, {"worker": 2})
    (again,) = (n for n in cluster.status().nodes if n.name == "worker-2")
    assert again.state == "alive"
    assert again.ray_node_id not in before
    assert "start 1" in backend.logs("c", "worker-2")


def test_the_same_number_is_nothing_to_do(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    assert not scale(cluster, {"worker": 3})
    assert {c.method for c in backend.calls} & {"remove_node", "stop"} == set()


def test_groups_that_are_not_named_are_left_as_they_are(backend: FakeBackend) -> None:
    cluster = grouped(backend)
    done = scale(cluster, {"worker": 1, "big": 3})
    assert done.added == ("big-2", "big-3")
    assert [r.node for r in done.removed] == ["worker-2"]
    scale(cluster, {"big": 0})
    assert states(cluster) == {"head": "alive", "worker-1": "alive"}
    assert scale(cluster, {"big": 1}).added == ("big-1",)
    (big,) = (n for n in cluster.record().nodes if n.group == "big")
    assert big.resources["CPU"] == 2


def test_limits_and_names_are_refused_all_at_once(backend: FakeBackend) -> None:
    cluster = grouped(backend, min_replicas=1, max_replicas=4)
    with pytest.raises(BadInput) as caught:
        scale(cluster, {"big": 5, "worke": 1, "head": 2, "worker": -1})
    said = str(caught.value)
    assert "big=5: replicas 5 is above max_replicas 4" in said
    assert "worke=1: no worker group named 'worke': did you mean worker?" in said
    assert "head=2: a cluster has one head" in said
    assert "worker=-1: replicas: is -1" in said
    with pytest.raises(BadInput, match="replicas 0 is below min_replicas 1"):
        scale(cluster, {"big": 0})
    assert len(cluster.record().nodes) == 4


def test_those_that_do_not_join_are_gone_again_and_nothing_else_is(backend: FakeBackend) -> None:
    cluster = grouped(backend)
    backend.never_joins("big-2")
    with pytest.raises(NodeStartFailed, match="missing big-2"):
        scale(cluster, {"big": 3, "worker": 0}, timeout=5)
    assert states(cluster) == dict.fromkeys(["head", "worker-1", "worker-2", "big-1"], "alive")


def test_an_interrupted_start_leaves_nothing_of_it(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    backend.fail_next("start", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        scale(cluster, {"worker": 3})
    assert states(cluster) == {"head": "alive", "worker-1": "alive"}


def test_without_a_head_nothing_is_made(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    cluster.kill("head")
    with pytest.raises(CannotRun, match=r"no worker can join: the head is exited.*first: start"):
        scale(cluster, {"worker": 2})
    assert len(cluster.record().nodes) == 2


def test_a_machine_that_cannot_carry_more_is_asked_first(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    backend.checks.append(Check("problem", "memory", "is 1 GB; 9 are needed"))
    with pytest.raises(CannotRun, match="memory: is 1 GB"):
        scale(cluster, {"worker": 9})
    assert not scale(cluster, {"worker": 0}).added


def test_what_exited_is_removed_without_asking_ray(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=2)
    cluster.kill("head")
    cluster.kill("worker-2")
    told: list[Removal] = []
    scale(cluster, {"worker": 0}, on_removal=told.append)
    assert [(r.node, bool(r.unknown)) for r in told] == [("worker-2", False), ("worker-1", True)]
    assert told[1].unknown.startswith("Ray cannot be asked what runs there: the head is exited")


def test_a_ray_that_does_not_answer_is_said_and_keeps_nobody(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=2)
    backend.fail_next("ray.running", CannotRun("too busy"))
    (removed,) = scale(cluster, {"worker": 1}).removed
    assert removed.unknown == "too busy"
    assert scale(cluster, {"worker": 0}).to_data()["removed"] == [
        {"node": "worker-1", "running": {"tasks": [], "actors": []}, "unknown": None}
    ]


def test_a_node_that_somebody_else_removes_meanwhile_keeps_nobody(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=4)

    def removed(removal: Removal) -> None:
        backend.remove_node("c", removal.node) if removal.node != "worker-3" else None

    done = scale(cluster, {"worker": 1}, on_removal=removed)
    assert [r.node for r in done.removed] == ["worker-4", "worker-3", "worker-2"]
    assert states(cluster) == {"head": "alive", "worker-1": "alive"}


def test_a_gap_in_the_numbers_is_refused_with_what_closes_it(backend: FakeBackend) -> None:
    cluster = grouped(backend)
    scale(cluster, {"worker": 4})
    backend.remove_node("c", "worker-3")
    for wanted in ({"worker": 3}, {"worker": 5}, {"big": 2}):
        with pytest.raises(BadInput) as caught:
            scale(cluster, wanted)
        again = " ".join(f"{g}={n}" for g, n in ({"worker": 3} | wanted).items())
        assert "worker-3 is gone, and no number below worker-4 can be given again" in str(
            caught.value
        )
        assert f"first scale worker=2, then scale {again}" in str(caught.value)
    assert [r.node for r in scale(cluster, {"big": 0}).removed] == ["big-1"]
    assert [r.node for r in scale(cluster, {"worker": 2}).removed] == ["worker-4"]
    assert scale(cluster, {"worker": 3, "big": 2}).added == ("worker-3", "big-1", "big-2")


def test_a_gap_that_cannot_be_closed_is_said_to_be_one(backend: FakeBackend) -> None:
    cluster = grouped(backend, min_replicas=1)
    scale(cluster, {"big": 2})
    backend.remove_node("c", "big-1")
    with pytest.raises(BadInput, match="take the cluster down and make it again"):
        scale(cluster, {"big": 1})


def test_the_last_node_that_tells_what_a_group_is_stays(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_up(backend, workers=2)
    by_hand = replace(backend.spec("c"), from_nodes=True)
    monkeypatch.setattr(backend, "spec", lambda cluster: by_hand)
    with pytest.raises(BadInput, match=r"only its nodes tell what worker is.*keep one, worker=1"):
        scale(cluster, {"worker": 0})
    assert [r.node for r in scale(cluster, {"worker": 1}).removed] == ["worker-2"]


def test_a_frozen_node_is_killed_and_removed(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=2)
    cluster.pause("worker-2")
    scale(cluster, {"worker": 1})
    assert states(cluster) == {"head": "alive", "worker-1": "alive"}


def test_what_ran_on_a_removed_node_is_told(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    told: list[Removal] = []

    def shrink(history: object) -> None:
        cluster = Cluster(lab.backend, "c")
        running = lab.backend.ray("c").running()
        if not told and len(running) > 2:
            told.extend(scale(cluster, {"worker": 2}).removed)

    lab.on_tick = shrink
    lab.run("tasks=200")
    (removed,) = told
    assert removed.node == "worker-3"
    assert removed.running.tasks


def test_an_unknown_cluster_is_not_found(backend: FakeBackend) -> None:
    with pytest.raises(NotFound):
        scale(Cluster(backend, "gone"), {"worker": 1})


def test_the_limits_are_those_that_the_cluster_was_made_with(backend: FakeBackend) -> None:
    spec = cluster_spec(workers=2)
    limited = override(spec.topology, ["worker_groups.worker.max_replicas=3"])
    cluster = Cluster(backend, "c")
    cluster.up(replace(spec, topology=limited))
    scale(cluster, {"worker": 1})
    assert backend.spec("c").topology.worker_groups[0].replicas == 1
    with pytest.raises(BadInput, match="above max_replicas 3"):
        scale(cluster, {"worker": 4})
