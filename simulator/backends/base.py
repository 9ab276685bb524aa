"""What every backend can do, and the narrow capabilities that some have beyond that.

A backend knows containers or process groups; it knows nothing of Ray beyond how to start a node.
The engine is the only state: every method finds what it works on by labels (Docker) or by the
marker in the environment (processes), so any command works from any shell after any crash.

Names: a *cluster* is known by its name; a *node* by ``head`` or ``<group>-<n>``. Inside a node its
identity is the `hostname`, which Ray also shows as the node's name; `NodeRecord` maps the two.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import Signals
from typing import Any, Literal, Protocol, runtime_checkable

from simulator.errors import BadInput, CannotRun, Problem
from simulator.netrules import Feature, NetRule
from simulator.topology import Gpus, Profile, Role, Topology
from simulator.waiting import Clock, RealClock

NodeState = Literal["created", "running", "paused", "exited"]
GpuKind = Literal["real", "simulated", "none"]

#: Every container, network and volume of ours carries these labels; process nodes carry the
#: same facts in their environment. Nothing without LABEL_CLUSTER is ever touched.
LABEL_CLUSTER = "ray-sim.cluster"
LABEL_ROLE = "ray-sim.role"  # head | worker | driver | store | init | program
LABEL_GROUP = "ray-sim.group"
LABEL_RUN_DIR = "ray-sim.run-dir"  # absolute path of the run that owns the cluster, or absent
LABEL_GPU = "ray-sim.gpu"  # real | simulated | none, as resolved when the cluster was made
LABEL_PROFILE = "ray-sim.profile"  # lean, or absent
#: On a node that the cloud made for Ray's autoscaler: what it was asked for as (`simulator.innode.cloud`).
LABEL_MACHINE = "ray-sim.machine"

#: It becomes a Compose project, a folder and part of host names, so it must suit all of them.
_CLUSTER_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")


def name_problem(name: str, option: str = "--name") -> Problem | None:
    """What is wrong with a cluster's name, or None; the same on every backend."""
    if _CLUSTER_NAME.fullmatch(name):
        return None
    shown = name if len(name) <= 40 else f"{name[:30]}... ({len(name)} characters)"
    return Problem(
        f"{option} {shown!r}",
        "is no name for a cluster",
        "use at most 63 of a-z, 0-9, - and _, a letter or digit first and last",
    )


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A cluster that should exist.

    Attributes
    ----------
    env
        Environment of every Ray node (failure-detection settings, for example).
    run_dir
        The run that owns it, so that `down` can salvage into it; None for a cluster by hand.
    labels
        Of whoever else must find it again, on everything that it is made of; a backend without
        labels leaves them out.
    from_nodes
        Read from the nodes that there are, since nothing keeps what it was made as: of a worker
        group without a node, nothing is known.
    seed
        Of what the cloud draws, where Ray's autoscaler asks it for machines.
    """

    name: str
    topology: Topology
    gpu: GpuKind
    image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    run_dir: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    from_nodes: bool = False
    seed: int = 0

    def to_json(self) -> str:
        """For a backend to keep with the cluster: the engine is the only state."""
        return json.dumps(
            {
                "name": self.name,
                "topology": self.topology.model_dump(mode="json"),
                "gpu": self.gpu,
                "image": self.image,
                "env": dict(self.env),
                "run_dir": str(self.run_dir) if self.run_dir else None,
                "labels": dict(self.labels),
                "seed": self.seed,
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> ClusterSpec:
        """What `to_json` wrote, also that of a version without labels.

        Raises
        ------
        CannotRun
            It cannot be read: another version wrote it, or somebody changed it.
        """
        try:
            data = json.loads(text)
            # How many nodes there are may lie outside of the limits: some were removed by hand.
            counts: dict[str, int] = {}
            for group in data["topology"]["worker_groups"]:
                counts[group["group_name"]] = group["replicas"]
                group["replicas"] = group.get("min_replicas") or 0
            made = cls(
                name=data["name"],
                topology=Topology.model_validate(data["topology"]),
                gpu=data["gpu"],
                image=data["image"],
                env=data["env"],
                run_dir=Path(data["run_dir"]) if data["run_dir"] else None,
                labels=data.get("labels", {}),
                seed=data.get("seed", 0),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CannotRun(
                "what the cluster was made as cannot be read",
                why=f"{type(error).__name__}: {error}".splitlines()[0],
                remedy="Use the version of the simulator that made it, or take it down: down",
            ) from error
        return made.with_counts(counts)

    def with_counts(self, counts: Mapping[str, int]) -> ClusterSpec:
        """The same with so many replicas in the groups that are named, whatever their limits say."""
        groups = [
            g.model_copy(update={"replicas": counts.get(g.group_name, g.replicas)})
            for g in self.topology.worker_groups
        ]
        return replace(self, topology=self.topology.model_copy(update={"worker_groups": groups}))


def definition(spec: ClusterSpec) -> str:
    """A short hash of how nodes are defined, so that a name in use by something else can be told.

    How many there are is no part of it, nor within which limits: that is what scaling changes.
    """
    topology = spec.topology.model_dump(mode="json", exclude={"name", "description"})
    for group in topology["worker_groups"]:
        for count in ("replicas", "min_replicas", "max_replicas"):
            del group[count]
    asked = {"topology": topology, "gpu": spec.gpu, "image": spec.image, "env": dict(spec.env)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def refuse_other(spec: ClusterSpec, *, same: bool, existing: Iterable[str]) -> None:
    """Raise `BadInput` if a cluster that exists cannot become `spec` by making nodes.

    Parameters
    ----------
    same
        Whether what exists has the definition of `spec`.
    existing
        The names of its nodes.
    """
    where = f"--name {spec.name}"
    if not same:
        raise BadInput(
            Problem(
                where,
                "is in use by a cluster with another definition: resources, labels, image or health",
                f"take it down first (python -m simulator down --name {spec.name}) "
                "or use another name",
            )
        )
    surplus = sorted(set(existing) - {n.name for n in spec.topology.nodes()})
    if surplus:
        raise BadInput(
            Problem(
                where,
                f"is in use by a cluster that also has {', '.join(surplus)}",
                f"remove nodes with: python -m simulator scale GROUP=N --name {spec.name}",
            )
        )


def without_head(what: str, state: NodeState | Literal["missing"]) -> CannotRun:
    """The error for all that cannot be done because the head does not run.

    Parameters
    ----------
    what
        That cannot be done, such as ``Ray cannot be asked for its nodes``.
    """
    first = {
        "paused": "Resume it first: resume head",
        "missing": "Take the cluster down, and make it again: down, up",
    }
    return CannotRun(
        what, why=f"the head is {state}", remedy=first.get(state, "Start it first: start")
    )


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node as the engine sees it.

    Attributes
    ----------
    hostname
        The node's identity inside, and its name in Ray.
    address
        Its IP address on the cluster's network; "" while it has none.
    state
        What the engine says; whether Ray holds it alive is another question.
    exit_code
        Of PID 1, when exited.
    profile
        What is really installed on it, whatever its topology asks for.
    resources, labels
        What it offers to Ray, as it was started.
    managed
        Ray's autoscaler asked for it, and decides when it goes.
    """

    name: str
    role: Role
    group: str
    state: NodeState
    hostname: str
    address: str
    exit_code: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    profile: Profile = Profile.DEFAULT
    labels: Mapping[str, str] = field(default_factory=dict)
    managed: bool = False


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """One cluster as the engine sees it.

    Attributes
    ----------
    labels
        Of all that it is made of, together; the engine's and its image's among them.
    store
        Where the head's GCS keeps its tables, if that is beside the nodes; no node of Ray's.
    """

    name: str
    backend: str
    gpu: GpuKind
    nodes: Sequence[NodeRecord]
    run_dir: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    store: NodeRecord | None = None

    @property
    def breakable(self) -> Sequence[NodeRecord]:
        """The nodes, and the store: all that a fault can hit."""
        return [*self.nodes, *(s for s in (self.store,) if s is not None)]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the cluster's HTTP API answers, and the token that it wants.

    ``relayed`` says that it leads through this process, and ends with it: the engine is elsewhere.
    """

    url: str
    token: str = field(repr=False)
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """Something the engine saw happen to a node: start, die, pause, unpause, oom.

    ``wall`` is the engine's clock, seconds. For ``die``, `exit_code` is PID 1's (137 = SIGKILL).
    """

    verb: Literal["start", "die", "pause", "unpause", "oom"]
    node: str
    wall: float
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished command: its exit code and what it printed."""

    code: int
    output: str


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a doctor's report."""

    level: Literal["ok", "warning", "problem"]
    name: str
    text: str
    remedy: str = ""

    def as_problem(self) -> Problem:
        return Problem(self.name, self.text, self.remedy)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a node may use; None is no limit, or, where limits are set, the one that there is.

    Attributes
    ----------
    cpus
        Cores.
    memory
        Bytes.
    """

    cpus: float | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What a running node has of its limits, as the kernel says.

    Attributes
    ----------
    limits
        In force.
    memory
        In use and not simply to be dropped, bytes.
    oom_kills
        Processes that the kernel killed in it for want of memory since it was started.
    cpu_seconds
        That its processes had of the CPU since then.
    cgroup
        Version of the kernel's cgroups, which take a limit below what is in use (2) or do not (1).
    """

    limits: Limits
    memory: int
    oom_kills: int
    cpu_seconds: float
    cgroup: int = 2


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """A living process of a node.

    Attributes
    ----------
    pid
        As processes of the node see it.
    started
        Clock ticks since the machine's boot; tells it from a later process of that pid.
    state
        As in ``/proc``: R, S, T (stopped) and so on.
    name, title
        The program's name; its arguments, or what it painted over them (``ray::work``).
    """

    pid: int
    started: int
    state: str
    name: str
    title: str


