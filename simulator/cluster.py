"""A cluster as its user sees it: brought up, looked at, stopped, scaled, taken down.

The engine is the only state. What should exist (a `Topology`) minus what does exist (labels) is a
printable `Plan`; applying it is the whole control loop, run when asked and never in the background.

Starting is admission-controlled: a worker costs about three seconds of CPU to start, and sixteen at
once on two cores time each other out until none is left. So only as many start at a time as the
machine carries, each is watched until the GCS counts it alive, and one that fails is tried again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from simulator.autoscaling import AUTOSCALER, CONFIG, STATE, can_ever, files
from simulator.backends.base import (
    AUTOSCALE,
    Backend,
    CanKill,
    CanPause,
    ClusterRecord,
    ClusterSpec,
    HostsAutoscaler,
    HostsStore,
    KeepsTime,
    NodeRecord,
    NodeState,
    ServesRay,
    clock_of,
    without_head,
)
from simulator.errors import BadInput, CannotRun, NodeStartFailed, NotFound, Problem
from simulator.innode.supervisor import GCS_DIED
from simulator.rayapi import RayApi, RayNode, Usage
from simulator.topology import Profile, Topology, driver_needs
from simulator.waiting import Deadline, T, WaitTimeout, wait_until

State = Literal["alive", "starting", "paused", "exited", "dead"]

#: Failure-detection settings of the head's GCS, by name. "ray" is Ray's own defaults.
HEALTH: Mapping[str, Mapping[str, str]] = {
    "ray": {},
    "fast": {
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_ray_syncer_message_refresh_interval_ms": "500",
    },
}

START_ATTEMPTS = 3
LOOK_S = 60.0  # until Ray's autoscaler has looked for the first time
STORE_S = 30.0  # until a store that was started answers
#: How long a GCS that has lost its connection to Redis may take to end, seconds. Ray 2.60 tries again for 4 s.
GIVES_UP_S = 15.0
AT_A_TIME = 8  # nodes that are stopped together


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node: what the engine says and what Ray says, together.

    ``state`` is *alive* (running and alive in the GCS), *starting* (running, not in the GCS yet),
    *dead* (running, but the GCS gave it up), *paused* or *exited* (so says the engine).
    """

    name: str
    role: str
    group: str
    state: State
    address: str
    hostname: str
    ray_node_id: str | None
    resources: Mapping[str, float]
    used: Mapping[str, float]
    exit_code: int | None
    profile: Profile = Profile.DEFAULT
    managed: bool = False

    @property
    def gone(self) -> bool:
        """Whether it was the autoscaler's, and does not come back: only its logs are left."""
        return self.managed and self.state == "exited"


@dataclass(frozen=True, slots=True)
class AutoscalerStatus:
    """What Ray's autoscaler sees and wants.

    Attributes
    ----------
    runs
        Whether it and its cloud do.
    age_s
        How long ago it looked; None if it never did.
    topology
        With the limits of each group.
    state
        What it said last, as `simulator.innode.autoscaler.state_of` has it.
    """

    runs: bool
    age_s: float | None
    topology: Topology
    state: Mapping[str, Any]

    @property
    def never(self) -> list[Mapping[str, Any]]:
        """What work waits for that no node which there may be can give."""
        return [i for i in self.state.get("infeasible", ()) if not can_ever(self.topology, i)]

    def counts(self, group: str) -> dict[str, int]:
        """Of a group: how many nodes are busy, idle, draining, starting, launching, failed."""
        nodes = Counter(n["state"] for n in self.state.get("nodes", ()) if n["group"] == group)

        def asked(what: str) -> int:
            return sum(
                i.get("count", 1) for i in self.state.get(what, ()) if i.get("group") == group
            )

        return {
            **{state: nodes[state] for state in ("busy", "idle", "draining")},
            **{what: asked(what) for what in ("starting", "launching", "failed")},
        }

    def usage(self) -> Usage:
        """What was in use on the nodes that it saw, and what waited."""
        by_node = {
            n["ray_node_id"]: {
                name: (total - n["available"].get(name, 0.0), total)
                for name, total in n["total"].items()
            }
            for n in self.state.get("nodes", ())
        }
        total: dict[str, tuple[float, float]] = {}
        for resources in by_node.values():
            for name, (used, offered) in resources.items():
                before = total.get(name, (0.0, 0.0))
                total[name] = (before[0] + used, before[1] + offered)
        waiting = [(item["needs"], item["count"]) for item in self.state.get("demand", ())]
        waiting += [(b, 1) for group in self.state.get("groups", ()) for b in group["bundles"]]
        return Usage(total, by_node, waiting)

    def to_data(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "age_s": self.age_s,
            "groups": {
                g.group_name: {"min": g.least, "max": g.most, **self.counts(g.group_name)}
                for g in self.topology.worker_groups
            },
            "demand": [*self.state.get("demand", ()), *self.state.get("asked", ())],
            "placement_groups": list(self.state.get("groups", ())),
            "never": self.never,
            "failed": list(self.state.get("failed", ())),
        }


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A cluster, seen once.

    Attributes
    ----------
    autoscaler
        None where the user says how many nodes there are.
    store
        Where the head keeps its tables, if that is beside the nodes.
    """

    cluster: str
    backend: str
    gpu: str
    nodes: Sequence[NodeStatus]
    ray: Mapping[str, Any]
    autoscaler: AutoscalerStatus | None = None
    store: NodeRecord | None = None

    def to_data(self) -> dict[str, Any]:
        count = {"desired": sum(not n.gone for n in self.nodes)}
        count["running"] = sum(n.state in ("alive", "starting", "dead") for n in self.nodes)
        count["alive"] = sum(n.state == "alive" for n in self.nodes)
        return {
            "cluster": self.cluster,
            "backend": self.backend,
            "gpu": self.gpu,
            "count": count,
            "ray": dict(self.ray),
            "nodes": [
                {
                    "name": n.name,
                    "role": n.role,
                    "group": n.group,
                    "state": n.state,
                    "desired": not n.gone,
                    "running": n.state in ("alive", "starting", "dead"),
                    "alive": n.state == "alive",
                    "address": n.address,
                    "hostname": n.hostname,
                    "ray_node_id": n.ray_node_id,
                    "resources": dict(n.resources),
                    "used": dict(n.used),
                    "gpu": self.gpu if n.resources.get("GPU") else "none",
                    "exit_code": n.exit_code,
                    "profile": n.profile.value,
                    "managed": n.managed,
                }
                for n in self.nodes
            ],
            "autoscaler": self.autoscaler.to_data() if self.autoscaler else None,
            "store": None
            if self.store is None
            else {
                "name": self.store.name,
                "state": self.store.state,
                "address": self.store.address,
                "exit_code": self.store.exit_code,
            },
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What must be done so that what should exist, exists and runs."""

    create: Sequence[str] = ()
    start: Sequence[str] = ()
    superfluous: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.create or self.start or self.superfluous)

    def __str__(self) -> str:
        parts = [
            f"{verb} {', '.join(names)}"
            for verb, names in (
                ("create", self.create),
                ("start", self.start),
                ("remove", self.superfluous),
            )
            if names
        ]
        return "; ".join(parts) or "nothing to do"


