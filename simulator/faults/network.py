"""Faults of a node's network: cut off, unplugged, lossy, narrow, slow, out of order.

All but `Disconnect` are rules in the node's own network (`simulator.netrules`), put there from outside, each
under its fault's id. A node that is started again has a new network, so they outlive its restart by being
put there once more; so do they when one of the nodes that they name comes back under another address.

Ray is slow to believe in such a fault, and slow to believe that it is over: connections that got no answer
try again after twice the time, each time, so a node may be given up some seconds *after* the fault was
healed. Healing waits until that is decided: until no connection between the node and the GCS repeats itself,
or Ray has given the node up, which then comes back as a new one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

from simulator.backends.base import (
    DISCONNECT,
    SHAPE_NETWORK,
    Backend,
    CanDisconnect,
    CanShapeNetwork,
    Capability,
)
from simulator.cluster import Cluster, State
from simulator.compose import GCS_PORT
from simulator.errors import BadInput, CannotRun, Problem
from simulator.faults.base import Fault, Site, register_fault, require, revive
from simulator.netrules import (
    DIRECTIONS,
    MEANS,
    Direction,
    Drop,
    Feature,
    Flow,
    NetRule,
    Shape,
    netem_words,
    parse_rate,
    tbf_words,
)
from simulator.topology import NodeSpec
from simulator.waiting import Deadline

#: Which of a node's links a partition cuts.
Scope = Literal["all", "gcs", "objects"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

#: Nobody listens there, so whoever gets through is refused at once.
_DISCARD = 9

_STOP_S = 1.0
_LOOK_S = 0.3


@dataclass(frozen=True)
class NetworkFault(Fault):
    """Base of those that are a rule in the node's network."""

    needs: ClassVar[Capability | None] = SHAPE_NETWORK
    undo: ClassVar[str] = "take its rule away"
    outlives_restart: ClassVar[bool] = True
    on_store: ClassVar[bool] = True

    @property
    @abstractmethod
    def features(self) -> Sequence[Feature]:
        """What the kernel must be able to do."""

    @abstractmethod
    def rule(self, cluster: Cluster, site: Site) -> NetRule:
        """The rule as it must be now; whoever has no address at the moment is left out."""

    def problems(self) -> Iterable[Problem]:
        """What is wrong with its parameters."""
        return ()

    def __post_init__(self) -> None:
        if problems := list(self.problems()):
            raise BadInput(problems)

    def prepare(self, backend: Backend, say: Callable[[str], None]) -> None:
        if isinstance(backend, CanShapeNetwork):
            backend.prepare_network(say)

    def unable(self, backend: Backend) -> str | None:
        """Tried in a network that nobody uses."""
        if not isinstance(backend, CanShapeNetwork):
            return self.refused_by(backend)
        try:
            lacks = backend.network_lacks()
        except CannotRun as error:
            return str(error)
        missing = [f"{MEANS[f]}: {lacks[f]}" for f in self.features if f in lacks]
        if not missing:
            return None
        return f"{self.name} needs what the kernel below {backend.name} lacks, {'; '.join(missing)}"

    def inject(self, cluster: Cluster, site: Site) -> None:
        backend, rule = require(self, cluster.backend), self.rule(cluster, site)
        if (
            isinstance(rule, Drop) and not rule.flows
        ):  # all its peers are down, and struck when back
            backend.remove_rule(cluster.name, site.node, site.id)
        else:
            backend.add_rule(cluster.name, site.node, site.id, rule)

    def holds(self, cluster: Cluster, site: Site) -> str:
        """The kernel's own list has the rule, for the addresses that the peers have now."""
        found = self.found(cluster, site)
        if found is None or not _covers(found, self.rule(cluster, site)):
            return ""
        return f"the kernel lists {_say(found)}"

    def found(self, cluster: Cluster, site: Site) -> NetRule | None:
        """Its rule as the kernel lists it."""
        rules: Mapping[str, NetRule] = require(self, cluster.backend).rules(cluster.name, site.node)
        return rules.get(site.id)

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        """Take the rule away, wait until Ray has made up its mind, and have back what it gave up."""
        before = _states(cluster)
        require(self, cluster.backend).remove_rule(cluster.name, site.node, site.id)
        return f"its rule is gone; {_have_back(cluster, site.node, before, timeout)}"

    def lingers(self, cluster: Cluster, site: Site) -> str:
        """The kernel's own list still has the rule."""
        found = self.found(cluster, site)
        return "" if found is None else f"the kernel still lists {_say(found)}"


