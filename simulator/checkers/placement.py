"""Did every task run where it may, and was no node ever given more than it has?

What a task needs is taken from the run's spec, where it ran from the effect ledger, and what a node offers
from how the node was started. What Ray believes of its nodes is not asked: a scheduler that loses count believes
that all is well. What Ray granted a task is compared with what it needs, though: a task that asked for less may
have been in the right place by luck.

A task's START is written after Ray granted it its resources, and its END before Ray takes them back; both
stand on the clock of the one machine that the node runs on. So the spans in which tasks hold something are, if
anything, longer than those between START and END, and two that overlap in the ledger really held at the same
time: no slack is needed, and none is given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.evidence import gaps_of
from simulator.checkers.index import Execution, Index, index_of
from simulator.checkers.results import SHOWN
from simulator.history import Op

#: Fractions are added up in binary: sums that differ by less are the same amount.
ROUNDING = 1e-6

#: What a simulated GPU is called on a machine that has real ones, to keep tasks away from those: all
#: of a node's have the same name, so they cannot be told apart.
NO_DEVICE = "-1"


@dataclass(frozen=True, slots=True)
class Kind:
    """Tasks that are all alike, as the spec has them; `needs` and `labels` are of each."""

    name: str
    needs: Mapping[str, float]
    labels: Mapping[str, str]
    count: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A node and what it offers; `labels` is None where nobody recorded them."""

    node: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] | None

    def lacks(self, kind: Kind) -> list[str]:
        """What of a kind's needs this node could never give, in words."""
        return [*self.short_of(kind), *self.unlike(kind)]

    def short_of(self, kind: Kind) -> list[str]:
        """Which resources it has too little of."""
        return [
            f"needs {amount:g} {name} and {self.node} offers {self.resources.get(name) or 0:g}"
            for name, amount in kind.needs.items()
            if amount > self.resources.get(name, 0.0) + ROUNDING
        ]

    def unlike(self, kind: Kind) -> list[str]:
        """Which labels it does not have."""
        has = self.labels or {}
        return [
            f"needs a node with {key}={value} and {self.node} has {_label(key, has.get(key))}"
            for key, value in kind.labels.items()
            if self.labels is not None and has.get(key) != value
        ]


@dataclass(frozen=True, slots=True)
class Peak:
    """The most of a resource that was in use on a node at once, and what it was used by then."""

    amount: float
    capacity: float
    users: tuple[Execution, ...] = ()

    @property
    def above(self) -> bool:
        return self.amount > self.capacity + ROUNDING

    @property
    def reached(self) -> bool:
        return self.amount >= self.capacity - ROUNDING


@dataclass(frozen=True, slots=True)
class Wrong:
    """Something that is proven wrong on a node; `kind` where it is one task's own fault."""

    text: str
    node: str
    ops: tuple[Op, ...]
    kind: str | None = None


@dataclass
class Placed:
    """Who ran where, and how much of each node was in use.

    Attributes
    ----------
    ran
        Executions by name of the kind and of the node.
    peaks
        By node and resource, where the node offers any of it.
    strangers
        Executions of which the spec does not say what they need (of no kind, or beyond its
        count), or on nodes of which nobody recorded what they offer.
    open_ends
        Executions of which it is not known how long they held what they had.
    shared
        Kinds that take a part of a GPU, of which two were on one GPU at once.
    impossible
        Executions that ended before they began, by the clock of their node.
    asked_unknown
        Executions that need something, and nobody recorded what Ray was asked for.
    disputed
        Nodes of which one list says that they offer something else than another list does.
    ids_unknown
        Executions that need a GPU or ran where there is one, and nobody recorded which they were given.
    """

    kinds: Sequence[Kind]
    nodes: Sequence[Offer]
    ran: dict[tuple[str, str], list[Execution]] = field(default_factory=dict)
    peaks: dict[tuple[str, str], Peak] = field(default_factory=dict)
    wrong: list[Wrong] = field(default_factory=list)
    strangers: list[Execution] = field(default_factory=list)
    open_ends: list[Execution] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)
    ids_unknown: list[Execution] = field(default_factory=list)
    impossible: list[Execution] = field(default_factory=list)
    asked_unknown: list[Execution] = field(default_factory=list)
    disputed: Sequence[str] = ()

    def count(self, kind: str, node: str) -> int:
        return len(self.ran.get((kind, node), ()))

    def misplaced(self, kind: str, node: str) -> int:
        """How many executions of this kind should not have been on this node."""
        return len({w.ops[0].index for w in self.wrong if (w.kind, w.node) == (kind, node)})

    @property
    def resources(self) -> list[str]:
        """Every resource that any kind needs."""
        return list(dict.fromkeys(name for kind in self.kinds for name in kind.needs))


