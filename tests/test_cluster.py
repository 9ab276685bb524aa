"""A cluster brought up, looked at and taken down, on the fake backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from fakes import cluster_spec, cluster_up, fake
from hypothesis import given
from hypothesis import strategies as st

from simulator.backends.base import ClusterRecord, Completed, NodeRecord, NodeState
from simulator.backends.fake import Behaviour, FakeBackend
from simulator.cluster import (
    Cluster,
    Started,
    StartEvent,
    StopEvent,
    Use,
    default_parallelism,
    plan,
    salvage,
    steady_problems,
    use_of,
    wait_alive,
)
from simulator.errors import BadInput, CannotRun, NodeStartFailed, NotFound
from simulator.innode.supervisor import GCS_DIED
from simulator.rayapi import RayNode
from simulator.topology import override

WORKERS = ["worker-1", "worker-2", "worker-3"]


@pytest.fixture
def backend() -> FakeBackend:
    return fake()


def states(cluster: Cluster) -> dict[str, str]:
    return {n.name: n.state for n in cluster.status().nodes}


def until(cluster: Cluster, node: str, state: str, timeout: float = 90) -> None:
    cluster.wait_until(
        lambda: states(cluster)[node] == state, name=f"{node} is {state}", timeout=timeout
    )


def record(**nodes: NodeState) -> ClusterRecord:
    return ClusterRecord(
        "c", "fake", "none", [NodeRecord(n, "worker", "w", s, n, "") for n, s in nodes.items()]
    )


# -- the plan ------------------------------------------------------------------------------------------


def test_what_is_missing_is_created_and_started() -> None:
    todo = plan(["a", "b"], None)
    assert (todo.create, todo.start) == (("a", "b"), ("a", "b"))
    assert str(todo) == "create a, b; start a, b"


def test_what_has_exited_is_started_and_what_is_paused_left_alone() -> None:
    todo = plan(["a", "b", "c"], record(a="exited", b="paused", c="running"))
    assert (todo.create, todo.start, todo.superfluous) == ((), ("a",), ())


def test_what_nobody_asked_for_is_superfluous() -> None:
    assert plan(["a"], record(a="running", z="running")).superfluous == ("z",)


def test_nothing_to_do_is_false_and_says_so() -> None:
    todo = plan(["a"], record(a="running"))
    assert not todo
    assert str(todo) == "nothing to do"


names = st.sets(st.sampled_from("abcdef"))


@given(names, st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["running", "exited"])))
def test_after_a_plan_exactly_what_should_run_runs(
    wanted: set[str], actual: dict[str, NodeState]
) -> None:
    todo = plan(sorted(wanted), record(**actual))
    running = {n for n, state in actual.items() if state == "running"}
    assert (running | set(todo.start)) - set(todo.superfluous) == wanted
    assert set(todo.create) == wanted - set(actual)


# -- up ------------------------------------------------------------------------------------------------


def test_up_waits_until_every_named_node_is_alive(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    status = cluster.status()
    assert states(cluster) == dict.fromkeys(["head", *WORKERS], "alive")
    assert status.to_data()["count"] == {"desired": 4, "running": 4, "alive": 4}
    assert status.ray["answers"]
    assert status.ray["resources"]["CPU"] == [0.0, 4.0]


def test_up_again_has_nothing_to_do(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    assert not cluster.up(cluster_spec())


def test_up_again_starts_what_had_died(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.kill("worker-2")
    assert cluster.up(cluster_spec()).start == ("worker-2",)
    assert states(cluster)["worker-2"] == "alive"


def test_up_waits_for_nodes_that_ran_already_but_had_not_joined(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.kill("worker-2")
    backend.start("c", "worker-2")
    assert states(cluster)["worker-2"] != "exited"
    cluster.up(cluster_spec())
    alive = {n.hostname for n in cluster.ray.nodes() if n.alive}
    assert cluster.node("worker-2").hostname in alive


def test_the_plan_is_told_before_it_is_applied(backend: FakeBackend) -> None:
    told: list[str] = []
    cluster = Cluster(backend, "c")
    backend.before("create", lambda: told.append("created"))
    cluster.up(cluster_spec(), on_plan=lambda p: told.append(str(p.create)))
    assert told == ["('head', 'worker-1', 'worker-2', 'worker-3')", "created"]


def test_a_name_in_use_by_another_shape_is_refused(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=2)
    with pytest.raises(BadInput, match=r"has 3 nodes, not 5.*take it down first"):
        cluster.up(cluster_spec(workers=4))
    assert len(cluster.record().nodes) == 3


def test_a_name_in_use_by_another_definition_of_the_same_nodes_is_refused(
    backend: FakeBackend,
) -> None:
    cluster = cluster_up(backend)
    spec = cluster_spec()
    larger = override(spec.topology, ["worker_groups.worker.resources.CPU=2"])
    for other in (
        replace(spec, topology=larger),
        replace(spec, env={"RAY_health_check_period_ms": "7"}),
    ):
        with pytest.raises(BadInput, match="in use by a cluster with another definition"):
            cluster.up(other)
    assert len(cluster.record().nodes) == 4


def test_two_clusters_live_side_by_side(backend: FakeBackend) -> None:
    one, two = cluster_up(backend, "one"), cluster_up(backend, "two", workers=1)
    one.kill("worker-1")
    assert states(two) == {"head": "alive", "worker-1": "alive"}
    one.down()
    assert [c.name for c in backend.clusters()] == ["two"]


def test_a_worker_that_could_not_join_again_is_not_stopped(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.kill("head")
    with pytest.raises(CannotRun, match=r"worker-1 could not join: the head is exited.*: start"):
        cluster.restart("worker-1")
    assert cluster.node("worker-1").state == "running"


def test_down_is_idempotent(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.down()
    cluster.down()
    with pytest.raises(NotFound):
        cluster.record()


# -- admission -----------------------------------------------------------------------------------------


class Progress:
    """Follows a start, and how many nodes were starting at once."""

    def __init__(self) -> None:
        self.events: list[StartEvent] = []
        self.starting: set[str] = set()
        self.most = 0

    def __call__(self, event: StartEvent) -> None:
        self.events.append(event)
        if event.verb == "starting":
            self.starting.add(event.node)
        else:
            self.starting.discard(event.node)
        self.most = max(self.most, len(self.starting))

    def of(self, node: str) -> list[str]:
        return [e.verb for e in self.events if e.node == node]


@pytest.mark.parametrize("parallelism", [1, 2, 5])
def test_never_more_than_so_many_start_at_once(backend: FakeBackend, parallelism: int) -> None:
    progress = Progress()
    cluster = Cluster(backend, "c")
    cluster.up(cluster_spec(workers=12), parallelism=parallelism, progress=progress)
    assert progress.most == parallelism
    assert progress.events[0] == StartEvent("head", "starting")
    assert progress.of("head") == progress.of("worker-12") == ["starting", "joined"]
    assert progress.events[1].node == "head"
    assert progress.events[1].verb == "joined"


def test_sixteen_join_where_all_at_once_would_lose_all() -> None:
    carried = Behaviour(carries=4)
    all_at_once = fake(carried)
    all_at_once.create(cluster_spec(workers=16))
    all_at_once.start("c", "head")
    all_at_once.simulated_clock.sleep(10)
    for i in range(1, 17):
        all_at_once.start("c", f"worker-{i}")
    all_at_once.simulated_clock.sleep(60)
    assert list(states(Cluster(all_at_once, "c")).values()).count("alive") == 1
    admitted = fake(carried)
    Cluster(admitted, "c").up(cluster_spec(workers=16), parallelism=4)
    assert list(states(Cluster(admitted, "c")).values()).count("alive") == 17


def test_a_machine_that_carries_less_than_was_thought_is_asked_for_less() -> None:
    crowded = fake(Behaviour(carries=3))
    progress = Progress()
    Cluster(crowded, "c").up(cluster_spec(workers=12), parallelism=5, progress=progress)
    assert list(states(Cluster(crowded, "c")).values()).count("alive") == 13
    assert {e.node for e in progress.events if e.verb == "failed"} == {
        f"worker-{i}" for i in range(1, 6)
    }


def test_ray_is_asked_once_a_round_while_nodes_start(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(backend, "c")
    asked: list[float] = []
    nodes = cluster.ray.nodes

    def counted() -> list[RayNode]:
        asked.append(backend.simulated_clock.now)
        return nodes()

    monkeypatch.setattr(cluster.ray, "nodes", counted)
    backend.create(cluster_spec(workers=6))
    cluster.start_nodes(["head", *(f"worker-{i}" for i in range(1, 7))])
    assert len(asked) > 10
    gaps = [later - sooner for sooner, later in pairwise(asked)]
    assert sum(gap < 0.1 for gap in gaps) <= 1  # the workers' first round follows the head's last


def test_at_least_two_may_start_at_once() -> None:
    assert default_parallelism(cores=2) >= 2


def test_a_failed_start_is_tried_again_twice(backend: FakeBackend) -> None:
    progress = Progress()
    backend.start_fails("worker-2", times=2, lines=["no space left"])
    Cluster(backend, "c").up(cluster_spec(), progress=progress)
    assert progress.of("worker-2") == [
        "starting",
        "failed",
        "starting",
        "failed",
        "starting",
        "joined",
    ]
    failed = [e for e in progress.events if e.verb == "failed"]
    assert [e.attempt for e in failed] == [1, 2]
    assert failed[0].details[0] == "worker-2 exited with 1"
    assert "no space left" in failed[0].details


def test_a_node_that_fails_three_times_is_named_and_the_others_join(backend: FakeBackend) -> None:
    backend.start_fails("worker-2", times=3, exit_code=7, lines=["no space left"])
    cluster = Cluster(backend, "c")
    with pytest.raises(NodeStartFailed) as caught:
        cluster.up(cluster_spec())
    assert caught.value.missing == ("worker-2",)
    assert "2 of 3 nodes joined" in str(caught.value)
    assert "worker-2 failed 3 times; its last lines follow" in str(caught.value)
    assert "no space left" in str(caught.value)
    assert states(cluster) == {
        **dict.fromkeys(["head", "worker-1", "worker-3"], "alive"),
        "worker-2": "exited",
    }
    assert cluster.node("worker-2").exit_code == 7


def test_a_node_that_never_joins_is_given_up_after_its_time(backend: FakeBackend) -> None:
    backend.never_joins("worker-1")
    cluster = Cluster(backend, "c")
    begun = backend.simulated_clock.now
    with pytest.raises(NodeStartFailed, match="missing worker-1"):
        cluster.up(cluster_spec(), timeout=20)
    assert 60 < backend.simulated_clock.now - begun < 90
    assert states(cluster)["worker-3"] == "alive"


def test_an_engine_that_refuses_a_start_is_asked_again(backend: FakeBackend) -> None:
    progress = Progress()
    backend.fail_next("start", CannotRun("address already in use"))
    Cluster(backend, "c").up(cluster_spec(), progress=progress)
    assert progress.of("head") == ["starting", "failed", "starting", "joined"]
    assert "could not be started: address already in use" in progress.events[1].details[0]


def test_a_head_that_cannot_start_keeps_the_workers_from_being_started(
    backend: FakeBackend,
) -> None:
    backend.start_fails("head", times=3)
    with pytest.raises(NodeStartFailed, match="missing head"):
        Cluster(backend, "c").up(cluster_spec())
    assert {c.node for c in backend.calls if c.method == "start"} == {"head"}


def test_workers_are_not_waited_for_when_the_head_died_under_them(backend: FakeBackend) -> None:
    backend.start_takes("worker-1", 30)
    backend.later(8.0, lambda: backend.crash("c", "head"))
    begun = backend.simulated_clock.now
    with pytest.raises(CannotRun, match="no worker can join: the head is exited"):
        Cluster(backend, "c").up(cluster_spec(workers=1))
    assert backend.simulated_clock.now - begun < 15


def test_waiting_names_the_nodes_and_what_they_are_instead(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.kill("worker-2")
    with pytest.raises(NodeStartFailed, match="missing worker-2: worker-2 is exited"):
        wait_alive(cluster, ["head", "worker-2"], timeout=3)


# -- status --------------------------------------------------------------------------------------------


def test_a_created_node_is_starting_and_so_is_one_that_has_not_joined(backend: FakeBackend) -> None:
    cluster = Cluster(backend, "c")
    backend.create(cluster_spec())
    assert set(states(cluster).values()) == {"starting"}
    backend.start("c", "head")
    assert states(cluster)["head"] == "starting"
    until(cluster, "head", "alive")
    assert states(cluster)["worker-1"] == "starting"


def test_a_killed_node_has_exited_with_137(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.kill("worker-1")
    (node,) = (n for n in cluster.status().nodes if n.name == "worker-1")
    assert (node.state, node.exit_code) == ("exited", 137)
    assert cluster.status().to_data()["count"] == {"desired": 4, "running": 3, "alive": 3}


def test_a_paused_node_is_paused_and_then_declared_dead(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.pause("worker-1")
    assert states(cluster)["worker-1"] == "paused"
    backend.simulated_clock.sleep(10)
    cluster.resume("worker-1")
    assert states(cluster)["worker-1"] == "dead"
    until(cluster, "worker-1", "exited")


def test_without_a_head_ray_does_not_answer_and_the_reason_is_said(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.kill("head")
    status = cluster.status()
    assert not status.ray["answers"]
    assert (status.ray["why"], status.ray["remedy"]) == (
        "the head is exited",
        "Start it first: start",
    )
    assert steady_problems(cluster, ["head"]) == ["Ray does not answer: the head is exited"]


@pytest.mark.parametrize("method", ["ray.version", "ray.nodes", "ray.usage"])
def test_a_ray_that_answers_half_does_not_answer(backend: FakeBackend, method: str) -> None:
    cluster = cluster_up(backend)
    backend.fail_next(method, CannotRun("too busy"), times=2)
    assert not cluster.status().ray["answers"]
    assert steady_problems(cluster, ["head"]) == ["Ray does not answer: too busy"]


def test_the_status_of_a_node_says_what_it_offers(backend: FakeBackend) -> None:
    data = cluster_up(backend).status().to_data()
    head, worker = data["nodes"][0], data["nodes"][1]
    assert (head["role"], head["gpu"], head["resources"]["GPU"]) == ("head", "simulated", 1)
    assert (worker["gpu"], worker["group"], worker["used"]["CPU"]) == ("none", "worker", 0)
    assert worker["address"]
    assert data["gpu"] == "simulated"


def test_at_rest_means_all_alive_and_nothing_in_use(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    assert steady_problems(cluster, ["head", *WORKERS]) == []
    cluster.kill("worker-3")
    backend.simulated_clock.sleep(10)
    assert steady_problems(cluster, ["head", "worker-3", "worker-9"]) == [
        "worker-3 is exited, not alive",
        "worker-9 is missing, not alive",
    ]


def test_what_is_in_use_is_told_of_the_living_nodes_only(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    assert use_of(cluster).all_free
    cluster.kill("worker-3")
    backend.simulated_clock.sleep(10)
    use = use_of(cluster)
    assert sorted(use.nodes) == ["head", "worker-1", "worker-2"]
    assert use.nodes["worker-1"] == {"CPU": (0.0, 1.0)}
    assert use.all_free


@pytest.mark.parametrize(
    "use",
    [
        Use({}),
        Use({"head": {"CPU": (0.0, 1.0)}, "worker-1": {}}),
        Use({"head": {"CPU": (0.25, 1.0)}}),
        Use({"head": {"CPU": (0.0, 1.0)}}, [({"CPU": 1.0}, 1)]),
    ],
)
def test_what_is_used_waited_for_or_not_reported_is_not_free(use: Use) -> None:
    assert not use.all_free


# -- one node ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [Cluster.kill, Cluster.pause, Cluster.resume, Cluster.restart])
def test_an_unknown_node_gives_the_nearest(
    backend: FakeBackend, act: Callable[[Cluster, str], None]
) -> None:
    cluster = cluster_up(backend)
    with pytest.raises(NotFound, match="did you mean worker-1"):
        act(cluster, "worker-11")


def test_what_does_not_fit_a_nodes_state_is_refused_with_a_remedy(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    with pytest.raises(BadInput, match="worker-1: is running, not paused"):
        cluster.resume("worker-1")
    cluster.pause("worker-1")
    with pytest.raises(
        BadInput, match="worker-1: is paused already; thaw it with: resume worker-1"
    ):
        cluster.pause("worker-1")
    with pytest.raises(BadInput, match="worker-1: is paused; resume or kill it first"):
        cluster.restart("worker-1")
    cluster.kill("worker-1")
    with pytest.raises(BadInput, match="worker-1: is exited; start it with: restart worker-1"):
        cluster.kill("worker-1")


def test_a_restarted_node_is_another_one_to_ray(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    (before,) = (n.ray_node_id for n in cluster.status().nodes if n.name == "worker-1")
    cluster.restart("worker-1")
    (after,) = (n for n in cluster.status().nodes if n.name == "worker-1")
    assert after.state == "alive"
    assert after.ray_node_id not in (before, None)


@pytest.mark.parametrize("killed", [True, False])
def test_with_the_head_its_workers_are_restarted_but_for_the_frozen_and_the_stopped(
    backend: FakeBackend, killed: bool
) -> None:
    cluster = cluster_up(backend, workers=4)
    cluster.pause("worker-2")
    cluster.kill("worker-3")
    if killed:
        cluster.kill("head")
    told: list[Started] = []
    done = cluster.restart("head", on_plan=told.append)
    assert told == [done]
    assert done == Started(("head",), ("worker-1", "worker-4"), ("worker-2",))
    found = states(cluster)
    assert {n: found[n] for n in ("head", "worker-1", "worker-4")} == dict.fromkeys(
        ("head", "worker-1", "worker-4"), "alive"
    )
    assert (found["worker-2"], found["worker-3"]) == ("paused", "exited")


def test_a_restarted_worker_leaves_the_others_alone(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=2)
    assert cluster.restart("worker-1") == Started(("worker-1",))
    assert [c.node for c in backend.calls if c.method == "stop"] == ["worker-1"]


def test_a_frozen_head_is_not_to_be_started_but_resumed(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    cluster.pause("head")
    assert cluster.status().ray["remedy"] == "Resume it first: resume head"


# -- salvage -------------------------------------------------------------------------------------------


def run_dir(root: Path, experiment: str, name: str) -> Path:
    path = root / experiment / name
    path.mkdir(parents=True)
    (path / "spec.json").write_text("{}")
    return path


def test_salvage_gives_each_run_its_ledger_and_skips_those_of_nobody(
    backend: FakeBackend, tmp_path: Path
) -> None:
    cluster_up(backend)
    first, second = run_dir(tmp_path, "a", "run-1"), run_dir(tmp_path, "b", "run-2")
    for name in ("run-1", "run-2", "run-3"):
        backend.put_ledger_file("c", f"{name}/driver.jsonl", name.encode())
    assert salvage(backend, "c", first) == []
    assert (first / "ledger/driver.jsonl").read_text() == "run-1"
    assert (second / "ledger/driver.jsonl").read_text() == "run-2"
    assert sorted(p.name for p in first.iterdir()) == ["ledger", "logs", "spec.json"]
    assert (first / "logs/worker-1/pid1.log").read_text()
    assert (first / "logs/worker-1/ray/raylet.out").is_file()


def test_salvage_of_one_run_leaves_the_others_alone(backend: FakeBackend, tmp_path: Path) -> None:
    cluster_up(backend)
    first, second = run_dir(tmp_path, "a", "run-1"), run_dir(tmp_path, "a", "run-2")
    for name in ("run-1", "run-2"):
        backend.put_ledger_file("c", f"{name}/driver.jsonl", name.encode())
    salvage(backend, "c", second, siblings=False)
    assert (second / "ledger/driver.jsonl").read_text() == "run-2"
    assert not (first / "ledger").exists()


def test_what_cannot_be_salvaged_is_said_and_the_rest_is_saved(
    backend: FakeBackend, tmp_path: Path
) -> None:
    cluster_up(backend)
    run = run_dir(tmp_path, "a", "run-1")
    backend.fail_next("fetch_ledger", CannotRun("the volume is gone"))
    backend.fail_next("node_logs", OSError("no space"))
    problems = salvage(backend, "c", run)
    assert problems == ["ledger: the volume is gone", "head's Ray logs: no space"]
    assert (run / "logs/worker-3/ray/raylet.out").is_file()


def test_salvage_works_with_every_node_down(backend: FakeBackend, tmp_path: Path) -> None:
    cluster = cluster_up(backend)
    run = run_dir(tmp_path, "a", "run-1")
    backend.put_ledger_file("c", "run-1/driver.jsonl", b"x")
    for node in ("head", *WORKERS):
        cluster.kill(node)
    assert salvage(backend, "c", run) == []
    assert (run / "ledger/driver.jsonl").read_text() == "x"


def test_salvage_of_a_cluster_that_is_gone_says_so(backend: FakeBackend, tmp_path: Path) -> None:
    problems = salvage(backend, "gone", run_dir(tmp_path, "a", "run-1"))
    assert any("no cluster named 'gone'" in p for p in problems)


# -- stopped and started as a whole --------------------------------------------------------------------


def test_stopping_keeps_the_nodes_and_stops_the_head_last(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    told: list[StopEvent] = []
    assert cluster.stop(progress=told.append) == ["head", *WORKERS]
    assert set(states(cluster).values()) == {"exited"}
    assert told == [StopEvent(name, "stopped") for name in [*WORKERS, "head"]]
    assert {n.exit_code for n in cluster.record().nodes} == {0}
    assert cluster.stop() == []


def test_a_frozen_node_is_killed_when_the_cluster_stops(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.pause("worker-2")
    told: list[StopEvent] = []
    cluster.stop(progress=told.append)
    assert StopEvent("worker-2", "killed") in told
    assert cluster.node("worker-2").exit_code == 137


def test_one_that_does_not_stop_does_not_keep_the_others(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    backend.fail_next("stop", CannotRun("the engine is busy"))
    with pytest.raises(CannotRun, match="worker-1 could not be stopped: the engine is busy"):
        cluster.stop()
    assert states(cluster)["worker-3"] == "exited"
    assert cluster.node("head").state == "running"


def test_a_stopped_cluster_starts_with_its_head_first(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    addresses = {n.name: n.address for n in cluster.record().nodes}
    cluster.stop()
    progress = Progress()
    assert cluster.start(progress=progress).started == ("head", *WORKERS)
    assert progress.events[0] == StartEvent("head", "starting")
    assert set(states(cluster).values()) == {"alive"}
    assert {n.name: n.address for n in cluster.record().nodes} == addresses
    assert cluster.start() == Started()


def test_workers_that_outlived_their_head_are_started_anew_with_it(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.kill("head")
    plans: list[Started] = []
    cluster.start(on_plan=plans.append)
    assert plans == [Started(("head",), tuple(WORKERS))]
    assert set(states(cluster).values()) == {"alive"}


def test_a_frozen_node_is_left_frozen_when_the_others_start(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.kill("worker-1")
    cluster.pause("worker-2")
    assert cluster.start() == Started(("worker-1",), (), ("worker-2",))
    assert (states(cluster)["worker-1"], states(cluster)["worker-2"]) == ("alive", "paused")


def test_one_that_does_not_come_back_is_named_and_the_others_are_up(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.stop()
    backend.start_fails("worker-2", times=3)
    with pytest.raises(NodeStartFailed, match="missing worker-2"):
        cluster.start()
    assert states(cluster)["worker-3"] == "alive"


# -- what Ray remembers --------------------------------------------------------------------------------


def test_ray_remembers_the_dead_and_why_they_died(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.restart("worker-1")
    cluster.kill("worker-2")
    backend.simulated_clock.sleep(10)
    records = cluster.ray_nodes()
    assert [(r.node, r.ray.alive) for r in records] == [
        ("head", True),
        ("worker-1", True),
        ("worker-3", True),
        ("worker-1", False),
        ("worker-2", False),
    ]
    stopped = records[3].to_data()
    assert (stopped["state"], stopped["message"]) == ("DEAD", "received SIGTERM")
    assert stopped["since"] < stopped["until"] < records[1].to_data()["since"]
    assert records[0].to_data()["until"] is None


def test_a_node_that_is_no_more_has_no_name(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.kill("worker-3")
    backend.simulated_clock.sleep(10)
    backend.remove_node("c", "worker-3")
    assert cluster.ray_nodes()[-1].node is None


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (Cluster.kill, "the head is exited. Start it first: start"),
        (Cluster.pause, "the head is paused. Resume it first: resume head"),
    ],
)
def test_without_a_head_there_is_nobody_to_ask(
    backend: FakeBackend, act: Callable[[Cluster, str], None], said: str
) -> None:
    cluster = cluster_up(backend)
    act(cluster, "head")
    with pytest.raises(CannotRun) as caught:
        cluster.ray_nodes()
    assert str(caught.value) == f"Ray cannot be asked for its nodes: {said}"


def test_a_shell_says_in_which_node_it_is(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    asked: dict[str, object] = {}

    def execute(*arguments: object, **options: object) -> Completed:
        asked.update(options, argv=arguments[2])
        return Completed(7, "")

    backend.execute = execute  # type: ignore[method-assign]
    assert cluster.attach("worker-1") == 7
    assert asked["interactive"]
    assert "exec bash" in str(asked["argv"])
    assert "(worker-1) " in str(asked["env"])
    with pytest.raises(NotFound):
        cluster.attach("worker-9")


# -- a head that keeps its tables, and where it keeps them ---------------------------------------------


def that_keeps(backend: FakeBackend, gcs: str) -> Cluster:
    made = cluster_spec()
    cluster = Cluster(backend, "c")
    cluster.up(replace(made, topology=override(made.topology, [f"gcs={gcs}"])))
    return cluster


def ray_ids(cluster: Cluster) -> dict[str, str | None]:
    return {n.name: n.ray_node_id for n in cluster.status().nodes if n.role == "worker"}


@pytest.mark.parametrize("gcs", ["redis", "rocksdb"])
def test_a_head_that_keeps_its_tables_takes_its_workers_back(
    backend: FakeBackend, gcs: str
) -> None:
    cluster = that_keeps(backend, gcs)
    before = ray_ids(cluster)
    cluster.kill("head")
    backend.simulated_clock.sleep(100.0)  # longer than workers wait for one that keeps nothing
    done = cluster.restart("head")
    assert (done.started, done.renewed, done.remembers) == (("head",), (), True)
    assert ray_ids(cluster) == before
    assert states(cluster) == dict.fromkeys(["head", *WORKERS], "alive")


def test_a_store_is_started_before_its_head_and_stopped_after_it(backend: FakeBackend) -> None:
    cluster = that_keeps(backend, "redis")
    started = [call.node for call in backend.calls if call.method == "start"]
    assert started[:2] == ["redis", "head"]
    assert cluster.stop()[-1] == "redis"
    assert cluster.node("redis").state == "exited"
    assert cluster.start().started[0] == "redis"
    assert states(cluster) == dict.fromkeys(["head", *WORKERS], "alive")
    assert cluster.status().to_data()["store"]["state"] == "running"


@pytest.mark.parametrize("name", ["redis", "head"])
def test_a_store_that_comes_back_brings_its_head_back(backend: FakeBackend, name: str) -> None:
    cluster = that_keeps(backend, "redis")
    before = ray_ids(cluster)
    cluster.kill("redis")
    backend.simulated_clock.sleep(10.0)
    assert (cluster.node("head").state, cluster.node("head").exit_code) == ("exited", GCS_DIED)
    cluster.restart(name)
    assert cluster.node("redis").state == "running"
    assert ray_ids(cluster) == before
    assert states(cluster) == dict.fromkeys(["head", *WORKERS], "alive")


def test_a_head_is_not_started_where_its_tables_cannot_be_read(backend: FakeBackend) -> None:
    cluster = that_keeps(backend, "redis")
    cluster.kill("head")
    cluster.pause("redis")
    with pytest.raises(CannotRun, match="redis, where it keeps its tables, is paused") as caught:
        cluster.restart("head")
    assert "resume redis" in caught.value.remedy
    cluster.resume("redis")
    backend.store_answers = lambda cluster: False  # type: ignore[method-assign]
    with pytest.raises(CannotRun, match="redis, where the head keeps its tables, does not answer"):
        cluster.restart("head")
    assert cluster.node("head").state == "exited"


def test_a_store_that_ends_while_it_is_waited_for_is_an_error_with_its_last_lines(
    backend: FakeBackend,
) -> None:
    cluster = that_keeps(backend, "redis")
    cluster.stop()
    store = backend.world("c").store
    assert store is not None
    store.say("Fatal error, can't open config file")

    def end(cluster: str) -> bool:
        backend.world(cluster).end(store, 1)
        return False

    backend.store_answers = end  # type: ignore[method-assign]
    with pytest.raises(CannotRun, match="redis, where the head keeps its tables, is exited") as e:
        cluster.start()
    assert "can't open config file" in "\n".join(e.value.details)
