"""What became of each machine that Ray's autoscaler asked for, and whether that was right.

A machine's life is read from five sides: what the cloud was asked and did, what the engine saw, what the GCS
said, what ran there by the ledger, and what Ray's autoscaler itself saw and wanted. None of them is taken for
another: a machine that was never asked for is one that the engine saw start and the cloud has no request for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.evidence import gaps_of
from simulator.checkers.index import LEFT, Execution, Index, index_of
from simulator.history import Op

#: How much sooner than its idle timeout a node may leave: Ray counts from its own last report, seconds.
EARLY_S = 3.0

#: How long after its idle timeout a node may still be there: Ray's autoscaler looks once a second, at what
#: nodes said some seconds ago, and a machine takes its time to go. Generous, since timing decides nothing
#: else; how long it took is a figure. Seconds.
LATE_S = 30.0

#: How Ray says for how long it had counted a node as idle when it let it go.
_IDLE_FOR = re.compile(r"idle for (\d+(?:\.\d+)?) seconds")


@dataclass(slots=True)
class Machine:
    """One machine that the cloud gave; each operation is None if it was not seen.

    Attributes
    ----------
    asked
        The request that it was made for.
    started, died
        By the engine.
    alive
        When the GCS first had it.
    work
        What ran on it, in the order of the starts.
    idle_s
        For how long it was idle by Ray's own count, when Ray let it go for that; None if it did not.
    """

    name: str
    group: str
    asked: Op | None = None
    started: Op | None = None
    alive: Op | None = None
    died: Op | None = None
    idle_s: float | None = None
    starts: int = 0
    work: list[Execution] = field(default_factory=list)

    @property
    def left(self) -> bool:
        """Whether it went as it was told to, and was not killed."""
        return self.died is not None and self.died.data.get("exit_code") in LEFT


@dataclass(frozen=True, slots=True)
class WaveRecord:
    """One wave of work.

    Attributes
    ----------
    keys
        Of its tasks.
    over
        When all of them were back, or None.
    """

    number: int
    begun: Op
    over: Op | None
    keys: Sequence[str]


class Elastic:
    """The machines of a run by name, in the order in which they were asked for or seen, and its waves."""

    def __init__(self, view: RunView) -> None:
        self.index: Index = index_of(view)
        self.spec = view.spec
        topology = view.spec.get("topology")
        told: Mapping[str, Any] = topology if isinstance(topology, Mapping) else {}
        self.settings: Mapping[str, Any] = told.get("autoscaling") or {}
        self.groups: Mapping[str, Mapping[str, Any]] = {
            g["group_name"]: g for g in told.get("worker_groups", ()) if "group_name" in g
        }
        self.machines: dict[str, Machine] = {}
        self._read()
        self.waves = self._waves()

    @property
    def is_elastic(self) -> bool:
        return bool(self.settings)

    def at(self, op: Op) -> float:
        return self.index.at(op)

    def most(self, group: str) -> int:
        asked = self.groups[group]
        found = asked.get("max_replicas")
        return int(asked.get("replicas", 1) if found is None else found)

    def least(self, group: str) -> int:
        return int(self.groups[group].get("min_replicas") or 0)

    def _machine(self, name: str | None) -> Machine | None:
        """The machine of this name, if a managed group may have one."""
        group = (name or "").rpartition("-")[0]
        if name is None or group not in self.groups:
            return None
        return self.machines.setdefault(name, Machine(name, group))

    def _read(self) -> None:
        for op in self.index.all("cloud.asked"):
            for name in op.data.get("nodes", ()):
                machine = self._machine(name)
                if machine is not None and machine.asked is None:
                    machine.asked = op
        for op in self.index.engine_ops:
            machine = self._machine(op.node)
            if machine is None:
                continue
            if op.kind == "engine.start":
                machine.starts += 1
                machine.started = machine.started or op
            elif op.kind == "engine.die":
                machine.died = op
        for node, ops in self.index.node_ops.items():
            machine = self._machine(node)
            if machine is not None:
                machine.alive = next((op for op in ops if op.data.get("state") == "ALIVE"), None)
                said = _IDLE_FOR.search(str(ops[-1].data.get("message", "")))
                machine.idle_s = float(said[1]) if said else None
        for execution in self.index.tasks():
            machine = self._machine(execution.node)
            if machine is not None:
                machine.work.append(execution)

    def _waves(self) -> list[WaveRecord]:
        over = {op.data["wave"]: op for op in self.index.all("driver.wave_over")}
        keys: dict[int, list[str]] = {}
        for key, op in self.index.submits.items():
            keys.setdefault(op.data.get("wave", 0), []).append(key)
        return [
            WaveRecord(n, op, over.get(n), keys.get(n, []))
            for op in self.index.all("driver.wave")
            if (n := op.data["wave"])
        ]

    def is_done(self, wave: WaveRecord) -> bool:
        """Whether its driver said so, or all of it is known to have come back."""
        results = self.index.results
        return wave.over is not None or (bool(wave.keys) and all(k in results for k in wave.keys))

    def struck(self, node: str) -> bool:
        """Whether a fault was injected there."""
        return any(f.node == node and f.inject is not None for f in self.index.faults.values())

    def going_since(self, node: str) -> float | None:
        """When Ray was seen to drain it because a fault told it that the machine will go; None if it was not."""
        told = [
            f.drains for f in self.index.faults.values() if f.node == node and f.drains is not None
        ]
        return min((self.at(op) for op in told), default=None)

    def there(self, when: float) -> Counter[str]:
        """How many machines ran at that time, by group."""
        return Counter(m.group for m in self._running(when))

    def counted(self, when: float) -> Counter[str]:
        """As many as Ray's autoscaler counts: it asks for the successor of one that is to go while that is there."""
        return Counter(
            m.group
            for m in self._running(when)
            if (since := self.going_since(m.name)) is None or since > when
        )

    def _running(self, when: float) -> Iterable[Machine]:
        return (
            m
            for m in self.machines.values()
            if m.started is not None
            and self.at(m.started) <= when
            and (m.died is None or self.at(m.died) > when)
        )

    @property
    def end(self) -> float:
        """When the cluster began to be taken apart, or the history ends."""
        collect = [op for op in self.index.all("run.phase") if op.data.get("phase") == "heal"]
        last = collect[0] if collect else self.index.history.ops[-1]
        return self.at(last)


