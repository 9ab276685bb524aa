"""A cluster followed live, on the fake backend."""

from __future__ import annotations

import json

import pytest
from fakes import cluster_up, fake

from simulator.backends.fake import FakeBackend
from simulator.cluster import Cluster
from simulator.errors import CannotRun, NotFound
from simulator.monitor import Monitor, Seen, follow
from simulator.scaling import scale


@pytest.fixture
def backend() -> FakeBackend:
    return fake()


def followed(cluster: Cluster, seconds: float = 15.0) -> list[Seen]:
    seen: list[Seen] = []
    follow(cluster, seen.append, seconds=seconds)
    return seen


def words(seen: list[Seen]) -> list[str]:
    return [f"{s.node}: {s.words}" for s in seen]


def test_the_present_comes_first_and_then_nothing_while_nothing_happens(
    backend: FakeBackend,
) -> None:
    seen = followed(cluster_up(backend, workers=1))
    assert [(s.kind, s.node, s.present) for s in seen] == [
        ("engine.state", "head", True),
        ("engine.state", "worker-1", True),
        ("ray.node", "head", True),
        ("ray.node", "worker-1", True),
    ]
    assert words(seen)[0] == "head: running"
    assert "worker-1: Ray: node" in words(seen)[3]
    assert words(seen)[3].endswith("is ALIVE")


def test_both_sides_tell_of_a_killed_node(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=2)
    backend.later(2.0, lambda: backend.kill("c", "worker-2"))
    changes = [s for s in followed(cluster) if not s.present]
    assert [(s.kind, s.source, s.node) for s in changes] == [
        ("engine.die", "engine", "worker-2"),
        ("ray.node", "ray", "worker-2"),
    ]
    assert changes[0].words == "ended with 137"
    assert "is DEAD, UNEXPECTED_TERMINATION: health check failed" in changes[1].words
    assert 3.5 < changes[1].wall - changes[0].wall < 5.5
    assert json.loads(json.dumps(changes[0].to_data()))["data"] == {"exit_code": 137}


def test_what_died_before_is_no_part_of_the_present(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    cluster.restart("worker-1")
    seen = followed(cluster)
    assert [s.node for s in seen if s.kind == "ray.node"] == ["head", "worker-1"]


def test_nodes_that_are_made_meanwhile_have_their_names(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    seen: list[Seen] = []
    with Monitor(cluster) as monitor:
        backend.simulated_clock.sleep(2.0)
        scale(cluster, {"worker": 2})
        backend.simulated_clock.sleep(1.0)
        while (one := monitor.next()) is not None:
            seen.append(one)
    assert [(s.kind, s.node) for s in seen if not s.present] == [
        ("engine.start", "worker-2"),
        ("ray.node", "worker-2"),
    ]


def test_without_a_head_that_is_said_and_the_engine_goes_on(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    cluster.kill("head")
    backend.later(3.0, lambda: backend.pause("c", "worker-1"))
    backend.later(4.0, lambda: backend.resume("c", "worker-1"))
    assert words(followed(cluster, 8.0)) == [
        "head: exited with 137",
        "worker-1: running",
        "None: Ray does not answer",
        "worker-1: frozen",
        "worker-1: thawed",
    ]


def test_an_observer_that_cannot_be_started_is_said(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    backend.fail_next("run_program", CannotRun("no image is left"))
    assert words(followed(cluster))[-1] == "None: nothing is heard of Ray: no image is left"


def test_what_its_observer_prints_need_not_be_kept(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def run_program(*arguments: object, keep_output: bool = True) -> None:
        asked.append(keep_output)
        raise CannotRun("enough")

    monkeypatch.setattr(backend, "run_program", run_program)
    followed(cluster_up(backend, workers=1), 1.0)
    assert asked == [False]


def test_an_observer_that_ends_is_said(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    with Monitor(cluster) as monitor:
        program = monitor._program
        assert program is not None
        program.stop(1.0)
        seen = [monitor.next() for _ in range(8)]
    said = [s.words for s in seen if s is not None]
    assert "the observer ended; nothing is heard of Ray any more" in said


def test_nothing_of_it_is_left(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    followed(cluster)
    with pytest.raises(KeyboardInterrupt), Monitor(cluster):
        raise KeyboardInterrupt
    assert backend._programs == {}
    assert backend.world("c").watchers == []


def test_a_second_one_disturbs_neither(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    with Monitor(cluster) as one:
        assert len(followed(cluster)) == 4
        assert [one.next() is not None for _ in range(4)] == [True] * 4


def test_taking_the_cluster_down_ends_it(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    backend.later(3.0, lambda: backend.remove("c"))
    before = backend.simulated_clock.now
    followed(cluster, 1000.0)
    assert backend.simulated_clock.now - before < 20


def test_an_unknown_cluster_is_not_found(backend: FakeBackend) -> None:
    with pytest.raises(NotFound):
        followed(Cluster(backend, "gone"))


def test_an_actor_is_named_by_its_class_and_its_name() -> None:
    data = {"class": "Counter", "name": "c-1", "state": "ALIVE", "restarts": 2}
    assert Seen("ray.actor", "ray", 0.0, "head", False, data).words == (
        "Ray: actor Counter c-1 is ALIVE, restarted 2 times"
    )
