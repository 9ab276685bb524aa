"""Talks to a running Ray by HTTP: version, nodes, resources, what runs, jobs, failed attempts.

The orchestrator is outside the cluster's failure domain and imports no Ray, so it works with any Ray
version in any image that still serves these paths (docs of Ray: Jobs REST API, State API). Every
answer that does not come is a `RayUnreachable`, never an empty list: "no answer" is not "no nodes".
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import requests

from simulator.backends.base import Endpoint
from simulator.errors import BadInput, CannotRun, Problem

#: Ray's dashboard refuses a request whose body is larger (its DASHBOARD_CLIENT_MAX_SIZE), bytes.
UPLOAD_LIMIT = 100 * 1024**2

#: The most rows that Ray gives in one answer (its RAY_MAX_LIMIT_FROM_API_SERVER).
MOST_ROWS = 10_000

#: How long an answer with ten thousand rows may take, seconds.
LONG_S = 60.0

#: What a task's state means, for counting; all others are of one that has not begun.
_STATES = {
    "FINISHED": "finished",
    "FAILED": "failed",
    "RUNNING": "running",
    "RUNNING_IN_RAY_GET": "running",
    "RUNNING_IN_RAY_WAIT": "running",
}


#: States of a task that has begun and is not over: it may wait for others.
_RUNNING = ("RUNNING", "RUNNING_IN_RAY_GET", "RUNNING_IN_RAY_WAIT")


class RayUnreachable(CannotRun):
    """Ray's HTTP API did not answer, or not with what it should."""


class NoSuchJob(RayUnreachable):
    """Ray answers, and knows nothing of that job: its head is another one than the job's."""


@dataclass(frozen=True, slots=True)
class RayNode:
    """A node as the GCS has it.

    Attributes
    ----------
    labels
        Those that it was started with, and Ray's own (``ray.io/...``).
    since, until
        When it joined and when the GCS gave it up, seconds; None where Ray does not say.
    message
        Why it is dead.
    """

    ray_node_id: str
    hostname: str
    address: str
    alive: bool
    is_head: bool
    resources: Mapping[str, float]
    message: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class NodePorts:
    """Where a node's raylet listens: for leases, tasks and health checks, and for objects."""

    node_manager: int
    object_manager: int


@dataclass(frozen=True, slots=True)
class RunningWork:
    """What runs on one node: names of tasks and classes of actors, each as often as it runs."""

    tasks: Sequence[str] = ()
    actors: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.tasks or self.actors)


