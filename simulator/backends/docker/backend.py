"""Nodes as containers: made by Compose, started, broken and read by the engine's API.

The engine is the only state. Every method finds what it works on by labels, so a cluster that
somebody started with ``docker compose up`` is one like any other, and a crash of ours forgets
nothing. Compose makes things (it knows how to read compose.yaml); everything after that is one call
to the engine.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any, Literal, cast

import docker
from docker.models.containers import Container
from docker.types import LogConfig, Mount
from python_on_whales import DockerClient

from simulator.assets import innode_path
from simulator.autoscaling import AUTOSCALER, CLOUD
from simulator.backends.base import (
    LABEL_CLUSTER,
    LABEL_GPU,
    LABEL_GROUP,
    LABEL_MACHINE,
    LABEL_PROFILE,
    LABEL_ROLE,
    LABEL_RUN_DIR,
    Answer,
    Check,
    ClusterRecord,
    ClusterSpec,
    Completed,
    Endpoint,
    EngineEvent,
    GpuKind,
    Limits,
    Load,
    NodeProcess,
    NodeRecord,
    NodeState,
    Program,
    Watch,
    definition,
    name_problem,
    refuse_other,
    without_head,
)
from simulator.backends.docker import autoscaler
from simulator.backends.docker import limits as node_limits
from simulator.backends.docker import processes as node_processes
from simulator.backends.docker.addresses import taken_subnets
from simulator.backends.docker.archive import (
    extract,
    lines_of,
    only_file,
    tar_of_file,
    tar_of_folder,
)
from simulator.backends.docker.checks import checks, passing, resolve_gpu
from simulator.backends.docker.copying import copy_in, copy_out
from simulator.backends.docker.engine import (
    Connection,
    asking,
    connect,
    find_connection,
    is_address_clash,
    is_gone,
    is_refused,
    is_restless,
    is_taken,
    is_unmountable,
)
from simulator.backends.docker.events import EventWatch
from simulator.backends.docker.image import (
    DEFAULT_IMAGE,
    GPU_IMAGE,
    IMAGES,
    LEAN_IMAGE,
    REDIS_IMAGE,
    ensure_image,
)
from simulator.backends.docker.netfaults import NetworkFaults
from simulator.backends.docker.programs import LABEL_PROGRAM, DockerProgram
from simulator.backends.docker.relay import Relay
from simulator.backends.docker.trials import trials
from simulator.compose import (
    DASHBOARD_PORT,
    GCS_TARGET,
    INNODE_TARGET,
    LABEL_DEFINITION,
    LABEL_SPEC,
    LEDGER_TARGET,
    LEDGER_VOLUME,
    NETWORK,
    STORE_ENV,
    STORE_TARGET,
    TOKEN_TARGET,
    TOKEN_VOLUME,
    ClusterNetwork,
    expand,
    free_network,
    labels_of,
    passed_through,
    resources_of,
    to_yaml,
)
from simulator.errors import BadInput, CannotRun, NotFound, Problem
from simulator.netrules import Feature, NetRule
from simulator.topology import DRIVER, LEAN_LACKS, Gcs, Head, Profile, Role, Topology, WorkerGroup
from simulator.waiting import Deadline, wait_until

_COMPOSE_PROJECT = "com.docker.compose.project"
_COMPOSE_SERVICE = "com.docker.compose.service"
_COMPOSE_NUMBER = "com.docker.compose.container-number"

_RAY_LOGS = "/tmp/ray/session_latest/logs"
_NETWORK_ATTEMPTS = 5
_INIT_S = 60
_SETTLE_S = 10.0
_FREEZE_S = 15.0  # how long a node whose processes multiply may resist being frozen
_AT_A_TIME = 8  # removals; the engine does them one by one per container anyway

#: The roles of Ray's nodes, in the order in which they are shown.
_NODES: Sequence[Role] = ("head", "driver", "worker")

_STORE: Role = "store"

_STATES: Mapping[str, NodeState] = {
    "created": "created",
    "running": "running",
    "restarting": "running",
    "paused": "paused",
    "removing": "exited",
    "exited": "exited",
    "dead": "exited",
}


@dataclass(frozen=True, slots=True)
class _Container:
    """One container of ours, as the engine's list shows it."""

    id: str
    cluster: str
    role: str  # as LABEL_ROLE
    name: str
    state: NodeState
    labels: Mapping[str, str]
    addresses: Mapping[str, str]  # by network
    mounts: frozenset[str]  # where volumes are mounted

    @property
    def is_node(self) -> bool:
        return self.role in _NODES

    @property
    def is_breakable(self) -> bool:
        """Whether it is something that a fault can hit: a node, or the store."""
        return self.is_node or self.role == _STORE


@dataclass(frozen=True, slots=True)
class _Facts:
    """What never changes about a container, so that it is asked for once."""

    hostname: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


class _Client(docker.DockerClient):
    """The SDK's objects, over a connection that there is already."""

    def __init__(self, api: docker.APIClient) -> None:
        self.api = api