@dataclass(frozen=True)
class BetweenNodes(NetworkFault):
    """Base of those that concern what passes between the node and its peers, and nothing else.

    So the orchestrator, which comes from outside, and the observer go on seeing.
    """

    between_nodes: ClassVar[bool] = True

    def locate(self, cluster: Cluster, site: Site) -> Site:
        """With the peers' addresses; they are looked up again whenever the rule is put there."""
        rule, addresses = self.rule(cluster, site), _addresses(cluster, site.peers)
        if isinstance(rule, Drop) and not rule.flows:
            raise CannotRun(
                f"there is nothing between {site.node} and others that {self.name} could concern",
                why=f"{', '.join(site.peers) or 'no other node'} has no address",
            )
        return replace(site, details={**site.details, "addresses": addresses})

    def holds(self, cluster: Cluster, site: Site) -> str:
        """As for every rule; and it names the address of no other node.

        Addresses are given out again, so that of a peer that is down may be somebody else's by now.
        """
        seen, found = super().holds(cluster, site), self.found(cluster, site)
        others = {n.address for n in cluster.record().breakable if n.name not in site.peers}
        named = {flow.address for flow in found.flows} if isinstance(found, Drop) else set()
        return "" if named & others else seen


@register_fault
@dataclass(frozen=True)
class Partition(BetweenNodes):
    """Drops every packet between the node and its peers: nothing is refused, nothing arrives.

    Parameters
    ----------
    direction
        ``in``: the node hears nothing of them. ``out``: they hear nothing of it. A TCP connection needs
        both, so none works in any case; but what one side says may still arrive and be acted on.
    scope
        ``all`` that passes between them; ``gcs``, only the link between a node and the GCS, to the GCS's
        port and from the head to the node's node manager (which the head's raylet and the owners on the
        head use too); ``objects``, only the transfer of objects between their object managers.
    """

    direction: Direction = "both"
    scope: Scope = "all"

    name: ClassVar[str] = "partition"
    summary: ClassVar[str] = (
        "drops every packet between a node and others, or one way, or to the GCS only"
    )
    features: ClassVar[Sequence[Feature]] = ("drop",)

    def problems(self) -> Iterable[Problem]:
        yield from _one_of("partition: direction", self.direction, DIRECTIONS)
        yield from _one_of("partition: scope", self.scope, SCOPES)

    @classmethod
    def sweep(cls, cluster: Cluster, node: str) -> str:
        """Of all rules, whatever fault wanted them: the kernel tells no kinds apart."""
        if not isinstance(cluster.backend, CanShapeNetwork):
            return ""
        sites = cluster.backend.clear_rules(cluster.name, node)
        return f"the rules of {', '.join(sites)} taken out of its network" if sites else ""

    def refused_on(self, node: NodeSpec) -> str | None:
        if node.role == "store" and self.scope != "all":
            return f"has no link of the kind that scope={self.scope} cuts; leave scope out"
        return super().refused_on(node)

    def rule(self, cluster: Cluster, site: Site) -> Drop:
        peers = _addresses(cluster, site.peers)
        if self.scope == "all":
            flows = [Flow(address) for address in peers.values()]
        elif self.scope == "gcs":
            flows = self._with_gcs(cluster, site, peers)
        else:
            ports = self._ports(cluster, site, (site.node, *peers))
            mine = ports.get(site.node, (0, 0))[1]
            theirs = [(peers[name], pair[1]) for name, pair in ports.items() if name in peers]
            flows = [Flow(address, remote_port=port) for address, port in theirs]
            flows += [Flow(address, local_port=mine) for address in peers.values() if mine]
        return Drop(tuple(sorted(flows)), self.direction)

    def _with_gcs(self, cluster: Cluster, site: Site, peers: Mapping[str, str]) -> list[Flow]:
        head = next((n.name for n in cluster.record().nodes if n.role == "head"), "head")
        if site.node == head:
            raise CannotRun(
                "the head cannot be cut off from the GCS",
                why="the GCS is on the head",
                remedy="Name the nodes whose link with it is to be cut",
            )
        if head not in site.peers:
            raise CannotRun(
                f"{site.node} cannot be cut off from the GCS there",
                why=f"the GCS is on {head}, which is not among {', '.join(site.peers)}",
            )
        if head not in peers:
            return []
        managers = [ports[0] for ports in self._ports(cluster, site, [site.node]).values()]
        return [
            Flow(peers[head], remote_port=GCS_PORT),
            *(Flow(peers[head], local_port=port) for port in managers),
        ]

    def _ports(
        self, cluster: Cluster, site: Site, names: Iterable[str]
    ) -> Mapping[str, Sequence[int]]:
        """Where raylets listen now; while Ray does not answer, where they did when it struck.

        Raises
        ------
        CannotRun
            Neither is known.
        """
        try:
            return _ports(cluster, names)
        except CannotRun:
            known: Mapping[str, Sequence[int]] = site.details.get("ports", {})
            if not known:
                raise
            return {name: known[name] for name in names if name in known}

    def locate(self, cluster: Cluster, site: Site) -> Site:
        site = super().locate(cluster, site)
        if self.scope == "all":
            return site
        ports = {n: list(pair) for n, pair in _ports(cluster, (site.node, *site.peers)).items()}
        return replace(site, details={**site.details, "ports": ports})

    def holds(self, cluster: Cluster, site: Site) -> str:
        """As for every rule; and a connection that the partition must stop gets no answer."""
        seen = super().holds(cluster, site)
        if not seen:
            return ""
        probe = self._probe(cluster, site)
        if probe is None:
            return f"{seen}; no other node runs that could try it"
        answer = _reach(cluster, probe)
        return f"{seen}; {probe.to} does not answer {probe.source}" if answer == "silence" else ""

    def lingers(self, cluster: Cluster, site: Site) -> str:
        """As for every rule; or a connection gets no answer, and no other fault is the reason."""
        left = super().lingers(cluster, site)
        probe = None if left else self._probe(cluster, site)
        if probe is None or _reach(cluster, probe) != "silence":
            return left
        backend = require(self, cluster.backend)
        others = [
            r for n in (site.node, probe.other) for r in backend.rules(cluster.name, n).values()
        ]
        if any(isinstance(rule, Drop) for rule in others):
            return ""
        return f"{probe.to} still does not answer {probe.source}"

    def _probe(self, cluster: Cluster, site: Site) -> _Probe | None:
        """A connection that this partition must stop."""
        nodes = {n.name: n for n in cluster.record().breakable}
        up = [
            n for n in site.peers if n in nodes and nodes[n].state == "running" and nodes[n].address
        ]
        here = nodes[site.node].address
        if not up or not here:
            return None
        if self.scope == "gcs":
            head = next((n for n in up if nodes[n].role == "head"), None)
            if head is None:
                return None
            return _Probe(site.node, head, nodes[head].address, GCS_PORT, head)
        port = _DISCARD
        if self.scope == "objects":
            ports = self._ports(cluster, site, [site.node])
            if site.node not in ports:
                return None
            port = ports[site.node][1]
        return _Probe(up[0], site.node, here, port, up[0])