class Watch(Protocol):
    """Engine events being delivered in the background, until closed."""

    def close(self) -> None: ...


class Program(Protocol):
    """A long-lived program of ours on the cluster's network that is not a Ray node.

    It outlives an orchestrator that is killed, carries the labels, and is removed with the
    cluster; everything that it printed can be read again from its beginning.
    """

    def lines(self) -> Iterator[str]:
        """Its standard output from the beginning, line by line, until it ends."""

    def stop(self, timeout: float) -> int | None:
        """SIGTERM, wait up to `timeout` seconds, SIGKILL; its exit code if it ended by itself."""

    def remove(self) -> None: ...


class Backend(Protocol):
    """What every backend can do. Times are seconds; unknown names raise `NotFound`."""

    name: str

    def version(self) -> str:
        """What nodes run on, for a run's records: ``Docker 26.1.5``, ``processes on Linux 6.1``."""

    def check(self, topology: Topology | None = None) -> list[Check]:
        """Can this machine do it? The engine, its version, memory and cores for `topology`."""

    def cores(self) -> int:
        """How many cores the nodes share: of the engine's machine, which may not be this one."""

    def gpu_kind(self, topology: Topology) -> GpuKind:
        """What the head's declared GPUs would be here; raises `CannotRun` for gpus: real."""

    def prepare(self, spec: ClusterSpec, say: Callable[[str], None]) -> ClusterSpec:
        """Have everything that `create` needs (the image), telling `say` about slow steps."""

    def clusters(self) -> list[ClusterRecord]:
        """Every cluster of ours, running or not."""

    def create(self, spec: ClusterSpec) -> None:
        """Make network, volumes and nodes, started nothing but what they need beforehand.

        Of a cluster that exists, the nodes that are missing are made and the others left as they
        are. A failure leaves nothing behind that `remove` does not find. `BadInput` if what exists
        is defined otherwise, or has nodes that `spec` has not.
        """

    def cluster(self, name: str) -> ClusterRecord: ...

    def spec(self, cluster: str) -> ClusterSpec:
        """What it was made as, with as many replicas in each group as nodes of it exist now."""

    def start(self, cluster: str, node: str) -> None:
        """Start a created or exited node; returns when the engine did, not when it joined."""

    def stop(self, cluster: str, node: str, grace: float) -> None:
        """SIGTERM to PID 1, SIGKILL after `grace` seconds."""

    def remove_node(self, cluster: str, node: str) -> None:
        """Remove one node with its files, killing what still runs of it.

        A node that is made under its name later is a new one.
        """

    def remove(self, cluster: str) -> None:
        """Remove everything that carries the cluster's label; idempotent."""

    def endpoint(self, cluster: str) -> Endpoint:
        """Read again from the engine at every call: ports change when the head restarts.

        Raises
        ------
        CannotRun
            The head is neither running nor paused.
        """

    def logs(self, cluster: str, node: str, tail: int | None = None) -> str:
        """What PID 1 printed."""

    def follow_logs(self, cluster: str, node: str, tail: int | None = None) -> Iterator[str]: ...

    def node_logs(self, cluster: str, node: str, into: Path) -> None:
        """Copy Ray's own log folder of a node (also of an exited one) into a folder."""

    def execute(
        self,
        cluster: str,
        node: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        interactive: bool = False,
    ) -> Completed:
        """Run a command in a node; `interactive` hands over the terminal, output is then ""."""

    def copy_in(self, cluster: str, node: str, source: str, target: str) -> list[str]:
        """Copy a file or folder of this machine into a node, also into one that is down.

        Paths are text, since a ``/`` or ``/.`` at their end means something: where it goes is decided
        as by ``docker cp`` (`simulator.backends.paths`). A relative `target` begins where `execute`
        begins. What arrives belongs to the node's user.

        Returns
        -------
        list of str
            What was left out below `source`: what is neither file nor folder nor a harmless link.

        Raises
        ------
        BadInput
            There is no such source, or nothing can be put there.
        """

    def copy_out(self, cluster: str, node: str, source: str, target: str) -> list[str]:
        """The other way round.

        What a node has written is not trusted: nothing is written outside of `target`.
        """

    def watch(self, cluster: str, emit: Callable[[EngineEvent], None]) -> Watch:
        """Deliver engine events from now on, from a thread of the backend's."""

    def run_program(
        self,
        cluster: str,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        keep_output: bool = True,
    ) -> Program:
        """Start ``python -m <argv>`` beside the nodes, with their environment and the ledger.

        Parameters
        ----------
        keep_output
            Whether all that it prints must be there to be read again. If not, a backend may keep
            only the latest of it: a few megabytes.
        """

    def program(self, cluster: str, name: str) -> Program | None:
        """A program that an earlier process started, running or ended."""

    def put_ledger_file(self, cluster: str, path: str, data: bytes) -> None:
        """Write a file below the ledger's root, whole or not at all; makes its folders."""

    def fetch_ledger(self, cluster: str, path: str, into: Path) -> None:
        """Copy what is in a folder below the ledger's root ("" is all of it) into a folder.

        Works with every node down. Where there is no such folder, nothing is copied.
        """

    def wall_clock(self) -> float:
        """The nodes' wall clock now (they all share the engine's), seconds."""