def plan(desired: Iterable[str], actual: ClusterRecord | None) -> Plan:
    """Desired minus actual, as names; a node that the engine holds paused is left alone."""
    wanted = list(desired)
    have = {n.name: n for n in actual.nodes} if actual else {}
    missing = [name for name in wanted if name not in have]
    stopped = [n for n in wanted if n in have and have[n].state in ("created", "exited")]
    return Plan(
        create=tuple(missing),
        start=(*missing, *stopped),
        superfluous=tuple(sorted(n for n in set(have) - set(wanted) if not have[n].managed)),
    )


@dataclass(frozen=True, slots=True)
class StartEvent:
    """Progress of starting nodes: ``starting``, ``joined`` (after `seconds`) or ``failed``."""

    node: str
    verb: Literal["starting", "joined", "failed"]
    seconds: float = 0.0
    attempt: int = 1
    details: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class StopEvent:
    """Progress of stopping nodes: ``stopped``, or ``killed`` because it was frozen."""

    node: str
    verb: Literal["stopped", "killed"]


@dataclass(frozen=True, slots=True)
class Started:
    """What `Cluster.start` or `Cluster.restart` did.

    Attributes
    ----------
    started
        Nodes that were down, or were to be restarted.
    renewed
        Workers that ran without their head and were started anew: no new head takes them back.
    paused
        Nodes that were left frozen.
    remembers
        A head that is started again has the tables of the one before.
    """

    started: Sequence[str] = ()
    renewed: Sequence[str] = ()
    paused: Sequence[str] = ()
    remembers: bool = False


@dataclass(frozen=True, slots=True)
class RayNodeRecord:
    """A node as Ray remembers it, under our name for it: None if no node of ours has that hostname."""

    node: str | None
    ray: RayNode

    def to_data(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "ray_node_id": self.ray.ray_node_id,
            "state": "ALIVE" if self.ray.alive else "DEAD",
            "is_head": self.ray.is_head,
            "hostname": self.ray.hostname,
            "address": self.ray.address,
            "resources": dict(self.ray.resources),
            "labels": dict(self.ray.labels),
            "since": self.ray.since,
            "until": self.ray.until,
            "message": self.ray.message or None,
        }


#: Bash where there is one. Its prompt gets the node's name in front, whatever its own files made of it.
_SHELL = "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi"
_PROMPT = 'case $PS1 in "({0}) "*) ;; *) PS1="({0}) $PS1" ;; esac'


@dataclass
class _Starting:
    since: float
    attempt: int
    known: frozenset[str] = field(default_factory=frozenset)
    wall: float = 0.0  # by the nodes' clock


def default_parallelism(cores: int) -> int:
    """How many nodes may start at a time here (docs/decisions/0007: a start is bound by CPU)."""
    return max(2, cores + 1)