@register_fault
@dataclass(frozen=True)
class Loss(BetweenNodes):
    """Loses a share of the packets between the node and its peers, drawn one by one.

    TCP sends them again, so connections hold and get slow: with a tenth lost, very slow.

    Parameters
    ----------
    percent
        How many get lost.
    direction
        ``in``: of what the node receives. ``out``: of what it sends.
    correlation
        How much the fate of a packet depends on the one before it: losses come in bursts. Needs netem and
        ``direction=out``, and then concerns all that the node sends, to whomever.
    """

    percent: float = 10.0
    direction: Direction = "both"
    correlation: float = field(default=0.0, metadata={"unit": "%"})

    name: ClassVar[str] = "loss"
    summary: ClassVar[str] = "loses a share of the packets between a node and others"

    @property
    def features(self) -> Sequence[Feature]:
        return ("drop", "delay") if self.correlation else ("drop", "share")

    def problems(self) -> Iterable[Problem]:
        yield from _share("loss: percent", self.percent)
        yield from _one_of("loss: direction", self.direction, DIRECTIONS)
        if self.correlation:
            yield from _share("loss: correlation", self.correlation)
            if self.direction != "out":
                yield Problem(
                    "loss: correlation", "is possible for what a node sends only", "direction=out"
                )

    def rule(self, cluster: Cluster, site: Site) -> NetRule:
        if self.correlation:
            return Shape(loss=self.percent, loss_after_loss=self.correlation)
        flows = map(Flow, _addresses(cluster, site.peers).values())
        return Drop(tuple(sorted(flows)), self.direction, self.percent)