@runtime_checkable
class TriesOut(Protocol):
    """Knows more of this machine when it may try: seconds that a doctor has and `up` has not."""

    def try_out(
        self, topology: Topology, image: str | None, say: Callable[[str], None]
    ) -> list[Check]:
        """What `check` does not look at, tried for real where that can be; leaves nothing behind.

        Parameters
        ----------
        image
            The node image that would be used, instead of ours.
        say
            Told of what takes long.
        """


@runtime_checkable
class CanKill(Protocol):
    """Sends SIGKILL to a whole node at once: no process of it gets a chance to say good-bye."""

    def kill(self, cluster: str, node: str) -> None: ...


@runtime_checkable
class CanPause(Protocol):
    """Freezes a node: it keeps its memory and address but runs nothing."""

    def pause(self, cluster: str, node: str) -> None: ...

    def resume(self, cluster: str, node: str) -> None: ...


#: What comes of trying to connect: somebody listens, nobody does, no answer came, or no way leads there.
Answer = Literal["accepted", "refused", "silence", "no route"]


@runtime_checkable
class CanShapeNetwork(Protocol):
    """Puts rules into a node's network, each under the id of the fault that wants it.

    They are outside of the node's reach, and no process in it sees them. A node that is started anew has a
    new network, without them. Whatever is told about them was read from the node's network there and then.
    """

    def prepare_network(self, say: Callable[[str], None]) -> None:
        """Have the tools that it takes (an image), telling `say` about slow steps."""

    def network_lacks(self) -> Mapping[Feature, str]:
        """What cannot be done on this machine, and why: tried once, in a network that nobody uses.

        Raises
        ------
        CannotRun
            It cannot be tried, the tools are missing.
        """

    def add_rule(self, cluster: str, node: str, site: str, rule: NetRule) -> None:
        """Have a rule there for a fault; what it had there before is replaced.

        Raises
        ------
        CannotRun
            The node is neither running nor paused; the kernel refused.
        """

    def remove_rule(self, cluster: str, node: str, site: str) -> None:
        """Take a fault's rule away and leave all others; idempotent, also where the node is down."""

    def clear_rules(self, cluster: str, node: str) -> Sequence[str]:
        """Take every rule of ours away, whoever's it is; idempotent, also where the node is down.

        Returns
        -------
        sequence of str
            The ids of the faults that they were there for. Where the tools were never there, none are.
        """

    def rules(self, cluster: str, node: str) -> Mapping[str, NetRule]:
        """What holds now, by the fault's id; nothing where the node is down."""

    def reach(
        self, cluster: str, node: str, address: str, port: int, timeout: float = 1.0
    ) -> Answer:
        """What comes of a TCP connection from a node's network, not from a process in the node."""

    def unanswered(self, cluster: str, node: str, addresses: Sequence[str]) -> int:
        """How many of its TCP connections with these repeat themselves, since no answer comes."""


