"""What a fault is: how it breaks a node, what shows from outside that it did, and how it is undone.

Nothing here trusts a call that merely returned: a fault that cannot be shown to have taken effect counts
as not injected, and one that is healed must be shown to be gone. A fault is a value, and so is the place
where it strikes: both enter the history before the fault acts, so that another process can undo it, and
a replay do it again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from simulator.backends.base import Backend, CanDisconnect, Capability
from simulator.cluster import Cluster, State, wait_alive
from simulator.errors import CannotRun, NotFound
from simulator.faults.parameters import written
from simulator.innode.supervisor import STOPPED
from simulator.topology import NodeSpec
from simulator.waiting import WaitTimeout

Verb = Literal["start", "die", "pause", "unpause", "oom"]

SIGKILLED = 137  # exit code of PID 1: 128 + SIGKILL


@dataclass(frozen=True, slots=True)
class Site:
    """Where a fault strikes, once that is known.

    Attributes
    ----------
    node
        The node that it breaks.
    id
        Of this fault in its run, such as ``f2``, or ``f2.1`` for the first of several nodes; what is
        put into the machine on its behalf is named by it, so that one fault's undoing leaves the
        others alone.
    peers
        Other nodes that it concerns: those on the far side of a partition.
    details
        What else was found when it struck (a process, and when that began); plain data.
    """

    node: str
    id: str = "f1"
    peers: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "id": self.id,
            "peers": list(self.peers),
            "details": dict(self.details),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Site:
        return cls(data["node"], data["id"], tuple(data["peers"]), dict(data["details"]))


class Missed(CannotRun):
    """What was to be struck was there a moment ago, and is gone: the fault has had no effect."""


@dataclass(frozen=True)
class Fault(ABC):
    """One way to break a node; its fields are its parameters, plain values with defaults.

    Attributes
    ----------
    name
        As a person says it and as the history records it.
    summary
        What it does, in one line.
    needs
        What the backend must be able to do beyond the basics, or None.
    shown_by
        The engine's event that shows the effect; None where only `holds` can.
    undo
        How `heal` undoes it, in a word.
    outlives_restart
        Whether it lies about the node rather than in it (its network, its limits): a node that is started
        again while the fault lasts is struck again.
    between_nodes
        Whether it lies between its node and others, which its site names.
    at_random
        Whether a random schedule may draw it with its usual parameters.
    in_node
        Whether it can only be undone while the node runs: not while another fault holds that frozen.
    on_store
        Whether it can hit the store of the GCS as well, which is no node of Ray's.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[Capability | None] = None
    shown_by: ClassVar[Verb | None] = None
    undo: ClassVar[str]
    outlives_restart: ClassVar[bool] = False
    between_nodes: ClassVar[bool] = False
    at_random: ClassVar[bool] = True
    in_node: ClassVar[bool] = False
    on_store: ClassVar[bool] = False

    @property
    def downs_node(self) -> bool:
        """Whether its node is down while it lasts, so that Ray will declare it dead.

        Such a fault is undone once Ray has, unless its schedule says otherwise; others when the work is done.
        """
        return self.shown_by in ("die", "pause")

    @property
    def announced_s(self) -> float:
        """How long it is announced before it strikes, seconds: `inject` announces it then, and `strike` strikes.

        Undone before it has struck, it never took effect.
        """
        return 0.0

    # -- what it does ------------------------------------------------------------------------------

    def locate(self, cluster: Cluster, site: Site) -> Site:
        """The site with all that must be known before it acts, and to undo it.

        Raises
        ------
        CannotRun
            What it should strike is not there.
        """
        return site

    @abstractmethod
    def inject(self, cluster: Cluster, site: Site) -> None:
        """Break it; returns when the engine took the order, raises `CannotRun` if it did not.

        Raises
        ------
        Missed
            What it strikes went away by itself.
        """

    def announced(self, cluster: Cluster, site: Site) -> str:
        """What is seen from outside that shows that it is announced now; "" if nothing is.

        Asked only of a fault that is announced before it strikes.
        """
        return "nobody is told"

    def strike(self, cluster: Cluster, site: Site) -> None:  # noqa: B027 - most strike when injected
        """Break what was announced; from a thread of its own. What has gone by itself meanwhile is no error.

        Raises
        ------
        CannotRun
            The engine did not take the order.
        """

    @abstractmethod
    def holds(self, cluster: Cluster, site: Site) -> str:
        """What is seen from outside that shows that it is broken now; "" if nothing is."""

    @abstractmethod
    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        """Undo it, idempotently; returns how, for the history.

        A node that Ray already gave up comes back as a new one: whatever state the node is in,
        at the end it is alive in the GCS.

        Parameters
        ----------
        timeout
            For one attempt of the node to join, seconds.

        Raises
        ------
        CannotRun
            It could not be undone. Among them `NodeStartFailed`: the node did not join.
        """

    def lingers(self, cluster: Cluster, site: Site) -> str:
        """What of it is still seen from outside after it was healed; "" if it is gone."""
        return ""

    @classmethod
    def sweep(cls, cluster: Cluster, node: str) -> str:
        """Undo all of this kind that holds on a node, knowing of none; what was undone, or "".

        For whoever comes after an orchestrator that was killed. Quick: nothing is waited for. A node that
        is down is started by whoever sweeps.
        """
        return ""

    # -- whether it can be done --------------------------------------------------------------------

    def prepare(self, backend: Backend, say: Callable[[str], None]) -> None:  # noqa: B027 - few need any
        """Have what it takes on this machine beyond what a cluster does, telling `say` about slow steps.

        Called before anything is started, and before `unable` is asked.
        """

    def refused_by(self, backend: Backend) -> str | None:
        """Why this backend cannot do it, or None; asks nobody."""
        if self.needs is None or isinstance(backend, self.needs.protocol):
            return None
        return f"{self.name} needs a backend that {self.needs.means}; {backend.name} does not"

    def unable(self, backend: Backend) -> str | None:
        """Why it cannot be done on this machine, or None: what the kernel lacks, tried where need be."""
        return self.refused_by(backend)

    def refused_on(self, node: NodeSpec) -> str | None:
        """Why such a node cannot be hit by it, or None; asks nobody."""
        if node.role == "store" and not self.on_store:
            return "is where the head keeps its tables, and no node of Ray's: this fault would hit nothing there"
        return None

    # -- as data -----------------------------------------------------------------------------------

    def to_data(self) -> dict[str, Any]:
        """Its name and its parameters; `fault_from_data` makes it again."""
        return {"fault": self.name, **asdict(self)}

    def __str__(self) -> str:
        changed = [
            f"{f.name}={written(getattr(self, f.name))}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


#: The faults that can be named, in the order in which they are shown.
FAULTS: dict[str, type[Fault]] = {}


def register_fault(kind: type[Fault]) -> type[Fault]:
    """Let a fault be named: in a schedule as text, in a history that is replayed or healed.

    A user's file may be loaded several times: the same class of the same file takes its own place.

    Raises
    ------
    ValueError
        The name is taken by another fault.
    """
    known = FAULTS.setdefault(kind.name, kind)
    if known.__qualname__ != kind.__qualname__:
        raise ValueError(f"there is a fault named {kind.name!r} already")
    FAULTS[kind.name] = kind
    return kind


def fault_from_data(data: Mapping[str, Any]) -> Fault:
    """What `Fault.to_data` wrote.

    Raises
    ------
    NotFound
        No fault of that name is registered.
    """
    values = dict(data)
    name = values.pop("fault")
    kind = FAULTS.get(name)
    if kind is None:
        raise NotFound("fault", name, FAULTS)
    known = {f.name for f in fields(kind)}
    return kind(
        **{
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in known
        }
    )


def require(fault: Fault, backend: Backend) -> Any:
    """The backend, if it can do what the fault needs.

    Raises
    ------
    CannotRun
        It cannot.
    """
    refused = fault.refused_by(backend)
    if refused is not None:
        raise CannotRun(refused)
    return backend


# ---- how a node comes back


#: How long a node that ends may take until the engine says so, seconds.
_GOING_S = 5.0
#: What is there to undo on a node that Ray's autoscaler manages, once it is gone.
REPLACED = "the machine is gone for good: what comes in its place is Ray's autoscaler's to say"


def revive(cluster: Cluster, node: str, timeout: float) -> str:
    """Have the node alive in the GCS, whatever state it is in; returns how.

    A machine that Ray's autoscaler asked for does not come back.

    Parameters
    ----------
    timeout
        For one attempt to join, seconds.

    Raises
    ------
    NodeStartFailed
        It did not join.
    """
    how = ""
    backend = cluster.backend
    if cluster.node(node).role == "store":
        return cluster.revive_store(timeout)
    if cluster.node(node).managed and cluster.node(node).state == "exited":
        return REPLACED
    if isinstance(backend, CanDisconnect) and not backend.is_connected(cluster.name, node):
        # Another fault's doing, and not to be undone here.
        if cluster.node(node).state == "paused":
            cluster.resume(node)
        else:
            backend.start(cluster.name, node)
        return "it runs, unplugged, and can join once it is plugged in"
    if cluster.node(node).state == "paused":
        cluster.resume(node)
        if settled(cluster, node) == "alive":
            return "resumed; Ray still had it"
        how = "resumed, but Ray had given it up; "
    if cluster.node(node).state == "running":
        if state_of(cluster, node) != "dead":
            wait_alive(cluster, [node], timeout)
            return f"{how}it was running already"
        # Ray takes no node back that it gave up: end it, so that it can come back as a new one.
        cluster.backend.stop(cluster.name, node, 1.0)
    if cluster.node(node).managed:
        return f"{how}{REPLACED}"
    alone = node == "head" and not cluster.outlives_head()
    lost = _without_their_head(cluster) if alone else []
    cluster.start_nodes([node, *lost], timeout=timeout)
    how += "started again; it joined as a new node"
    return f"{how}, and so did {', '.join(lost)}" if lost else how


def _without_their_head(cluster: Cluster) -> list[str]:
    """The nodes that ran on without a head, stopped: a new one knows nothing of them, and they would exit."""
    running = [
        n
        for n in cluster.record().nodes
        if n.role != "head" and n.state == "running" and not n.managed
    ]
    cluster.stop_together(running, 1.0, lambda event: None)
    return [n.name for n in running]


def recover(cluster: Cluster, node: str, timeout: float, *, killed: bool = False) -> str:
    """As `revive`, but what another fault did to the node as a whole stays: frozen, killed or stopped.

    That fault has its own undo, and is due when that is due.

    Parameters
    ----------
    killed
        The SIGKILL that the node ended with was this fault's doing.
    """
    record = cluster.node(node)
    from_outside = record.exit_code in (SIGKILLED, STOPPED) and not killed
    if record.state == "paused" or (record.state == "exited" and from_outside):
        return f"the node is {record.state}, and not by this"
    return revive(cluster, node, timeout)


def goes_down(cluster: Cluster, node: str) -> bool:
    """Whether a node in which something could not be done is down, or is going down.

    One that was thawed ends by itself when it hears that Ray has given it up, whatever is done in it then;
    the engine says so a moment later.
    """
    with suppress(WaitTimeout):
        cluster.wait_until(
            lambda: cluster.node(node).state in ("exited", "created"),
            name=f"{node} is down",
            timeout=_GOING_S,
        )
        return True
    return False


def state_of(cluster: Cluster, node: str) -> State:
    """What engine and Ray say of it together."""
    return next(n.state for n in cluster.status().nodes if n.name == node)


def settled(cluster: Cluster, node: str, timeout: float = 30.0) -> State:
    """What becomes of a thawed node: Ray still has it, or it exits as one given up."""

    def decided() -> State | None:
        state = state_of(cluster, node)
        return state if state in ("alive", "exited") else None

    try:
        return cluster.wait_until(decided, name=f"{node} is alive or exits", timeout=timeout)
    except WaitTimeout:
        return state_of(cluster, node)
