"""Breaks what the plan says when it says so, shows that it broke, and heals it when that is due.

Every fault goes the same way, and each step of it is in the history before the next is done: what will
be done and how it is undone, the injection, its effect as seen from outside, the healing. A fault
whose effect nobody saw is told from one that took effect, so that no run passes because nothing happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simulator.cluster import START_ATTEMPTS
from simulator.history import History, Op
from simulator.runner.live import LiveRun
from simulator.schedule import After, Never, PlannedFault
from simulator.waiting import Deadline, WaitTimeout

#: How long healing one fault may take, seconds.
HEAL_S = 150.0

#: How long a fault waits for its target to be in the middle of a task, seconds.
BUSY_S = 10.0


@dataclass
class LiveFault:
    """One fault of a run while it goes on.

    Attributes
    ----------
    injected
        When, by the run's monotonic clock, seconds; None before.
    verified
        Its effect was seen from outside.
    """

    planned: PlannedFault
    injected: float | None = None
    verified: bool = False
    healed: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What every operation about it says."""
        return {"id": self.planned.id, "fault": self.planned.step.fault.name}

    @property
    def stays(self) -> bool:
        """Whether it is never to be healed."""
        return isinstance(self.planned.step.heal, Never)


class Injection:
    """All faults of a run.

    Parameters
    ----------
    planned
        In the order of time.
    """

    def __init__(self, live: LiveRun, planned: Sequence[PlannedFault]) -> None:
        self.live = live
        self.faults = [LiveFault(p) for p in planned]

    # -- where they stand --------------------------------------------------------------------------

    @property
    def injected(self) -> list[LiveFault]:
        """Those that were injected, healed or not, in that order."""
        return [f for f in self.faults if f.injected is not None]

    @property
    def all_healed(self) -> bool:
        """Whether nothing that was injected is still to be healed."""
        return all(f.healed or f.stays for f in self.injected)

    def struck(self, node: str) -> bool:
        """Whether a fault holds this node now."""
        return any(f.planned.node == node and not f.healed for f in self.injected)

    # -- breaking ----------------------------------------------------------------------------------

    def inject_all(self) -> None:
        """Inject each fault at its time, counted from now."""
        load_began = self.live.clock.mono()
        for fault in self.faults:
            self._wait_to(load_began + fault.planned.step.at)
            if fault.planned.step.when_busy:
                self._wait_busy(fault.planned.node)
            self._inject(fault)

    def _wait_to(self, moment: float) -> None:
        """Until then, heal what is due: a long schedule undoes its first fault before its last."""
        clock = self.live.clock
        while (left := moment - clock.mono()) > 0:
            self.heal_due(self.live.look())
            clock.sleep(min(left, 0.5))

    def _wait_busy(self, node: str) -> None:
        """Until a task on the node is known to have begun and to have half of its time to go.

        Gives up after `BUSY_S` seconds, or when the work is over: then the fault hits what it hits,
        and the checks say so.
        """
        clock, recorder = self.live.clock, self.live.recorder
        deadline = Deadline(BUSY_S, clock=clock.mono)
        under_way: dict[str, Op] = {}
        looked = 0
        while not deadline.passed:
            news = recorder.since(looked)
            for op in news:
                if op.kind == "driver.end":
                    return
                if op.kind == "task.start" and op.node == node:
                    under_way[op.data["exec"]] = op
                elif op.kind == "task.end":
                    under_way.pop(op.data["exec"], None)
            looked += len(news)
            now = clock.wall()
            for op in under_way.values():
                if now - recorder.history.at(op) < op.data["nominal_s"] / 2:
                    return
            clock.sleep(0.01)

    def _inject(self, fault: LiveFault) -> None:
        cluster, recorder = self.live.cluster, self.live.recorder
        step, node = fault.planned.step, fault.planned.node
        facts, data = fault.facts, fault.planned.to_data()
        recorder.record("fault.plan", node=node, target=node, undo=data["undo"], data=facts)
        state = cluster.node(node).state
        if state != "running":
            recorder.record("fault.skipped", node=node, why=f"{node} is {state}", data=facts)
            fault.healed = True
            recorder.record(
                "fault.healed", node=node, verified=True, how="nothing was done", data=facts
            )
            return
        before = len(recorder.snapshot())
        fault.injected = self.live.clock.mono()
        recorder.record("fault.inject", node=node, data=facts)
        step.fault.inject(cluster, node)
        recorder.record("fault.done", node=node, data=facts)
        self._verify(fault, before)
        self.live.go_on()

    def _verify(self, fault: LiveFault, since: int) -> None:
        """Show from outside that it took effect: the engine's event, and the state it left."""
        cluster, recorder = self.live.cluster, self.live.recorder
        step, node, facts = fault.planned.step, fault.planned.node, fault.facts
        kind = f"engine.{step.fault.shown_by}"

        def seen() -> Any:
            ops = recorder.snapshot().ops[since:]
            return next((op for op in ops if op.kind == kind and op.node == node), None)

        try:
            event = cluster.wait_until(seen, name=f"{kind} of {node}", timeout=15.0, interval=0.02)
        except WaitTimeout as error:
            recorder.record(
                "fault.effect",
                source="engine",
                node=node,
                verified=False,
                how=str(error),
                data=facts,
            )
            return
        holds = fault.verified = step.fault.holds(cluster, node)
        recorder.record(
            "fault.effect",
            source="engine",
            node=node,
            wall=event.wall,
            verified=holds,
            how=f"{kind} (op {event.index}); the engine says {cluster.node(node).state}",
            data=facts,
        )

    # -- healing -----------------------------------------------------------------------------------

    def heal_due(self, history: History) -> bool:
        """Undo every fault whose time has come; whether there was any."""
        due = [f for f in self.faults if not f.healed and self._due(history, f)]
        for fault in due:
            self.heal(fault)
        return bool(due)

    def heal(self, fault: LiveFault) -> None:
        """Undo one fault; safe to call again."""
        recorder = self.live.recorder
        step, node, facts = fault.planned.step, fault.planned.node, fault.facts
        if fault.healed:
            return
        if fault.stays:
            fault.healed = True
            recorder.record(
                "fault.healed", node=node, verified=True, how="asked to stay", data=facts
            )
            return
        recorder.record("fault.heal", node=node, how=step.fault.undo, data=facts)
        each = HEAL_S / START_ATTEMPTS  # of the attempts that a start gets
        how = step.fault.heal(self.live.cluster, node, each)
        fault.healed = True
        self.live.map_nodes()
        recorder.record("fault.healed", node=node, verified=True, how=how, data=facts)

    def _due(self, history: History, fault: LiveFault) -> bool:
        heal = fault.planned.step.heal
        if isinstance(heal, Never) or fault.injected is None:
            return False
        since = self.live.clock.mono() - fault.injected
        if isinstance(heal, After):
            return since >= heal.seconds
        if not fault.verified:
            return True  # nothing died, so nothing will be declared dead
        inject = next(op for op in history.of("fault.inject") if op.data["id"] == fault.planned.id)
        dead = any(
            op.node == fault.planned.node and op.data["state"] == "DEAD" and op.index > inject.index
            for op in history.of("ray.node")
        )
        return dead or since >= heal.at_most