@runtime_checkable
class CanDisconnect(Protocol):
    """Unplugs a node from the cluster's network: its address and its device are gone."""

    def disconnect(self, cluster: str, node: str) -> None:
        """Unplug it; idempotent."""

    def connect(self, cluster: str, node: str, address: str = "") -> str:
        """Plug it in again, under this address if it is free; returns the one that it has.

        A head has a fixed address, which need not be given.
        """

    def is_connected(self, cluster: str, node: str) -> bool: ...


@runtime_checkable
class CanLimit(Protocol):
    """Gives each node CPU and memory of its own, within limits that can be changed while it runs.

    What fills them up (`simulator.innode.burden`) then burdens that node, and not the machine.
    """

    def why_unlimited(self, resource: Literal["cpus", "memory"]) -> str | None:
        """Why this machine gives nodes no limit of this kind, or None."""

    def limits(self, cluster: str, node: str) -> Limits:
        """What the engine gives it, now and at its next start; what the kernel makes of it is its `load`."""

    def made_limits(self, cluster: str, node: str) -> Limits:
        """What it was made with, whatever was changed since."""

    def set_limits(self, cluster: str, node: str, limits: Limits) -> None:
        """Change those that are given; in force when it returns, and after a restart too.

        Raises
        ------
        CannotRun
            The kernel does not take it: cgroup v1 takes no memory limit below what is in use.
        """

    def load(self, cluster: str, node: str) -> Load:
        """The kernel's word, of a running node.

        Raises
        ------
        CannotRun
            It does not run, or not any more.
        """

    def ran_out_of_memory(self, cluster: str, node: str) -> bool:
        """Whether the engine saw the kernel kill something of it for want of memory, since its start."""