@register_fault
@dataclass(frozen=True)
class Bandwidth(NetworkFault):
    """Limits what the node sends, to whomever; what it receives is limited where it is sent.

    Parameters
    ----------
    rate
        A number with kbit, mbit or gbit, a second.
    """

    rate: str = "10mbit"

    name: ClassVar[str] = "bandwidth"
    summary: ClassVar[str] = "limits how fast a node sends"
    features: ClassVar[Sequence[Feature]] = ("drop", "rate")

    def problems(self) -> Iterable[Problem]:
        try:
            parse_rate(self.rate)
        except ValueError as error:
            yield Problem("bandwidth: rate", str(error))

    def rule(self, cluster: Cluster, site: Site) -> Shape:
        return Shape(rate=parse_rate(self.rate))


@register_fault
@dataclass(frozen=True)
class Delay(NetworkFault):
    """Lets everything that the node sends wait.

    Parameters
    ----------
    delay
        How long.
    jitter
        By how much that varies, up or down.
    """

    delay: float = 0.1
    jitter: float = 0.0

    name: ClassVar[str] = "delay"
    summary: ClassVar[str] = "lets everything that a node sends wait, always as long or with jitter"
    features: ClassVar[Sequence[Feature]] = ("drop", "delay")

    def problems(self) -> Iterable[Problem]:
        yield from _seconds("delay: delay", self.delay)
        if not 0 <= self.jitter <= self.delay:
            yield Problem(
                "delay: jitter", f"is {self.jitter}", f"from 0 to the delay, {self.delay}"
            )

    def rule(self, cluster: Cluster, site: Site) -> Shape:
        return Shape(delay=self.delay, jitter=self.jitter)


@register_fault
@dataclass(frozen=True)
class Reorder(NetworkFault):
    """Lets packets that the node sends overtake one another.

    Parameters
    ----------
    percent
        How many go at once, while the others wait.
    delay
        How long those wait.
    """

    percent: float = 25.0
    delay: float = 0.01

    name: ClassVar[str] = "reorder"
    summary: ClassVar[str] = "lets packets that a node sends overtake one another"
    features: ClassVar[Sequence[Feature]] = ("drop", "delay")

    def problems(self) -> Iterable[Problem]:
        yield from _share("reorder: percent", self.percent)
        yield from _seconds("reorder: delay", self.delay)

    def rule(self, cluster: Cluster, site: Site) -> Shape:
        return Shape(delay=self.delay, reorder=self.percent)


@register_fault
@dataclass(frozen=True)
class Duplicate(NetworkFault):
    """Sends a share of the node's packets twice.

    Parameters
    ----------
    percent
        How many are sent twice.
    """

    percent: float = 10.0

    name: ClassVar[str] = "duplicate"
    summary: ClassVar[str] = "sends a share of a node's packets twice"
    features: ClassVar[Sequence[Feature]] = ("drop", "delay")

    def problems(self) -> Iterable[Problem]:
        yield from _share("duplicate: percent", self.percent)

    def rule(self, cluster: Cluster, site: Site) -> Shape:
        return Shape(duplicate=self.percent)