@dataclass(frozen=True, slots=True)
class RayActor:
    """An actor as the GCS has it, and the process that hosts it.

    Attributes
    ----------
    name
        That it was given; "" for an actor without.
    ray_node_id, pid
        Where it lives, and as what process there; "" and 0 while nowhere.
    """

    actor_id: str
    name: str
    class_name: str
    ray_node_id: str
    pid: int = 0
    alive: bool = True


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task that runs, or a call of an actor that does, and the process that runs it.

    Attributes
    ----------
    name
        Its function's, unless it was given another.
    of_actor
        Whether it is a call of an actor.
    """

    name: str
    function: str
    ray_node_id: str
    of_actor: bool = False
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources in use: per name, (used, total); over all living nodes and by Ray node id.

    Attributes
    ----------
    waiting
        What tasks, actors and placement groups wait for: resources, each as often as somebody does.
    """

    total: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    by_node: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    waiting: Sequence[tuple[Mapping[str, float], int]] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.

    Attributes
    ----------
    exit_code
        The driver's own; None while it runs, and when it did not end by itself.
    driver_node
        Ray's id of the node that it runs on, where its log is; "" before it has one.
    seconds
        From submission to its end; None before that.
    ray_job_id
        Ray's own id of what its driver does; "" until it has called ``ray.init``. Of a program that does so
        several times, the last.
    """

    job_id: str
    status: str
    message: str
    exit_code: int | None = None
    driver_node: str = ""
    seconds: float | None = None
    ray_job_id: str = ""

    @property
    def over(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """How many attempts of a job's tasks are in which state.

    Attributes
    ----------
    pending
        Neither running nor over.
    dropped
        How many Ray's own limits kept from being counted.
    """

    finished: int = 0
    failed: int = 0
    running: int = 0
    pending: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a task, as Ray remembers it.

    Attributes
    ----------
    kind
        NORMAL_TASK, ACTOR_CREATION_TASK or ACTOR_TASK.
    state
        Ray's own word: FINISHED, FAILED, RUNNING, PENDING_NODE_ASSIGNMENT, ...
    sent, started, ended
        When it was given to a worker, when it began there, and when its owner learned of its end; wall
        seconds, None where Ray does not know: what a worker had not told yet is lost with its node.
    """

    task_id: str
    attempt: int
    name: str
    kind: str
    state: str
    ray_node_id: str = ""
    actor_id: str = ""
    error_type: str = ""
    error: str = ""
    sent: float | None = None
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts of a job's tasks, and how many of them Ray's own limits kept from us."""

    rows: Sequence[Attempt]
    dropped: int


@dataclass(frozen=True, slots=True)
class Actor:
    """An actor, as Ray remembers it; `death` says why it is dead."""

    actor_id: str
    class_name: str
    name: str
    state: str
    restarts: int
    ray_node_id: str = ""
    detached: bool = False
    death: str = ""


@dataclass(frozen=True, slots=True)
class Actors:
    """A job's actors, and how many of them Ray's own limits kept from us."""

    rows: Sequence[Actor]
    dropped: int


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt of a task that failed; ``ended`` is when its owner learned of it, wall seconds."""

    task_id: str
    attempt: int
    name: str
    error_type: str
    ray_node_id: str
    ended: float


@dataclass(frozen=True, slots=True)
class FailedAttempts:
    """Failed attempts, and how many of them Ray's own limits kept from us."""

    rows: Sequence[FailedAttempt]
    dropped: int


class JobLog(Protocol):
    """A job's log from its beginning, as it grows; bytes as the job wrote them."""

    def read(self, wait: float) -> bytes:
        """What came since the last call; where nothing did, waits up to so many seconds for it.

        Raises `RayUnreachable` once it has broken off.
        """

    def close(self) -> None: ...


