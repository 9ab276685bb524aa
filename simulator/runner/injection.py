"""Breaks what the plan says when it says so, shows that it broke, and heals it when that is due.

Every fault goes the same way, and each step of it is in the history before the next is done: what will
be done and how it is undone, the injection, its effect as seen from outside, the healing. A fault
whose effect nobody saw is told from one that took effect, so that no run passes because nothing happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from simulator.cluster import START_ATTEMPTS
from simulator.errors import BadInput, CannotRun, NotFound
from simulator.faults import Fault, Missed, Site
from simulator.history import History, Op, Recorder
from simulator.runner.live import LiveRun
from simulator.runner.load import Load
from simulator.schedule import After, AtEnd, Look, Never, PlannedFault, WhenDeclaredDead
from simulator.topology import Topology
from simulator.waiting import Deadline, WaitTimeout

#: How long healing one fault may take, seconds.
HEAL_S = 150.0

#: How long something that is to be hit may be nowhere when its fault is due, seconds.
FOUND_S = 10.0

#: How long after its injection a fault must be seen to hold, and after its healing to be gone, seconds.
SEEN_S = 15.0

#: How often it is looked whether something is due, seconds.
TICK_S = 0.1

#: Ray is asked about the work only while no fault is due for so long, seconds.
ASK_ROOM_S = 1.0


@dataclass
class LiveFault:
    """One fault on one node, while the run goes on.

    Attributes
    ----------
    injected
        When, by the run's monotonic clock, seconds; None before.
    verified
        Its effect was seen from outside.
    """

    planned: PlannedFault
    site: Site
    injected: float | None = None
    verified: bool = False
    healed: bool = False

    @property
    def fault(self) -> Fault:
        return self.planned.step.fault

    @property
    def node(self) -> str:
        return self.site.node

    @property
    def facts(self) -> dict[str, Any]:
        """What every operation about it says."""
        return {"id": self.site.id, "fault": self.fault.name}

    @property
    def stays(self) -> bool:
        """Whether it is never to be healed."""
        return isinstance(self.planned.step.heal, Never)

    @property
    def holds_on(self) -> bool:
        """Whether nobody is to undo it while the work goes on."""
        return isinstance(self.planned.step.heal, (Never, AtEnd))


class _Seen:
    """What the history shows of what faults wait for; each operation is looked at once."""

    def __init__(self, planned: Sequence[PlannedFault]) -> None:
        self.work_over = False
        self._watches = {p.id: p.step.when.watch() for p in planned if p.step.when is not None}
        self._count = 0

    def read(self, recorder: Recorder) -> None:
        """Look at what was recorded since."""
        news = recorder.since(self._count)
        self._count += len(news)
        for op in news:
            self.work_over |= op.kind == "driver.end"
            for watch in self._watches.values():
                watch.see(op)

    def true(self, planned: PlannedFault) -> bool:
        """Whether what this fault waits for is true; it may wait for nothing."""
        watch = self._watches.get(planned.id)
        return watch is None or watch.true


@dataclass
class Injection:
    """All faults of a run.

    Attributes
    ----------
    planned
        In the order of time.
    faults
        Those whose time came, one for each node that was hit.
    """

    live: LiveRun
    load: Load
    planned: Sequence[PlannedFault]
    topology: Topology
    faults: list[LiveFault] = field(default_factory=list)

    # -- where they stand --------------------------------------------------------------------------

    @property
    def injected(self) -> list[LiveFault]:
        """Those that were injected, healed or not, in that order."""
        return [f for f in self.faults if f.injected is not None]

    @property
    def active(self) -> list[LiveFault]:
        """Those that hold now."""
        return [f for f in self.injected if not f.healed]

    @property
    def all_healed(self) -> bool:
        """Whether nothing that was injected is still to be healed before the end."""
        return all(f.healed or f.holds_on for f in self.injected)

    def struck(self, node: str) -> bool:
        """Whether a fault holds this node now; the head's too that of the store, without which it cannot go on."""
        store = self.topology.store
        nodes = {node, store.name} if node == "head" and store is not None else {node}
        return any(f.node in nodes for f in self.active)

    # -- breaking ----------------------------------------------------------------------------------

    def inject_all(self) -> None:
        """Inject each fault at its time, counted from now, or when its condition is true.

        Of a fault that comes back, what is left when the work is over is left out.
        """
        began = self.live.clock.mono()
        waiting = list(self.planned)
        seen = _Seen(waiting)
        while waiting:
            now = self.live.clock.mono() - began
            seen.read(self.live.recorder)
            over, too_late = self.load.over or seen.work_over, self.load.too_late
            for planned in list(waiting):
                step = planned.step
                if over and planned.repetition > 1:
                    waiting.remove(planned)
                    self._leave_out(planned)
                    continue
                if planned.at > now and not too_late:
                    continue
                late = now - planned.at > step.patience
                if too_late and step.when is None:
                    waiting.remove(planned)
                    self._skip(planned, Site("", planned.id), too_late)
                elif not too_late and seen.true(planned):
                    waiting.remove(planned)
                    self._strike(planned)
                elif late or over:
                    waiting.remove(planned)
                    why = f"{step.when} did not come true " + (
                        f"within {step.patience:g} s" if late else "before the work was over"
                    )
                    self._skip(planned, Site("", planned.id), why)
            self.heal_due(self.live.look())
            if not waiting:
                return
            self._ask(waiting, began)
            due = min(p.at for p in waiting) + began - self.live.clock.mono()
            self.live.clock.sleep(max(0.0, min(due, 0.5)) if due > 0 else TICK_S)

    def _ask(self, waiting: Sequence[PlannedFault], began: float) -> None:
        """Ask Ray about the work where its answer cannot make a fault late."""
        now = self.live.clock.mono() - began
        due = min((p.at for p in waiting if p.at > now), default=inf)
        if due - now > ASK_ROOM_S and not self.struck("head"):
            self.load.ask(self.struck)

    def _leave_out(self, planned: PlannedFault) -> None:
        data = {"id": planned.id, "fault": planned.step.fault.name}
        self.live.recorder.record("schedule.left_out", why="the work was over", data=data)

    def _strike(self, planned: PlannedFault) -> None:
        """Inject it on every node that it hits."""
        try:
            planned = self._found(planned)
        except (NotFound, BadInput, CannotRun) as error:
            self._skip(planned, Site("", planned.id), f"{planned.step.target}: {error}")
            return
        if planned.step.when_busy:
            self.load.wait_busy(planned.nodes)
        begun = [found for site in planned.sites() if (found := self._inject(planned, site))]
        for fault, before in begun:
            self._verify(fault, before)
        for fault, _ in begun:
            if fault.fault.shown_by == "die":  # it may have begun another life by itself
                self._strike_again(fault.node)
        if begun:
            self.load.go_on()

    def _found(self, planned: PlannedFault) -> PlannedFault:
        """With all that it hits; what runs nowhere at the moment is waited for, a few seconds.

        Between two tasks there is none, and of a node that has just died Ray still tells.
        """
        look = Look(self.live.cluster, self.live.recorder.snapshot, self.load.driver_node)
        deadline = Deadline(FOUND_S, clock=self.live.clock.mono)
        while True:
            try:
                return planned.resolve(self._there(), look)
            except (NotFound, BadInput, CannotRun):
                settled = planned.nodes or (
                    planned.step.target.early and not self.topology.autoscaling
                )
                if settled or deadline.passed or self.load.over:
                    raise
            self.live.clock.sleep(0.2)

    def _there(self) -> Topology:
        """The topology, with the nodes that Ray's autoscaler has brought up by now."""
        if not self.topology.autoscaling:
            return self.topology
        nodes = self.live.cluster.record().nodes
        return self.topology.with_living(
            n.name for n in nodes if n.managed and n.state == "running"
        )

    def _inject(self, planned: PlannedFault, site: Site) -> tuple[LiveFault, int] | None:
        """Break one node; the fault, and how long the history was before. None if it was skipped."""
        cluster, recorder = self.live.cluster, self.live.recorder
        step = planned.step
        state = cluster.node(site.node).state
        if state != "running":
            self._skip(planned, site, f"{site.node} is {state}")
            return None
        spec = next((n for n in self._there().breakable() if n.name == site.node), None)
        if spec is not None and (why := step.fault.refused_on(spec)):
            self._skip(planned, site, f"{site.node} {why}")
            return None
        try:
            site = step.fault.locate(cluster, site)
        except CannotRun as error:
            self._skip(planned, site, str(error))
            return None
        fault = LiveFault(planned, site)
        self.faults.append(fault)
        undo = planned.to_data()["undo"]
        # All that it takes to undo it, by whoever does, is on record before anything is done.
        recorder.record(
            "fault.plan",
            node=site.node,
            target=site.node,
            undo=undo,
            site=site.to_data(),
            parameters=step.fault.to_data(),
            data=fault.facts,
        )
        if site.node == "head" or (spec is not None and spec.role == "store"):
            self.load.before_head_goes()
        before = len(recorder.snapshot())
        fault.injected = self.live.clock.mono()
        recorder.record("fault.inject", node=site.node, data=fault.facts)
        try:
            step.fault.inject(cluster, site)
        except Missed as error:
            recorder.record(
                "fault.effect", node=site.node, verified=False, how=str(error), data=fault.facts
            )
            return None
        recorder.record("fault.done", node=site.node, data=fault.facts)
        return fault, before

    def _skip(self, planned: PlannedFault, site: Site, why: str) -> None:
        recorder = self.live.recorder
        node, facts = site.node or None, {"id": site.id, "fault": planned.step.fault.name}
        target = site.node or str(planned.step.target)
        recorder.record("fault.plan", node=node, target=target, undo="nothing", data=facts)
        recorder.record("fault.skipped", node=node, why=why, data=facts)
        recorder.record(
            "fault.healed", node=node, verified=True, how="nothing was done", data=facts
        )

    def _verify(self, fault: LiveFault, since: int) -> None:
        """Show from outside that it took effect: the engine's event, and what holds from then on."""
        cluster, recorder = self.live.cluster, self.live.recorder
        node, facts = fault.node, fault.facts
        event: Op | None = None
        shown = ""
        try:
            if fault.fault.shown_by is not None:
                kind = f"engine.{fault.fault.shown_by}"

                def seen() -> Op | None:
                    ops = recorder.snapshot().ops[since:]
                    return next((op for op in ops if op.kind == kind and op.node == node), None)

                event = cluster.wait_until(
                    seen, name=f"{kind} of {node}", timeout=SEEN_S, interval=0.02
                )
                shown = f"{kind} (op {event.index}); "
            holds = cluster.wait_until(
                lambda: fault.fault.holds(cluster, fault.site),
                name=f"{fault.fault.name} of {node} to show",
                timeout=SEEN_S if event is None else 1.0,
                interval=0.1,
            )
        except (WaitTimeout, CannotRun) as error:
            recorder.record(
                "fault.effect",
                source="engine",
                node=node,
                verified=False,
                how=f"{shown}{error}",
                data=facts,
            )
            return
        fault.verified = True
        if event is None:
            # Looking takes its time, and what was looked for has been there since the call returned.
            event = next(
                op
                for op in recorder.snapshot().ops[since:]
                if op.kind == "fault.done" and op.data["id"] == fault.site.id
            )
        recorder.record(
            "fault.effect",
            source=event.source,
            node=node,
            wall=event.wall,
            mono=event.mono,
            verified=True,
            how=f"{shown}{holds}",
            data=facts,
        )

    # -- healing -----------------------------------------------------------------------------------

    def heal_due(self, history: History) -> bool:
        """Undo every fault whose time has come; whether there was any."""
        due = [f for f in self.active if self._due(history, f) and not self._out_of_reach(f)]
        for fault in due:
            self.heal(fault)
        return bool(due)

    def _out_of_reach(self, fault: LiveFault) -> bool:
        """Whether it lies in a node that another fault holds frozen; its turn comes after that."""
        return fault.fault.in_node and self.live.cluster.node(fault.node).state == "paused"

    def heal(self, fault: LiveFault) -> None:
        """Undo one fault; safe to call again."""
        cluster, recorder = self.live.cluster, self.live.recorder
        node, facts = fault.node, fault.facts
        if fault.healed:
            return
        if fault.stays:
            fault.healed = True
            recorder.record(
                "fault.healed", node=node, verified=True, how="asked to stay", data=facts
            )
            return
        recorder.record("fault.heal", node=node, how=fault.fault.undo, data=facts)
        each = HEAL_S / START_ATTEMPTS  # of the attempts that a start gets
        how = fault.fault.heal(cluster, fault.site, each)
        left = fault.fault.lingers(cluster, fault.site)
        fault.healed = True
        self.live.map_nodes()
        recorder.record("fault.healed", node=node, verified=not left, how=left or how, data=facts)
        self._strike_again(node)

    def _strike_again(self, node: str) -> None:
        """Put back what another fault's healing took away with it: it is not healed yet itself.

        It went with a node's old life, or was in the same place, as the tighter of two limits.
        """
        cluster, recorder = self.live.cluster, self.live.recorder
        if cluster.node(node).state != "running":
            return  # the fault that keeps it down has its healing before it
        for fault in self.active:
            # Where others are named, a node that starts may have the address of one of them.
            concerned = node == fault.node or fault.fault.between_nodes
            if not (concerned and fault.fault.outlives_restart):
                continue
            if cluster.node(fault.node).state not in ("running", "paused"):
                continue  # it has nothing that could be broken; that is seen to when it is back
            if not fault.fault.holds(cluster, fault.site):
                fault.fault.inject(cluster, fault.site)
                recorder.record("fault.again", node=fault.node, data=fault.facts)

    def _due(self, history: History, fault: LiveFault) -> bool:
        heal = fault.planned.step.heal
        if fault.holds_on or fault.injected is None:
            return False
        since = self.live.clock.mono() - fault.injected
        if isinstance(heal, After):
            return since >= heal.seconds
        assert isinstance(heal, WhenDeclaredDead)
        if not fault.verified:
            return True  # nothing died, so nothing will be declared dead
        inject = next(op for op in history.of("fault.inject") if op.data["id"] == fault.site.id)
        store = self.topology.store
        if store is not None and fault.node == store.name:
            # Ray declares no store dead: its head ends without it.
            ends = (op for op in history.of("engine.die") if op.node == "head")
        else:
            ends = (
                op
                for op in history.of("ray.node")
                if op.node == fault.node and op.data["state"] == "DEAD"
            )
        dead = any(op.index > inject.index for op in ends)
        return dead or since >= heal.at_most
