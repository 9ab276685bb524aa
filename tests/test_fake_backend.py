"""The fake backend: it does what it is told, in its own time, and keeps the contracts of a real one."""

from __future__ import annotations

import inspect
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes import Lab, cluster_spec, cluster_up, fake, only

from simulator.backends.base import (
    Backend,
    CanKill,
    CanPause,
    Completed,
    EngineEvent,
    KeepsTime,
    ServesRay,
)
from simulator.backends.fake import Behaviour, FakeBackend, FakeClock
from simulator.backends.fake.clock import LineStream
from simulator.cluster import Cluster
from simulator.errors import BadInput, CannotRun, NotFound
from simulator.topology import Gpus, Head, Topology


@pytest.fixture
def backend() -> FakeBackend:
    return fake()


# -- its clock -----------------------------------------------------------------------------------------


def test_events_happen_in_the_order_of_time_and_of_being_asked_for() -> None:
    clock = FakeClock(wall=100.0)
    told: list[tuple[str, float]] = []
    for name, when in (("late", 5.0), ("early", 1.0), ("also early", 1.0), ("never", 9.0)):
        clock.after(when, lambda n=name: told.append((n, clock.now)))  # type: ignore[misc]
    clock.sleep(6)
    assert told == [("early", 1.0), ("also early", 1.0), ("late", 5.0)]
    assert (clock.now, clock.wall()) == (6.0, 106.0)


def test_an_event_may_bring_about_another_within_the_same_sleep() -> None:
    clock = FakeClock()
    told: list[float] = []

    def tick() -> bool:
        told.append(clock.now)
        return len(told) < 3

    clock.every(1.0, tick)
    clock.sleep(10)
    assert told == [1.0, 2.0, 3.0]


def test_a_cancelled_event_does_not_happen() -> None:
    clock = FakeClock()
    told: list[int] = []
    timer = clock.after(1, lambda: told.append(1))
    timer.cancel()
    clock.sleep(2)
    assert told == []


def test_time_does_not_outrun_those_who_read() -> None:
    clock = FakeClock()
    stream = clock.stream()
    read: list[tuple[str, float]] = []

    def reader() -> None:
        read.extend((line, clock.now) for line in stream.read())

    thread = threading.Thread(target=reader)
    thread.start()
    for i in range(1, 51):
        clock.after(i, lambda i=i: stream.write(str(i)))  # type: ignore[misc]
    clock.after(51, stream.end)
    clock.sleep(100)
    thread.join()
    assert read == [(str(i), float(i)) for i in range(1, 51)]


def test_a_stream_is_read_from_its_beginning_by_everyone() -> None:
    stream = LineStream()
    for line in "abc":
        stream.write(line)
    stream.end()
    stream.write("after the end")
    assert list(stream.read()) == list(stream.read()) == list("abc")


def test_two_sleepers_wake_in_the_order_of_their_time() -> None:
    clock = FakeClock()
    clock.sleep(1)
    clock.sleep(0)
    clock.sleep(-5)
    assert clock.now == 1


# -- the contracts -------------------------------------------------------------------------------------


def test_it_is_a_backend_with_every_capability(backend: FakeBackend) -> None:
    whole: Backend = backend
    assert isinstance(whole, CanKill)
    assert isinstance(whole, CanPause)
    assert isinstance(whole, ServesRay)
    assert isinstance(whole, KeepsTime)


@pytest.mark.parametrize("protocol", [Backend, CanKill, CanPause])
def test_its_methods_take_what_the_protocol_says(protocol: type) -> None:
    for name, method in vars(protocol).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            mine = inspect.signature(getattr(FakeBackend, name)).parameters
            assert list(mine) == list(inspect.signature(method).parameters), name


@pytest.mark.parametrize(
    "call",
    [
        lambda b: b.cluster("gone"),
        lambda b: b.start("gone", "head"),
        lambda b: b.start("c", "nobody"),
        lambda b: b.kill("c", "nobody"),
        lambda b: b.pause("c", "nobody"),
        lambda b: b.logs("c", "nobody"),
        lambda b: b.endpoint("gone"),
        lambda b: b.watch("gone", print),
        lambda b: b.put_ledger_file("gone", "x", b""),
        lambda b: b.ray("gone").nodes(),
    ],
)
def test_unknown_names_are_not_found(backend: FakeBackend, call: Any) -> None:
    backend.create(cluster_spec())
    with pytest.raises(NotFound):
        call(backend)