class RayApi:
    """One cluster's HTTP API; every method raises `RayUnreachable` when no good answer comes.

    Parameters
    ----------
    endpoint
        Called for every request that follows a failure: the head's port changes when it restarts.
    timeout
        Of each request, seconds.
    """

    def __init__(self, endpoint: Callable[[], Endpoint], *, timeout: float = 5.0) -> None:
        self._find = endpoint
        self._endpoint: Endpoint | None = None
        self._timeout = timeout
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the user's has no business on loopback

    def version(self) -> str:
        """Ray's own version, such as ``2.60.0``."""
        return str(self._call("GET", "/api/version")["ray_version"])

    def nodes(self) -> list[RayNode]:
        """Every node that the GCS remembers, dead ones included."""
        rows = self._state("nodes", {"limit": "10000", "detail": "1"})["result"]
        return [
            RayNode(
                ray_node_id=row["node_id"],
                hostname=row["node_name"],
                address=row["node_ip"],
                alive=row["state"] == "ALIVE",
                is_head=bool(row["is_head_node"]),
                resources={
                    name: amount
                    for name, amount in (row["resources_total"] or {}).items()
                    if not name.startswith("node:")
                },
                message=row.get("state_message") or "",
                labels=row.get("labels") or {},
                since=_seconds(row.get("start_time_ms")),
                until=_seconds(row.get("end_time_ms")),
            )
            for row in rows
        ]

    def ports(self) -> dict[str, NodePorts]:
        """Where every node's raylet listens, by Ray node id; dead ones may be among them."""
        return {
            raylet["nodeId"]: NodePorts(
                int(raylet["nodeManagerPort"]), int(raylet["objectManagerPort"])
            )
            for raylet in self._raylets()
            if raylet.get("nodeManagerPort") and raylet.get("objectManagerPort")
        }

    def running(self) -> dict[str, RunningWork]:
        """What runs where, by Ray node id: tasks that run now and actors that live.

        A call of an actor that is going on belongs to its actor and is not counted again. Up to a
        second old, and of more than ten thousand only so many, as Ray gives it.
        """
        tasks: dict[str, list[str]] = {}
        for task in self.running_tasks():
            if not task.of_actor:
                tasks.setdefault(task.ray_node_id, []).append(task.name)
        actors: dict[str, list[str]] = {}
        for actor in self.living_actors():
            name = f"{actor.class_name} {actor.name}" if actor.name else actor.class_name
            actors.setdefault(actor.ray_node_id, []).append(name)
        return {
            node: RunningWork(tuple(tasks.get(node, ())), tuple(actors.get(node, ())))
            for node in sorted({*tasks, *actors})
        }

    def running_tasks(self) -> list[RunningTask]:
        """The tasks and calls of actors that run now; up to a second old.

        Of more than ten thousand in one state only so many, as Ray gives them.
        """
        found: dict[Any, RunningTask] = {}  # one that changes its state meanwhile is given twice
        for state in _RUNNING:
            for row in self._state("tasks", {**_only(state), "detail": "1"})["result"]:
                if row.get("node_id"):
                    found[row["task_id"], row.get("attempt_number")] = RunningTask(
                        row["name"],
                        row.get("func_or_class_name") or row["name"],
                        row["node_id"],
                        row.get("type", "NORMAL_TASK") != "NORMAL_TASK",
                        int(row.get("worker_pid") or 0),
                    )
        return list(found.values())

    def actors(self) -> list[RayActor]:
        """Every actor that the GCS remembers, up to ten thousand."""
        return self._actors({"limit": str(MOST_ROWS)})

    def living_actors(self) -> list[RayActor]:
        """Those that live on a node now, up to ten thousand."""
        return [a for a in self._actors(_only("ALIVE")) if a.alive and a.ray_node_id]

    def _actors(self, wanted: Mapping[str, str]) -> list[RayActor]:
        return [
            RayActor(
                actor_id=row.get("actor_id") or "",
                name=row.get("name") or "",
                class_name=row["class_name"],
                ray_node_id=row.get("node_id") or "",
                pid=int(row.get("pid") or 0),
                alive=row.get("state") == "ALIVE",
            )
            for row in self._state("actors", wanted)["result"]
        ]

    def objects_held(self) -> dict[str, int]:
        """How many objects each node's store holds, by Ray node id; up to 15 seconds old."""
        found: dict[str, int] = {}
        for raylet in self._raylets():
            held = (raylet.get("storeStats") or {}).get("numLocalObjects")
            if held is not None and raylet.get("state", "ALIVE") == "ALIVE":
                found[raylet["nodeId"]] = int(held)
        return found

    def _raylets(self) -> list[dict[str, Any]]:
        """What the dashboard last heard from each raylet."""
        rows = self._call("GET", "/nodes", params={"view": "summary"})["data"]["summary"]
        return [row.get("raylet") or {} for row in rows]

    def usage(self) -> Usage:
        """Resources in use now, as the autoscaler's report has them (up to a few seconds old)."""
        status = self._call("GET", "/api/cluster_status")["data"]["clusterStatus"] or {}
        report = status.get("loadMetricsReport") or {}
        return Usage(
            total=_pairs(report.get("usage")),
            by_node={k: _pairs(v) for k, v in (report.get("usageByNode") or {}).items()},
            waiting=[
                (dict(demand), int(count))
                for demand, count in report.get("resourceDemand") or []
                if count
            ],
        )

    def has_package(self, name: str) -> bool:
        """Whether a package of this name was uploaded; if so, Ray keeps it for the job to come."""
        answer = self._request("GET", f"/api/packages/gcs/{name}", fine=(HTTPStatus.NOT_FOUND,))
        return answer.status_code != HTTPStatus.NOT_FOUND

    def put_package(self, name: str, path: Path) -> None:
        """Upload a zip file as a package, of at most `UPLOAD_LIMIT` bytes."""
        with path.open("rb") as data:
            self._request("PUT", f"/api/packages/gcs/{name}", data=data, timeout=120)

    def submit(
        self,
        entrypoint: str,
        job_id: str,
        *,
        resources: Mapping[str, float] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        """Start a job.

        Parameters
        ----------
        entrypoint
            Its command line, run on the head unless `resources` move it.
        resources
            Custom resources that the entry point's node must have, by name.
        runtime_env
            Ray's own description of what it runs in: ``working_dir`` (a URI), ``env_vars``, ...

        Raises
        ------
        BadInput
            There is a job of this id already.
        """
        body: dict[str, Any] = {"entrypoint": entrypoint, "submission_id": job_id}
        if resources:
            body["entrypoint_resources"] = dict(resources)
        if runtime_env:
            body["runtime_env"] = dict(runtime_env)
        try:
            self._call("POST", "/api/jobs/", json=body, timeout=30)
        except RayUnreachable as error:
            if f"submission_id {job_id} already exists" in error.why:
                raise job_id_taken(job_id) from None
            raise

    def job(self, job_id: str) -> Job:
        """How a submitted job stands; raises `NoSuchJob` if Ray knows of none."""
        path = f"/api/jobs/{job_id}"
        answer = self._request("GET", path, fine=(HTTPStatus.NOT_FOUND,))
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise NoSuchJob(f"Ray knows of no job {job_id}", why=answer.text.strip()[:300])
        row = self._body(answer, "GET", path)
        began, ended, code = row.get("start_time"), row.get("end_time"), row.get("driver_exit_code")
        return Job(
            job_id,
            row["status"],
            row.get("message") or "",
            exit_code=None if code is None else int(code),
            driver_node=row.get("driver_node_id") or "",
            seconds=(ended - began) / 1000 if began and ended else None,
            ray_job_id=row.get("job_id") or "",
        )

    def job_logs(self, job_id: str) -> str:
        """What a job's driver printed so far."""
        return str(self._call("GET", f"/api/jobs/{job_id}/logs").get("logs", ""))

    def follow_job_log(self, job: Job) -> JobLog:
        """A job's log as it grows; the job must have a `driver_node`."""
        query = _log_of(job) | {"interval": "0.3"}
        return _Stream(self._request("GET", "/api/v0/logs/stream", params=query, stream=True))

    def read_job_log(self, job: Job) -> Iterator[bytes]:
        """A job's whole log as it is now; the job must have a `driver_node`."""
        query = _log_of(job) | {"timeout": "600"}
        with self._request(
            "GET", "/api/v0/logs/file", params=query, stream=True, timeout=60
        ) as answer:
            try:
                yield from answer.iter_content(chunk_size=None)
            except requests.RequestException as error:
                raise _broken_off(error) from None

    def stop_job(self, job_id: str) -> bool:
        """Ask Ray to stop a job; returns before it has, and whether there was anything to stop.

        There is not while the job is being set up (then it must be asked again), nor once it is over.
        """
        return bool(self._call("POST", f"/api/jobs/{job_id}/stop").get("stopped"))

    def failed_attempts(self, ray_job_id: str) -> FailedAttempts:
        """One row for each failed attempt of a job's tasks that Ray still remembers."""
        answer = self._state("tasks", _of_job(ray_job_id, state="FAILED"))
        rows = [
            FailedAttempt(
                task_id=row["task_id"],
                attempt=int(row["attempt_number"]),
                name=row["name"],
                error_type=row.get("error_type") or "",
                ray_node_id=row.get("node_id") or "",
                ended=(row.get("end_time_ms") or 0) / 1000,
            )
            for row in answer["result"]
        ]
        return FailedAttempts(rows, _dropped(answer))

    def task_counts(self, ray_job_id: str) -> TaskCounts:
        """How many attempts of a job's tasks are in which state; up to a second old."""
        answer = self._state("tasks/summarize", _of_job(ray_job_id))
        counts = dict.fromkeys(("finished", "failed", "running", "pending"), 0)
        for part in answer["result"]["node_id_to_summary"].values():
            for function in part["summary"].values():
                for state, count in function["state_counts"].items():
                    counts[_STATES.get(state, "pending")] += count
        counted = sum(counts.values())
        missing = int(answer["num_filtered"]) - counted
        dropped = int(answer["total"]) - int(answer["num_after_truncation"]) + missing
        return TaskCounts(**counts, dropped=max(dropped, int(counted >= MOST_ROWS)))

    def attempts(
        self, ray_job_id: str, *, state: str | None = None, task_id: str | None = None
    ) -> Attempts:
        """One row for each attempt of a job's tasks that Ray still remembers.

        Parameters
        ----------
        state, task_id
            Only those in this state, or of this task.
        """
        wanted = _of_job(ray_job_id, state=state, task_id=task_id)
        answer = self._state("tasks", wanted, timeout=LONG_S)
        rows = []
        for row in answer["result"]:
            moments = {e["state"]: e["created_ms"] for e in row.get("events") or ()}
            rows.append(
                Attempt(
                    task_id=row["task_id"],
                    attempt=int(row["attempt_number"]),
                    name=row["name"] or row.get("func_or_class_name") or "",
                    kind=row.get("type") or "NORMAL_TASK",
                    state=row["state"],
                    ray_node_id=row.get("node_id") or "",
                    actor_id=row.get("actor_id") or "",
                    error_type=row.get("error_type") or "",
                    error=row.get("error_message") or "",
                    sent=_seconds(moments.get("SUBMITTED_TO_WORKER")),
                    started=_seconds(row.get("start_time_ms")),
                    ended=_seconds(row.get("end_time_ms")),
                )
            )
        return Attempts(rows, _dropped(answer))

    def actors_of(self, ray_job_id: str) -> Actors:
        """A job's actors, the dead included."""
        answer = self._state("actors", _of_job(ray_job_id), timeout=LONG_S)
        rows = [
            Actor(
                actor_id=row["actor_id"],
                class_name=row["class_name"],
                name=row.get("name") or "",
                state=row["state"],
                restarts=int(row.get("num_restarts") or 0),
                ray_node_id=row.get("node_id") or "",
                detached=bool(row.get("is_detached")),
                death=_death(row.get("death_cause")),
            )
            for row in answer["result"]
        ]
        return Actors(rows, _dropped(answer))

    def _state(
        self, what: str, query: Mapping[str, Any], *, timeout: float | None = None
    ) -> dict[str, Any]:
        answer = self._call("GET", f"/api/v0/{what}", params=query, timeout=timeout)
        data: dict[str, Any] = answer["data"]["result"]
        return data

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return self._body(self._request(method, path, **options), method, path)

    def _request(
        self,
        method: str,
        path: str,
        *,
        timeout: float | None = None,
        fine: Sequence[int] = (),
        stream: bool = False,
        **options: Any,
    ) -> requests.Response:
        """An answer without an error, or with one of those that are `fine` too.

        A `stream` whose `timeout` is not given may be silent for ever once it began.
        """
        if self._endpoint is None:
            self._endpoint = self._find()
        begin = timeout or self._timeout
        try:
            answer = self._session.request(
                method,
                self._endpoint.url + path,
                headers={"Authorization": f"Bearer {self._endpoint.token}"},
                timeout=(begin, None) if stream and timeout is None else begin,
                stream=stream,
                **options,
            )
            if answer.status_code >= HTTPStatus.BAD_REQUEST and answer.status_code not in fine:
                raise RayUnreachable(
                    f"Ray answered {answer.status_code} to {method} {path}",
                    why=_last_words(answer.text),
                )
        except requests.RequestException as error:
            raise self._silent(error) from None
        return answer

    def _body(self, answer: requests.Response, method: str, path: str) -> dict[str, Any]:
        try:
            body = answer.json()
        except ValueError as error:
            raise self._silent(error) from None
        if not isinstance(body, dict) or body.get("result") is False:
            raise RayUnreachable(
                f"Ray refused {method} {path}",
                why=str(body.get("msg") if isinstance(body, dict) else body)[:300],
            )
        return body

    def _silent(self, error: Exception) -> RayUnreachable:
        """Nothing useful answers there; the next request asks anew where Ray is."""
        url = self._endpoint.url if self._endpoint else "its address"
        self._endpoint = None
        return RayUnreachable(
            f"Ray does not answer at {url}", why=_short(error), remedy="is the head running?"
        )


class _Stream:
    """A log that a thread reads, since a read that waits for ever cannot be waited for a while."""

    def __init__(self, answer: requests.Response) -> None:
        self._answer = answer
        self._came: queue.SimpleQueue[bytes | RayUnreachable] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="job log", daemon=True).start()

    def _read(self) -> None:
        try:
            for chunk in self._answer.iter_content(chunk_size=None):
                self._came.put(chunk)
            self._came.put(RayUnreachable("the job's log broke off"))
        # Closing it under the reader gives errors of many kinds.
        except Exception as error:  # noqa: BLE001 - raised by `read`
            self._came.put(_broken_off(error))

    def read(self, wait: float) -> bytes:
        try:
            came = self._came.get(timeout=wait)
        except queue.Empty:
            return b""
        if isinstance(came, RayUnreachable):
            self._came.put(came)
            raise came
        return came

    def close(self) -> None:
        # The reader sits in a read of the socket, which closing alone would not end.
        shutdown = getattr(self._answer.raw, "shutdown", None)
        with suppress(Exception):
            if shutdown is not None:
                shutdown()
        self._answer.close()