@runtime_checkable
class HasSpillDisk(Protocol):
    """Can give a node a disk of a size of its own for what Ray spills (`spill_size` in its topology)."""

    def spill_folder(self, cluster: str, node: str) -> str | None:
        """Where that disk is in the node; None if it was made without."""


@runtime_checkable
class CanSignal(Protocol):
    """Sees the processes of a running node, and signals any one of them."""

    def processes(self, cluster: str, node: str) -> list[NodeProcess]: ...

    def signal_process(
        self, cluster: str, node: str, process: NodeProcess, number: Signals
    ) -> bool:
        """Signal exactly that process; False if it is gone."""


@runtime_checkable
class HostsAutoscaler(Protocol):
    """Runs Ray's own autoscaler beside the nodes, and the small cloud that gives it machines.

    Both are programs of the cluster's (`Backend.program`) by the names of `simulator.autoscaling`. They outlive
    this process, and what ends them without being asked starts them again. Only the cloud can start
    and stop nodes, and no node can reach it.
    """

    def cloud_folder(self, cluster: str) -> str:
        """Where the cloud's files are to the autoscaler."""

    def start_autoscaler(self, cluster: str, files: Mapping[str, bytes]) -> None:
        """Have both run; what runs is left as it is.

        Parameters
        ----------
        files
            What the cloud's folder is to have in it.
        """

    def stop_autoscaler(self, cluster: str) -> None:
        """Stop both, before the nodes are stopped; idempotent."""

    def autoscaler_runs(self, cluster: str) -> bool | None:
        """Whether both run now; None for a cluster that has none."""

    def cloud_file(self, cluster: str, name: str) -> bytes | None:
        """A file of the cloud's folder; None if there is none."""

    def put_cloud_file(self, cluster: str, name: str, data: bytes) -> None:
        """Have a file there, whole or not at all."""