@register_fault
@dataclass(frozen=True)
class Disconnect(Fault):
    """Unplugs the node from the network: its device and its address are gone.

    Unlike in a partition, what the node itself does there fails at once ("network is unreachable"), and the
    published ports of a head are gone as well. Plugged in again, it gets its old address back, under
    which Ray knows it; if somebody else has that meanwhile, it can only come back as a new node.
    """

    name: ClassVar[str] = "disconnect"
    summary: ClassVar[str] = "unplugs a node from the network: its address is gone"
    needs: ClassVar[Capability | None] = DISCONNECT
    undo: ClassVar[str] = "plug it in"
    outlives_restart: ClassVar[bool] = True
    on_store: ClassVar[bool] = True

    @property
    def downs_node(self) -> bool:
        """Nobody hears of it any more."""
        return True

    def locate(self, cluster: Cluster, site: Site) -> Site:
        address = cluster.node(site.node).address
        return replace(site, details={**site.details, "address": address})

    def inject(self, cluster: Cluster, site: Site) -> None:
        require(self, cluster.backend).disconnect(cluster.name, site.node)

    def holds(self, cluster: Cluster, site: Site) -> str:
        """The engine has it on no network, and its old address answers nobody."""
        if require(self, cluster.backend).is_connected(cluster.name, site.node):
            return ""
        seen = "the engine has it on no network"
        address = str(site.details.get("address", ""))
        others = [n for n in cluster.record().nodes if n.state == "running" and n.address]
        if not address or not others or not isinstance(cluster.backend, CanShapeNetwork):
            return seen
        other = others[0].name
        try:
            answer = cluster.backend.reach(cluster.name, other, address, _DISCARD)
        except CannotRun:  # for want of the image, which this fault does not need
            return seen
        silent = answer in ("silence", "no route")
        return f"{seen}, and {address} does not answer {other}" if silent else ""

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        """Plug it in under the address that Ray knows it by, and have back what Ray gave up."""
        backend = require(self, cluster.backend)
        before = _states(cluster)
        node = cluster.node(site.node)
        wanted = str(site.details.get("address", "")) or _address_in_ray(cluster, node.hostname)
        given = backend.connect(cluster.name, site.node, wanted)
        if wanted and given not in (
            "",
            wanted,
        ):  # a node that is down gets its address when it starts
            if node.role in ("head", "store"):
                raise CannotRun(
                    f"{node.name} cannot have its address {wanted} back",
                    why="somebody else has it, and nobody would find it at another",
                    remedy="Take the cluster down: down",
                )
            if node.state == "running":
                backend.stop(cluster.name, site.node, _STOP_S)
            how = f"plugged in as {given}, since {wanted} was taken"
        else:
            how = f"plugged in as {given or wanted}"
        return f"{how}; {_have_back(cluster, site.node, before, timeout)}"

    @classmethod
    def sweep(cls, cluster: Cluster, node: str) -> str:
        backend = cluster.backend
        if not isinstance(backend, CanDisconnect) or backend.is_connected(cluster.name, node):
            return ""
        known = "" if node == "head" else _address_in_ray(cluster, cluster.node(node).hostname)
        return f"plugged in as {backend.connect(cluster.name, node, known)}"

    def lingers(self, cluster: Cluster, site: Site) -> str:
        connected = require(self, cluster.backend).is_connected(cluster.name, site.node)
        return "" if connected else "the engine has it on no network"


# ---- what they look at


@dataclass(frozen=True, slots=True)
class _Probe:
    """A connection to try: from a node's network to an address, which is node `to`."""

    source: str
    to: str
    address: str
    port: int
    other: str


def _reach(cluster: Cluster, probe: _Probe) -> str:
    backend = cluster.backend
    assert isinstance(backend, CanShapeNetwork)
    return backend.reach(cluster.name, probe.source, probe.address, probe.port)


def _addresses(cluster: Cluster, names: Iterable[str]) -> dict[str, str]:
    """The addresses that these nodes have now; one that is down has none."""
    wanted = set(names)
    return {n.name: n.address for n in cluster.record().breakable if n.name in wanted and n.address}