def job_id_taken(job_id: str) -> BadInput:
    """What to raise where a job of this id exists already."""
    return BadInput(Problem(f"job {job_id}", "is known to this cluster already", "use another id"))


def _log_of(job: Job) -> dict[str, str]:
    return {
        "node_id": job.driver_node,
        "filename": f"job-driver-{job.job_id}.log",
        "lines": "-1",
    }


def _broken_off(error: Exception) -> RayUnreachable:
    return RayUnreachable("the job's log broke off", why=_short(error))


def _last_words(text: str) -> str:
    """Of a stack trace the last line, which says what it was about; else the text's beginning."""
    lines = [line for line in text.splitlines() if line.strip(" .")]
    traced = bool(lines) and lines[0].startswith("Traceback")
    return (lines[-1] if traced else text).strip()[:300]


def _only(state: str) -> dict[str, str]:
    return {
        "limit": "10000",
        "filter_keys": "state",
        "filter_predicates": "=",
        "filter_values": state,
    }


def _of_job(
    ray_job_id: str, *, state: str | None = None, task_id: str | None = None
) -> dict[str, Any]:
    asked = {"state": state, "task_id": task_id, "job_id": ray_job_id}
    wanted = {key: value for key, value in asked.items() if value is not None}
    return {
        "limit": str(MOST_ROWS),
        "detail": "1",
        "filter_keys": list(wanted),
        "filter_predicates": ["="] * len(wanted),
        "filter_values": list(wanted.values()),
    }


