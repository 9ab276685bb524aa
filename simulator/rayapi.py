"""Talks to a running Ray by HTTP: version, nodes, resources, what runs, jobs, failed attempts.

The orchestrator is outside the cluster's failure domain and imports no Ray, so it works with any Ray
version in any image that still serves these paths (docs of Ray: Jobs REST API, State API). Every
answer that does not come is a `RayUnreachable`, never an empty list: "no answer" is not "no nodes".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests

from simulator.backends.base import Endpoint
from simulator.errors import CannotRun


class RayUnreachable(CannotRun):
    """Ray's HTTP API did not answer, or not with what it should."""


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
    """Resources in use: per name, (used, total); over all living nodes and by Ray node id."""

    total: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    by_node: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""

    job_id: str
    status: str
    message: str

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
        )

    def submit(
        self, entrypoint: str, job_id: str, *, resources: Mapping[str, float] | None = None
    ) -> None:
        """Start a job.

        Parameters
        ----------
        entrypoint
            Its command line, run on the head unless `resources` move it.
        resources
            Custom resources that the entry point's node must have, by name.
        """
        body: dict[str, Any] = {"entrypoint": entrypoint, "submission_id": job_id}
        if resources:
            body["entrypoint_resources"] = dict(resources)
        self._call("POST", "/api/jobs/", json=body, timeout=30)

    def job(self, job_id: str) -> Job:
        """How a submitted job stands."""
        row = self._call("GET", f"/api/jobs/{job_id}")
        return Job(job_id, row["status"], row.get("message") or "")

    def job_logs(self, job_id: str) -> str:
        """What a job's driver printed so far."""
        return str(self._call("GET", f"/api/jobs/{job_id}/logs").get("logs", ""))

    def stop_job(self, job_id: str) -> None:
        """Ask Ray to stop a job; returns before it has."""
        self._call("POST", f"/api/jobs/{job_id}/stop")

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

    def _call(
        self, method: str, path: str, *, timeout: float | None = None, **options: Any
    ) -> dict[str, Any]:
        if self._endpoint is None:
            self._endpoint = self._find()
        try:
            answer = self._session.request(
                method,
                self._endpoint.url + path,
                headers={"Authorization": f"Bearer {self._endpoint.token}"},
                timeout=timeout or self._timeout,
                **options,
            )
            if answer.status_code >= 400:
                raise RayUnreachable(
                    f"Ray answered {answer.status_code} to {method} {path}",
                    why=answer.text.strip()[:300],
                )
            body = answer.json()
        except (requests.RequestException, ValueError) as error:
            url, self._endpoint = self._endpoint.url, None
            raise RayUnreachable(
                f"Ray does not answer at {url}", why=_short(error), remedy="is the head running?"
            ) from None
        if not isinstance(body, dict) or body.get("result") is False:
            raise RayUnreachable(
                f"Ray refused {method} {path}",
                why=str(body.get("msg") if isinstance(body, dict) else body)[:300],
            )
        return body


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