def test_creating_twice_is_once_unless_the_shape_differs(backend: FakeBackend) -> None:
    backend.create(cluster_spec())
    backend.create(cluster_spec())
    with pytest.raises(BadInput, match=r"also has worker-2, worker-3.*scale GROUP=N"):
        backend.create(cluster_spec(workers=1))


def test_creating_more_makes_what_is_missing(backend: FakeBackend) -> None:
    cluster = cluster_up(backend, workers=1)
    backend.create(cluster_spec(workers=2))
    nodes = {n.name: n for n in cluster.record().nodes}
    assert {name: n.state for name, n in nodes.items()} == {
        "head": "running",
        "worker-1": "running",
        "worker-2": "created",
    }
    assert backend.spec("c") == cluster_spec(workers=2)
    backend.remove_node("c", "worker-1")
    backend.remove_node("c", "worker-2")
    assert backend.spec("c").topology.worker_groups[0].replicas == 0


def test_files_are_copied_to_a_node_and_back_and_go_with_it(
    backend: FakeBackend, tmp_path: Path
) -> None:
    backend.create(cluster_spec())
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a.txt").write_text("hi")
    backend.copy_in("c", "worker-1", str(tmp_path / "data"), "new")
    backend.copy_in("c", "worker-1", str(tmp_path / "data"), "/tmp/")
    backend.copy_in("c", "worker-1", str(tmp_path / "data/sub/a.txt"), "new/sub/b.txt")
    backend.copy_out("c", "worker-1", "/home/ray/new", str(tmp_path))
    assert (tmp_path / "new" / "sub" / "b.txt").read_text() == "hi"
    backend.copy_out("c", "worker-1", "/tmp/data/sub/a.txt", str(tmp_path / "a.txt"))
    assert (tmp_path / "a.txt").read_text() == "hi"
    with pytest.raises(BadInput, match="does not exist"):
        backend.copy_out("c", "worker-2", "new", str(tmp_path))
    backend.remove_node("c", "worker-1")
    backend.create(cluster_spec())
    with pytest.raises(BadInput, match="does not exist"):
        backend.copy_out("c", "worker-1", "new", str(tmp_path))


def test_removing_is_idempotent_and_ends_what_reads(backend: FakeBackend) -> None:
    cluster_up(backend)
    program = backend.run_program("c", "observer", ["simulator.innode.observer", "--run", "r"], {})
    backend.remove("c")
    backend.remove("c")
    assert isinstance(list(program.lines()), list)
    assert backend.program("c", "observer") is None


def test_the_engine_tells_what_happens_to_nodes(backend: FakeBackend) -> None:
    cluster_up(backend)
    events: list[EngineEvent] = []
    watch = backend.watch("c", events.append)
    backend.kill("c", "worker-1")
    backend.pause("c", "worker-2")
    backend.resume("c", "worker-2")
    backend.start("c", "worker-1")
    backend.simulated_clock.sleep(0.1)
    watch.close()
    watch.close()
    backend.kill("c", "worker-3")
    backend.simulated_clock.sleep(0.1)
    assert [(e.verb, e.node, e.exit_code) for e in events] == [
        ("die", "worker-1", 137),
        ("pause", "worker-2", None),
        ("unpause", "worker-2", None),
        ("start", "worker-1", None),
    ]


def test_the_logs_are_what_pid_1_printed(backend: FakeBackend) -> None:
    cluster_up(backend)
    lines = backend.logs("c", "worker-1").splitlines()
    assert "registered with the GCS" in lines[-1]
    assert backend.logs("c", "worker-1", tail=1).splitlines() == lines[-1:]
    assert backend.logs("c", "worker-1", tail=0) == ""


def test_following_a_log_ends_with_the_node(backend: FakeBackend) -> None:
    cluster_up(backend)
    backend.later(5.0, lambda: backend.crash("c", "worker-1", 9))
    followed = list(backend.follow_logs("c", "worker-1", tail=0))
    assert followed == ["[supervisor] exit 9"]


def test_a_command_gives_what_it_was_told_to_give(backend: FakeBackend) -> None:
    cluster_up(backend)
    backend.answers["ray status"] = Completed(0, "all is well")
    assert backend.execute("c", "head", ["ray", "status"]).output == "all is well"
    assert backend.execute("c", "head", ["ls"]).code == 127
    backend.kill("c", "worker-1")
    with pytest.raises(CannotRun, match="worker-1 is exited"):
        backend.execute("c", "worker-1", ["ls"])


