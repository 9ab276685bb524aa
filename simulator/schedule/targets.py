"""Whom a fault hits.

What depends on chance is drawn with the run's seed over candidates sorted by name. A target that the
topology settles is drawn when the run is planned; one that only the running cluster can tell (the node
of an actor, the busiest) is resolved at the injection. What was resolved enters the history, and a replay
uses that.

The head is hit only by its name, and so are the node that the job's driver runs on and the store of the GCS:
whatever else says whom leaves them out. On the far side of a partition they may be, the store only by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from simulator.cluster import Cluster
from simulator.errors import BadInput, CannotRun, NotFound, Problem
from simulator.faults.parameters import quoted
from simulator.history import History
from simulator.topology import NodeSpec, Topology


@dataclass(frozen=True, slots=True)
class Look:
    """The running cluster at the moment at which a target is resolved.

    Attributes
    ----------
    history
        A call gives what was recorded so far.
    driver_node
        The node that the job's driver runs on, if that is known: it is never hit unless it is named.
    """

    cluster: Cluster
    history: Callable[[], History]
    driver_node: str | None = None


class Target(ABC):
    """Which nodes a fault hits; `str` gives it as the language writes it."""

    @property
    def early(self) -> bool:
        """Whether the topology settles it, so that it is drawn when the run is planned."""
        return True

    @property
    def named(self) -> frozenset[str]:
        """The nodes that it says by their names."""
        return frozenset()

    @abstractmethod
    def resolve(self, topology: Topology, rng: Random, look: Look | None = None) -> Sequence[str]:
        """The names, at least one.

        Parameters
        ----------
        look
            The running cluster; None when the run is planned (an `early` target does without).

        Raises
        ------
        NotFound, BadInput, CannotRun
            There is no such node, or none to draw from, or nobody can tell.
        """

    def across(
        self, topology: Topology, rng: Random, look: Look | None, hit: Collection[str]
    ) -> Sequence[str]:
        """The same as the far side of a fault that hits `hit`: never those, but the head if need be.

        Raises as `resolve`.
        """
        return [name for name in self.resolve(topology, rng, look) if name not in hit]


@dataclass(frozen=True)
class Named(Target):
    """The node of this name; of a group's name, one of its nodes."""

    name: str

    @property
    def named(self) -> frozenset[str]:
        return frozenset({self.name})

    def resolve(self, topology: Topology, rng: Random, look: Look | None = None) -> Sequence[str]:
        return self._found(topology) or RandomWorker(self.name).resolve(topology, rng, look)

    def across(
        self, topology: Topology, rng: Random, look: Look | None, hit: Collection[str]
    ) -> Sequence[str]:
        found = self._found(topology)
        if not found:
            return RandomWorker(self.name).across(topology, rng, look, hit)
        return [name for name in found if name not in hit]

    def _found(self, topology: Topology) -> Sequence[str]:
        names, groups = [n.name for n in topology.breakable()], _groups(topology)
        if self.name not in names and self.name not in groups:
            raise NotFound("node or group", self.name, {*names, *groups})
        return (self.name,) if self.name in names else ()

    def __str__(self) -> str:
        # The words of the language come first: a group of such a name is asked for as one(...).
        return f"one({self.name})" if self.name in DRAWN_WORDS else quoted(self.name)


@dataclass(frozen=True)
class Together(Target):
    """All that several targets hit."""

    targets: tuple[Target, ...]

    @property
    def early(self) -> bool:
        return all(target.early for target in self.targets)

    @property
    def named(self) -> frozenset[str]:
        return frozenset().union(*(target.named for target in self.targets))

    def resolve(self, topology: Topology, rng: Random, look: Look | None = None) -> Sequence[str]:
        return _once(name for t in self.targets for name in t.resolve(topology, rng, look))

    def across(
        self, topology: Topology, rng: Random, look: Look | None, hit: Collection[str]
    ) -> Sequence[str]:
        return _once(name for t in self.targets for name in t.across(topology, rng, look, hit))

    def __str__(self) -> str:
        return ", ".join(map(str, self.targets))


def _once(names: Iterable[str]) -> Sequence[str]:
    return tuple(dict.fromkeys(names))