class Cluster:
    """One cluster of a backend, by name.

    Everything is asked anew at each call; two objects for the same cluster, in two shells, agree.
    """

    def __init__(self, backend: Backend, name: str) -> None:
        self.backend = backend
        self.name = name
        self.clock = clock_of(backend)
        self.ray: RayApi = (
            backend.ray(name)
            if isinstance(backend, ServesRay)
            else RayApi(lambda: backend.endpoint(name))
        )

    def wait_until(
        self, condition: Callable[[], T | None], *, name: str, timeout: float, interval: float = 0.1
    ) -> T:
        """`simulator.waiting.wait_until` by the cluster's own clock."""
        return wait_until(
            condition,
            name=name,
            timeout=timeout,
            interval=interval,
            clock=self.clock.mono,
            sleep=self.clock.sleep,
        )

    # -- looking ---------------------------------------------------------------------------------

    def record(self) -> ClusterRecord:
        """What the engine has of it now; `NotFound` if there is no such cluster."""
        return self.backend.cluster(self.name)

    def node(self, name: str) -> NodeRecord:
        """A node, or the store, by name; `NotFound` names the nearest."""
        nodes = {n.name: n for n in self.record().breakable}
        if name not in nodes:
            raise NotFound("node", name, nodes)
        return nodes[name]

    def status(self) -> ClusterStatus:
        """The cluster seen once: what the engine has, and what Ray says if it answers.

        That Ray does not answer is part of the status (``ray["answers"]``, ``ray["why"]``,
        ``ray["remedy"]``), not an error; `NotFound` if there is no such cluster.
        """
        record = self.record()
        ray: dict[str, Any] = {"answers": False, "version": None, "why": "", "remedy": ""}
        known: list[RayNode] = []
        usage = Usage()
        auto = self.autoscaler()
        if (head := _head_state(record)) != "running":
            error = without_head("Ray does not answer", head)
            ray |= {"why": error.why, "remedy": error.remedy}
        else:
            try:
                ray["version"] = self.ray.version()
                known = self.ray.nodes()
                usage = self.ray.usage() if auto is None else auto.usage()
            except CannotRun as error:
                ray["why"] = str(error)
            else:
                ray["answers"] = True
                ray["resources"] = {k: list(v) for k, v in usage.total.items()}
        return ClusterStatus(
            cluster=record.name,
            backend=record.backend,
            gpu=record.gpu,
            nodes=[_node_status(n, known, usage) for n in record.nodes],
            ray=ray,
            autoscaler=auto,
            store=record.store,
        )

    def autoscaler(self) -> AutoscalerStatus | None:
        """What Ray's autoscaler sees and wants; None where it decides nothing."""
        backend = self.backend
        if not isinstance(backend, HostsAutoscaler):
            return None
        runs = backend.autoscaler_runs(self.name)
        if runs is None:
            return None
        data = backend.cloud_file(self.name, STATE)
        state: dict[str, Any] = json.loads(data) if data else {}
        looked = state.pop("wall", None)
        age = None if looked is None else max(0.0, self.backend.wall_clock() - looked)
        return AutoscalerStatus(
            runs=runs,
            age_s=None if age is None else round(age, 1),
            topology=self.backend.spec(self.name).topology,
            state=state,
        )

    def usage(self) -> Usage:
        """What is in use and waited for; up to a few seconds old. Raises `CannotRun` if nobody answers."""
        auto = self.autoscaler()
        # Ray's HTTP API tells nothing of it where the second version of its autoscaler decides.
        return self.ray.usage() if auto is None else auto.usage()

    # -- up and down -----------------------------------------------------------------------------

    def up(
        self,
        spec: ClusterSpec,
        *,
        timeout: float = 120.0,
        parallelism: int | None = None,
        progress: Callable[[StartEvent], None] = lambda event: None,
        on_plan: Callable[[Plan], None] = lambda plan: None,
    ) -> Plan:
        """Make the cluster what `spec` says, and wait until every node of it is alive.

        Raises
        ------
        BadInput
            The name is in use by a cluster of another shape.
        NodeStartFailed
            Some nodes did not join; names them and shows their last lines. What did start is
            left for the caller to keep or to take down.
        CannotRun
            The engine failed, or the head is not running so that nothing can join.
        """
        if spec.topology.autoscaling:
            _with_autoscaler(self.backend)
        wanted = [n.name for n in spec.topology.nodes()]
        existing = next((c for c in self.backend.clusters() if c.name == self.name), None)
        todo = plan(wanted, existing)
        if existing is not None and (todo.superfluous or todo.create):
            raise BadInput(
                Problem(
                    f"--name {self.name}",
                    f"a cluster of that name exists already and has {len(existing.nodes)} nodes, "
                    f"not {len(wanted)}",
                    f"scale it (python -m simulator scale GROUP=N --name {self.name}), take it down "
                    f"first (python -m simulator down --name {self.name}) or use another name",
                )
            )
        on_plan(todo)
        # Also where all of it exists: nodes of the same names may be of another definition, and what
        # was asked for must not seem to be there.
        self.backend.create(spec)
        self.start_nodes(todo.start, timeout=timeout, parallelism=parallelism, progress=progress)
        # Nodes that ran already may still be joining; a paused one is left as it is.
        running = {n.name for n in self.record().nodes if n.state == "running"}
        wait_alive(self, [name for name in wanted if name in running], timeout)
        if spec.topology.autoscaling:
            self.have_autoscaler(spec, parallelism)
            wait_least(self, spec.topology, timeout)
        return todo

    def have_autoscaler(self, spec: ClusterSpec, parallelism: int | None = None) -> None:
        """Have Ray's autoscaler run, with its settings and the cloud's as the topology has them.

        Raises
        ------
        CannotRun
            The backend has no nodes that an autoscaler could start.
        """
        backend = _with_autoscaler(self.backend)
        parallel = parallelism or default_parallelism(self.backend.cores())
        told = files(spec, backend.cloud_folder(self.name), spec.seed, parallel)
        if spec.run_dir is not None and spec.run_dir.is_dir():
            (spec.run_dir / CONFIG).write_bytes(told[CONFIG])
        since = self.backend.wall_clock()
        backend.start_autoscaler(self.name, told)

        def looked() -> bool:
            data = backend.cloud_file(self.name, STATE)
            return data is not None and float(json.loads(data)["wall"]) >= since

        try:
            self.wait_until(looked, name="its first look", timeout=LOOK_S, interval=0.3)
        except WaitTimeout as error:
            raise CannotRun(
                f"Ray's autoscaler of {self.name} did not look at the cluster",
                why=str(error),
                remedy=f"See its last words: docker logs {self.name}-program-{AUTOSCALER}"
                if self.backend.name == "docker"
                else "",
            ) from None

    def start_nodes(
        self,
        names: Sequence[str],
        *,
        timeout: float = 120.0,
        parallelism: int | None = None,
        progress: Callable[[StartEvent], None] = lambda event: None,
    ) -> None:
        """Start nodes, the head first, and wait until the GCS counts each of them alive.

        One that fails does not keep the others from joining.

        Parameters
        ----------
        timeout
            For one attempt of one node to join, seconds; each node gets `START_ATTEMPTS`.
        parallelism
            How many may be starting at a time; `default_parallelism` if None. One less after each
            failed start.

        Raises
        ------
        NodeStartFailed
            Some nodes did not join; names them and shows the last lines of the first.
        CannotRun
            The head is not running, so that nothing can join.
        """
        head = [n for n in names if n == "head"]
        if head:
            self.have_store()
        for batch in (head, [n for n in names if n != "head"]):
            if batch:
                _Starter(self, batch, timeout, parallelism, progress).run()

    def stop(
        self, *, grace: float = 10.0, progress: Callable[[StopEvent], None] = lambda event: None
    ) -> list[str]:
        """Stop every node that runs, the workers together, then the head, then its store; returns their names.

        All that the containers hold is kept, and `start` starts them again. A frozen node cannot
        sign off and is killed.

        Parameters
        ----------
        grace
            Seconds between SIGTERM and SIGKILL, for each node.

        Raises
        ------
        CannotRun
            Some could not be stopped; the others are.
        """
        if isinstance(self.backend, HostsAutoscaler):
            self.backend.stop_autoscaler(self.name)  # it would replace what is stopped
        record = self.record()
        head = [n for n in record.nodes if n.role == "head"]
        workers = [n for n in record.nodes if n.role != "head"]
        store = [record.store] if record.store is not None else []
        stopped = self.stop_together(workers, grace, progress)
        stopped = [*self.stop_together(head, grace, progress), *stopped]
        return [*stopped, *self.stop_together(store, grace, progress)]

    def stop_together(
        self, nodes: Sequence[NodeRecord], grace: float, progress: Callable[[StopEvent], None]
    ) -> list[str]:
        """Stop those of these nodes that run, some at a time, each as `stop` does."""

        def stop(node: NodeRecord) -> None:
            if node.state == "paused" and isinstance(self.backend, CanKill):
                self.backend.kill(self.name, node.name)
                progress(StopEvent(node.name, "killed"))
            else:
                self.backend.stop(self.name, node.name, grace)
                progress(StopEvent(node.name, "stopped"))

        up = [n for n in nodes if n.state in ("running", "paused")]
        failed: dict[str, CannotRun] = {}
        # Simulated time is slept away by one at a time, so that each run of it is like the other.
        at_a_time = 1 if isinstance(self.backend, KeepsTime) else AT_A_TIME
        with ThreadPoolExecutor(at_a_time) as pool:
            for node, future in [(n, pool.submit(stop, n)) for n in up]:
                try:
                    future.result()
                except CannotRun as error:
                    failed[node.name] = error
        if failed:
            raise CannotRun(
                f"{', '.join(failed)} could not be stopped",
                why="; ".join(str(e) for e in failed.values()),
            ) from next(iter(failed.values()))
        return [n.name for n in up]

    def start(
        self,
        *,
        timeout: float = 120.0,
        parallelism: int | None = None,
        progress: Callable[[StartEvent], None] = lambda event: None,
        on_plan: Callable[[Started], None] = lambda plan: None,
    ) -> Started:
        """Start every node that is down, the head and its store first, and wait until each is alive.

        With its GCS in memory, as it is unless the topology says otherwise, a head that starts again
        knows no job, actor or placement group of before, and workers that outlived it are started
        anew with it; one that keeps its tables takes them back. A frozen node is left as it is. Where
        Ray's autoscaler decides, it is started too, and the workers of before are not: it asks for new
        ones.

        Raises
        ------
        NodeStartFailed
            Some nodes did not join; the others are up.
        """
        record = self.record()
        nodes = [n for n in record.nodes if not n.managed]
        if _head_state(record) == "missing":
            raise without_head(f"{self.name} cannot be started", "missing")
        down = tuple(n.name for n in nodes if n.state in ("created", "exited"))
        remembers = self.outlives_head()
        alone = "head" in down and not remembers
        lost = tuple(n.name for n in nodes if n.state == "running" and alone)
        paused = tuple(n.name for n in nodes if n.state == "paused")
        store = record.store
        bare = (store.name,) if store is not None and store.state in ("created", "exited") else ()
        plan = Started((*bare, *down), lost, paused, remembers)
        on_plan(plan)
        if bare and "head" not in down:
            self.revive_store(timeout)
        self.stop_together([n for n in nodes if n.name in lost], 10.0, lambda event: None)
        self.start_nodes(
            [*down, *lost], timeout=timeout, parallelism=parallelism, progress=progress
        )
        wait_alive(self, [n.name for n in nodes if n.name not in paused], timeout)
        made = self.backend.spec(self.name)
        if made.topology.autoscaling:
            self.have_autoscaler(made, parallelism)
            wait_least(self, made.topology, timeout)
        return plan

    def have_store(self, timeout: float = STORE_S) -> None:
        """Have the store, if there is one, run and answer.

        Raises
        ------
        CannotRun
            It does not; shows its last lines.
        """
        store = self.record().store
        if store is None:
            return
        backend, name = self.backend, store.name
        assert isinstance(backend, HostsStore)
        if store.state == "paused":
            raise CannotRun(
                "the head cannot be started",
                why=f"{name}, where it keeps its tables, is paused",
                remedy=f"Resume it first: resume {name}",
            )
        if store.state != "running":
            backend.start(self.name, name)

        def answers() -> bool:
            state = self.node(name).state
            if state != "running":
                raise CannotRun(
                    f"{name}, where the head keeps its tables, is {state}",
                    why=f"its exit code is {self.node(name).exit_code}; its last lines follow",
                    details=self.backend.logs(self.name, name, tail=12).splitlines(),
                )
            return backend.store_answers(self.name)

        try:
            self.wait_until(answers, name=f"an answer of {name}", timeout=timeout, interval=0.2)
        except WaitTimeout as error:
            raise CannotRun(
                f"{name}, where the head keeps its tables, does not answer",
                why=f"{error}; its last lines follow",
                remedy=f"See: logs {name}",
                details=self.backend.logs(self.name, name, tail=12).splitlines(),
            ) from None

    def revive_store(
        self,
        timeout: float,
        *,
        lost: bool = False,
        progress: Callable[[StartEvent], None] = lambda event: None,
    ) -> str:
        """Have the store answer, whatever state it is in, and the head that ended for want of it; returns how.

        A GCS that has lost its connection to Redis ends, and the head with it; one whose Redis was frozen or
        cut off waits for it.

        Parameters
        ----------
        timeout
            For one attempt of the head to join, seconds.
        lost
            The store runs, and not since the head does.

        Raises
        ------
        CannotRun
            The store does not answer. Among them `NodeStartFailed`: the head did not join.
        """
        store = self.record().store
        assert store is not None
        lost = lost or store.state in ("created", "exited")
        how = {"running": "it was running already", "paused": "resumed"}.get(
            store.state, "started again"
        )
        if store.state == "paused":
            self.resume(store.name)
        self.have_store()

        def down() -> bool:
            return self.node("head").state in ("created", "exited")

        if lost:
            with suppress(WaitTimeout):
                self.wait_until(down, name="the end of the head", timeout=GIVES_UP_S, interval=0.2)
        if self.node("head").exit_code != GCS_DIED:
            return f"{how}, and answers"  # a head that ended otherwise is somebody else's to start
        self.start_nodes(["head"], timeout=timeout, progress=progress)
        return f"{how}, and so was the head, whose GCS had ended without it"

    def outlives_head(self) -> bool:
        """Whether its workers wait for a head that is gone, which knows them when it is back."""
        return self.backend.spec(self.name).topology.outlives_head

    def driver_needs(self) -> Mapping[str, float] | None:
        """What a job's driver is to ask Ray for, so that it runs on the driver node; None where there is none."""
        return driver_needs(n.role for n in self.record().nodes)

    def need_head(self, what: str) -> None:
        """Raise `CannotRun`, without waiting for an answer that cannot come, if no head runs.

        Parameters
        ----------
        what
            That cannot be done then, such as ``Ray cannot be asked for its nodes``.
        """
        state = _head_state(self.record())
        if state != "running":
            raise without_head(what, state)

    def ray_nodes(self) -> list[RayNodeRecord]:
        """Every node that Ray remembers: the living in our order, then the dead, the latest last.

        Raises
        ------
        CannotRun
            Ray does not answer.
        """
        self.need_head("Ray cannot be asked for its nodes")
        names = {n.hostname: (i, n.name) for i, n in enumerate(self.record().nodes)}
        unknown = (len(names), None)

        def place(ray: RayNode) -> tuple[bool, float]:
            first = names.get(ray.hostname, unknown)[0]
            return not ray.alive, first if ray.alive else ray.until or 0.0

        return [
            RayNodeRecord(names.get(ray.hostname, unknown)[1], ray)
            for ray in sorted(self.ray.nodes(), key=place)
        ]

    def down(self) -> None:
        """Remove everything that carries the cluster's label."""
        self.backend.remove(self.name)

    # -- one node --------------------------------------------------------------------------------

    def kill(self, node: str) -> None:
        """SIGKILL to the whole node, running or paused.

        Raises
        ------
        NotFound, BadInput
            There is no such node; it does not run.
        CannotRun
            The backend cannot kill.
        """
        self._need_running(node)
        if not isinstance(self.backend, CanKill):
            raise CannotRun(f"the {self.backend.name} backend cannot kill nodes")
        self.backend.kill(self.name, node)

    def pause(self, node: str) -> None:
        """Freeze a running node; raises as `kill` does, and `BadInput` if it is paused already."""
        if self._need_running(node).state == "paused":
            raise BadInput(Problem(node, "is paused already", f"thaw it with: resume {node}"))
        if not isinstance(self.backend, CanPause):
            raise CannotRun(f"the {self.backend.name} backend cannot pause nodes")
        self.backend.pause(self.name, node)

    def resume(self, node: str) -> None:
        """Thaw a paused node; one that Ray gave up meanwhile then exits by itself.

        Raises
        ------
        NotFound, BadInput
            There is no such node; it is not paused.
        CannotRun
            The backend cannot pause and resume.
        """
        record = self.node(node)
        if not isinstance(self.backend, CanPause):
            raise CannotRun(f"the {self.backend.name} backend cannot resume nodes")
        if record.state != "paused":
            raise BadInput(Problem(node, f"is {record.state}, not paused"))
        self.backend.resume(self.name, node)

    def restart(
        self,
        node: str,
        *,
        grace: float = 10.0,
        timeout: float = 120.0,
        progress: Callable[[StartEvent], None] = lambda event: None,
        on_plan: Callable[[Started], None] = lambda plan: None,
    ) -> Started:
        """Stop a node if it runs, start it, and wait until it has joined as a new Ray node.

        With the head, the workers that run are started anew too, as by `start`. To have the head
        alone come back, as after a crash, use `start_nodes`.

        Parameters
        ----------
        grace
            Seconds between SIGTERM and SIGKILL.
        timeout
            For one attempt to join, seconds.

        Raises
        ------
        NotFound, BadInput
            There is no such node; it is paused.
        CannotRun
            The head does not run, so that no worker can join; the node is left as it is.
        NodeStartFailed
            It did not join, or a worker that was started anew with it did not.
        """
        record = self.node(node)
        if record.state == "paused":
            raise BadInput(Problem(node, "is paused", f"resume or kill it first: resume {node}"))
        if record.role == "store":
            return self._restart_store(record, grace, timeout, progress, on_plan)
        if record.managed:
            raise BadInput(
                Problem(
                    node,
                    "is Ray's autoscaler's: a machine that is gone does not come back, another one comes",
                    "kill it, and see what comes in its place: status --watch",
                )
            )
        # Before anything is stopped: a node that cannot come back is better left as it is.
        if node != "head":
            self.need_head(f"{node} could not join")
        workers = [n for n in self.record().nodes if node == "head" and n.role != "head"]
        remembers = self.outlives_head()
        lost = [n for n in workers if n.state == "running" and not remembers]
        paused = tuple(n.name for n in workers if n.state == "paused")
        plan = Started((node,), tuple(n.name for n in lost), paused, remembers)
        on_plan(plan)
        self.stop_together(lost, grace, lambda event: None)
        if record.state == "running":
            self.backend.stop(self.name, node, grace)
        self.start_nodes([node, *plan.renewed], timeout=timeout, progress=progress)
        return plan

    def _restart_store(
        self,
        record: NodeRecord,
        grace: float,
        timeout: float,
        progress: Callable[[StartEvent], None],
        on_plan: Callable[[Started], None],
    ) -> Started:
        """The head ends without its store, and is started again with it."""
        self.node("head")
        plan = Started((record.name, "head"), remembers=True)
        on_plan(plan)
        if record.state == "running":
            self.backend.stop(self.name, record.name, grace)
        self.revive_store(timeout, progress=progress)
        return plan

    def attach(self, node: str) -> int:
        """Have this terminal be a shell in a node; returns its exit code when it ends.

        Raises
        ------
        NotFound, CannotRun
            There is no such node; it does not run.
        """
        self.node(node)
        env = {"PS1": f"({node}) $ ", "PROMPT_COMMAND": _PROMPT.format(node)}
        shell = ["sh", "-c", _SHELL]
        return self.backend.execute(self.name, node, shell, env=env, interactive=True).code

    def _need_running(self, node: str) -> NodeRecord:
        record = self.node(node)
        if record.state not in ("running", "paused"):
            raise BadInput(Problem(node, f"is {record.state}", f"start it with: restart {node}"))
        return record