def elastic_of(view: RunView) -> Elastic:
    return view.once("elastic", Elastic)


def _not_elastic(check: str) -> Finding:
    why = "the topology leaves nothing to Ray's autoscaler"
    return Finding(check, Verdict.UNKNOWN, why)


def check_demand_met(view: RunView) -> Finding:
    """Every wave of work got the nodes that it needed, and some that were not there before."""
    found = elastic_of(view)
    name = "demand_met"
    if not found.is_elastic:
        return _not_elastic(name)
    if not found.waves:
        return Finding(name, Verdict.UNKNOWN, "no work came in waves")
    unmet = [w for w in found.waves if not found.is_done(w)]
    if unmet and gaps_of(view).driver:
        return Finding(name, Verdict.UNKNOWN, f"{gaps_of(view).driver[0]}: it may have been done")
    if unmet:
        wave = unmet[0]
        back = [key for key in wave.keys if key in found.index.results]
        waiting = [key for key in wave.keys if key not in found.index.results]
        return Finding(
            name,
            Verdict.INVALID,
            f"wave {wave.number}: {len(back)} of {len(wave.keys)} tasks came back",
            cites=[wave.begun.index],
            details=[f"never came back: {', '.join(waiting[:20])}", *_last_wants(found)],
        )
    first = found.at(found.waves[0].begun)
    new = [
        m
        for m in found.machines.values()
        if m.asked is not None and found.at(m.asked) >= first and m.work
    ]
    seconds = {
        f"wave_{w.number}_s": round(found.at(w.over) - found.at(w.begun), 3)
        for w in found.waves
        if w.over is not None
    }
    cites = [w.over.index for w in found.waves if w.over is not None]
    if not new:
        return Finding(
            name,
            Verdict.UNKNOWN,
            "all work was done, but by nodes that were there before: nothing had to be launched",
            cites=cites,
            metrics=seconds,
        )
    refused = [op for op in found.index.all("cloud.asked") if op.data.get("refused")]
    more = f", after {len(refused)} requests that came to nothing" if refused else ""
    return Finding(
        name,
        Verdict.VALID,
        f"{_plural(len(found.waves), 'wave')} done, with {_plural(len(new), 'node')} that "
        f"{'was' if len(new) == 1 else 'were'} launched for {'it' if len(found.waves) == 1 else 'them'}{more}",
        cites=cites,
        metrics={**seconds, "launched": len(new), "requests_refused": len(refused)},
    )