# -- drawn from the topology


class Drawn(Target):
    """Base of those that choose among nodes of the topology."""

    @abstractmethod
    def choose(
        self, among: Sequence[NodeSpec], topology: Topology, rng: Random
    ) -> Sequence[NodeSpec]:
        """Some of these nodes, which are sorted by name; raises as `resolve`."""

    def resolve(self, topology: Topology, rng: Random, look: Look | None = None) -> Sequence[str]:
        driver = look.driver_node if look else None
        among = [n for n in _sorted(topology.workers()) if n.name != driver]
        return [n.name for n in self.choose(among, topology, rng)]

    def across(
        self, topology: Topology, rng: Random, look: Look | None, hit: Collection[str]
    ) -> Sequence[str]:
        among = [n for n in _sorted(topology.nodes()) if n.name not in hit]
        return [n.name for n in self.choose(among, topology, rng)]

    def _enough(
        self, among: Sequence[NodeSpec], topology: Topology, count: int = 1, of: str = ""
    ) -> None:
        """Raise `BadInput` unless there are so many."""
        if len(among) >= count:
            return
        what = f"topology {topology.name} has no {of or 'worker'} to hit"
        if among or count > 1:
            what = f"is {_nodes(count)}, and topology {topology.name} has {len(among)} to hit"
        raise BadInput(Problem(f"target {self}", what, "--workers 3 makes more, for example"))


class OfGroup(Drawn):
    """Base of those that may be told one worker group; None is all workers.

    Attributes
    ----------
    word
        As the language has it.
    """

    word: ClassVar[str]
    group: str | None

    def of_group(self, nodes: Iterable[NodeSpec], topology: Topology) -> list[NodeSpec]:
        """Those of the group; all, where none is named."""
        if self.group is not None and self.group not in _groups(topology):
            raise NotFound("group", self.group, _groups(topology))
        return [n for n in nodes if self.group in (None, n.group)]

    def __str__(self) -> str:
        return f"{self.word}({quoted(self.group)})" if self.group is not None else self.word


@dataclass(frozen=True)
class RandomWorker(OfGroup):
    """Any worker, drawn with the seed; of one group if `group` is given."""

    group: str | None = None

    word: ClassVar[str] = "one"

    def choose(
        self, among: Sequence[NodeSpec], topology: Topology, rng: Random
    ) -> Sequence[NodeSpec]:
        mine = self.of_group(among, topology)
        self._enough(mine, topology)
        return (rng.choice(mine),)


@dataclass(frozen=True)
class All(OfGroup):
    """Every worker; of one group if `group` is given."""

    group: str | None = None

    word: ClassVar[str] = "all"

    def choose(
        self, among: Sequence[NodeSpec], topology: Topology, rng: Random
    ) -> Sequence[NodeSpec]:
        mine = self.of_group(among, topology)
        self._enough(mine, topology)
        return mine


@dataclass(frozen=True)
class Minority(OfGroup):
    """As many as can be while they are fewer than half of all nodes, or of the group's."""

    group: str | None = None

    word: ClassVar[str] = "minority"

    def choose(
        self, among: Sequence[NodeSpec], topology: Topology, rng: Random
    ) -> Sequence[NodeSpec]:
        of, mine = self.of_group(topology.nodes(), topology), self.of_group(among, topology)
        count = (len(of) - 1) // 2
        if count < 1:
            what = f"of {_nodes(len(of))} there is no minority"
            raise BadInput(Problem(f"target {self}", what, "it takes 3 nodes"))
        self._enough(mine, topology, count)
        return _sorted(rng.sample(mine, count))


@dataclass(frozen=True)
class Majority(OfGroup):
    """As few as can be while they are more than half of all nodes, or of the group's."""

    group: str | None = None

    word: ClassVar[str] = "majority"

    def choose(
        self, among: Sequence[NodeSpec], topology: Topology, rng: Random
    ) -> Sequence[NodeSpec]:
        of, mine = self.of_group(topology.nodes(), topology), self.of_group(among, topology)
        count = len(of) // 2 + 1
        self._enough(mine, topology, count)
        return _sorted(rng.sample(mine, count))