def _head_state(record: ClusterRecord) -> NodeState | Literal["missing"]:
    return next((n.state for n in record.nodes if n.role == "head"), "missing")


def why_unable(backend: Backend, topology: Topology | None = None) -> str | None:
    """None if the machine has what a cluster, or such a cluster, needs; else what it has not."""
    blocking = [c for c in backend.check(topology) if c.level == "problem"]
    return "; ".join(str(c.as_problem()) for c in blocking) or None


def refuse_unable(
    backend: Backend,
    topology: Topology,
    *,
    what: str = "this machine cannot run it",
    remedy: str = "",
) -> None:
    """Raise `CannotRun` if the machine has not what such a cluster needs."""
    if topology.autoscaling:
        _with_autoscaler(backend)
    if why := why_unable(backend, topology):
        raise CannotRun(what, why=why, remedy=remedy)


def _with_autoscaler(backend: Backend) -> HostsAutoscaler:
    """The backend as one that runs Ray's autoscaler; raises `CannotRun` if it does not."""
    if isinstance(backend, HostsAutoscaler):
        return backend
    raise CannotRun(
        f"backend {backend.name} has no nodes that an autoscaler could start",
        why=f"it takes one that {AUTOSCALE.means}",
        remedy="Use --backend docker or --backend process",
    )


