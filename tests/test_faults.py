"""Each fault: inject, shown from outside, heal, heal again. On the fake backend: the logic, not the fact."""

from __future__ import annotations

import json

import pytest
from fakes import cluster_up, fake, fake_of, state

from simulator.backends.base import KILL, PAUSE, Capability, EngineEvent
from simulator.cluster import Cluster
from simulator.errors import CannotRun, NodeStartFailed, NotFound
from simulator.faults import (
    FAULTS,
    Fault,
    Kill,
    Pause,
    Restart,
    Site,
    Stop,
    fault_from_data,
    register_fault,
)

ALL = [Kill(), Stop(grace=5), Restart(), Pause()]


@pytest.fixture
def cluster() -> Cluster:
    return cluster_up(fake())


def ray_ids(cluster: Cluster, node: str) -> set[str]:
    host = cluster.node(node).hostname
    return {n.ray_node_id for n in cluster.ray.nodes() if n.hostname == host and n.alive}


@pytest.mark.parametrize("fault", ALL, ids=str)
@pytest.mark.parametrize("wait", [0, 60], ids=["at once", "after detection"])
def test_inject_heal_and_heal_again(cluster: Cluster, fault: Fault, wait: float) -> None:
    events: list[EngineEvent] = []
    watch = cluster.backend.watch(cluster.name, events.append)
    fault.inject(cluster, Site("worker-1"))
    assert fault.holds(cluster, Site("worker-1"))
    cluster.clock.sleep(max(wait, 0.1))
    assert (fault.shown_by, "worker-1") in {(e.verb, e.node) for e in events}
    assert fault.heal(cluster, Site("worker-1"), timeout=60)
    assert state(cluster, "worker-1") == "alive"
    alive = ray_ids(cluster, "worker-1")
    assert fault.heal(cluster, Site("worker-1"), timeout=60) == "it was running already"
    assert ray_ids(cluster, "worker-1") == alive
    watch.close()


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_healing_what_was_never_broken_changes_nothing(cluster: Cluster, fault: Fault) -> None:
    before = ray_ids(cluster, "worker-1")
    fault.heal(cluster, Site("worker-1"), timeout=60)
    assert ray_ids(cluster, "worker-1") == before


@pytest.mark.parametrize("fault", [Kill(), Stop(), Pause()], ids=str)
def test_a_fault_without_effect_does_not_hold(cluster: Cluster, fault: Fault) -> None:
    fake_of(cluster).without_effect(fault.name, "worker-1")
    fault.inject(cluster, Site("worker-1"))
    assert not fault.holds(cluster, Site("worker-1"))


def test_a_stopped_node_says_good_bye_and_a_killed_one_does_not(cluster: Cluster) -> None:
    def believed(node: str) -> bool:
        return bool(ray_ids(cluster, node))

    Stop().inject(cluster, Site("worker-1"))
    Kill().inject(cluster, Site("worker-2"))
    assert not believed("worker-1")
    assert believed("worker-2")
    cluster.clock.sleep(10)
    assert not believed("worker-2")


def test_a_node_that_ray_gave_up_but_that_runs_on_is_ended_and_started(cluster: Cluster) -> None:
    backend = fake_of(cluster)
    Pause().inject(cluster, Site("worker-1"))
    cluster.clock.sleep(10)
    # Thawed, it should notice and exit; this one never does.
    world = backend.world("c")
    backend.resume("c", "worker-1")
    world.nodes["worker-1"].forget()
    assert state(cluster, "worker-1") == "dead"
    assert "joined as a new node" in Kill().heal(cluster, Site("worker-1"), timeout=60)
    assert state(cluster, "worker-1") == "alive"


def test_a_node_that_cannot_come_back_is_named(cluster: Cluster) -> None:
    Kill().inject(cluster, Site("worker-1"))
    fake_of(cluster).start_fails("worker-1", times=3)
    with pytest.raises(NodeStartFailed, match="missing worker-1"):
        Kill().heal(cluster, Site("worker-1"), timeout=60)


@pytest.mark.parametrize(("fault", "needs"), [(Kill(), KILL), (Restart(), KILL), (Pause(), PAUSE)])
def test_a_backend_without_the_capability_is_refused_by_name(
    fault: Fault, needs: Capability
) -> None:
    class Bare:
        name = "bare"

    assert fault.needs is needs
    assert fault.refused_by(Bare()) == (  # type: ignore[arg-type]
        f"{fault.name} needs a backend that {needs.means}; bare does not"
    )
    assert fault.refused_by(fake()) is None


def test_every_backend_can_stop_a_node() -> None:
    assert Stop().refused_by(object()) is None  # type: ignore[arg-type]


def test_faults_are_known_by_their_names_and_what_differs_from_the_usual() -> None:
    assert [str(f) for f in ALL] == ["kill", "stop(grace=5)", "restart", "pause"]
    assert [FAULTS[f.name] for f in ALL] == [Kill, Stop, Restart, Pause]


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_what_another_process_reads_is_the_same_fault_at_the_same_site(fault: Fault) -> None:
    assert fault_from_data(json.loads(json.dumps(fault.to_data()))) == fault
    site = Site("worker-1", "f2.1", ("head", "worker-2"), {"pid": 7})
    assert Site.from_data(json.loads(json.dumps(site.to_data()))) == site


def test_a_name_belongs_to_one_fault() -> None:
    class Other(Kill):
        pass

    with pytest.raises(ValueError, match="there is a fault named 'kill' already"):
        register_fault(Other)
    assert register_fault(Kill) is Kill
    with pytest.raises(NotFound, match="did you mean kill"):
        fault_from_data({"fault": "kil"})


def test_an_engines_refusal_reaches_the_caller(cluster: Cluster) -> None:
    fake_of(cluster).fail_next("kill", CannotRun("no such process"))
    with pytest.raises(CannotRun, match="no such process"):
        Kill().inject(cluster, Site("worker-1"))
