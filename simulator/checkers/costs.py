"""What the machines of a run cost, what they would have cost on demand, and what preemptions took of the difference.

A machine is paid for from its start to its end, whether it works or not, as clouds do; one that was taken away is not
paid for until another comes in its place. What is counted is the time of the work, from its first word to its last:
how long our nodes take to start says nothing of a cloud's. The prices are the topology's, of a node for an
hour, in whatever currency it means. A figure that cannot be known is None, and ``why`` says why.
docs/reference/costs.md defines each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.checkers.anatomy import anatomy
from simulator.checkers.base import RunView
from simulator.checkers.evidence import gaps_of
from simulator.checkers.index import Index, index_of
from simulator.checkers.losses import Loss, losses_of
from simulator.history import Op

HOUR_S = 3600.0

#: The label that says it where the topology's `market` does not.
_MARKET_LABEL = "ray.io/market-type"


@dataclass(slots=True)
class Group:
    """Machines that cost alike.

    Attributes
    ----------
    nodes
        How many there are to be; None where Ray's autoscaler decides.
    node_s
        Seconds of machines that were there, of all together.
    wasted_s
        Of these, what went into work that was lost, and into machines that stood drained; NaN if it is not known.
    price, on_demand
        Of one for an hour: as it is paid for, and on demand.
    """

    name: str
    nodes: int | None
    market: str | None
    price: float | None
    on_demand: float | None
    cpus: float
    node_s: float = 0.0
    wasted_s: float = 0.0

    @property
    def is_spot(self) -> bool:
        return self.market == "spot"


@dataclass(slots=True)
class Costs:
    """All of it.

    Attributes
    ----------
    seconds
        How long the work took.
    paid, on_demand, saved
        For the machines that there were; for as many on demand, none of which is ever lost, over the same time; the
        difference.
    repeated, idle
        What was paid for work that was lost and done again, and for machines that stood drained until they were taken.
    useful_s
        Work-seconds that counted.
    per_work_hour, on_demand_per_work_hour
        What an hour of work that counted cost; and on demand, at the pace before the first fault.
    """

    groups: Sequence[Group]
    seconds: float | None = None
    paid: float | None = None
    on_demand: float | None = None
    saved: float | None = None
    repeated: float | None = None
    idle: float | None = None
    useful_s: float | None = None
    per_work_hour: float | None = None
    on_demand_per_work_hour: float | None = None
    why: dict[str, str] = field(default_factory=dict)

    @property
    def worth_it(self) -> bool | None:
        """Whether work was cheaper than on demand, with all that was done twice."""
        if self.per_work_hour is None or self.on_demand_per_work_hour is None:
            return None
        return self.per_work_hour < self.on_demand_per_work_hour

    @property
    def unpriced(self) -> list[str]:
        """Groups that were there and have no price: they are in none of the sums."""
        return [g.name for g in self.groups if g.price is None]

    def to_data(self) -> dict[str, Any]:
        def rounded(value: float | None) -> float | None:
            return None if value is None else round(value, 9)

        return {
            "seconds": rounded(self.seconds),
            "groups": [
                {
                    "group": g.name,
                    "nodes": g.nodes,
                    "market": g.market,
                    "price": g.price,
                    "on_demand_price": g.on_demand,
                    "node_seconds": None if self.seconds is None else round(g.node_s, 6),
                    "paid": None
                    if g.price is None or self.seconds is None
                    else round(g.node_s * g.price / HOUR_S, 9),
                }
                for g in self.groups
            ],
            "unpriced": self.unpriced,
            "paid": rounded(self.paid),
            "on_demand": rounded(self.on_demand),
            "saved": rounded(self.saved),
            "repeated": rounded(self.repeated),
            "idle": rounded(self.idle),
            "useful_work_seconds": rounded(self.useful_s),
            "per_work_hour": rounded(self.per_work_hour),
            "on_demand_per_work_hour": rounded(self.on_demand_per_work_hour),
            "worth_it": self.worth_it,
            "why": dict(self.why),
        }


def costs_of(view: RunView) -> Costs | None:
    """What the run cost; None where its topology says nothing of prices."""
    return view.once("costs", lambda v: _Costs(v).found)


class _Costs:
    def __init__(self, view: RunView) -> None:
        self.view, self.index = view, index_of(view)
        topology = view.spec.get("topology")
        self.told: Mapping[str, Any] = topology if isinstance(topology, Mapping) else {}
        self.found: Costs | None = None
        groups = self._groups()
        if all(g.price is None for g in groups):
            return
        self.found = Costs(groups)
        self._sum(self.found)

    def _groups(self) -> list[Group]:
        managed = bool(self.told.get("autoscaling"))
        head = self.told.get("head") or {}
        found = [_group("head", 1, head)]
        for told in self.told.get("worker_groups", ()):
            nodes = None if managed else int(told.get("replicas", 1))
            found.append(_group(str(told.get("group_name")), nodes, told))
        return found

    def _sum(self, costs: Costs) -> None:
        index = self.index
        begun = index.first("driver.start") or index.first("program.start")
        ended = index.last("driver.end") or index.last("program.end") or index.last("workload.end")
        if begun is None or ended is None:
            self._unknown("nobody saw the work " + ("begin" if begun is None else "end"))
            return
        if index.history.truncated is not None:
            self._unknown(f"the history is damaged: {index.history.truncated}")
            return
        begin, end = index.at(begun), index.at(ended)
        costs.seconds = max(0.0, end - begin)
        by_name = {g.name: g for g in costs.groups}
        groups_of = {**dict.fromkeys(index.heads - index.stores, "head"), **index.groups}
        for node, group in groups_of.items():
            if group in by_name:
                by_name[group].node_s += _there(index, node, begin, end)
        priced = [(g, g.price) for g in costs.groups if g.price is not None]
        costs.paid = sum(g.node_s * price for g, price in priced) / HOUR_S
        self._tax(costs, by_name)
        lacking = [g.name for g, _ in priced if g.on_demand is None]
        if lacking:
            reason = f"what {lacking[0]} would cost on demand is not said: on_demand_price in its topology"
            for name in ("on_demand", "saved", "on_demand_per_work_hour"):
                costs.why[name] = reason
        else:
            self._compare(costs, priced)
        self._work(costs, begin, end)

    def _compare(self, costs: Costs, priced: Sequence[tuple[Group, float]]) -> None:
        """With machines on demand: as many as the topology names; where Ray decides, those that there were.

        None of those is ever lost, so that what went into losses is not needed.
        """
        total = 0.0
        for group, _ in priced:
            if group.nodes is not None:
                seconds = group.nodes * (costs.seconds or 0.0)
            elif math.isnan(group.wasted_s):
                reason = costs.why.get("repeated") or costs.why.get("idle", "not known")
                costs.why.update(on_demand=reason, saved=reason)
                return
            else:
                seconds = group.node_s - group.wasted_s
            total += seconds * (group.on_demand or 0.0)
        costs.on_demand = total / HOUR_S
        assert costs.paid is not None
        costs.saved = costs.on_demand - costs.paid

    def _unknown(self, why: str) -> None:
        costs = self.found
        assert costs is not None
        names = ("seconds", "paid", "on_demand", "saved", "repeated", "idle", "useful_work_seconds",
                 "per_work_hour", "on_demand_per_work_hour")  # fmt: skip
        costs.why.update(dict.fromkeys(names, why))

    def _work(self, costs: Costs, begin: float, end: float) -> None:
        """What an hour of work cost, and what it would have."""
        index, gaps = self.index, gaps_of(self.view).ledger
        both = ("per_work_hour", "on_demand_per_work_hour")
        if index.of_program or gaps:
            reason = (
                gaps[0]
                if gaps and not index.of_program
                else ("how much work a program's tasks are, nobody knows")
            )
            costs.why.update(dict.fromkeys(("useful_work_seconds", *both), reason))
            return
        costs.useful_s = 0.0
        for of_key in index.executions.values():
            # However often it was done, it counts once; calls of actors hold no slot.
            done = [e for e in of_key if e.whole and e.end is not None and e.actor is None]
            if done and begin <= (done[0].end or 0.0) <= end:
                costs.useful_s += done[0].nominal_s
        if not costs.useful_s:
            costs.why.update(dict.fromkeys(both, "no work was done that has a length"))
            return
        assert costs.paid is not None
        costs.per_work_hour = costs.paid / costs.useful_s * HOUR_S
        if costs.on_demand is None:
            return
        metrics = anatomy(self.view).metrics
        pace, seconds = metrics.get("baseline_total"), costs.seconds or 0.0
        if not losses_of(self.view) and seconds:
            pace = costs.useful_s / seconds  # nothing disturbed it
        if not pace:
            reason = "how fast the work goes undisturbed is not known: too little of it was before the first fault"
            costs.why["on_demand_per_work_hour"] = reason
            return
        costs.on_demand_per_work_hour = costs.on_demand / seconds / pace * HOUR_S

    def _tax(self, costs: Costs, by_name: Mapping[str, Group]) -> None:
        """What the losses took of it."""
        repeated = idle = 0.0
        for loss in losses_of(self.view):
            group = by_name.get(loss.group or "")
            if group is None or group.price is None:
                continue
            again, stood = self._again(loss, group), loss.idle_s
            if math.isnan(again):
                costs.why["repeated"] = loss.why.get("work_seconds_repeated", "not known")
            if stood is None:
                stood = 0.0
                if loss.told is not None and not loss.tasks_cut:
                    costs.why["idle"] = loss.why.get("idle_s", "not known")
                    stood = math.nan
            group.wasted_s += again + stood
            repeated += again * group.price / HOUR_S
            idle += stood * group.price / HOUR_S
        costs.repeated = None if math.isnan(repeated) else repeated
        costs.idle = None if math.isnan(idle) else idle

    @staticmethod
    def _again(loss: Loss, group: Group) -> float:
        """Seconds of a machine that the work took which was lost with it; NaN if that is not known."""
        if loss.repeated_s is None:
            return math.nan
        total = 0.0
        for execution in (*loss.cut, *loss.lost):
            if execution.actor is not None:
                continue
            demand = execution.start_op.data.get("demand") or {}
            share = float(demand.get("CPU", 1.0)) / group.cpus if group.cpus else 1.0
            total += loss.ran(execution) * min(1.0, share)
        return total


def _group(name: str, nodes: int | None, told: Mapping[str, Any]) -> Group:
    market = told.get("market") or (told.get("labels") or {}).get(_MARKET_LABEL)
    price, on_demand = told.get("price"), told.get("on_demand_price")
    if on_demand is None and market != "spot":
        on_demand = price
    cpus = float((told.get("resources") or {}).get("CPU", 0.0))
    return Group(name, nodes, market, price, on_demand, cpus)


def _there(index: Index, node: str, begin: float, end: float) -> float:
    """How long the node was there between two times, as the engine saw it."""
    at = index.at
    events = sorted(
        (op for op in index.engine_ops if op.node == node and op.kind in _TURNS), key=at
    )
    earlier = [op for op in events if at(op) <= begin]
    there = (
        earlier[-1].kind == "engine.start" if earlier else _was_there(index, node, events, begin)
    )
    since, total = begin, 0.0
    for op in events:
        when = at(op)
        if when <= begin or when > end:
            continue
        if op.kind == "engine.start" and not there:
            there, since = True, when
        elif op.kind == "engine.die" and there:
            there, total = False, total + when - since
    return total + (end - since if there else 0.0)


_TURNS = ("engine.start", "engine.die")


def _was_there(index: Index, node: str, events: Sequence[Op], begin: float) -> bool:
    """Whether it ran at that time, where the engine had told nothing of it by then."""
    if events:  # what ends was there, and what starts was not
        return events[0].kind == "engine.die"
    alive = index.incarnation(node, begin)
    return alive is not None
