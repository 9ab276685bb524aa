"""Where the seconds went while a cluster grew with its work and shrank without it.

Counted from the first fault, or from the first wave of work where nothing is broken. As in the recovery
anatomy, what did not happen is None with a note that says why. docs/reference/anatomy.md defines each phase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from simulator.checkers.base import RunView
from simulator.checkers.elasticity import Elastic, Machine, elastic_of
from simulator.checkers.phases import Anatomy, Phase
from simulator.history import Op

#: Name and title of every phase, in their usual order; the first two only where something is broken.
GROWTH: dict[str, str] = {
    "effect": "took effect",
    "declared_dead": "declared DEAD by the GCS",
    "demand_seen": "demand seen by Ray's autoscaler",
    "launch_asked": "first machine asked for",
    "machine_up": "first machine started",
    "node_alive": "first new node alive",
    "first_task": "first task on a new node",
    "demand_met": "all of the wave done",
    "first_gone": "first idle node gone",
    "least_left": "as few nodes as may be",
}

OF_FAULTS = frozenset({"effect", "declared_dead"})


def growth(view: RunView) -> Anatomy:
    """The phases of a run on a cluster that Ray's autoscaler makes larger and smaller."""
    found = elastic_of(view)
    index = found.index
    fault = next(iter(index.injected()), None)
    names = [n for n in GROWTH if fault is not None or n not in OF_FAULTS]
    mandatory = set(view.spec.get("mandatory_phases", ()))
    origin = fault.inject if fault is not None else found.waves[0].begun if found.waves else None
    if origin is None:
        why = "not seen: no work came"
        phases = [Phase(n, GROWTH[n], None, mandatory=n in mandatory, note=why) for n in names]
        return Anatomy(phases)
    since = found.at(origin)
    looks = _Looks(found, since, origin)
    phases = []
    for name in names:
        look: Callable[[], tuple[Op | None, str]] = getattr(looks, name)
        op, note = look()
        if op is None:
            note = f"not seen: {note}"
            phases.append(Phase(name, GROWTH[name], None, mandatory=name in mandatory, note=note))
            continue
        phases.append(
            Phase(
                name,
                GROWTH[name],
                max(0.0, found.at(op) - since),
                index.history.uncertainty(origin, op)
                + (index.observer_poll_s if op.source == "observer" else 0.0),
                sorted({origin.index, op.index}),
                name in mandatory,
                note,
            )
        )
    machines = [m for m in found.machines.values() if m.started is not None]
    metrics = {
        "machines": len(machines),
        "machines_gone": sum(m.left and not found.struck(m.name) for m in machines),
    }
    victim = None if fault is None else fault.node
    return Anatomy(phases, metrics, None if fault is None else fault.id, victim, since)


class _Looks:
    """What each phase rests on, and a note; without the operation, why it was not seen."""

    def __init__(self, found: Elastic, since: float, origin: Op) -> None:
        self.found, self.since, self.origin = found, since, origin
        self.fault = next(iter(found.index.injected()), None)
        self.wave = next(
            (w for w in found.waves if w.over is None or found.at(w.over) >= since),
            found.waves[-1] if found.waves else None,
        )

    def _first(self, ops: Iterable[Op | None]) -> Op | None:
        after = [op for op in ops if op is not None and self.found.at(op) >= self.since]
        return min(after, key=self.found.at, default=None)

    @property
    def new(self) -> Sequence[Machine]:
        """The machines that were asked for since."""
        return [
            m
            for m in self.found.machines.values()
            if m.asked is not None and self.found.at(m.asked) >= self.since
        ]

    def effect(self) -> tuple[Op | None, str]:
        effect = self.fault.effect if self.fault else None
        if effect is None or not effect.data.get("verified"):
            return None, "nothing reported that the fault took effect"
        return effect, str(effect.data.get("how", ""))

    def declared_dead(self) -> tuple[Op | None, str]:
        node = self.fault.node if self.fault else None
        ops = self.found.index.node_ops.get(node or "", [])
        dead = self._first(op for op in ops if op.data.get("state") == "DEAD")
        return dead, str(dead.data.get("reason", "")) if dead else "Ray never gave it up"

    def demand_seen(self) -> tuple[Op | None, str]:
        states = self.found.index.all("autoscaler.state")
        op = self._first(op for op in states if op.data.get("demand") or op.data.get("groups"))
        return op, "" if op else "Ray's autoscaler saw nothing that waits"

    def launch_asked(self) -> tuple[Op | None, str]:
        op = self._first(m.asked for m in self.new)
        if op is not None:
            return op, ", ".join(op.data.get("nodes", ()))
        refused = self._first(
            op for op in self.found.index.all("cloud.asked") if op.data.get("refused")
        )
        return None, f"refused: {refused.data['refused']}" if refused else "nothing was asked for"

    def machine_up(self) -> tuple[Op | None, str]:
        op = self._first(m.started for m in self.new)
        return op, (op.node or "") if op else "no machine that was asked for started"

    def node_alive(self) -> tuple[Op | None, str]:
        op = self._first(m.alive for m in self.new)
        return op, (op.node or "") if op else "no new node joined"

    def first_task(self) -> tuple[Op | None, str]:
        op = self._first(m.work[0].start_op for m in self.new if m.work)
        return op, (op.node or "") if op else "no task ran on a new node"

    def demand_met(self) -> tuple[Op | None, str]:
        if self.wave is None:
            return None, "no work came"
        return self.wave.over, f"wave {self.wave.number}" + (
            "" if self.wave.over else " never ended"
        )

    def first_gone(self) -> tuple[Op | None, str]:
        op = self._first(m.died for m in self.found.machines.values() if self._went(m))
        return op, (op.node or "") if op else "no idle node left while it was watched"

    def least_left(self) -> tuple[Op | None, str]:
        """From then on, until the end of the watch, no group had more than its least."""
        found = self.found
        last = self._first(())
        for machine in found.machines.values():
            if self._went(machine) and (
                last is None or found.at(machine.died) > found.at(last)  # type: ignore[arg-type]
            ):
                last = machine.died
        if last is None:
            return None, "no idle node left while it was watched"
        there = found.there(found.end)
        over = [g for g in found.groups if there[g] > found.least(g)]
        if over:
            return None, f"in the end {there[over[0]]} of {over[0]} were there"
        return last, ""

    def _went(self, machine: Machine) -> bool:
        return (
            machine.died is not None
            and machine.left
            and not self.found.struck(machine.name)
            and self.found.at(machine.died) <= self.found.end
        )