class DockerBackend:
    """Clusters in containers of the Docker engine that ``docker`` itself would talk to.

    Making one asks nobody anything; the first method that needs the engine connects to it, and
    raises `CannotRun` if it does not answer.
    """

    name = "docker"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connected: tuple[Connection, docker.APIClient] | None = None
        self._facts: dict[str, _Facts] = {}
        self._relays: dict[str, Relay] = {}
        self._tokens: dict[str, str] = {}  # by the head's container; it never changes
        self._net = NetworkFaults(lambda: self._api, self._whereabouts)

    # -- what this machine can do ------------------------------------------------------------------

    def version(self) -> str:
        return f"Docker {self._info().get('ServerVersion', '?')}"

    def cores(self) -> int:
        return int(self._info().get("NCPU") or 1)

    def check(self, topology: Topology | None = None) -> list[Check]:
        """The engine, Compose, memory and cores; never raises for what is missing."""
        return checks(topology)

    def try_out(
        self, topology: Topology, image: str | None, say: Callable[[str], None]
    ) -> list[Check]:
        """The image, addresses, and what only a container of that image can tell."""
        return trials(topology, image, say)

    def gpu_kind(self, topology: Topology) -> GpuKind:
        """Real where the engine can pass this machine's GPU to the head and it is wanted."""
        return resolve_gpu(self._connection, self._info(), topology)

    def prepare(self, spec: ClusterSpec, say: Callable[[str], None]) -> ClusterSpec:
        """Build the images that it needs, if missing; one that was named is pulled instead."""
        lean = spec.topology.lean_groups
        if spec.topology.store is not None:
            ensure_image(REDIS_IMAGE, say=say)
        if spec.image:
            if lean:
                say(f"every node has the image {spec.image}: profile lean has no effect")
            ensure_image(spec.image, say=say)
            return spec
        ensure_image(DEFAULT_IMAGE, say=say)
        if spec.gpu == "real":
            ensure_image(GPU_IMAGE, say=say)
        if lean:
            ensure_image(LEAN_IMAGE, say=say)
            say(f"lean nodes ({', '.join(lean)}): {LEAN_LACKS}")
        return spec

    # -- clusters ----------------------------------------------------------------------------------

    def clusters(self) -> list[ClusterRecord]:
        """Every cluster of ours; one that has only volumes or a network left has no nodes."""
        found: dict[str, list[_Container]] = {}
        for container in self._containers():
            found.setdefault(container.cluster, []).append(container)
        more: dict[str, dict[str, str]] = {}
        for _, labels in (*self._networks(), *self._volumes()):
            found.setdefault(labels[LABEL_CLUSTER], [])
            more.setdefault(labels[LABEL_CLUSTER], {}).update(labels)
        return [self._record(name, found[name], more.get(name, {})) for name in sorted(found)]

    def cluster(self, name: str) -> ClusterRecord:
        containers = self._containers(name)
        if containers:
            return self._record(name, containers)
        everything = self.clusters()
        for record in everything:
            if record.name == name:
                return record
        raise NotFound("cluster", name, [c.name for c in everything], hint="start one with: up")

    def create(self, spec: ClusterSpec) -> None:
        """Make network, volumes and nodes; `init` has run when it returns, no node has started."""
        self._refuse_name(spec)
        existing = self._containers(spec.name)
        nodes = [c for c in existing if c.is_node]
        asked = definition(spec)
        # One that was started by hand says only which nodes it has.
        same = all(c.labels.get(LABEL_DEFINITION, asked) == asked for c in nodes)
        ours = [c.name for c in nodes if LABEL_MACHINE not in c.labels]
        refuse_other(spec, same=same, existing=ours)
        there = {c.name for c in existing if c.is_breakable}
        missing = [n for n in spec.topology.breakable() if n.name not in there]
        kept = next((c.labels.get(LABEL_RUN_DIR) for c in nodes), None)
        if existing:
            # What exists keeps its labels; Compose would make anew what differs in them.
            spec = replace(
                spec, run_dir=Path(kept) if kept else None, labels=self._given_labels(spec.name)
            )
        if missing or not existing:
            groups = {n.group for n in missing}
            _refuse_beside(nodes, {g: [n.name for n in missing if n.group == g] for g in groups})
            self._compose_create(spec, sorted(groups) if nodes else None)
        self._run_init(spec.name)

    def spec(self, cluster: str) -> ClusterSpec:
        """From init's label; of a cluster by hand, or without init, read back from its nodes."""
        record = self.cluster(cluster)
        containers = self._containers(cluster)
        if not record.nodes:
            raise CannotRun(
                f"what {cluster} was made as is not known",
                why="it has no node left",
                remedy=f"Take it down: python -m simulator down --name {cluster}",
            )
        text = next((c.labels[LABEL_SPEC] for c in containers if LABEL_SPEC in c.labels), None)
        if text is not None:
            made = replace(ClusterSpec.from_json(text), run_dir=record.run_dir)
        else:
            made = self._read_back(record, containers)
        counts = Counter(node.group for node in record.nodes)
        unmanaged = () if made.topology.autoscaling else made.topology.worker_groups
        groups = [g.group_name for g in unmanaged]
        return made.with_counts({group: counts[group] for group in groups})

    def remove(self, cluster: str) -> None:
        """Remove all that carries the cluster's label, again until nothing is found."""
        for _ in range(5):  # a `docker compose` that outlived its caller may still be making some
            # Who makes machines goes first.
            self._remove_containers(self._elastic(cluster))
            containers = self._containers(cluster)
            networks, volumes = self._networks(cluster), self._volumes(cluster)
            if not (containers or networks or volumes):
                return
            self._remove_containers(containers)
            for name, _ in networks:
                self._unless_gone(f"network {name} was removed", self._api.remove_network, name)
            for name, _ in volumes:
                self._unless_gone(f"volume {name} was removed", self._api.remove_volume, name)
        raise CannotRun(
            f"cluster {cluster} keeps coming back while it is removed",
            remedy="Is another process starting it? End that, then remove it again",
        )

    # -- one node ----------------------------------------------------------------------------------

    def start(self, cluster: str, node: str) -> None:
        container = self._node(cluster, node)
        try:
            with asking(f"{node} was told to start"):
                self._api.start(container.id)
        except CannotRun as error:
            if not is_taken(error) or container.role == "head":
                raise
            # One that was unplugged and plugged in keeps its address, which is somebody else's by now.
            self._net.disconnect(cluster, node)
            self._net.connect(cluster, node)
            with asking(f"{node} was told to start"):
                self._api.start(container.id)
        self._settle(container, "running")

    def stop(self, cluster: str, node: str, grace: float) -> None:
        container = self._node(cluster, node)
        with asking(f"{node} was told to stop"):
            self._api.stop(container.id, timeout=max(0, math.ceil(grace)))
        self._settle(container, "exited")

    def remove_node(self, cluster: str, node: str) -> None:
        container = self._node(cluster, node)
        self._remove_container(container)
        wait_until(
            lambda: all(c.id != container.id for c in self._containers(cluster)),
            name=f"{node} is gone",
            timeout=_SETTLE_S,
            interval=0.01,
        )

    def kill(self, cluster: str, node: str) -> None:
        container = self._node(cluster, node)
        with asking(f"{node} was killed", remedy="See: status"):
            self._api.kill(container.id, signal="SIGKILL")
        self._settle(container, "exited")

    def pause(self, cluster: str, node: str) -> None:
        container = self._node(cluster, node)
        deadline = Deadline(_FREEZE_S)
        while True:
            try:
                with asking(f"{node} was paused", remedy="See: status"):
                    self._api.pause(container.id)
                break
            except CannotRun as error:
                if not is_restless(error) or deadline.passed:
                    raise
                time.sleep(0.05)  # the engine has thawed again what it had frozen
        self._settle(container, "paused")

    def resume(self, cluster: str, node: str) -> None:
        container = self._node(cluster, node)
        with asking(f"{node} was resumed", remedy="See: status"):
            self._api.unpause(container.id)
        self._settle(container, "running")

    # -- its network: CanShapeNetwork, CanDisconnect ------------------------------------------------

    def prepare_network(self, say: Callable[[str], None]) -> None:
        self._net.prepare(say)

    def network_lacks(self) -> Mapping[Feature, str]:
        return self._net.lacks()

    def add_rule(self, cluster: str, node: str, site: str, rule: NetRule) -> None:
        self._net.add(cluster, node, site, rule)

    def remove_rule(self, cluster: str, node: str, site: str) -> None:
        self._net.remove(cluster, node, site)

    def clear_rules(self, cluster: str, node: str) -> Sequence[str]:
        return self._net.clear(cluster, node)

    def rules(self, cluster: str, node: str) -> Mapping[str, NetRule]:
        return self._net.rules(cluster, node)

    def reach(
        self, cluster: str, node: str, address: str, port: int, timeout: float = 1.0
    ) -> Answer:
        return self._net.reach(cluster, node, address, port, timeout)

    def unanswered(self, cluster: str, node: str, addresses: Sequence[str]) -> int:
        return self._net.unanswered(cluster, node, addresses)

    def disconnect(self, cluster: str, node: str) -> None:
        self._net.disconnect(cluster, node)

    def connect(self, cluster: str, node: str, address: str = "") -> str:
        return self._net.connect(cluster, node, address)

    def is_connected(self, cluster: str, node: str) -> bool:
        return self._net.is_connected(cluster, node)

    def _whereabouts(self, cluster: str, node: str) -> tuple[str, NodeState]:
        found = self._node(cluster, node)
        return found.id, found.state

    # -- where the head keeps its tables: HostsStore ------------------------------------------------

    def store_answers(self, cluster: str) -> bool:
        found = next((c for c in self._containers(cluster) if c.role == _STORE), None)
        if found is None or found.state != "running":
            return False
        with asking(f"{found.name} was asked whether it answers"):
            check = self._api.inspect_container(found.id)["Config"]["Healthcheck"]["Test"]
        return self.execute(cluster, found.name, ["sh", "-c", check[1]]).code == 0

    # -- what a node may use, and what runs on it --------------------------------------------------

    def why_unlimited(self, resource: Literal["cpus", "memory"]) -> str | None:
        return node_limits.why_unlimited(self._info(), resource)

    def limits(self, cluster: str, node: str) -> Limits:
        return node_limits.asked_of_engine(self._api, self._node(cluster, node).id)

    def made_limits(self, cluster: str, node: str) -> Limits:
        group = _group_of(self._node(cluster, node).labels)
        return node_limits.made(self.spec(cluster), group, float(self.cores()))

    def set_limits(self, cluster: str, node: str, limits: Limits) -> None:
        # A memory limit that swapping softens is none; as it was made, Docker allows as much swap again.
        memory = limits.memory
        as_made = memory is not None and memory == self.made_limits(cluster, node).memory
        swap = 2 * memory if memory is not None and as_made else memory
        node_limits.set_limits(self._node(cluster, node).id, limits, swap=swap)

    def load(self, cluster: str, node: str) -> Load:
        return node_limits.load(partial(self.execute, cluster, node), node)

    def ran_out_of_memory(self, cluster: str, node: str) -> bool:
        return node_limits.ran_out_of_memory(self._api, self._node(cluster, node).id)

    def spill_folder(self, cluster: str, node: str) -> str | None:
        return node_limits.spill_folder(self._api, self._node(cluster, node).id)

    def processes(self, cluster: str, node: str) -> list[NodeProcess]:
        return node_processes.processes(partial(self.execute, cluster, node), node)

    def signal_process(
        self, cluster: str, node: str, process: NodeProcess, number: Signals
    ) -> bool:
        return node_processes.signal(partial(self.execute, cluster, node), node, process, number)

    def _settle(self, container: _Container, state: NodeState) -> None:
        """Wait until the engine's list says what has happened, or until that is over again.

        The list lags behind the engine's answer by some milliseconds; whoever looks after a call
        returned must not see the time before it.
        """

        def listed() -> bool:
            rows = self._containers(container.cluster)
            now = next((c.state for c in rows if c.id == container.id), None)
            if now is None or now == state:
                return True
            with asking(f"the engine was asked about {container.name}"):
                model = self._api.inspect_container(container.id)["State"]
            return _STATES.get(model["Status"], "exited") != state

        wait_until(listed, name=f"{container.name} is {state}", timeout=_SETTLE_S, interval=0.01)

    def logs(self, cluster: str, node: str, tail: int | None = None) -> str:
        container = self._node(cluster, node)
        with asking(f"the output of {node} was asked for"):
            data = self._api.logs(container.id, tail="all" if tail is None else tail)
        return data.decode("utf-8", errors="replace")

    def follow_logs(self, cluster: str, node: str, tail: int | None = None) -> Iterator[str]:
        container = self._node(cluster, node)
        with asking(f"the output of {node} was asked for"):
            chunks = self._api.logs(
                container.id, tail="all" if tail is None else tail, stream=True, follow=True
            )
        for line in lines_of(cast(Iterator[bytes], chunks)):
            yield line.removesuffix("\n")

    def node_logs(self, cluster: str, node: str, into: Path) -> None:
        """Copy Ray's log folder; nothing for a node that never got so far as to have one."""
        container = self._node(cluster, node)
        into.mkdir(parents=True, exist_ok=True)
        self._unless_gone(
            f"the logs of {node} were fetched", self._fetch, container, _RAY_LOGS, into
        )

    def execute(
        self,
        cluster: str,
        node: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        interactive: bool = False,
    ) -> Completed:
        container = self._node(cluster, node)
        if container.state != "running":
            raise CannotRun(
                f"nothing can be executed in {node}",
                why=f"it is {container.state}",
                remedy=f"restart {node}" if container.state != "paused" else f"resume {node}",
            )
        if interactive:
            return self._execute_interactively(container, argv, env or {})
        with asking(f"{argv[0]} was executed in {node}"):
            created = self._api.exec_create(container.id, list(argv), environment=dict(env or {}))
            output = self._api.exec_start(created["Id"])
            code = self._api.exec_inspect(created["Id"])["ExitCode"]
        return Completed(int(code), output.decode("utf-8", errors="replace"))

    def copy_in(self, cluster: str, node: str, source: str, target: str) -> list[str]:
        return copy_in(self._api, self._node(cluster, node).id, source, target)

    def copy_out(self, cluster: str, node: str, source: str, target: str) -> list[str]:
        return copy_out(self._api, self._node(cluster, node).id, source, target)

    # -- watching ----------------------------------------------------------------------------------

    def watch(self, cluster: str, emit: Callable[[EngineEvent], None]) -> Watch:
        def name_of(labels: Mapping[str, str]) -> str | None:
            return _name_of(labels) if labels.get(LABEL_ROLE) in (*_NODES, _STORE) else None

        since = parse_engine_time(self._info()["SystemTime"])
        return EventWatch(self._api, cluster, since=since, name_of=name_of, emit=emit)

    def wall_clock(self) -> float:
        return parse_engine_time(self._info()["SystemTime"]) / 1e9

    def endpoint(self, cluster: str) -> Endpoint:
        head = self._node(cluster, "head")
        if head.state not in ("running", "paused"):
            raise without_head(f"Ray's HTTP API of {cluster} cannot answer", head.state)
        with asking("the head's port was asked for"):
            ports = self._api.inspect_container(head.id)["NetworkSettings"]["Ports"]
        published = ports.get(f"{DASHBOARD_PORT}/tcp") or []
        if not published:
            raise CannotRun(
                f"Ray's HTTP API of {cluster} cannot be reached",
                why=f"the head publishes no port for {DASHBOARD_PORT}",
            )
        port = int(published[0]["HostPort"])
        relayed = not self._connection.shares_loopback
        if relayed:
            with self._lock:
                if head.id not in self._relays:
                    self._relays[head.id] = Relay(head.id, DASHBOARD_PORT)
                port = self._relays[head.id].port
        # Asked several times a second while a head starts; reading it costs more than all the rest.
        if head.id not in self._tokens:
            self._tokens[head.id] = self._token(cluster)
        return Endpoint(f"http://127.0.0.1:{port}", self._tokens[head.id], relayed)

    def container(self, cluster: str, node: str) -> Container:
        """A node's container as the SDK's own object, for a library that wants one."""
        found = self._node(cluster, node)
        with asking(f"the engine was asked about {node}"):
            return _Client(self._api).containers.get(found.id)

    # -- programs ----------------------------------------------------------------------------------

    def run_program(
        self,
        cluster: str,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        keep_output: bool = True,
    ) -> Program:
        """Like a node, but without a raylet, ports or a terminal: same image, network, volumes."""
        with asking(f"program {name} was started beside the nodes of {cluster}"):
            beside = self._beside(cluster)
            container = self._api.create_container(
                image=beside.image,
                name=f"{cluster}-program-{name}",
                entrypoint=["python", "-m"],
                command=list(argv),
                environment={**beside.environment, "NVIDIA_VISIBLE_DEVICES": "void", **env},
                labels={
                    **beside.labels,
                    LABEL_CLUSTER: cluster,
                    LABEL_ROLE: "program",
                    LABEL_PROGRAM: name,
                },
                user=beside.user,
                host_config=self._api.create_host_config(
                    network_mode=beside.network,
                    mounts=list(beside.mounts),
                    cap_drop=["ALL"],
                    security_opt=["no-new-privileges:true"],
                    mem_limit="512m",
                    pids_limit=512,
                    restart_policy=None,
                    # Whatever the engine's own settings: what must be there to be read again, is.
                    log_config=LogConfig(
                        type="json-file",
                        config={"max-size": "1g" if keep_output else "4m", "max-file": "2"},
                    ),
                ),
            )["Id"]
            self._have_innode(container, beside)
            self._api.start(container)
        return DockerProgram(self._api, container, name)

    def _beside(self, cluster: str) -> autoscaler.Beside:
        """What a program beside the nodes has of theirs: all that the head has, but a terminal and ports."""
        head = self._node(cluster, "head")
        # The head's image has all of Ray; a lean worker's lacks gRPC. It is here, however large.
        model = self._api.inspect_container(head.id)
        labels = self._given_labels(cluster)
        if LABEL_RUN_DIR in head.labels:
            labels[LABEL_RUN_DIR] = head.labels[LABEL_RUN_DIR]
        return autoscaler.Beside(
            cluster=cluster,
            image=model["Image"],
            user=model["Config"]["User"],
            network=model["HostConfig"]["NetworkMode"],
            labels=labels,
            environment={
                name: value
                for name, value in variables_of(model["Config"]["Env"]).items()
                if name not in STORE_ENV
            },
            mounts=[
                _same_mount(m)
                for m in model["Mounts"]
                if m["Destination"] not in (GCS_TARGET, STORE_TARGET)
            ],
        )

    def _have_innode(self, container: str, beside: autoscaler.Beside) -> None:
        if not any(mount["Target"] == INNODE_TARGET for mount in beside.mounts):
            self._copy_innode(container)

    def program(self, cluster: str, name: str) -> Program | None:
        for container in self._containers(cluster):
            if container.role == "program" and container.name == name:
                return DockerProgram(self._api, container.id, name)
        return None

    # -- Ray's autoscaler: HostsAutoscaler ---------------------------------------------------------

    def cloud_folder(self, cluster: str) -> str:  # noqa: ARG002 - the same for all
        return autoscaler.FOLDER

    def start_autoscaler(self, cluster: str, files: Mapping[str, bytes]) -> None:
        there = {c.name: c for c in self._containers(cluster) if c.role == "program"}
        with asking(f"Ray's autoscaler was started beside the nodes of {cluster}"):
            beside = self._beside(cluster)
            volume = autoscaler.make_volume(self._api, cluster, beside.labels)
            if CLOUD not in there:
                socket = autoscaler.socket_of(self._connection)
                made = autoscaler.make_cloud(self._api, beside, volume, socket)
                self._have_innode(made, beside)
            for name, data in files.items():
                self.put_cloud_file(cluster, name, data)
            if AUTOSCALER not in there:
                made = autoscaler.make_autoscaler(self._api, beside, volume)
                self._have_innode(made, beside)
            for program in self._elastic(cluster):
                if program.state != "running":
                    self._api.start(program.id)

    def stop_autoscaler(self, cluster: str) -> None:
        for program in self._elastic(cluster):
            with asking(f"{program.name} was told to stop"):
                self._api.stop(program.id, timeout=5)

    def autoscaler_runs(self, cluster: str) -> bool | None:
        programs = self._elastic(cluster)
        if not programs:
            return None
        return len(programs) == 2 and all(p.state == "running" for p in programs)

    def cloud_file(self, cluster: str, name: str) -> bytes | None:
        for program in self._elastic(cluster):
            try:
                with asking(f"{name} of the cloud was read"):
                    chunks, _ = self._api.get_archive(program.id, f"{autoscaler.FOLDER}/{name}")
                    return only_file(chunks)
            except CannotRun as error:
                if not is_gone(error):
                    raise
        return None

    def put_cloud_file(self, cluster: str, name: str, data: bytes) -> None:
        for program in self._elastic(cluster)[:1]:
            with asking(f"{name} was written for the cloud"):
                self._api.put_archive(program.id, autoscaler.FOLDER, tar_of_file(name, data))

    def _elastic(self, cluster: str) -> list[_Container]:
        """The containers of the cloud and of Ray's autoscaler, in this order."""
        there = {c.name: c for c in self._containers(cluster) if c.role == "program"}
        return [there[name] for name in (CLOUD, AUTOSCALER) if name in there]

    # -- the ledger --------------------------------------------------------------------------------

    def put_ledger_file(self, cluster: str, path: str, data: bytes) -> None:
        with self._holder(cluster) as container, asking(f"{path} was written to the ledger"):
            self._api.put_archive(container, LEDGER_TARGET, tar_of_file(path, data))

    def fetch_ledger(self, cluster: str, path: str, into: Path) -> None:
        with self._holder(cluster) as container, asking(f"the ledger of {cluster} was fetched"):
            chunks, _ = self._api.get_archive(container, f"{LEDGER_TARGET}/{path}".rstrip("/"))
            extract(chunks, into)
        for part in into.rglob(".*.part"):  # the first names of what `put_ledger_file` wrote
            part.unlink()

    # -- making a cluster --------------------------------------------------------------------------

    def _refuse_name(self, spec: ClusterSpec) -> None:
        """A Compose project of somebody else must not be taken for ours."""
        problem = name_problem(spec.name)
        if problem is not None:
            raise BadInput(problem)
        where = f"--name {spec.name}"
        filters = {"label": f"{_COMPOSE_PROJECT}={spec.name}"}
        with asking(f"the engine was asked whether {spec.name} is in use"):
            things = [c.get("Labels") for c in self._api.containers(all=True, filters=filters)]
            things += [n.get("Labels") for n in self._api.networks(filters=filters)]
            things += [v.get("Labels") for v in self._api.volumes(filters=filters)["Volumes"] or []]
        if any(LABEL_CLUSTER not in (labels or {}) for labels in things):
            raise BadInput(
                Problem(where, "is a Compose project of something else", "use another name")
            )

    def _compose_create(self, spec: ClusterSpec, services: list[str] | None) -> None:
        """Make these services and what they depend on; all of them (None) where no node exists."""
        mount = self._connection.shares_files
        found = passing(self._connection, self._info()) if spec.gpu == "real" else None
        for attempt in range(_NETWORK_ATTEMPTS):
            network = self._network_of(spec.name) or free_network(
                taken_subnets(self._api, self._connection), spec.topology.most_nodes, skip=attempt
            )
            project = expand(
                spec,
                network=network,
                mount_innode=mount,
                cores=float(self.cores()),
                cdi=found.devices if found else (),
            )
            try:
                self._run_compose(spec, to_yaml(project), services)
                break
            except CannotRun as error:
                if mount and is_unmountable(error):
                    mount = False
                elif not is_address_clash(error) or attempt == _NETWORK_ATTEMPTS - 1:
                    raise
        if not mount:
            for container in self._containers(spec.name):
                if container.is_node and container.state == "created":
                    self._copy_innode(container.id)

    def _run_compose(self, spec: ClusterSpec, text: str, services: list[str] | None) -> None:
        def create(path: Path) -> None:
            path.write_text(text, encoding="utf-8")
            client = DockerClient(compose_files=[path], compose_project_name=spec.name)
            with asking(
                f"the containers of {spec.name} could not be made",
                remedy="See: python -m simulator doctor",
            ):
                client.compose.create(services, no_recreate=True, pull="never")

        # What exactly was run belongs to the run, and not what becomes of its cluster later.
        if services is None and spec.run_dir is not None and spec.run_dir.is_dir():
            create(spec.run_dir / "compose.yaml")
            return
        with tempfile.TemporaryDirectory(prefix="ray-sim-") as folder:
            create(Path(folder) / "compose.yaml")

    def _run_init(self, cluster: str) -> None:
        """Fill the token and ledger volumes; harmless to run again."""
        init = next((c for c in self._containers(cluster) if c.role == "init"), None)
        if init is None:
            raise CannotRun(f"the volumes of {cluster} cannot be filled", why="init is missing")
        with asking(f"the volumes of {cluster} were to be filled"):
            self._api.start(init.id)
            code = int(self._api.wait(init.id, timeout=_INIT_S)["StatusCode"])
            if code:
                output = self._api.logs(init.id).decode(errors="replace")
                raise CannotRun(
                    f"the volumes of {cluster} could not be filled",
                    why=f"init exited with {code}; its last lines follow",
                    details=output.splitlines()[-10:],
                )

    def _read_back(self, record: ClusterRecord, containers: Sequence[_Container]) -> ClusterSpec:
        """What a cluster by hand is, from how its nodes are started."""
        commands: dict[str, list[str]] = {}
        image, env, gcs = "", {}, Gcs.MEMORY
        for container in containers:
            group = _group_of(container.labels)
            if container.is_node and group not in commands:
                with asking(f"{container.name} was asked how it is started"):
                    config = self._api.inspect_container(container.id)["Config"]
                commands[group] = config["Cmd"] or []
                if container.role == "head" or not image:
                    image = config["Image"]
                    variables = variables_of(config["Env"])
                    env = {n: variables[n] for n in passed_through() if variables.get(n)}
                if container.role == "head":
                    gcs = _gcs_of(variables_of(config["Env"]))
        head, driver = commands.pop("head", []), commands.pop(DRIVER, None)
        profiles = {node.group: node.profile for node in record.nodes}
        return ClusterSpec(
            name=record.name,
            topology=Topology(
                name=f"of-{record.name}",
                description=f"what cluster {record.name} has",
                head=Head(resources=resources_of(head) or {"CPU": 1}, labels=labels_of(head)),
                gcs=gcs,
                driver_node=driver is not None,
                worker_groups=[
                    WorkerGroup(
                        group_name=group,
                        resources=resources_of(command) or {"CPU": 1},
                        labels=labels_of(command),
                        profile=profiles.get(group, Profile.DEFAULT),
                    )
                    for group, command in sorted(commands.items())
                ],
            ),
            gpu=record.gpu,
            # One of ours is what such a node gets anyway; named, it would be every node's.
            image=None if image in IMAGES.values() else image,
            env=env,
            run_dir=record.run_dir,
            from_nodes=True,
        )

    def _copy_innode(self, container: str) -> None:
        with asking("the in-node programs were copied into a node"):
            self._api.put_archive(container, "/", tar_of_folder(innode_path(), INNODE_TARGET))

    def _network_of(self, cluster: str) -> ClusterNetwork | None:
        """The addresses of a network that exists already."""
        for ident, _ in self._networks(cluster):
            with asking(f"the network of {cluster} was asked for"):
                config = self._api.inspect_network(ident)["IPAM"]["Config"][0]
            head = next((c for c in self._containers(cluster) if c.role == "head"), None)
            address = ""
            if head is not None:
                with asking("the head's address was asked for"):
                    networks = self._api.inspect_container(head.id)["NetworkSettings"]["Networks"]
                configs = [n.get("IPAMConfig") or {} for n in networks.values()]
                address = next((c["IPv4Address"] for c in configs if "IPv4Address" in c), "")
            if not address:
                address = config["Subnet"].split("/")[0].rpartition(".")[0] + ".10"
            return ClusterNetwork(
                config["Subnet"], config.get("IPRange") or config["Subnet"], address
            )
        return None

    # -- taking it away ----------------------------------------------------------------------------

    def _remove_containers(self, containers: Sequence[_Container]) -> None:
        try:
            with ThreadPoolExecutor(_AT_A_TIME) as pool:
                list(pool.map(self._remove_container, containers))
        except RuntimeError:  # the interpreter is ending, so no thread can be started any more
            for container in containers:
                self._remove_container(container)

    def _remove_container(self, container: _Container) -> None:
        if relay := self._relays.pop(container.id, None):
            relay.close()
        try:
            self._unless_gone(
                f"{container.name} was removed",
                partial(self._api.remove_container, force=True, v=True),
                container.id,
            )
        except CannotRun as error:
            if not is_refused(error):  # somebody else is removing it already
                raise

    def _unless_gone(self, what: str, action: Callable[..., Any], *arguments: Any) -> None:
        try:
            with asking(what, remedy="See: docker ps --all, docker network inspect"):
                action(*arguments)
        except CannotRun as error:
            if not is_gone(error):
                raise

    # -- asking the engine -------------------------------------------------------------------------

    @property
    def _connection(self) -> Connection:
        return self._connect()[0]

    @property
    def _api(self) -> docker.APIClient:
        return self._connect()[1]

    def _connect(self) -> tuple[Connection, docker.APIClient]:
        with self._lock:
            if self._connected is None:
                connection = find_connection()
                self._connected = (connection, connect(connection))
            return self._connected

    def _info(self) -> Mapping[str, Any]:
        with asking("the Docker engine was asked about itself"):
            return cast(Mapping[str, Any], self._api.info())

    def _containers(self, cluster: str | None = None) -> list[_Container]:
        label = LABEL_CLUSTER if cluster is None else f"{LABEL_CLUSTER}={cluster}"
        with asking("the engine was asked for our containers"):
            rows = self._api.containers(all=True, filters={"label": label})
        return [_container(row) for row in rows]

    def _networks(self, cluster: str | None = None) -> list[tuple[str, Mapping[str, str]]]:
        label = LABEL_CLUSTER if cluster is None else f"{LABEL_CLUSTER}={cluster}"
        with asking("the engine was asked for our networks"):
            rows = self._api.networks(filters={"label": label})
        return [(row["Name"], row["Labels"]) for row in rows]

    def _volumes(self, cluster: str | None = None) -> list[tuple[str, Mapping[str, str]]]:
        label = LABEL_CLUSTER if cluster is None else f"{LABEL_CLUSTER}={cluster}"
        with asking("the engine was asked for our volumes"):
            rows = self._api.volumes(filters={"label": label})["Volumes"] or []
        return [(row["Name"], row["Labels"]) for row in rows]

    def _node(self, cluster: str, node: str) -> _Container:
        containers = self._containers(cluster)
        found = next((c for c in containers if c.is_breakable and c.name == node), None)
        if found is None:
            if not containers:
                self.cluster(cluster)  # says which clusters there are
            raise NotFound("node", node, [c.name for c in containers if c.is_breakable])
        return found

    def _record(
        self, name: str, containers: Sequence[_Container], more: Mapping[str, str] | None = None
    ) -> ClusterRecord:
        nodes = [node for c in containers if c.is_node and (node := self._node_record(c))]
        nodes.sort(key=lambda n: (_NODES.index(n.role), n.group, _number(n.name)))
        store = next((self._node_record(c) for c in containers if c.role == _STORE), None)
        labels = dict(more or {})
        labels |= {key: value for c in containers for key, value in c.labels.items()}
        run_dir = labels.get(LABEL_RUN_DIR)
        return ClusterRecord(
            name=name,
            backend=self.name,
            gpu=_gpu_of(containers, nodes),
            nodes=nodes,
            run_dir=Path(run_dir) if run_dir else None,
            labels=labels,
            store=store,
        )

    def _given_labels(self, cluster: str) -> dict[str, str]:
        """The labels that its spec gave it; its network has them, and none of an image's."""
        ours = (LABEL_CLUSTER, LABEL_DEFINITION, LABEL_RUN_DIR)
        return {
            key: value
            for _, labels in self._networks(cluster)
            for key, value in labels.items()
            if key not in ours and not key.startswith("com.docker.")
        }

    def _node_record(self, container: _Container) -> NodeRecord | None:
        """None if it was removed since the list was made."""
        facts, code = self._facts.get(container.id), None
        if facts is None or container.state == "exited":
            try:
                with asking(f"the engine was asked about {container.name}"):
                    model = self._api.inspect_container(container.id)
            except CannotRun as error:
                if is_gone(error):
                    return None
                raise
            command = model["Config"]["Cmd"] or []
            facts = _Facts(model["Config"]["Hostname"], resources_of(command), labels_of(command))
            self._facts[container.id] = facts
            code = int(model["State"]["ExitCode"])
        network = f"{container.cluster}_{NETWORK}"
        addresses = container.addresses
        return NodeRecord(
            name=container.name,
            role=cast(Role, container.role),
            group=_group_of(container.labels),
            state=container.state,
            hostname=facts.hostname,
            address=addresses.get(network) or next(iter(addresses.values()), ""),
            exit_code=code if container.state == "exited" else None,
            resources=facts.resources,
            profile=Profile.LEAN
            if container.labels.get(LABEL_PROFILE) == Profile.LEAN.value
            else Profile.DEFAULT,
            labels=facts.labels,
            managed=LABEL_MACHINE in container.labels,
        )

    # -- files -------------------------------------------------------------------------------------

    def _fetch(self, container: _Container, path: str, into: Path) -> None:
        chunks, _ = self._api.get_archive(container.id, path)
        extract(chunks, into)

    def _token(self, cluster: str) -> str:
        with self._holder(cluster) as container, asking(f"the token of {cluster} was read"):
            chunks, _ = self._api.get_archive(container, f"{TOKEN_TARGET}/token")
            return only_file(chunks).decode().strip()

    def _holder(self, cluster: str) -> _Holder:
        return _Holder(self, cluster)

    def _execute_interactively(
        self, container: _Container, argv: Sequence[str], env: Mapping[str, str]
    ) -> Completed:
        """The docker command itself is what hands over a terminal properly."""
        command = ["docker", "exec", "--interactive"]
        if sys.stdin.isatty() and sys.stdout.isatty():
            command.append("--tty")
        for name, value in env.items():
            command += ["--env", f"{name}={value}"]
        with asking(f"{argv[0]} was executed in {container.name}"):
            done = subprocess.run([*command, container.id, *argv], check=False)
        return Completed(done.returncode, "")