def test_gpus_are_simulated_or_none_and_never_real(backend: FakeBackend) -> None:
    assert backend.gpu_kind(Topology()) == "none"
    head = Head(resources={"CPU": 1, "GPU": 1})
    assert backend.gpu_kind(Topology(head=head)) == "simulated"
    with pytest.raises(CannotRun, match="wants a real GPU"):
        backend.gpu_kind(Topology(head=head.model_copy(update={"gpus": Gpus.REAL})))


def test_the_ledger_is_kept_by_path(backend: FakeBackend, tmp_path: Path) -> None:
    cluster_up(backend)
    backend.put_ledger_file("c", "r/control.json", b"{}")
    backend.put_ledger_file("c", "other/x.json", b"[]")
    backend.fetch_ledger("c", "r", tmp_path / "one")
    backend.fetch_ledger("c", "", tmp_path / "all")
    backend.fetch_ledger("c", "nothing", tmp_path / "none")
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["control.json"]
    assert (tmp_path / "all/other/x.json").read_text() == "[]"
    assert not (tmp_path / "none").exists()


def test_its_docstring_says_that_it_proves_nothing() -> None:
    import simulator.backends.fake as package
    from simulator.backends.fake import backend as module

    for thing in (package, module, FakeBackend):
        assert "ever evidence that a fault works" in (thing.__doc__ or "")


# -- the simulated Ray ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "frozen", "seconds"),
    [("fast", False, 4.3), ("fast", True, 4.3), ("ray", False, 29.3), ("ray", True, 64.7)],
)
def test_a_dead_node_is_declared_dead_as_late_as_its_settings_say(
    backend: FakeBackend, env: str, frozen: bool, seconds: float
) -> None:
    from dataclasses import replace

    from simulator.cluster import HEALTH

    cluster = Cluster(backend, "c")
    cluster.up(replace(cluster_spec(), env=HEALTH[env]))
    host = cluster.node("worker-1").hostname

    def alive() -> bool:
        return any(n.hostname == host and n.alive for n in cluster.ray.nodes())

    (backend.pause if frozen else backend.kill)("c", "worker-1")
    backend.simulated_clock.sleep(seconds - 0.2)
    assert alive()
    backend.simulated_clock.sleep(0.4)
    assert not alive()