@runtime_checkable
class HostsStore(Protocol):
    """Runs a Redis beside the nodes, where the head's GCS keeps its tables.

    To every method that takes a node's name, its name is one too.
    """

    def store_answers(self, cluster: str) -> bool:
        """Whether it runs and takes what it is asked, its password known."""


@runtime_checkable
class ServesRay(Protocol):
    """Answers for Ray itself instead of by HTTP: only a simulated backend does."""

    def ray(self, cluster: str) -> Any:
        """What stands in for `simulator.rayapi.RayApi`, with the same methods."""


@runtime_checkable
class KeepsTime(Protocol):
    """Has a clock of its own: only a simulated backend does."""

    simulated_clock: Clock


def clock_of(backend: Backend) -> Clock:
    """The clock that everything about a backend's clusters is timed with."""
    return backend.simulated_clock if isinstance(backend, KeepsTime) else RealClock()


@dataclass(frozen=True, slots=True)
class Capability:
    """A name for a protocol, for messages and docs."""

    name: str
    protocol: type
    means: str


KILL = Capability("kill", CanKill, "can kill a whole node with SIGKILL")
PAUSE = Capability("pause", CanPause, "can freeze and thaw a node")
SHAPE_NETWORK = Capability(
    "shape_network", CanShapeNetwork, "has a network of its own for every node"
)
DISCONNECT = Capability("disconnect", CanDisconnect, "can unplug a node from its network")
LIMIT = Capability("limit", CanLimit, "gives each node CPU and memory of its own")
SPILL_DISK = Capability(
    "spill-disk", HasSpillDisk, "gives a node a disk of its own size to spill to"
)
SIGNAL = Capability("signal", CanSignal, "can signal one process of a node")
AUTOSCALE = Capability("autoscale", HostsAutoscaler, "runs Ray's own autoscaler, with real nodes")


def resolve_gpus(
    topology: Topology, devices: Callable[[], int | None], why_not: str, remedy: str
) -> GpuKind:
    """What the declared GPUs would be: the one rule of all backends.

    Only the head can have a device. A cluster in which some GPUs are real and others are not would
    be reported as one or the other, and a simulated GPU is never called real.

    Parameters
    ----------
    devices
        How many of this machine's can be passed, None if that is not known but some can; asked only if
        it matters.
    why_not, remedy
        Said when a real one is wanted and there is none.

    Raises
    ------
    CannotRun
        The topology wants real ones and that cannot be.
    """
    workers_declare = any(
        g.gpus_declared and (g.most if topology.autoscaling else g.replicas)
        for g in topology.worker_groups
    )
    if not topology.total("GPU") and not workers_declare:
        return "none"
    wanted, declared = topology.head.gpus, topology.head.gpus_declared
    if wanted is Gpus.SIMULATED:
        return "simulated"
    if wanted is Gpus.REAL and (workers_declare or not declared):
        raise CannotRun(
            "the topology wants real GPUs",
            why="only the head can have real ones, and "
            + ("a worker group declares GPUs too" if workers_declare else "it declares none"),
            remedy="Declare GPUs on the head only, or set head.gpus=simulated",
        )
    if workers_declare or not declared:
        return "simulated"
    there = devices()
    if there is None or there >= declared:
        return "real"
    if wanted is not Gpus.REAL:
        return "simulated"
    raise CannotRun(
        f"the topology wants {declared} real GPUs"
        if declared > 1
        else "the topology wants a real GPU",
        why=f"the head can be given {there} of them" if there else why_not,
        remedy=f"Set head.resources.GPU={there}, or head.gpus=auto to simulate them"
        if there
        else f"{remedy}, or set head.gpus=auto to simulate one",
    )