class _Holder:
    """Any container that mounts the ledger and the token, running or not.

    `init` is the best: it exists from the beginning, never runs again, and no fault hits it. If
    all containers are gone but the volumes are not, one is made for the purpose, and never started.
    """

    def __init__(self, backend: DockerBackend, cluster: str) -> None:
        self._backend, self._cluster = backend, cluster
        self._made: str | None = None

    def __enter__(self) -> str:
        holders = [c for c in self._backend._containers(self._cluster) if LEDGER_TARGET in c.mounts]
        holders.sort(key=lambda c: (c.role != "init", c.state == "paused"))
        return holders[0].id if holders else self._make()

    def __exit__(self, *_: object) -> None:
        if self._made is not None:
            with asking("a helper container was removed"):
                self._backend._api.remove_container(self._made, force=True)

    def _make(self) -> str:
        backend, cluster = self._backend, self._cluster
        volumes = {name.removeprefix(f"{cluster}_"): name for name, _ in backend._volumes(cluster)}
        if LEDGER_VOLUME not in volumes:
            backend.cluster(cluster)  # raises NotFound if there is nothing at all
            raise CannotRun(f"cluster {cluster} has no ledger", why="its volume was removed")
        targets = {LEDGER_VOLUME: LEDGER_TARGET, TOKEN_VOLUME: TOKEN_TARGET}
        with asking(f"the volumes of {cluster} were to be read"):
            images = [i["Id"] for i in backend._api.images(name=DEFAULT_IMAGE)]
            images = images or [i["Id"] for i in backend._api.images()]
            if not images:
                raise CannotRun(f"the volumes of {cluster} cannot be read", why="no image is left")
            self._made = cast(
                str,
                backend._api.create_container(
                    image=images[0],
                    command=["true"],
                    labels={LABEL_CLUSTER: cluster, LABEL_ROLE: "program"},
                    host_config=backend._api.create_host_config(
                        network_mode="none",
                        mounts=[
                            Mount(target=targets[n], source=volumes[n], type="volume")
                            for n in targets
                            if n in volumes
                        ],
                    ),
                )["Id"],
            )
        return self._made