class _Starter:
    """Starts a batch of nodes, a few at a time, and watches each until it has joined."""

    def __init__(
        self,
        cluster: Cluster,
        names: Sequence[str],
        timeout: float,
        parallelism: int | None,
        progress: Callable[[StartEvent], None],
    ) -> None:
        self.cluster, self.backend, self.clock = cluster, cluster.backend, cluster.clock
        self.waiting = [(name, 1) for name in names]
        self.wanted = len(names)
        self.timeout = timeout
        self.parallelism = parallelism or default_parallelism(cluster.backend.cores())
        self.progress = progress
        self.starting: dict[str, _Starting] = {}
        self.failed: dict[str, list[str]] = {}

    def run(self) -> None:
        begun = self.clock.mono()
        while True:
            # One question a round for all of it: answering takes CPU that the nodes are in need of.
            ray_nodes = self._ray_nodes()
            if ray_nodes is None and "head" not in self.starting:
                self.cluster.need_head("no worker can join")
            # What fails now is tried again in the next round, when it is known what is left of it.
            due = len(self.waiting)
            if self.starting:
                self._look(ray_nodes or [])
            if ray_nodes is not None:
                known = frozenset(n.ray_node_id for n in ray_nodes if n.alive)
                while due and len(self.starting) < self.parallelism:
                    self._start(*self.waiting.pop(0), known)
                    due -= 1
            if not (self.waiting or self.starting):
                break
            self.clock.sleep(0.2)
        if self.failed:
            name, lines = next(iter(self.failed.items()))
            raise NodeStartFailed(
                missing=sorted(self.failed),
                wanted=self.wanted,
                seconds=self.clock.mono() - begun,
                why=f"{name} failed {START_ATTEMPTS} times; its last lines follow",
                remedy="Try --start-parallelism 1",
                details=lines,
            )

    def _ray_nodes(self) -> list[RayNode] | None:
        """None while Ray does not answer; the head itself is started without its leave."""
        try:
            return self.cluster.ray.nodes()
        except CannotRun:
            if any(name == "head" for name, _ in self.waiting):
                return []
            return None

    def _start(self, name: str, attempt: int, known: frozenset[str]) -> None:
        self.progress(StartEvent(name, "starting", attempt=attempt))
        wall = self.backend.wall_clock() if name == "head" else 0.0
        entry = self.starting[name] = _Starting(self.clock.mono(), attempt, known, wall)
        try:
            self.backend.start(self.cluster.name, name)
        except CannotRun as error:
            self._failed(name, entry, f"could not be started: {error}")

    def _look(self, ray_nodes: Sequence[RayNode]) -> None:
        records = {n.name: n for n in self.cluster.record().nodes}
        now = self.clock.mono()
        for name, entry in list(self.starting.items()):
            if name not in records:
                self._failed(name, entry, "was removed while it was starting", again=False)
                continue
            record = records[name]
            # A node that died a moment ago may still be listed alive under its old id; so may a head by its
            # successor that kept its tables, and nobody could be asked for ids before.
            joined = any(
                n.alive
                and n.hostname == record.hostname
                and n.ray_node_id not in entry.known
                and (n.since is None or n.since >= entry.wall - 1.0)
                for n in ray_nodes
            )
            if joined:
                del self.starting[name]
                self.progress(StartEvent(name, "joined", now - entry.since, entry.attempt))
            elif record.state == "exited":
                self._failed(name, entry, f"exited with {record.exit_code}")
            elif now - entry.since > self.timeout:
                self._failed(name, entry, f"did not join within {self.timeout:.0f} s")

    def _failed(self, name: str, entry: _Starting, why: str, again: bool = True) -> None:
        del self.starting[name]
        lines = [f"{name} {why}", *self._last_lines(name)]
        seconds = self.clock.mono() - entry.since
        self.progress(StartEvent(name, "failed", seconds, entry.attempt, lines))
        if again and entry.attempt < START_ATTEMPTS:
            with suppress(CannotRun):  # what keeps it from stopping will keep it from starting
                self.backend.stop(self.cluster.name, name, 1.0)
            self.waiting.append((name, entry.attempt + 1))
            # Most starts fail for want of CPU: the machine carries less than was thought.
            self.parallelism = max(1, self.parallelism - 1)
        else:
            self.failed[name] = lines

    def _last_lines(self, name: str) -> list[str]:
        try:
            return self.backend.logs(self.cluster.name, name, tail=12).splitlines()
        except (CannotRun, NotFound) as error:
            return [f"(its log cannot be read: {error})"]


