"""Ray's HTTP API, answered here by a small server with what a real one gave."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from simulator.backends.base import Endpoint
from simulator.backends.fake.ray import FakeRay
from simulator.errors import BadInput
from simulator.rayapi import (
    Actor,
    Attempt,
    Job,
    NodePorts,
    NoSuchJob,
    RayApi,
    RayUnreachable,
    RunningTask,
    TaskCounts,
)


@dataclass
class Dashboard:
    """Answers what it was told, and remembers what it was asked."""

    url: str = ""
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str, dict[str, list[str]], str, Any]] = field(default_factory=list)


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    told = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body: Any = self.rfile.read(length) if length else None
            if body and self.command != "PUT":
                body = json.loads(body)
            token = self.headers.get("Authorization", "")
            told.asked.append((self.command, url.path, parse_qs(url.query), token, body))
            if url.path.startswith("/api/v0/logs/"):
                self.stream(endless=url.path.endswith("stream"))
                return
            code, data = told.answers.get(url.path, (404, "Not found"))
            raw = data.encode() if isinstance(data, str) else json.dumps(data).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def stream(self, *, endless: bool) -> None:
            """As Ray streams a log: what there is, then the connection stays open."""
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for chunk in told.chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            if endless:
                told.go_on.wait(30)
            else:
                self.wfile.write(b"0\r\n\r\n")

        protocol_version = "HTTP/1.1"
        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield told
    told.go_on.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ray(dashboard: Dashboard) -> RayApi:
    return RayApi(lambda: Endpoint(dashboard.url, "secret"))


def state(rows: list[dict[str, Any]], **more: int) -> dict[str, Any]:
    """An answer of the State API."""
    count = len(rows)
    result = {"total": count, "num_after_truncation": count, "num_filtered": count, "result": rows}
    return {"result": True, "msg": "", "data": {"result": {**result, **more}}}


def test_every_request_carries_the_token(dashboard: Dashboard, ray: RayApi) -> None:
    dashboard.answers["/api/version"] = (200, {"ray_version": "2.60.0", "version": "4"})
    assert ray.version() == "2.60.0"
    assert dashboard.asked[0][:2] == ("GET", "/api/version")
    assert dashboard.asked[0][3] == "Bearer secret"


def test_nodes_are_listed_with_the_dead_ones(dashboard: Dashboard, ray: RayApi) -> None:
    row = {
        "node_id": "a1",
        "node_name": "c-head",
        "node_ip": "10.0.0.2",
        "state": "ALIVE",
        "is_head_node": True,
        "resources_total": {"CPU": 1.0, "node:10.0.0.2": 1.0, "node:__internal_head__": 1.0},
        "state_message": None,
        "labels": {"zone": "a"},
        "start_time_ms": 1_800_000_000_500,
        "end_time_ms": 0,
    }
    dead = {**row, "node_id": "b2", "state": "DEAD", "is_head_node": False}
    dead |= {"resources_total": None, "state_message": "health check failed"}
    dashboard.answers["/api/v0/nodes"] = (200, state([row, dead]))
    head, worker = ray.nodes()
    assert (head.ray_node_id, head.hostname, head.alive, head.is_head) == (
        "a1",
        "c-head",
        True,
        True,
    )
    assert head.resources == {"CPU": 1.0}
    assert (head.labels, head.since, head.until) == ({"zone": "a"}, 1_800_000_000.5, None)
    assert (worker.alive, worker.resources, worker.message) == (False, {}, "health check failed")
    assert dashboard.asked[0][2]["detail"] == ["1"]


def test_what_runs_is_told_by_node(dashboard: Dashboard, ray: RayApi) -> None:
    task = {"task_id": "t1", "name": "work", "node_id": "a1", "type": "NORMAL_TASK"}
    other = {**task, "task_id": "t2", "name": "named", "func_or_class_name": "work"}
    call = {**task, "task_id": "t3", "type": "ACTOR_TASK", "name": "Counter.add"}
    nowhere = {**task, "task_id": "t4", "node_id": None}
    actor = {"class_name": "Counter", "name": "c-1", "node_id": "b2", "state": "ALIVE"}
    nameless = {**actor, "name": "", "node_id": "a1"}
    dashboard.answers["/api/v0/tasks"] = (200, state([task, other, call, nowhere]))
    dashboard.answers["/api/v0/actors"] = (200, state([actor, nameless]))
    running = ray.running()
    assert list(running) == ["a1", "b2"]
    assert (running["a1"].tasks, running["a1"].actors) == (("work", "named"), ("Counter",))
    assert (running["b2"].tasks, running["b2"].actors) == ((), ("Counter c-1",))
    asked = [(path, *query["filter_values"]) for _, path, query, _, _ in dashboard.asked]
    assert asked == [
        ("/api/v0/tasks", "RUNNING"),
        ("/api/v0/tasks", "RUNNING_IN_RAY_GET"),
        ("/api/v0/tasks", "RUNNING_IN_RAY_WAIT"),
        ("/api/v0/actors", "ALIVE"),
    ]
    # A task that waits for others in between is one task, whatever state it was met in.
    assert ray.running_tasks() == [
        RunningTask("work", "work", "a1"),
        RunningTask("named", "work", "a1"),
        RunningTask("Counter.add", "Counter.add", "a1", of_actor=True),
    ]
    assert [(a.name, a.class_name) for a in ray.living_actors()] == [
        ("c-1", "Counter"),
        ("", "Counter"),
    ]


def test_objects_are_counted_by_the_node_that_holds_them(dashboard: Dashboard, ray: RayApi) -> None:
    holds = {"nodeId": "a1", "state": "ALIVE", "storeStats": {"numLocalObjects": "7"}}
    new = {"nodeId": "b2", "state": "ALIVE"}  # nothing is known of its store yet
    dead = {**holds, "nodeId": "c3", "state": "DEAD"}
    summary = [{"raylet": raylet} for raylet in (holds, new, dead)]
    dashboard.answers["/nodes"] = (200, {"result": True, "data": {"summary": summary}})
    assert ray.objects_held() == {"a1": 7}
    assert dashboard.asked[-1][2] == {"view": ["summary"]}


def test_where_raylets_listen_by_node_and_one_that_says_nothing_is_left_out(
    dashboard: Dashboard, ray: RayApi
) -> None:
    summary = [
        {"raylet": {"nodeId": "a1", "nodeManagerPort": 41001, "objectManagerPort": 41002}},
        {"raylet": {"nodeId": "b2"}},
        {},
    ]
    dashboard.answers["/nodes"] = (200, {"result": True, "data": {"summary": summary}})
    assert ray.ports() == {"a1": NodePorts(41001, 41002)}
    assert dashboard.asked[0][2] == {"view": ["summary"]}


def test_usage_leaves_out_what_only_names_a_node(dashboard: Dashboard, ray: RayApi) -> None:
    report = {
        "usage": {"CPU": [1.0, 4.0], "node:10.0.0.2": [0.0, 1.0]},
        "usageByNode": {"a1": {"CPU": [1.0, 1.0]}},
        "resourceDemand": [[{"CPU": 2.0}, 3]],
    }
    data = {"clusterStatus": {"loadMetricsReport": report}}
    dashboard.answers["/api/cluster_status"] = (200, {"result": True, "data": data})
    usage = ray.usage()
    assert usage.total == {"CPU": (1.0, 4.0)}
    assert usage.by_node == {"a1": {"CPU": (1.0, 1.0)}}
    assert usage.waiting == [({"CPU": 2.0}, 3)]


@pytest.mark.parametrize("status", [None, {}, {"loadMetricsReport": None}])
def test_a_cluster_that_has_no_report_yet_uses_nothing(
    dashboard: Dashboard, ray: RayApi, status: Any
) -> None:
    data = {"result": True, "data": {"clusterStatus": status}}
    dashboard.answers["/api/cluster_status"] = (200, data)
    assert ray.usage().total == {}


def test_a_job_is_submitted_under_our_id(dashboard: Dashboard, ray: RayApi) -> None:
    dashboard.answers["/api/jobs/"] = (200, {"submission_id": "j1"})
    dashboard.answers["/api/jobs/j1"] = (200, {"status": "RUNNING", "message": None})
    dashboard.answers["/api/jobs/j1/logs"] = (200, {"logs": "hello"})
    dashboard.answers["/api/jobs/j1/stop"] = (200, {"stopped": True})
    ray.submit("python -m x", "j1", resources={"driver": 1})
    assert dashboard.asked[0][4] == {
        "entrypoint": "python -m x",
        "submission_id": "j1",
        "entrypoint_resources": {"driver": 1},
    }
    job = ray.job("j1")
    assert (job.status, job.message, job.over) == ("RUNNING", "", False)
    assert ray.job_logs("j1") == "hello"
    assert ray.stop_job("j1")
    assert dashboard.asked[-1][:2] == ("POST", "/api/jobs/j1/stop")


def test_a_package_is_asked_for_and_put_under_its_name(
    dashboard: Dashboard, ray: RayApi, tmp_path: Path
) -> None:
    path = "/api/packages/gcs/_ray_pkg_1.zip"
    dashboard.answers[path] = (404, "Package does not exist")
    assert not ray.has_package("_ray_pkg_1.zip")
    dashboard.answers[path] = (200, "")
    assert ray.has_package("_ray_pkg_1.zip")
    (tmp_path / "x.zip").write_bytes(b"PK\xff")
    ray.put_package("_ray_pkg_1.zip", tmp_path / "x.zip")
    assert dashboard.asked[-1][:2] == ("PUT", path)
    assert dashboard.asked[-1][4] == b"PK\xff"
    dashboard.answers[path] = (500, "Traceback (most recent call last):\n  ...\nOSError: full\n.")
    with pytest.raises(RayUnreachable, match=r"OSError: full$"):
        ray.has_package("_ray_pkg_1.zip")


def test_a_job_says_how_and_where_its_driver_ended(dashboard: Dashboard, ray: RayApi) -> None:
    row = {"status": "FAILED", "message": "m", "driver_exit_code": 0, "driver_node_id": "a1"}
    dashboard.answers["/api/jobs/j"] = (200, {**row, "start_time": 1000, "end_time": 3500})
    assert ray.job("j") == Job("j", "FAILED", "m", 0, "a1", 2.5)
    dashboard.answers["/api/jobs/j"] = (200, {"status": "PENDING", "end_time": None})
    assert ray.job("j") == Job("j", "PENDING", "")
    with pytest.raises(NoSuchJob):
        ray.job("k")


def test_an_id_that_is_taken_is_wrong_input(dashboard: Dashboard, ray: RayApi) -> None:
    # Ray's head wraps what its agent answered.
    said = (
        "Traceback (most recent call last):\n  ...\nRuntimeError: Request failed with status code 400: "
        "Traceback (most recent call last):\n  ...\nValueError: Job with submission_id j already exists. "
        "Please use a different submission_id.\n.\n"
    )
    dashboard.answers["/api/jobs/"] = (500, said)
    with pytest.raises(BadInput, match="job j: is known to this cluster already"):
        ray.submit("x", "j", runtime_env={"env_vars": {"A": "1"}})
    assert dashboard.asked[0][4]["runtime_env"] == {"env_vars": {"A": "1"}}


def test_a_log_is_followed_as_it_grows_and_left_when_it_is_closed(
    dashboard: Dashboard, ray: RayApi
) -> None:
    job = Job("j", "RUNNING", "", driver_node="a1")
    dashboard.chunks = [b"one\n", b"\xff\r"]
    before = set(threading.enumerate())
    log = ray.follow_job_log(job)
    got = b""
    while len(got) < 6:
        got += log.read(10)
    assert got == b"one\n\xff\r"
    assert log.read(0.01) == b""
    query = dashboard.asked[0][2]
    assert (query["node_id"], query["filename"]) == (["a1"], ["job-driver-j.log"])
    assert query["lines"] == ["-1"]
    (reader,) = (t for t in set(threading.enumerate()) - before if t.name == "job log")
    log.close()
    reader.join(10)
    assert not reader.is_alive()
    with pytest.raises(RayUnreachable, match="the job's log broke off"):
        log.read(10)
    assert b"".join(ray.read_job_log(job)) == b"one\n\xff\r"


def test_failed_attempts_come_with_the_count_of_those_that_ray_kept_back(
    dashboard: Dashboard, ray: RayApi
) -> None:
    row = {
        "task_id": "t",
        "attempt_number": 1,
        "name": "t-17",
        "error_type": "NODE_DIED",
        "node_id": None,
        "end_time_ms": 1_800_000_000_500,
    }
    path = "/api/v0/tasks"
    dashboard.answers[path] = (200, state([row]))
    (attempt,) = ray.failed_attempts("01000000").rows
    assert (attempt.name, attempt.attempt, attempt.ended) == ("t-17", 1, 1_800_000_000.5)
    assert (attempt.error_type, attempt.ray_node_id) == ("NODE_DIED", "")
    assert ray.failed_attempts("01000000").dropped == 0
    dashboard.answers[path] = (200, state([row], total=30, num_after_truncation=10, num_filtered=4))
    assert ray.failed_attempts("01000000").dropped == 20 + 3
    cut = state([row])
    cut["data"]["result"]["partial_failure_warning"] = "some nodes did not answer"
    dashboard.answers[path] = (200, cut)
    assert ray.failed_attempts("01000000").dropped == 1
    assert dashboard.asked[0][2]["filter_values"] == ["FAILED", "01000000"]


def test_attempts_are_counted_by_what_their_states_mean(dashboard: Dashboard, ray: RayApi) -> None:
    summary = {
        "f": {"state_counts": {"FINISHED": 3, "FAILED": 1, "RUNNING_IN_RAY_GET": 1}},
        "A.g": {"state_counts": {"RUNNING": 2, "PENDING_NODE_ASSIGNMENT": 4, "NIL": 1}},
    }
    result = {"node_id_to_summary": {"cluster": {"summary": summary}}}
    answer = state([])
    answer["data"]["result"] |= {"result": result, "total": 17, "num_after_truncation": 14}
    answer["data"]["result"]["num_filtered"] = 13
    dashboard.answers["/api/v0/tasks/summarize"] = (200, answer)
    assert ray.task_counts("01") == TaskCounts(3, 1, 3, 5, dropped=3 + 1)
    query = dashboard.asked[0][2]
    assert (query["filter_keys"], query["filter_values"]) == (["job_id"], ["01"])


def test_each_attempt_is_a_row_with_what_ray_knows_of_it(dashboard: Dashboard, ray: RayApi) -> None:
    whole = {
        "task_id": "t1", "attempt_number": 0, "name": "f", "type": "ACTOR_TASK", "state": "FINISHED",
        "node_id": "a1", "actor_id": "c3", "error_type": None, "error_message": None,
        "start_time_ms": 1000, "end_time_ms": 3500,
        "events": [{"state": "SUBMITTED_TO_WORKER", "created_ms": 900.0}],
    }  # fmt: skip
    bare = {
        "task_id": "t2", "attempt_number": 1, "name": "", "func_or_class_name": "g", "type": None,
        "state": "FAILED", "node_id": None, "error_type": "NODE_DIED", "error_message": "gone",
        "start_time_ms": None, "end_time_ms": 4000, "events": None,
    }  # fmt: skip
    dashboard.answers["/api/v0/tasks"] = (200, state([whole, bare], num_filtered=5))
    found = ray.attempts("01")
    assert found.dropped == 3
    assert found.rows[0] == Attempt(
        "t1", 0, "f", "ACTOR_TASK", "FINISHED", "a1", "c3", sent=0.9, started=1.0, ended=3.5
    )
    assert found.rows[1] == Attempt(
        "t2", 1, "g", "NORMAL_TASK", "FAILED", error_type="NODE_DIED", error="gone", ended=4.0
    )


def test_actors_come_with_the_reason_of_their_death(dashboard: Dashboard, ray: RayApi) -> None:
    row = {
        "actor_id": "c3", "class_name": "A", "name": None, "state": "DEAD", "num_restarts": "2",
        "node_id": "a1", "is_detached": True,
        "death_cause": {"actor_died_error_context": {"error_message": "its node died"}},
    }  # fmt: skip
    living = {**row, "actor_id": "d4", "state": "ALIVE", "death_cause": None, "is_detached": False}
    dashboard.answers["/api/v0/actors"] = (200, state([row, living]))
    dead, alive = ray.actors_of("01").rows
    assert dead == Actor("c3", "A", "", "DEAD", 2, "a1", True, "its node died")
    assert (alive.death, alive.detached) == ("", False)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, "Unauthorized: no token"), "Ray answered 401 to GET /api/version: Unauthorized"),
        ((500, "boom"), "Ray answered 500 to GET /api/version: boom"),
        ((200, "<html>"), "Ray does not answer at"),
        ((200, [1]), "Ray refused GET /api/version"),
        (
            (200, {"result": False, "msg": "GCS is down"}),
            "Ray refused GET /api/version: GCS is down",
        ),
    ],
)
def test_no_answer_is_never_taken_for_an_empty_one(
    dashboard: Dashboard, ray: RayApi, answer: tuple[int, Any], said: str
) -> None:
    dashboard.answers["/api/version"] = answer
    with pytest.raises(RayUnreachable) as caught:
        ray.version()
    assert str(caught.value).startswith(said)


def test_the_address_is_asked_for_again_after_a_failure(dashboard: Dashboard) -> None:
    dashboard.answers["/api/version"] = (200, {"ray_version": "2.60.0"})
    found = iter(["http://127.0.0.1:1", dashboard.url])
    ray = RayApi(lambda: Endpoint(next(found), ""))
    with pytest.raises(RayUnreachable, match=r"Ray does not answer at http://127.0.0.1:1"):
        ray.version()
    assert ray.version() == ray.version() == "2.60.0"


def test_the_token_does_not_show_in_what_is_printed() -> None:
    assert "secret" not in repr(Endpoint("http://x", "secret"))


def test_the_simulated_ray_answers_the_same_questions() -> None:
    def questions(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in vars(cls).items()
            if inspect.isfunction(value) and not name.startswith("_")
        }

    assert questions(FakeRay) == questions(RayApi)