def _ports(cluster: Cluster, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Where the raylets of these nodes listen, for leases and for objects, as Ray has it now.

    Raises
    ------
    CannotRun
        Ray does not answer.
    """
    hostnames = {n.hostname: n.name for n in cluster.record().nodes if n.name in set(names)}
    ports = cluster.ray.ports()
    found = {}
    for ray in sorted(cluster.ray.nodes(), key=lambda n: (n.alive, n.since or 0.0)):
        if ray.hostname in hostnames and ray.ray_node_id in ports:
            pair = ports[ray.ray_node_id]
            found[hostnames[ray.hostname]] = (pair.node_manager, pair.object_manager)
    return found


def _address_in_ray(cluster: Cluster, hostname: str) -> str:
    """The address that Ray knows a node by, or knew it last; "" if Ray does not say."""
    try:
        known = [n for n in cluster.ray.nodes() if n.hostname == hostname]
    except CannotRun:
        return ""
    latest = max(known, key=lambda n: (n.alive, n.since or 0.0), default=None)
    return "" if latest is None else latest.address


def _covers(found: NetRule, wanted: NetRule) -> bool:
    if isinstance(found, Drop):
        return isinstance(wanted, Drop) and found.covers(wanted)
    return found == wanted


def _say(rule: NetRule) -> str:
    if isinstance(rule, Drop):
        share = "all" if rule.percent >= 100 else f"{rule.percent:g}% of"
        way = {"both": "both ways", "in": "inward", "out": "outward"}[rule.direction]
        return f"{share} packets of {len(rule.flows)} flows dropped {way}"
    words = [netem_words(rule)] if rule.netem else []
    return " and ".join([*words, tbf_words(rule.rate)] if rule.rate else words)


# ---- how a cluster gets over it


def _states(cluster: Cluster) -> dict[str, State]:
    return {n.name: n.state for n in cluster.status().nodes}


def _have_back(cluster: Cluster, node: str, before: Mapping[str, State], timeout: float) -> str:
    """Have a node alive whose network is whole again; of a head's, also the nodes that it gave up.

    A node that another fault still cuts off from the GCS is left to the healing of that one.

    Parameters
    ----------
    before
        How every node stood when the fault was still there: one that another fault holds is left alone.
    """
    if cluster.node(node).role == "store":
        _heard(cluster, node, timeout)
        return cluster.revive_store(timeout)
    if held := _still_cut_off(cluster, node):
        return held
    _decided(cluster, node, timeout)
    how = revive(cluster, node, timeout)
    if cluster.node(node).role != "head":
        return how
    now = _states(cluster)
    lost = [
        name
        for name, was in before.items()
        if name != node
        and (
            now.get(name) == "dead"
            or (now.get(name) == "exited" and was not in ("exited", "paused"))
        )
    ]
    if not lost:
        return how
    nodes = [n for n in cluster.record().nodes if n.name in lost and n.state == "running"]
    cluster.stop_together(nodes, _STOP_S, lambda event: None)
    cluster.start_nodes(lost, timeout=timeout)
    return f"{how}; {', '.join(lost)}, given up meanwhile, joined as new nodes"


def _still_cut_off(cluster: Cluster, node: str) -> str:
    """Which other faults keep a worker from the GCS; "" if none does."""
    backend, nodes = cluster.backend, {n.name: n for n in cluster.record().nodes}
    head = next((n for n in nodes.values() if n.role == "head"), None)
    if head is None or node == head.name or not isinstance(backend, CanShapeNetwork):
        return ""
    sides = ((node, head.address), (head.name, nodes[node].address))
    holding = {
        site
        for here, address in sides
        for site, rule in backend.rules(cluster.name, here).items()
        if isinstance(rule, Drop) and rule.percent >= 100
        if any(f.address == address and f.remote_port in (0, GCS_PORT) for f in rule.flows)
    }
    return f"{' and '.join(sorted(holding))} still cuts it off from the head" if holding else ""


def _decided(cluster: Cluster, node: str, timeout: float) -> None:
    """Wait until the GCS and a node have heard of each other again, or it has given the node up."""
    backend = cluster.backend
    if not isinstance(backend, CanShapeNetwork):
        return
    deadline = Deadline(timeout, clock=cluster.clock.mono)
    while not deadline.passed:
        nodes = cluster.record().nodes
        head = next((n for n in nodes if n.role == "head"), None)
        if head is None or head.state != "running":
            return
        mine = [n for n in nodes if n.name == node and n.role != "head"]
        others = mine or [n for n in nodes if n.role != "head" and n.state == "running"]
        states = _states(cluster)
        if all(states.get(n.name) not in ("alive", "starting") for n in others):
            return
        waiting = backend.unanswered(
            cluster.name, head.name, [n.address for n in others if n.address]
        )
        for each in mine:
            waiting += backend.unanswered(cluster.name, each.name, [head.address])
        if not waiting:
            return
        cluster.clock.sleep(_LOOK_S)


def _heard(cluster: Cluster, store: str, timeout: float) -> None:
    """Wait until no connection between the head and the store repeats itself, or the head is down."""
    backend = cluster.backend
    if not isinstance(backend, CanShapeNetwork):
        return
    deadline = Deadline(timeout, clock=cluster.clock.mono)
    while not deadline.passed:
        nodes = {n.name: n for n in cluster.record().breakable}
        head = next((n for n in nodes.values() if n.role == "head"), None)
        if head is None or head.state != "running":
            return
        ends = ((head.name, nodes[store].address), (store, head.address))
        if not any(backend.unanswered(cluster.name, here, [there]) for here, there in ends):
            return
        cluster.clock.sleep(_LOOK_S)


# ---- what is wrong with parameters


def _one_of(where: str, value: str, known: Sequence[str]) -> Iterable[Problem]:
    if value not in known:
        yield Problem(where, f"is {value!r}", f"use one of: {', '.join(known)}")


def _share(where: str, value: Any) -> Iterable[Problem]:
    if not 0 < value <= 100:
        yield Problem(where, f"is {value}", "use a number above 0 and up to 100")


def _seconds(where: str, value: Any) -> Iterable[Problem]:
    if not 0 < value < 3600:
        yield Problem(where, f"is {value}", "use a number of seconds above 0, such as 0.1")