def _node_status(record: NodeRecord, known: Sequence[RayNode], usage: Usage) -> NodeStatus:
    mine = [n for n in known if n.hostname == record.hostname]
    alive = next((n for n in mine if n.alive), None)
    state: State
    if record.state == "paused":
        state = "paused"
    elif record.state == "exited":
        state = "exited"
    elif record.state == "created":
        state = "starting"
    elif alive is not None:
        state = "alive"
    else:
        state = "dead" if mine else "starting"
    used = usage.by_node.get(alive.ray_node_id, {}) if alive else {}
    return NodeStatus(
        name=record.name,
        role=record.role,
        group=record.group,
        state=state,
        address=record.address,
        hostname=record.hostname,
        ray_node_id=alive.ray_node_id if alive else None,
        resources=record.resources or (alive.resources if alive else {}),
        used={name: pair[0] for name, pair in used.items()},
        exit_code=record.exit_code,
        profile=record.profile,
        managed=record.managed,
    )


def wait_alive(cluster: Cluster, names: Sequence[str], timeout: float) -> None:
    """Wait until these named nodes, not just as many, are alive in the GCS.

    Raises
    ------
    NodeStartFailed
        Some are not after `timeout` seconds; says of each what it is instead.
    """
    deadline = Deadline(timeout, clock=cluster.clock.mono)
    while True:
        status = cluster.status()
        state = {n.name: n.state for n in status.nodes}
        missing = [n for n in names if state.get(n) != "alive"]
        if not missing:
            return
        if deadline.passed:
            seen = ", ".join(f"{n} is {state.get(n, 'not there')}" for n in missing)
            raise NodeStartFailed(
                missing=missing,
                wanted=len(names),
                seconds=timeout,
                why=seen if status.ray["answers"] else f"Ray does not answer: {status.ray['why']}",
            )
        cluster.clock.sleep(0.2)