def _last_wants(found: Elastic) -> list[str]:
    """What Ray's autoscaler last said of what it cannot give."""
    states = found.index.all("autoscaler.state")
    if not states:
        return ["Ray's autoscaler said nothing"]
    last = states[-1].data
    return [f"Ray's autoscaler calls infeasible: {item}" for item in last.get("infeasible", ())][:5]


def check_launches_asked(view: RunView) -> Finding:
    """No machine starts unasked or twice, and never are there more than the limits allow."""
    found = elastic_of(view)
    name = "launches_asked"
    if not found.is_elastic:
        return _not_elastic(name)
    started = [m for m in found.machines.values() if m.started is not None]
    if not started:
        return Finding(name, Verdict.UNKNOWN, "no machine was started")
    wrong: list[str] = []
    cites: list[int] = []
    for machine in started:
        assert machine.started is not None
        if machine.asked is None:
            wrong.append(f"{machine.name} was started, and nobody had asked for it")
        elif not machine.asked.data.get("request"):
            wrong.append(f"{machine.name} was asked for without a request of Ray's autoscaler")
        elif machine.starts > 1:
            wrong.append(f"{machine.name} was started {machine.starts} times")
        else:
            continue
        cites.append(machine.started.index)
    most_of_all = found.settings.get("max_workers")
    for machine in started:
        assert machine.started is not None
        there = found.counted(found.at(machine.started))
        if there[machine.group] > found.most(machine.group):
            limit = found.most(machine.group)
            wrong.append(
                f"{machine.name} was number {there[machine.group]} of {machine.group}, "
                f"which may have {limit}"
            )
            cites.append(machine.started.index)
        if most_of_all is not None and there.total() > int(most_of_all):
            wrong.append(
                f"{machine.name} was number {there.total()} of all, of {most_of_all} at most"
            )
            cites.append(machine.started.index)
    if wrong:
        return Finding(name, Verdict.INVALID, wrong[0], cites=cites, details=wrong[1:])
    idle = [m for m in started if not m.work]
    return Finding(
        name,
        Verdict.VALID,
        f"{_plural(len(started), 'machine')} started, each asked for by Ray's autoscaler, within the limits",
        cites=[m.started.index for m in started if m.started is not None],
        details=[f"asked for, and no task ever ran there: {', '.join(m.name for m in idle)}"]
        if idle
        else [],
        metrics={"machines": len(started), "surplus": len(idle)},
    )


def check_idle_leave(view: RunView) -> Finding:
    """Nodes leave when they were idle for long enough, and none that has something to do."""
    found = elastic_of(view)
    name = "idle_leave"
    if not found.is_elastic:
        return _not_elastic(name)
    timeout = float(found.settings.get("idle_timeout", 60.0))
    wrong: list[str] = []
    cites: list[int] = []
    took: list[float] = []
    counted: list[float] = []
    for machine in found.machines.values():
        if machine.started is None or found.struck(machine.name):
            continue
        since = _idle_since(found, machine)
        if machine.died is None:
            if since is None:
                continue
            idle = found.end - since
            spare = found.there(found.end)[machine.group] > found.least(machine.group)
            if spare and idle > timeout + LATE_S:
                wrong.append(f"{machine.name} was idle for {idle:.0f} s and is still there")
                cites.append(machine.started.index)
            continue
        when = found.at(machine.died)
        if when > found.end:
            continue  # taken down with the cluster
        busy = [e for e in machine.work if e.running_at(when)]
        if busy:
            wrong.append(f"{machine.name} went while {busy[0].key} ran on it")
            cites += [busy[0].start_op.index, machine.died.index]
        elif not machine.left:
            continue  # it was not told to: another check's business
        elif since is not None and when - _could_count(found, machine, since) < timeout - EARLY_S:
            wrong.append(f"{machine.name} left after {when - since:.1f} s without work")
            cites.append(machine.died.index)
        elif since is not None:
            took.append(round(when - since - timeout, 3))
            if machine.idle_s is not None:
                counted.append(round(machine.idle_s - timeout, 3))
            cites.append(machine.died.index)
    if wrong:
        return Finding(name, Verdict.INVALID, wrong[0], cites=cites, details=wrong[1:])
    if not took:
        return Finding(
            name,
            Verdict.UNKNOWN,
            f"no node was idle for {timeout:g} s and left while it was watched",
        )
    late = f"{min(took):.1f} to {max(took):.1f} s late"
    if counted:
        late += f" (by Ray's own count {min(counted):.1f} to {max(counted):.1f} s)"
    return Finding(
        name,
        Verdict.VALID,
        f"{_plural(len(took), 'node')} left after {timeout:g} s without work, {late}; "
        "none that had something to do",
        cites=cites,
        metrics={"left": len(took), "late_s": sorted(took), "late_by_ray_s": sorted(counted)},
    )