def placed_of(view: RunView) -> Placed | None:
    """Who ran where, found once per view; None if the run's workload says nothing of places."""
    return view.once("placed", lambda v: _Placing(v).placed if _kinds(v.spec) else None)


def check_placed_right(view: RunView) -> Finding:
    """Every task ran on a node that offers what it needs, and no node was ever given too much."""
    name = "placed_right"
    placed = placed_of(view)
    if placed is None:
        return Finding(
            name, Verdict.UNKNOWN, "the spec does not say what any task needs of its node"
        )
    if not placed.nodes:
        return Finding(name, Verdict.UNKNOWN, "nobody recorded what the nodes offer")
    tasks = sum(map(len, placed.ran.values()))
    metrics: dict[str, Any] = {
        "executions": tasks,
        "wrong": len(placed.wrong),
        "ran": {
            kind.name: {o.node: n for o in placed.nodes if (n := placed.count(kind.name, o.node))}
            for kind in placed.kinds
        },
        "peak_of_capacity": {
            f"{node} {resource}": f"{peak.amount:g}/{peak.capacity:g}"
            for (node, resource), peak in placed.peaks.items()
        },
    }
    if placed.wrong:
        texts = [w.text for w in placed.wrong]
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        cites = sorted({op.index for w in placed.wrong[:SHOWN] for op in w.ops})
        return Finding(name, Verdict.INVALID, texts[0] + more, cites, texts[:SHOWN], metrics)
    unclear = list(_unclear(placed, gaps_of(view).ledger))
    if unclear:
        more = f" (and {len(unclear) - 1} more)" if len(unclear) > 1 else ""
        return Finding(name, Verdict.UNKNOWN, unclear[0] + more, (), unclear[:SHOWN], metrics)
    limits = [p for p in placed.peaks.values() if p.reached and p.users]
    return Finding(
        name,
        Verdict.VALID,
        f"all {tasks} executions of {len(placed.kinds)} kinds were where they may be; "
        f"{_listed(placed.resources)} were used up to the limit, and never beyond",
        sorted({e.start_op.index for p in limits for e in p.users})[:SHOWN],
        [
            *(f"{kind.name}: {_where(placed, kind)}" for kind in placed.kinds),
            *(f"{o.node}: {used}" for o in placed.nodes if (used := _in_use(placed, o))),
        ],
        metrics,
    )