def wait_least(cluster: Cluster, topology: Topology, timeout: float) -> None:
    """Wait until each group that Ray's autoscaler manages has its `min_replicas` alive.

    Raises
    ------
    NodeStartFailed
        Some have not, after `timeout` seconds from the last one that joined.
    """
    missing: list[str] = []
    deadline = Deadline(timeout, clock=cluster.clock.mono)
    while True:
        before, missing = missing, []
        alive = Counter(n.group for n in cluster.status().nodes if n.state == "alive")
        for group in topology.managed:
            lacks = group.least - alive[group.group_name]
            missing += [group.group_name] * max(0, lacks)
        if not missing:
            return
        if before and len(missing) < len(before):
            deadline = Deadline(timeout, clock=cluster.clock.mono)
        if deadline.passed:
            raise NodeStartFailed(
                missing=missing,
                wanted=sum(g.least for g in topology.managed),
                seconds=timeout,
                why="Ray's autoscaler has not brought up as many as min_replicas says",
                remedy="See: status, and logs of the node",
            )
        cluster.clock.sleep(0.2)


def steady_problems(cluster: Cluster, names: Sequence[str], *, at_rest: bool = True) -> list[str]:
    """Why the cluster is not at rest: nodes that are not alive, resources that are not free.

    Parameters
    ----------
    at_rest
        Whether resources must be free.
    """
    status = cluster.status()
    if not status.ray["answers"]:
        return [f"Ray does not answer: {status.ray['why']}"]
    state = {n.name: n.state for n in status.nodes}
    problems = [
        f"{name} is {state.get(name, 'missing')}, not alive"
        for name in names
        if state.get(name) != "alive"
    ]
    for resource in ("CPU", "GPU"):
        used, total = status.ray["resources"].get(resource, (0.0, 0.0))
        offered = sum(n.resources.get(resource, 0.0) for n in status.nodes if n.state == "alive")
        # Ray's report is some seconds old: one that counts other nodes says nothing of these.
        if abs(total - offered) > 1e-6:
            problems.append(f"Ray reports {total:g} {resource}, the living nodes offer {offered:g}")
        elif used > 1e-6 and at_rest:
            problems.append(f"{used:g} of {total:g} {resource} in use")
    return problems