@dataclass(frozen=True)
class Several(OfGroup):
    """So many workers, drawn with the seed; of one group if `group` is given."""

    count: int = 1
    group: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"is {self.count}; use 1 or more")

    def choose(
        self, among: Sequence[NodeSpec], topology: Topology, rng: Random
    ) -> Sequence[NodeSpec]:
        mine = self.of_group(among, topology)
        self._enough(mine, topology, self.count)
        return _sorted(rng.sample(mine, self.count))

    def __str__(self) -> str:
        of = f", {quoted(self.group)}" if self.group is not None else ""
        return f"random({self.count}{of})"


@dataclass(frozen=True)
class Labelled(Drawn):
    """Every worker with this label."""

    key: str
    value: str

    def choose(
        self, among: Sequence[NodeSpec], topology: Topology, rng: Random
    ) -> Sequence[NodeSpec]:
        mine = [n for n in among if n.labels.get(self.key) == self.value]
        if not mine:
            known = {f"{k}={v}" for n in among for k, v in n.labels.items()}
            raise _nobody(f"worker with the label {self.key}={self.value}", known)
        return mine

    def __str__(self) -> str:
        return f"label({quoted(self.key)}={quoted(self.value)})"


@dataclass(frozen=True)
class Offering(Drawn):
    """Every worker that offers some of this resource."""

    resource: str

    def choose(
        self, among: Sequence[NodeSpec], topology: Topology, rng: Random
    ) -> Sequence[NodeSpec]:
        mine = [n for n in among if n.resources.get(self.resource, 0) > 0]
        if not mine:
            known = {r for n in among for r, amount in n.resources.items() if amount > 0}
            raise _nobody(f"worker that offers {self.resource}", known)
        return mine

    def __str__(self) -> str:
        return f"resource({quoted(self.resource)})"


def _nobody(what: str, known: Iterable[str]) -> BadInput:
    there = ", ".join(sorted(known)) or "nothing of the kind"
    return BadInput(
        Problem(f"no {what}", f"there is {there}", "the head is hit only by its name: head")
    )


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count != 1 else ''}"


def _sorted(nodes: Iterable[NodeSpec]) -> list[NodeSpec]:
    return sorted(nodes, key=lambda n: n.name)


def _groups(topology: Topology) -> list[str]:
    return [g.group_name for g in topology.worker_groups]


# -- told by the running cluster


class Found(Target):
    """Base of those that only the running cluster can tell: one node, of several that fit by chance."""

    @property
    def early(self) -> bool:
        return False

    @abstractmethod
    def find(self, look: Look) -> Collection[str]:
        """The nodes that fit, the driver's own among them; raises as `resolve`."""

    def resolve(self, topology: Topology, rng: Random, look: Look | None = None) -> Sequence[str]:
        if look is None:
            raise CannotRun(f"{self} is known only while the cluster runs")
        fit = self._fit(topology, look)
        apart = [name for name in fit if name != look.driver_node]
        if not apart:
            where = f"it is {fit[0]}, where the driver runs" if fit else "no node fits"
            raise CannotRun(
                f"there is no {self} to hit",
                why=where,
                remedy=f"name the node to hit it all the same: {fit[0]}" if fit else "",
            )
        return (rng.choice(apart),)

    def across(
        self, topology: Topology, rng: Random, look: Look | None, hit: Collection[str]
    ) -> Sequence[str]:
        if look is None:
            return self.resolve(topology, rng, look)
        fit = [name for name in self._fit(topology, look) if name not in hit]
        return (rng.choice(fit),) if fit else ()

    def _fit(self, topology: Topology, look: Look) -> list[str]:
        return sorted(set(self.find(look)) & {n.name for n in topology.nodes()})


@dataclass(frozen=True)
class NodeOfActor(Found):
    """The node on which an actor lives: one of this name, or else one of this class."""

    actor: str

    def find(self, look: Look) -> Collection[str]:
        alive = _living_actors(look)
        found = [a for a in alive if a[0] == self.actor] or [a for a in alive if a[1] == self.actor]
        if not found:
            mine = [a for a in alive if not a[0].startswith(_OF_RAY)]
            raise NotFound("living actor", self.actor, {n for a in mine for n in a[:2] if n})
        return {node for _, _, node in found}

    def __str__(self) -> str:
        return f"node_of(actor:{quoted(self.actor)})"


