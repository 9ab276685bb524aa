"""What runs on the cluster while it is broken.

A workload is a program that runs inside as a Ray job, and the specification that it reads there. It
records what it does in the effect ledger and what its owner sees in the driver's file (`simulator.innode`).
A `Script` is the exception: a program of the user's, which reads and records nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from simulator.errors import Problem
from simulator.innode.work import COMPANY_S
from simulator.jobs import Program
from simulator.topology import NodeSpec, Topology


class Workload(Protocol):
    """What the runner needs of a workload."""

    @property
    def name(self) -> str:
        """For the history."""

    def entrypoint(self, run_id: str) -> str:
        """The job's command line."""

    def spec(self, hostnames: Mapping[str, str]) -> dict[str, Any]:
        """What the program reads; `hostnames` maps each worker's name to its identity inside."""

    def nominal_seconds(self, topology: Topology) -> float:
        """How long the planned work takes when nothing fails, about."""


@runtime_checkable
class Demanding(Protocol):
    """A workload that some nodes can never do."""

    def problems(self, topology: Topology) -> Sequence[Problem]:
        """What it asks for that no node which there may be can give: it would be waited for in vain."""


@runtime_checkable
class Surveyed(Protocol):
    """A workload of which a second program looks at what is left of it, once the cluster is whole again."""

    def survey(self, run_id: str) -> str:
        """The second program's command line; its last line in the ledger is ``survey.end``."""


@dataclass(frozen=True, slots=True)
class TaskStream:
    """A steady stream of checkable tasks on every node, with objects and actors held on the workers.

    Each task holds one CPU slot for `task_seconds` and computes for a small part of it. Every
    `chain_every`-th is a chain of two, the first leaving a block in the object store for the second.
    On every worker there is one object that nobody fetches (so its only copy is there) and one
    stateful actor that is called again and again. When the orchestrator says that a fault is in, the
    stream goes on beyond its plan until told to finish.

    Parameters
    ----------
    tasks
        How many are planned.
    task_seconds
        Nominal length, seconds.
    max_retries
        Ray's ``max_retries`` of each task.
    in_flight_per_slot
        How many are submitted and not back at any moment, for each CPU of the cluster.
    chain_every
        Every how-many-th task is a chain; 0 for none.
    chain_bytes, block_bytes
        Size of a chain's block and of a kept object. Ray keeps what is larger than 100 KiB in the
        object store of the node that made it.
    actor_period_s
        Least time between two calls of one actor, seconds.
    loop
        How many numbers a task adds up.
    speculate_after_s
        A task that is not back after so many seconds is submitted a second time, as ``<name>-copy``, for whichever
        comes back first; None for never.
    """

    tasks: int = 120
    task_seconds: float = 0.5
    max_retries: int = 3
    in_flight_per_slot: float = 2.0
    chain_every: int = 8
    chain_bytes: int = 262_144
    block_bytes: int = 1_048_576
    actor_period_s: float = 0.5
    loop: int = 20_000
    speculate_after_s: float | None = None

    @property
    def name(self) -> str:
        return "task_stream"

    def entrypoint(self, run_id: str) -> str:
        return f"python -m simulator.innode.stream --run {run_id}"

    def spec(self, hostnames: Mapping[str, str]) -> dict[str, Any]:
        return {**asdict(self), "workers": dict(hostnames)}

    def nominal_seconds(self, topology: Topology) -> float:
        slots = max(1.0, topology.total("CPU"))
        chained = self.tasks // self.chain_every if self.chain_every else 0
        return (self.tasks + chained) * self.task_seconds / slots