def variables_of(env: Sequence[str]) -> dict[str, str]:
    """A container's environment; of a cluster by hand it also names what its shell did not have.

    Examples
    --------
    >>> variables_of(["A=1=2", "RAY_health_check_period_ms"])
    {'A': '1=2'}
    """
    return {name: value for name, equals, value in (e.partition("=") for e in env) if equals}


def parse_engine_time(text: str) -> int:
    """Nanoseconds since 1970 of a moment as the engine writes it.

    Examples
    --------
    >>> parse_engine_time("1970-01-01T01:00:01.000000002+01:00")
    1000000002
    """
    match = re.match(r"(\d+-\d+-\d+T\d+:\d+:\d+)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)$", text)
    if match is None:
        raise CannotRun("the engine's clock cannot be read", why=f"it says {text!r}")
    zone = "+00:00" if match[3] == "Z" else match[3]
    whole = datetime.fromisoformat(match[1] + zone).astimezone(timezone.utc)
    return int(whole.timestamp()) * 10**9 + int((match[2] or "0").ljust(9, "0")[:9])


def _container(row: Mapping[str, Any]) -> _Container:
    labels = row.get("Labels") or {}
    networks = (row.get("NetworkSettings") or {}).get("Networks") or {}
    role = labels.get(LABEL_ROLE, "")
    return _Container(
        id=row["Id"],
        cluster=labels[LABEL_CLUSTER],
        role=role,
        name=labels.get(LABEL_PROGRAM, "") if role == "program" else _name_of(labels),
        state=_STATES.get(row["State"], "exited"),
        labels=labels,
        addresses={n: a["IPAddress"] for n, a in networks.items() if a.get("IPAddress")},
        mounts=frozenset(m["Destination"] for m in row.get("Mounts") or []),
    )


