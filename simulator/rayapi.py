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
class RunningWork:
    """What runs on one node: names of tasks and classes of actors, each as often as it runs."""

    tasks: Sequence[str] = ()
    actors: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.tasks or self.actors)


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
    """

    job_id: str
    status: str
    message: str
    exit_code: int | None = None
    driver_node: str = ""
    seconds: float | None = None

    @property
    def over(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


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

    def running(self) -> dict[str, RunningWork]:
        """What runs where, by Ray node id: tasks that run now and actors that live.

        A call of an actor that is going on belongs to its actor and is not counted again. Up to a
        second old, and of more than ten thousand only so many, as Ray gives it.
        """
        tasks: dict[str, list[str]] = {}
        for row in self._state("tasks", _only("RUNNING"))["result"]:
            if row.get("type", "NORMAL_TASK") == "NORMAL_TASK" and row.get("node_id"):
                tasks.setdefault(row["node_id"], []).append(row["name"])
        actors: dict[str, list[str]] = {}
        for row in self._state("actors", _only("ALIVE"))["result"]:
            if row.get("node_id"):
                name = f"{row['class_name']} {row['name']}" if row["name"] else row["class_name"]
                actors.setdefault(row["node_id"], []).append(name)
        return {
            node: RunningWork(tuple(tasks.get(node, ())), tuple(actors.get(node, ())))
            for node in sorted({*tasks, *actors})
        }

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
        answer = self._state(
            "tasks",
            {
                "limit": "10000",
                "detail": "1",
                "filter_keys": ["state", "job_id"],
                "filter_predicates": ["=", "="],
                "filter_values": ["FAILED", ray_job_id],
            },
        )
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
        # The GCS forgets above its own limit, and the answer is cut at `limit`: count both.
        dropped = int(answer["total"]) - int(answer["num_after_truncation"])
        dropped += int(answer["num_filtered"]) - len(answer["result"])
        if answer.get("partial_failure_warning"):
            dropped = max(dropped, 1)
        return FailedAttempts(rows, dropped)

    def _state(self, what: str, query: Mapping[str, Any]) -> dict[str, Any]:
        data: dict[str, Any] = self._call("GET", f"/api/v0/{what}", params=query)["data"]["result"]
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


def _seconds(milliseconds: int | None) -> float | None:
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