def test_a_node_thawed_in_time_is_never_declared_dead(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    for _ in range(3):
        cluster.pause("worker-1")
        backend.simulated_clock.sleep(3)
        cluster.resume("worker-1")
        backend.simulated_clock.sleep(1)
    backend.simulated_clock.sleep(30)
    assert all(n.alive for n in cluster.ray.nodes())


def test_workers_outlive_their_head_for_a_minute(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.kill("head")
    backend.simulated_clock.sleep(59)
    assert {n.state for n in cluster.record().nodes[1:]} == {"running"}
    backend.simulated_clock.sleep(2)
    assert {n.state for n in cluster.record().nodes[1:]} == {"exited"}


def test_a_new_head_knows_nothing_of_the_old_workers(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    backend.stop("c", "head", 10.0)
    cluster.start_nodes(["head"])
    backend.simulated_clock.sleep(5)
    assert [n.hostname for n in cluster.ray.nodes()] == ["c-head"]
    assert {n.state for n in cluster.record().nodes[1:]} == {"exited"}


def test_the_same_seed_gives_the_same_ids_and_another_one_others() -> None:
    def ids(seed: int) -> list[str]:
        backend = FakeBackend(seed=seed)
        return [n.ray_node_id for n in cluster_up(backend).ray.nodes()]

    assert ids(1) == ids(1)
    assert set(ids(1)).isdisjoint(ids(2))


def test_a_job_of_an_unknown_program_fails_with_the_known_ones(backend: FakeBackend) -> None:
    cluster = cluster_up(backend)
    cluster.ray.submit("python -m my.program", "j")
    backend.simulated_clock.sleep(5)
    job = cluster.ray.job("j")
    assert job.status == "FAILED"
    assert "my.program" in job.message
    assert "simulator.innode.stream" in job.message


def stream_history(tmp_path: Path, *params: str, **more: Any) -> Any:
    lab = Lab(tmp_path, more.pop("backend", fake()))
    return lab.history(lab.run(*params, **more))


def test_no_node_runs_more_tasks_than_it_has_slots(tmp_path: Path) -> None:
    history = stream_history(tmp_path)
    running: dict[str, set[str]] = {}
    lost: set[str] = set()
    for op in history.of("task.start", "task.end", "engine.die"):
        if op.kind == "engine.die":
            lost |= running.pop(op.node, set())
        elif op.kind == "task.end":
            running.setdefault(op.node, set()).discard(op.data["exec"])
        elif op.data["demand"].get("CPU"):
            running.setdefault(op.node, set()).add(op.data["exec"])
            assert len(running[op.node]) <= 1
    assert len(lost) == 1


def test_what_was_cut_off_ran_again_elsewhere(tmp_path: Path) -> None:
    history = stream_history(tmp_path)
    starts = history.of("task.start")
    ended = {op.data["exec"] for op in history.of("task.end")}
    (cut,) = [op for op in starts if op.data["exec"] not in ended]
    again = [op for op in starts if op.data["key"] == cut.data["key"] and op is not cut]
    assert cut.node == history.first("fault.inject").node
    assert len(again) == 1
    assert again[0].node != cut.node
    assert again[0].wall > history.first("attempt.failed").wall > cut.wall


def test_a_lost_object_is_made_again_and_an_actor_comes_back_with_its_state(tmp_path: Path) -> None:
    history = stream_history(tmp_path)
    victim = history.first("fault.inject").node
    made = [op for op in history.of("task.start") if op.data["key"] == f"block-{victim}"]
    assert [op.node == victim for op in made] == [True, False]
    lives = [op for op in history.of("actor.start") if op.data["actor"] == f"counter-{victim}"]
    assert [op.data["restored"] > 0 for op in lives] == [False, True]
    states = [
        op.data["state"] for op in history.of("ray.actor") if op.data["name"] == f"counter-{victim}"
    ]
    assert states == ["PENDING_CREATION", "ALIVE", "RESTARTING", "ALIVE", "DEAD"]


def test_the_control_file_is_obeyed(tmp_path: Path) -> None:
    history = stream_history(tmp_path)
    planned = history.first("driver.planned")
    last = history.of("driver.submit")[-1]
    assert planned.data["tasks"] >= 60
    assert history.first("workload.go_on").index < last.index
    assert last.index < history.first("driver.end").index
    assert history.first("driver.end").wall > history.first("workload.finish").wall


def test_the_observer_forwards_every_line_with_its_place(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    result = lab.run()
    history = lab.history(result)
    told = [op for op in history if "file" in op.data]
    for path in (Path(result["run_dir"]) / "ledger").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        mine = [op for op in told if op.data["file"] == path.name]
        assert [op.data["line"] for op in mine] == list(range(1, len(lines) + 1))
        assert [op.kind for op in mine] == [line["kind"] for line in lines]
    files = only(history, "observer.end").data["files"]
    assert sum(files.values()) == len(told)


def test_a_machine_that_is_slow_to_detect_shows_in_the_anatomy(tmp_path: Path) -> None:
    lab = Lab(tmp_path, fake(Behaviour(detect_s=12.0)))
    result = lab.run()
    assert result["verdict"] == "valid"
    assert result["recovery"]["declared_dead_s"] == pytest.approx(12.0, abs=0.2)


# -- what goes wrong on request ------------------------------------------------------------------------


def test_a_scripted_error_is_raised_as_often_as_asked(backend: FakeBackend) -> None:
    backend.fail_next("clusters", CannotRun("no"), times=2)
    for _ in range(2):
        with pytest.raises(CannotRun):
            backend.clusters()
    assert backend.clusters() == []


@pytest.mark.parametrize("method", ["fly", "ray.fly", "name"])
def test_scripting_a_method_that_is_not_there_is_an_error(
    backend: FakeBackend, method: str
) -> None:
    with pytest.raises(ValueError, match="there is no method"):
        backend.fail_next(method, CannotRun("no"))
    with pytest.raises(ValueError, match="there is no method"):
        backend.before(method, lambda: None)


def test_a_place_where_no_line_can_get_lost_is_an_error(backend: FakeBackend) -> None:
    with pytest.raises(ValueError, match="not 'stream' or 'ledger'"):
        backend.lose_line("task.end", where="moon")


def test_every_call_is_remembered_with_its_time(backend: FakeBackend) -> None:
    cluster_up(backend)
    backend.kill("c", "worker-1")
    call = backend.calls[-1]
    assert (call.method, call.cluster, call.node) == ("kill", "c", "worker-1")
    assert call.when == backend.simulated_clock.now
    assert next(c.node for c in backend.calls if c.method == "start") == "head"