def _name_of(labels: Mapping[str, str]) -> str:
    """A node's name from its container's labels."""
    role = labels.get(LABEL_ROLE, "")
    if role == _STORE:
        return _group_of(labels)
    if role != "worker":
        return role
    return f"{_group_of(labels)}-{labels.get(_COMPOSE_NUMBER, '1')}"


def _gcs_of(environment: Mapping[str, str]) -> Gcs:
    """Where a head keeps its tables."""
    if environment.get("RAY_REDIS_ADDRESS"):
        return Gcs.REDIS
    return Gcs(environment.get("RAY_gcs_storage", Gcs.MEMORY.value))


def _group_of(labels: Mapping[str, str]) -> str:
    return labels.get(LABEL_GROUP) or labels.get(_COMPOSE_SERVICE, "worker")


def _refuse_beside(nodes: Sequence[_Container], missing: Mapping[str, Sequence[str]]) -> None:
    """Refuse what Compose cannot make: it numbers on from the highest, and starts what is paused."""
    problems: list[Problem] = []
    for group, names in missing.items():
        mine = [c for c in nodes if _group_of(c.labels) == group]
        highest = max((_number(c.name) for c in mine), default=0)
        gaps = [name for name in names if group != "head" and _number(name) < highest]
        if gaps:
            problems.append(
                Problem(
                    ", ".join(gaps),
                    f"was removed by hand, and its number cannot be given again below {group}-{highest}",
                    f"scale the group down first: scale {group}={_number(gaps[0]) - 1}",
                )
            )
        problems += [
            Problem(c.name, "is paused, so no node can be made beside it", f"resume {c.name}")
            for c in mine
            if c.state == "paused"
        ]
    if problems:
        raise BadInput(problems)


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name.rpartition("-")[2]) or 0)


def _gpu_of(containers: Sequence[_Container], nodes: Sequence[NodeRecord]) -> GpuKind:
    """What the head's label says; whatever declares no GPU has none."""
    if not any(n.resources.get("GPU") for n in nodes):
        return "none"
    said = next((c.labels.get(LABEL_GPU) for c in containers if c.role == "head"), None)
    return "real" if said == "real" else "simulated"


def _same_mount(mount: Mapping[str, Any]) -> Mount:
    source = mount["Name"] if mount["Type"] == "volume" else mount["Source"]
    return Mount(
        target=mount["Destination"],
        source=source,
        type=mount["Type"],
        read_only=not mount["RW"],
    )