def _unclear(placed: Placed, gaps: Sequence[str]) -> Iterable[str]:
    """Everything that keeps "nothing was wrong" from being a proof."""
    yield from gaps
    for kind in placed.kinds:
        keys = {e.key for (name, _), ran in placed.ran.items() if name == kind.name for e in ran}
        missing = [key for n in range(1, kind.count + 1) if (key := f"{kind.name}-{n}") not in keys]
        if not keys:
            yield f"no {kind.name} task ever ran"
        elif missing:
            some = _listed(missing[:3]) + (" ..." if len(missing) > 3 else "")
            yield f"{len(missing)} of {kind.count} {kind.name} tasks never ran: {some}"
    for node in placed.disputed:
        yield f"the lists of the nodes disagree about what {node} offers"
    for e in placed.strangers[:SHOWN]:
        yield f"{e.key} ran on {e.node}: what it needs, or what is there, is not known"
    for e in placed.open_ends[:SHOWN]:
        yield f"{e.key} on {e.node} has no END: how long it held what it had is not known"
    for e in placed.impossible[:SHOWN]:
        yield f"{e.key} on {e.node} ended before it began: how long it held what it had is not known"
    for e in placed.asked_unknown[:1]:
        yield (
            f"nobody recorded what Ray was asked for by {e.key} "
            f"({len(placed.asked_unknown)} such tasks)"
        )
    for e in placed.ids_unknown[:1]:
        yield f"nobody recorded which GPU {e.key} was given ({len(placed.ids_unknown)} such tasks)"
    for resource in placed.resources:
        peaks = [(p, node) for (node, name), p in placed.peaks.items() if name == resource]
        if not any(p.reached for p, _ in peaks):
            most = max(peaks, key=lambda pair: pair[0].amount / pair[0].capacity, default=None)
            said = (
                f": at most {most[0].amount:g} of {most[0].capacity:g}, on {most[1]}"
                if most
                else ""
            )
            yield f"no node ever had all of its {resource} in use{said}; that limit was not tested"
    for kind in placed.kinds:
        if 0 < kind.needs.get("GPU", 0.0) <= 0.5 and kind.name not in placed.shared:
            yield f"no two {kind.name} tasks were ever on one GPU at once; sharing was not tested"
        if not kind.labels:
            continue
        if any(o.labels is None for o in placed.nodes):
            yield f"nobody recorded the nodes' labels, and {kind.name} tasks need some"
        elif not any(o.unlike(kind) and not o.short_of(kind) for o in placed.nodes):
            yield f"{kind.name} tasks could have run nowhere else: their label made no difference"