@dataclass(frozen=True, slots=True)
class Use:
    """What is in use on the living nodes, as Ray counts it.

    Attributes
    ----------
    nodes
        By node and resource, (used, total); empty for a node of which Ray reports nothing.
    waiting
        What somebody waits for, and how many do.
    """

    nodes: Mapping[str, Mapping[str, tuple[float, float]]]
    waiting: Sequence[tuple[Mapping[str, float], int]] = ()

    @property
    def all_free(self) -> bool:
        """Whether nothing is in use or waited for, by a report on every node."""
        return (
            bool(self.nodes)
            and not self.waiting
            and all(
                resources and all(used <= 1e-6 for used, _ in resources.values())
                for resources in self.nodes.values()
            )
        )


def use_of(cluster: Cluster) -> Use:
    """What is in use now; Ray's report is up to a few seconds old. Raises `CannotRun` if it gives none."""
    names = {n.hostname: n.name for n in cluster.record().nodes if n.state == "running"}
    alive = {
        n.ray_node_id: names[n.hostname]
        for n in cluster.ray.nodes()
        if n.alive and n.hostname in names
    }
    usage = cluster.usage()
    # Of a node that offers nothing, nothing is reported, and nothing can be in use.
    none = {
        n.name: {"CPU": (0.0, 0.0)}
        for n in cluster.record().nodes
        if n.resources and not any(n.resources.values())
    }
    return Use(
        {name: usage.by_node.get(i) or none.get(name, {}) for i, name in alive.items()},
        usage.waiting,
    )


def salvage(backend: Backend, name: str, into: Path, *, siblings: bool = True) -> list[str]:
    """Copy what a cluster's run left behind into its run directory; returns what could not be.

    Idempotent; each part is tried whatever happened to the others.

    Parameters
    ----------
    into
        The run's directory, whose name is the run's id.
    siblings
        Several runs may have used the cluster, and its label knows only the first: give each run
        of the same store its part of the ledger.
    """
    problems: list[str] = []

    def attempt(what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except (CannotRun, NotFound, OSError) as error:
            problems.append(f"{what}: {error}")

    def observer_log() -> None:
        program = backend.program(name, "observer")
        if program is None:
            return
        program.stop(timeout=10.0)
        target = into / "logs" / "observer.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8") as out:
            out.writelines(line + "\n" for line in program.lines())

    def ledgers() -> None:
        if not siblings:
            backend.fetch_ledger(name, into.name, into / "ledger")
            return
        with TemporaryDirectory(prefix=".ledger-", dir=into) as folder:
            backend.fetch_ledger(name, "", Path(folder))
            for part in sorted(p for p in Path(folder).iterdir() if p.is_dir()):
                run = next(into.parent.parent.glob(f"*/{part.name}/spec.json"), None)
                if run is not None or part.name == into.name:
                    target = into if run is None else run.parent
                    shutil.copytree(part, target / "ledger", dirs_exist_ok=True)

    attempt("ledger", ledgers)
    attempt("observer", observer_log)
    try:
        nodes = backend.cluster(name).breakable
    except (CannotRun, NotFound) as error:
        return [*problems, f"nodes: {error}"]
    for node in nodes:
        folder = into / "logs" / node.name
        folder.mkdir(parents=True, exist_ok=True)

        def pid1_log(node: NodeRecord = node, folder: Path = folder) -> None:
            text = backend.logs(name, node.name)
            (folder / "pid1.log").write_text(text, encoding="utf-8")

        def ray_logs(node: NodeRecord = node, folder: Path = folder) -> None:
            backend.node_logs(name, node.name, folder / "ray")

        attempt(f"{node.name}'s log", pid1_log)
        if node.role == "store":
            continue
        attempt(f"{node.name}'s Ray logs", ray_logs)
    return problems