def _dropped(answer: Mapping[str, Any]) -> int:
    """The GCS forgets above its own limit, and the answer is cut at ours: both together.

    How many it left out at our limit, Ray does not always say: a full answer is taken for a part.
    """
    dropped = int(answer["total"]) - int(answer["num_after_truncation"])
    dropped += int(answer["num_filtered"]) - len(answer["result"])
    cut = len(answer["result"]) >= MOST_ROWS or answer.get("partial_failure_warning")
    return max(dropped, 1) if cut else dropped


def _death(cause: Mapping[str, Any] | None) -> str:
    """Ray's own words for the end of an actor; each kind of end has a context of its own."""
    for context in (cause or {}).values():
        if isinstance(context, Mapping):
            return str(context.get("error_message") or context.get("reason") or "")
    return ""


def _seconds(milliseconds: float | None) -> float | None:
    """Ray writes 0 for what has not happened."""
    return milliseconds / 1000 if milliseconds else None


def _pairs(raw: Mapping[str, Sequence[float]] | None) -> dict[str, tuple[float, float]]:
    return {
        name: (float(pair[0]), float(pair[1]))
        for name, pair in (raw or {}).items()
        if not name.startswith("node:")
    }


def _short(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__ or cause
    return type(cause).__name__ + (f": {cause}" if str(cause) else "")