def _idle_since(found: Elastic, machine: Machine) -> float | None:
    """Since when nothing ran on it, if nothing does any more; None where work never ended."""
    if any(e.end is None for e in machine.work):
        return None
    ends = [e.end for e in machine.work if e.end is not None]
    if ends:
        return max(ends)
    return None if machine.alive is None else found.at(machine.alive)


def _could_count(found: Elastic, machine: Machine, since: float) -> float:
    """From when on Ray can have counted: of a node that never had work from its start on, before the GCS had it."""
    if machine.work or machine.started is None:
        return since
    return min(since, found.at(machine.started))


def check_lost_replaced(view: RunView) -> Finding:
    """Whatever a fault took away was replaced by another machine, while there was work for it."""
    found = elastic_of(view)
    name = "lost_replaced"
    if not found.is_elastic:
        return _not_elastic(name)
    lost = [
        m
        for m in found.machines.values()
        if m.died is not None
        and found.struck(m.name)
        and (not m.left or found.going_since(m.name) is not None)
    ]
    if not lost:
        return Finding(name, Verdict.UNKNOWN, "no fault took a machine away")
    wrong: list[str] = []
    cites: list[int] = []
    took: list[float] = []
    for machine in lost:
        assert machine.died is not None
        gone = found.at(machine.died)
        # The successor of one whose end is known beforehand may come before that.
        when = min(gone, found.going_since(machine.name) or gone)
        cites.append(machine.died.index)
        waiting = [
            w
            for w in found.waves
            if found.at(w.begun) <= when and (w.over is None or found.at(w.over) > when)
        ]
        after = [
            m
            for m in found.machines.values()
            if m.asked is not None and m.alive is not None and found.at(m.asked) >= when
        ]
        if after:
            first = min(after, key=lambda m: found.at(m.alive))  # type: ignore[arg-type]
            assert first.alive is not None
            took.append(round(max(0.0, found.at(first.alive) - gone), 3))
            cites.append(first.alive.index)
        elif waiting:
            wrong.append(
                f"{machine.name} went in wave {waiting[0].number}, and none came in its place"
            )
    if wrong:
        return Finding(name, Verdict.INVALID, wrong[0], cites=cites, details=wrong[1:])
    if not took:
        return Finding(
            name, Verdict.UNKNOWN, "what was lost was lost when nothing waited for a node"
        )
    return Finding(
        name,
        Verdict.VALID,
        f"{_plural(len(lost), 'lost machine')} replaced, the first new node alive after {min(took):.1f} s",
        cites=cites,
        metrics={"replaced_s": sorted(took)},
    )


def check_refusals_overcome(view: RunView) -> Finding:
    """Machines were refused for a while, and in the end there were enough all the same."""
    found = elastic_of(view)
    name = "refusals_overcome"
    if not found.is_elastic:
        return _not_elastic(name)
    asked = found.index.all("cloud.asked")
    refused = [op for op in asked if op.data.get("refused")]
    if not refused:
        return Finding(name, Verdict.UNKNOWN, "no request for a machine was refused")
    last = found.at(refused[-1])
    cites = [refused[0].index, refused[-1].index]
    unmet = [w for w in found.waves if not found.is_done(w)]
    if unmet and gaps_of(view).driver:
        return Finding(name, Verdict.UNKNOWN, f"{gaps_of(view).driver[0]}: it may have been done")
    if unmet:
        return Finding(
            name,
            Verdict.INVALID,
            f"{_plural(len(refused), 'request')} refused, and wave {unmet[0].number} was never done",
            cites=[*cites, unmet[0].begun.index],
        )
    given = [op for op in asked if op.data.get("nodes") and found.at(op) > last]
    if not given:
        return Finding(
            name, Verdict.UNKNOWN, "nothing was asked for after the last refusal", cites=cites
        )
    again = round(found.at(given[0]) - last, 3)
    return Finding(
        name,
        Verdict.VALID,
        f"{_plural(len(refused), 'request')} refused over {last - found.at(refused[0]):.1f} s; "
        f"Ray's autoscaler asked again {again:.1f} s after the last",
        cites=[*cites, given[0].index],
        metrics={"refused": len(refused), "asked_again_s": again},
    )