class _Placing:
    """One computation of `Placed`."""

    def __init__(self, view: RunView) -> None:
        self.index: Index = index_of(view)
        offers, disputed = _offers(self.index)
        self.placed = Placed(_kinds(view.spec), offers, disputed=disputed)
        self.offers = {o.node: o for o in self.placed.nodes}
        self.kinds = {k.name: k for k in self.placed.kinds}
        self.spans: dict[str, list[tuple[float, float, Execution, Kind]]] = defaultdict(list)
        for execution in sorted(self.index.tasks(), key=lambda e: e.start):
            self._take(execution)
        for offer in self.placed.nodes:
            self._limits(offer)

    def _take(self, e: Execution) -> None:
        placed, node = self.placed, e.node or ""
        name, _, number = e.key.rpartition("-")
        kind, offer = self.kinds.get(name), self.offers.get(node)
        if kind is None or offer is None or not _is_one_of(kind, number):
            placed.strangers.append(e)
            return
        placed.ran.setdefault((name, node), []).append(e)
        lacks = offer.lacks(kind)
        placed.wrong += [
            Wrong(f"{e.key} ran on {node}: it {lack}", node, (e.start_op,), name) for lack in lacks
        ]
        self._span(e, kind)
        if not lacks:
            self._given(e, kind)
            self._asked(e, kind)

    def _span(self, e: Execution, kind: Kind) -> None:
        """From when to when it surely held what it needs, on its node's clock."""
        begin = self._clock(e.start_op)
        if e.end_op is not None:
            until = self._clock(e.end_op)
            if until < begin:
                self.placed.impossible.append(e)
                until = begin
        else:
            down = next((d for d in self.index.downs(e.node) if d.hit(e)), None)
            if down is None:
                self.placed.open_ends.append(e)
            until = begin if down is None else max(begin, begin + down.begin - e.start)
        self.spans[e.node or ""].append((begin, until, e, kind))

    def _clock(self, op: Op) -> float:
        """A monotonic clock is never set; all nodes of a machine share it."""
        return self.index.at(op) if op.mono is None else op.mono

    def _given(self, e: Execution, kind: Kind) -> None:
        """Which GPUs it was given: as many as it needs, none if it needs none."""
        needs, ids = kind.needs.get("GPU", 0.0), _gpu_ids(e)
        if ids is None:
            # Where there is none, none can have been given.
            if needs or self.offers[e.node or ""].resources.get("GPU"):
                self.placed.ids_unknown.append(e)
        elif not _fits(ids, math.ceil(needs)):
            given = f"given GPU {_listed(ids)}" if ids else "not given any"
            text = f"{e.key} on {e.node}: it needs {needs:g} GPU and was {given}"
            self.placed.wrong.append(Wrong(text, e.node or "", (e.start_op,), kind.name))

    def _asked(self, e: Execution, kind: Kind) -> None:
        """What Ray granted it, by its own account, is what it needs: it was submitted right."""
        asked = e.start_op.data.get("demand")
        needs = {name: amount for name, amount in kind.needs.items() if amount > 0}
        if not isinstance(asked, Mapping) or (needs and not asked):
            if needs:
                self.placed.asked_unknown.append(e)
            return
        off = [
            name
            for name in {**needs, **asked}
            if abs(float(asked.get(name, 0.0)) - needs.get(name, 0.0)) > ROUNDING
        ]
        if off:
            text = (
                f"{e.key} on {e.node}: it was submitted asking for {_amounts(asked)}, "
                f"and needs {_amounts(needs)}"
            )
            self.placed.wrong.append(Wrong(text, e.node or "", (e.start_op,), kind.name))

    def _limits(self, offer: Offer) -> None:
        placed, spans = self.placed, self.spans.get(offer.node, [])
        for resource in placed.resources:
            capacity = offer.resources.get(resource, 0.0)
            if capacity <= 0:
                continue  # whoever needs it is wrong here already
            peak = _peak(((b, u, e, k.needs.get(resource, 0.0)) for b, u, e, k in spans), capacity)
            placed.peaks[offer.node, resource] = peak
            if peak.above:
                self._too_much(f"{peak.amount:g} {resource} of {capacity:g}", offer.node, peak)
        self._each_gpu(offer, spans)

    def _each_gpu(
        self, offer: Offer, spans: Sequence[tuple[float, float, Execution, Kind]]
    ) -> None:
        """No GPU is given out more than once, and no more of them than there are."""
        on: dict[str, list[tuple[float, float, Execution, Kind]]] = defaultdict(list)
        for span in spans:
            for name in _gpu_ids(span[2]) or ():
                on[name].append(span)
        capacity = offer.resources.get("GPU", 0.0)
        for name, users in sorted(on.items()):
            limit = capacity if name == NO_DEVICE else 1.0
            shares = [(b, u, e, min(1.0, k.needs.get("GPU", 0.0))) for b, u, e, k in users]
            peak = _peak(shares, limit)
            if peak.above and name != NO_DEVICE:
                self._too_much(f"{peak.amount:g} of GPU {name}", offer.node, peak)
            for kind in {k.name for _, _, _, k in users if k.needs.get("GPU", 0.0) < 1}:
                ones = _peak(((b, u, e, float(k.name == kind)) for b, u, e, k in users), limit)
                if ones.amount > limit:
                    self.placed.shared.add(kind)
        named = [name for name in on if name != NO_DEVICE]
        if capacity and len(named) > capacity:
            ops = tuple(on[name][0][2].start_op for name in sorted(named))
            text = f"{offer.node} offers {capacity:g} GPU and gave out GPU {_listed(sorted(named))}"
            self.placed.wrong.append(Wrong(text, offer.node, ops))

    def _too_much(self, what: str, node: str, peak: Peak) -> None:
        keys = _listed([e.key for e in peak.users[:6]]) + (" ..." if len(peak.users) > 6 else "")
        text = f"{what} in use at once on {node}, by {keys}"
        ops = tuple(e.start_op for e in peak.users[:SHOWN])
        self.placed.wrong.append(Wrong(text, node, ops))