@dataclass(frozen=True)
class NodeOfTask(Found):
    """A node on which a task runs now: of this function, or under this name."""

    function: str

    def find(self, look: Look) -> Collection[str]:
        running = _running_tasks(look)
        found = {node for names, node in running if self.function in names}
        if not found:
            known = {name for names, _ in running for name in names}
            raise NotFound("running task", self.function, known, hint="nothing runs now")
        return found

    def __str__(self) -> str:
        return f"node_of(task:{quoted(self.function)})"


@dataclass(frozen=True)
class Busiest(Found):
    """The node on which most tasks run now, calls of actors among them; the driver's does not count."""

    def find(self, look: Look) -> Collection[str]:
        counts = Counter(node for _, node in _running_tasks(look))
        return _most(counts, look, "nothing runs on any node but the driver's")

    def __str__(self) -> str:
        return "busiest"


@dataclass(frozen=True)
class HolderOfMostObjects(Found):
    """The node whose object store holds most objects; the driver's does not count."""

    def find(self, look: Look) -> Collection[str]:
        names = _by_ray_id(look)
        counts = Counter(
            {names[i]: n for i, n in look.cluster.ray.objects_held().items() if i in names and n}
        )
        return _most(counts, look, "no node but the driver's holds any object")

    def __str__(self) -> str:
        return "holder_of_most_objects"


#: How the names of Ray's own actors begin, which nobody means.
_OF_RAY = "_ray_internal"


def _most(counts: Mapping[str, int], look: Look, why_none: str) -> Collection[str]:
    others = {name: n for name, n in counts.items() if name != look.driver_node}
    if not others:
        raise CannotRun(why_none)
    return [name for name, n in others.items() if n == max(others.values())]


def _living_actors(look: Look) -> list[tuple[str, str, str]]:
    """Name, class and node of each, as the observer has them; Ray is asked where it saw none."""
    last = {op.data["actor_id"]: op for op in look.history().of("ray.actor")}
    seen = [
        (op.data["name"], op.data["class"], op.node)
        for op in last.values()
        if op.data["state"] == "ALIVE" and op.node is not None
    ]
    if seen:
        return seen
    names = _by_ray_id(look)
    return [
        (actor.name, actor.class_name, names[actor.ray_node_id])
        for actor in look.cluster.ray.living_actors()
        if actor.ray_node_id in names
    ]


def _running_tasks(look: Look) -> list[tuple[Collection[str], str]]:
    """What each running task is called, and its node, by the effect ledger; where nothing
    writes one, Ray is asked, whose answer may be a second old."""
    ops = look.history().of("task.start", "task.end", "call.start", "call.end", "engine.die")
    if any(op.source == "ledger" for op in ops):
        running: dict[str, tuple[Collection[str], str]] = {}
        for op in ops:
            if op.kind == "engine.die":
                running = {e: found for e, found in running.items() if found[1] != op.node}
            elif op.kind.endswith(".end"):
                running.pop(op.data["exec"], None)
            elif op.node is not None:
                names = {op.data.get("fn", ""), op.data["key"]} - {""}
                running[op.data["exec"]] = (names, op.node)
        return list(running.values())
    by_id = _by_ray_id(look)
    return [
        ({task.name, task.function}, by_id[task.ray_node_id])
        for task in look.cluster.ray.running_tasks()
        if task.ray_node_id in by_id
    ]


def _by_ray_id(look: Look) -> dict[str, str]:
    """Names of the nodes that Ray holds alive, by its own ids."""
    return {n.ray_node_id: n.name for n in look.cluster.status().nodes if n.ray_node_id}


#: The words that say whom without more: how each is made, from a group where it takes one.
DRAWN_WORDS: Mapping[str, Callable[..., Target]] = {
    "one": RandomWorker,
    "all": All,
    "minority": Minority,
    "majority": Majority,
    "random": Several,
    "busiest": Busiest,
    "holder_of_most_objects": HolderOfMostObjects,
}