@dataclass(frozen=True, slots=True)
class TaskKind:
    """Tasks that are all alike: what each needs of its node, and how many there are.

    Attributes
    ----------
    name
        Its tasks are ``<name>-1``, ``<name>-2``, ...
    resources
        What one task takes of its node while it runs, such as ``{"CPU": 1, "GPU": 0.5}``.
    labels
        Ray labels that its node must have, each with exactly this value.
    company
        How many of this kind should once be on the same GPUs of a node at the same time. Until that has
        happened, each waits for it at its end and keeps what it holds, for at most a minute: whether
        they share does not depend on how fast a worker process starts.
    omits
        Resources that a task needs and its submission does not ask for: a mistake, planted so that the
        check of the placement can be seen to find it.
    """

    name: str
    resources: Mapping[str, float]
    count: int
    labels: Mapping[str, str] = field(default_factory=dict)
    company: int = 1
    omits: Sequence[str] = ()

    def fits(self, node: NodeSpec) -> int:
        """How many run on an otherwise empty node at once."""
        if any(node.labels.get(key) != value for key, value in self.labels.items()):
            return 0
        return min(
            math.floor(node.resources.get(name, 0.0) / amount + 1e-9)
            for name, amount in self.resources.items()
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """Tasks of several kinds, all submitted at once and in turn, so that they compete for the nodes.

    Each holds what it asked for during `task_seconds` and computes for a small part of it. The plan is
    all there is: the driver ends when every task came back.

    Parameters
    ----------
    task_seconds
        Nominal length of each task, seconds.
    max_retries
        Ray's ``max_retries`` of each task.
    loop
        How many numbers a task adds up.
    """

    kinds: Sequence[TaskKind]
    task_seconds: float = 0.5
    max_retries: int = 3
    loop: int = 20_000

    @property
    def name(self) -> str:
        return "placement"

    def entrypoint(self, run_id: str) -> str:
        return f"python -m simulator.innode.placement --run {run_id}"

    def spec(self, hostnames: Mapping[str, str]) -> dict[str, Any]:  # noqa: ARG002 - any node will do
        return asdict(self)

    def nominal_seconds(self, topology: Topology) -> float:
        """As if the kinds ran one after the other: they share nodes, and that is the most it takes.

        A kind that is to have company waits for it once, as long as it does at most.
        """
        nodes = topology.nodes()
        rounds = [math.ceil(k.count / max(1, sum(map(k.fits, nodes)))) for k in self.kinds]
        waits = sum(kind.company > 1 for kind in self.kinds)
        return sum(rounds) * self.task_seconds + waits * COMPANY_S


@dataclass(frozen=True, slots=True)
class Promises:
    """Work of which something is promised, so that it can be seen whether that is kept when a node fails.

    Posts are tasks that each do one deed in the outside world, and are tried again until they came back: each
    deed is to happen exactly once. On every worker there is one named actor, the teller: only one
    incarnation of it may live at any moment, and its charges are to happen at most once. A placement group has
    a bundle on every node, and is to be whole again in the end, when nothing may be left in use either.

    Every node needs a CPU, for a post and the bundle together.

    Parameters
    ----------
    tasks
        How many posts are planned.
    task_seconds
        Nominal length of a post and of a charge, seconds.
    in_flight_per_slot
        How many posts are submitted and not back at any moment, for each that can run.
    roll_call_s
        Least time between two tasks through the same bundle, seconds.
    retried
        The mistake that breaks *at most once*: charges are submitted with retries.
    repeated
        The mistake that breaks *exactly once*: posts do their deed without an idempotency key.
    leaked
        The mistake that leaves something in use: a detached actor that nobody ends.
    """

    tasks: int = 80
    task_seconds: float = 0.5
    in_flight_per_slot: float = 1.5
    roll_call_s: float = 1.0
    retried: bool = False
    repeated: bool = False
    leaked: bool = False

    @property
    def name(self) -> str:
        return "promises"

    def entrypoint(self, run_id: str) -> str:
        return f"python -m simulator.innode.promises --run {run_id}"

    def spec(self, hostnames: Mapping[str, str]) -> dict[str, Any]:
        # What is common to all its tasks; the charges are calls.
        return {**asdict(self), "max_retries": -1, "workers": dict(hostnames)}

    def nominal_seconds(self, topology: Topology) -> float:
        return self.tasks * self.task_seconds / max(1.0, topology.total("CPU"))


@dataclass(frozen=True, slots=True)
class Hoard:
    """On every worker more objects than its store holds, so that it spills them and fetches them back all the time.

    Each task makes a block on one worker, by turns, and adds it up there. A worker keeps its last `kept` blocks;
    from then on it reads the oldest again, and gives it up, for each new one.

    Parameters
    ----------
    tasks
        How many blocks are made as planned.
    task_seconds
        Nominal length of the making of one, seconds.
    kept
        How many blocks each worker keeps.
    block_bytes
        Size of a block.
    max_retries
        Ray's ``max_retries`` of each task.
    in_flight_per_slot
        How many are submitted and not back at any moment, for each CPU of the cluster.
    """

    tasks: int = 200
    task_seconds: float = 0.4
    kept: int = 12
    block_bytes: int = 8_388_608
    max_retries: int = 3
    in_flight_per_slot: float = 1.0

    @property
    def name(self) -> str:
        return "hoard"

    def entrypoint(self, run_id: str) -> str:
        return f"python -m simulator.innode.hoard --run {run_id}"

    def spec(self, hostnames: Mapping[str, str]) -> dict[str, Any]:
        return {**asdict(self), "workers": dict(hostnames)}

    def nominal_seconds(self, topology: Topology) -> float:
        slots = max(1.0, sum(n.resources.get("CPU", 0.0) for n in topology.workers()))
        return self.tasks * self.task_seconds / slots


@dataclass(frozen=True, slots=True)
class Wave:
    """Work that is submitted at once.

    Attributes
    ----------
    kinds
        Tasks, by what they need of their node.
    seconds
        How long each of them takes.
    bundles
        A placement group that comes with it: what each of its bundles reserves. A task holds each of them
        as long as the others take.
    strategy
        Ray's, of the placement group.
    after_s
        How long there was nothing to do before it, seconds.
    """

    kinds: Sequence[TaskKind] = ()
    seconds: float = 1.0
    bundles: Sequence[Mapping[str, float]] = ()
    strategy: str = "PACK"
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Waves:
    """Work in waves, for a cluster that grows with it: each wave is done before the next one begins.

    Parameters
    ----------
    rest_s
        How long there is nothing to do after the last one, seconds.
    max_retries
        Ray's ``max_retries`` of each task.
    loop
        How many numbers a task adds up.
    """

    waves: Sequence[Wave]
    rest_s: float = 0.0
    max_retries: int = 3
    loop: int = 20_000

    @property
    def name(self) -> str:
        return "waves"

    def entrypoint(self, run_id: str) -> str:
        return f"python -m simulator.innode.waves --run {run_id}"

    def spec(self, hostnames: Mapping[str, str]) -> dict[str, Any]:  # noqa: ARG002 - nodes come and go
        return {**asdict(self), "task_seconds": max(wave.seconds for wave in self.waves)}

    def problems(self, topology: Topology) -> Sequence[Problem]:
        """Kinds of tasks, and bundles, that fit on no node that there may be."""
        nodes = topology.imagined().nodes()
        found = []
        for number, wave in enumerate(self.waves, 1):
            bundles = [TaskKind(f"bundle {i}", bundle, 1) for i, bundle in enumerate(wave.bundles)]
            for kind in (*wave.kinds, *bundles):
                if not any(kind.fits(node) for node in nodes):
                    asked = ", ".join(
                        f"{amount:g} {name}" for name, amount in kind.resources.items()
                    )
                    with_labels = "".join(f", {k}={v}" for k, v in kind.labels.items())
                    what = f"asks for {asked}{with_labels}, which no node of {topology.name} can ever give"
                    found.append(
                        Problem(
                            f"wave {number}: {kind.name}",
                            what,
                            "ask for less, or give a group more: --set worker_groups.NAME.resources.CPU=4",
                        )
                    )
        return found

    def nominal_seconds(self, topology: Topology) -> float:
        """As if the most nodes that there may be were there, each wave after the other."""
        nodes = topology.imagined().nodes()
        total = self.rest_s
        for wave in self.waves:
            rounds = [math.ceil(k.count / max(1, sum(map(k.fits, nodes)))) for k in wave.kinds]
            total += wave.after_s + wave.seconds * (sum(rounds) + bool(wave.bundles))
        return total


@dataclass(frozen=True, slots=True)
class Survivors:
    """One of everything that a head remembers, so that it can be seen what outlives it.

    A detached actor, one with a name, one without; a placement group with a bundle on every worker; an entry in the
    GCS's key-value store; a Serve application; tasks that run and tasks that wait. A client calls whatever there is
    several times a second, from before the fault to the end: how long nothing came back is the downtime that it
    sees. When the cluster is whole again, a second program, which knows the names only, looks for each.

    Every worker needs three CPUs, and there must be two workers at least.

    Parameters
    ----------
    task_seconds
        How long the tasks run that are running when the fault strikes, seconds.
    queued
        How many tasks wait meanwhile.
    serve
        Whether there is a Serve application.
    max_retries
        Ray's ``max_retries`` of each task.
    """

    task_seconds: float = 20.0
    queued: int = 4
    serve: bool = True
    max_retries: int = 3

    @property
    def name(self) -> str:
        return "survivors"

    def entrypoint(self, run_id: str) -> str:
        return f"python -m simulator.innode.survivors --run {run_id}"

    def survey(self, run_id: str) -> str:
        return f"python -m simulator.innode.survivors --run {run_id} --survey"

    def spec(self, hostnames: Mapping[str, str]) -> dict[str, Any]:
        return {**asdict(self), "workers": dict(hostnames)}

    def problems(self, topology: Topology) -> Sequence[Problem]:
        """Nodes that it needs and the topology does not have."""
        where, found = f"topology {topology.name}", []
        workers = topology.workers()
        if len(workers) < 2:
            what = f"has {len(workers)} workers, and two are needed"
            found.append(Problem(where, what, "--workers 2"))
        small = [n.name for n in workers if n.resources.get("CPU", 0.0) < 3]
        if small:
            what = f"gives {', '.join(small)} fewer than three CPUs"
            found.append(Problem(where, what, "--set worker_groups.GROUP.resources.CPU=3"))
        return found

    def nominal_seconds(self, topology: Topology) -> float:  # noqa: ARG002 - all of it runs side by side
        return self.task_seconds + self.queued


@dataclass(frozen=True, slots=True)
class Script:
    """A program of the user's, unchanged: what it does is its own business, how it ends is the run's.

    Parameters
    ----------
    timeout_s
        How long it may take in all, seconds; then it is stopped.
    """

    program: Program
    timeout_s: float = 1800.0

    name: ClassVar[str] = "program"

    def entrypoint(self, run_id: str) -> str:  # noqa: ARG002 - it knows nothing of a run
        return self.program.entrypoint

    def spec(self, hostnames: Mapping[str, str]) -> dict[str, Any]:  # noqa: ARG002
        """Without its runtime_env, whose variables may be secrets."""
        return {
            "script": self.program.script,
            "arguments": list(self.program.arguments),
            "timeout_s": self.timeout_s,
        }

    def nominal_seconds(self, topology: Topology) -> float:  # noqa: ARG002
        """Nobody knows."""
        return 0.0