def _peak(uses: Iterable[tuple[float, float, Execution, float]], capacity: float) -> Peak:
    """The highest sum of what is in use at one moment, by a sweep over every beginning and end.

    What ends at a moment is over before what begins then; what has no length counts at its moment.
    """
    changes: list[tuple[float, int, int, float, Execution]] = []
    for number, (begin, until, e, amount) in enumerate(uses):
        if amount > 0:
            changes.append((begin, 1, number, amount, e))
            changes.append((until, 0 if until > begin else 2, number, amount, e))
    changes.sort(key=lambda change: change[:3])
    running: dict[int, tuple[float, Execution]] = {}
    most = 0.0
    users: tuple[Execution, ...] = ()
    for _, order, number, amount, e in changes:
        if order != 1:
            running.pop(number, None)
            continue
        running[number] = (amount, e)
        total = math.fsum(a for a, _ in running.values())
        if total > most + ROUNDING:
            most, users = total, tuple(e for _, e in running.values())
    return Peak(round(most, 6), capacity, users)


def _kinds(spec: Mapping[str, Any]) -> list[Kind]:
    """The kinds of the spec's workload, if it is one that has kinds."""
    workload = spec.get("workload")
    if not isinstance(workload, Mapping) or workload.get("name") != "placement":
        return []
    return [
        Kind(
            str(raw["name"]),
            {str(name): float(amount) for name, amount in raw["resources"].items()},
            dict(raw.get("labels") or {}),
            int(raw["count"]),
        )
        for raw in workload.get("kinds", ())
    ]


def _offers(index: Index) -> tuple[list[Offer], list[str]]:
    """What each node offers, as it was started, and the nodes of which two lists say different things.

    Of such a node the most that any list says counts: whatever is wrong by that, is wrong.
    """
    found: dict[str, Offer] = {}
    disputed: dict[str, None] = {}
    for op in index.all("cluster.nodes"):
        for raw in op.data.get("nodes", ()):
            if raw.get("resources") is None:
                continue
            name = str(raw["name"])
            offer = Offer(name, dict(raw["resources"]), raw.get("labels"))
            before = found.setdefault(name, offer)
            if before != offer:
                disputed[name] = None
                names = {**before.resources, **offer.resources}
                most = {
                    r: max(before.resources.get(r, 0.0), offer.resources.get(r, 0.0)) for r in names
                }
                labels = before.labels if before.labels == offer.labels else None
                found[name] = Offer(name, most, labels)
    return list(found.values()), list(disputed)


def _is_one_of(kind: Kind, number: str) -> bool:
    """Is there a task of this kind with this number, written so?"""
    return number.isdecimal() and str(int(number)) == number and 1 <= int(number) <= kind.count


def _gpu_ids(e: Execution) -> list[str] | None:
    ids = e.start_op.data.get("gpu_ids")
    return [str(i) for i in ids] if isinstance(ids, list) else None


def _fits(ids: Sequence[str], wanted: int) -> bool:
    """Are these as many GPUs as are wanted?

    Ray says each name once, so several simulated GPUs of one name are one name.
    """
    names = set(ids)
    if NO_DEVICE in names:
        return len(names) == 1 and 1 <= len(ids) <= wanted
    return len(names) == len(ids) == wanted


def _amounts(amounts: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {a:g}" for name, a in sorted(amounts.items())) + "}"


def _label(key: str, value: str | None) -> str:
    return f"no label {key}" if value is None else f"{key}={value}"


def _where(placed: Placed, kind: Kind) -> str:
    counts = [(o.node, placed.count(kind.name, o.node)) for o in placed.nodes]
    return ", ".join(f"{n} on {node}" for node, n in counts if n) or "nowhere"


def _in_use(placed: Placed, offer: Offer) -> str:
    peaks = [(r, placed.peaks.get((offer.node, r))) for r in placed.resources]
    return ", ".join(f"{p.amount:g} of {p.capacity:g} {r} in use at most" for r, p in peaks if p)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