def check_groups_right(view: RunView) -> Finding:
    """No machine is launched for what it offers and nobody wants while a plainer one was to be had."""
    found = elastic_of(view)
    name = "groups_right"
    if not found.is_elastic:
        return _not_elastic(name)
    special = {
        group: kind
        for group, raw in found.groups.items()
        for kind, amount in raw.get("resources", {}).items()
        if kind != "CPU" and amount
    }
    launches = [
        (op, op.data["group"]) for op in found.index.all("cloud.asked") if op.data.get("nodes")
    ]
    judged = [(op, group) for op, group in launches if group in special]
    if not judged:
        return Finding(name, Verdict.UNKNOWN, "no machine was launched that offers more than CPUs")
    states = found.index.all("autoscaler.state")
    wrong: list[str] = []
    at_limit = 0
    for op, group in judged:
        kind = special[group]
        # What it saw is told when it has acted on it.
        seen = next((s for s in states if found.at(s) >= found.at(op) - 0.001), None)
        wanted = seen is not None and any(kind in needs for needs in _needs(seen.data))
        if wanted or _ever_asked_for(found, kind, op):
            continue
        plain = [g for g in found.groups if g not in special]
        room = [g for g in plain if _asked_so_far(found, g, op) < found.most(g)]
        if room:
            wrong.append(
                f"{', '.join(op.data['nodes'])} was launched when nothing waited for {kind}, "
                f"and {room[0]} had room"
            )
        else:
            at_limit += 1
    cites = [op.index for op, _ in judged]
    if wrong:
        return Finding(name, Verdict.INVALID, wrong[0], cites=cites, details=wrong[1:])
    more = f"; {at_limit} for plain work, with the plain groups at their limits" if at_limit else ""
    return Finding(
        name,
        Verdict.VALID,
        f"{_plural(len(judged), 'launch', 'launches')} of machines that offer more than CPUs, each wanted{more}",
        cites=cites,
        metrics={"launches": len(judged), "at_limit": at_limit},
    )


def _needs(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = [item["needs"] for item in state.get("demand", ())]
    return found + [bundle for group in state.get("groups", ()) for bundle in group["bundles"]]


def _ever_asked_for(found: Elastic, kind: str, before: Op) -> bool:
    """Whether it saw work that wants this and was not back, in its looks of the last seconds."""
    when = found.at(before)
    return any(
        kind in needs
        for op in found.index.all("autoscaler.state")
        if when - 3.0 <= found.at(op) <= when
        for needs in _needs(op.data)
    )


def _asked_so_far(found: Elastic, group: str, op: Op) -> int:
    """How many machines of a group were there or on their way when this was asked for, with it."""
    when = found.at(op) + 0.5  # the requests of one look come one after the other
    return sum(
        m.asked is not None
        and found.at(m.asked) <= when
        and (m.died is None or found.at(m.died) > when)
        for m in found.machines.values()
        if m.group == group
    )


def capacity(view: RunView, resource: str = "CPU") -> list[tuple[float, float, float]]:
    """Demand against capacity over time: (when, waiting and in use, offered by living nodes).

    As Ray's autoscaler saw it, a point for each change.
    """
    found = elastic_of(view)
    offers = {
        g: float(raw.get("resources", {}).get(resource, 0)) for g, raw in found.groups.items()
    }
    points = []
    for op in found.index.all("autoscaler.state"):
        data = op.data
        nodes: Iterable[Mapping[str, Any]] = data.get("nodes", ())
        offered = sum(offers.get(n["group"], 0.0) for n in nodes)
        wanted = sum(
            float(item["needs"].get(resource, 0)) * item["count"] for item in data.get("demand", ())
        )
        wanted += sum(
            float(bundle.get(resource, 0))
            for group in data.get("groups", ())
            for bundle in group["bundles"]
        )
        busy = sum(offers.get(n["group"], 0.0) for n in nodes if n["state"] == "busy")
        points.append((found.at(op), wanted + busy, offered))
    return points


def _plural(count: int, what: str, many: str = "") -> str:
    return f"{count} {what if count == 1 else many or what + 's'}"
