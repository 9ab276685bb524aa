"""Breaks what the plan says when it says so, shows that it broke, and heals it when that is due.

Every fault goes the same way, and each step of it is in the history before the next is done: what will
be done and how it is undone, the injection, its effect as seen from outside, the healing. A fault
whose effect nobody saw is told from one that took effect, so that no run passes because nothing happened.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
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
from simulator.waiting import Alarm, Deadline, WaitTimeout

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
    since
        How long the history was before it was injected.
    alarm
        Of one that is announced: its time has not come yet, or nobody has looked since.
    announced
        What showed that it was; "" if nothing did.
    """

    planned: PlannedFault
    site: Site
    injected: float | None = None
    verified: bool = False
    healed: bool = False
    since: int = 0
    alarm: Alarm | None = None
    announced: str = ""
    failed: str = ""
    #: Held while it strikes, so that it does not once it is over.
    turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pending(self) -> bool:
        """Whether it is announced, and still to be seen to strike."""
        return self.alarm is not None

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
        #: All of the planned work has been given out; what is done from then on is only there for the faults.
        self.work_given = False
        self._watches = {p.id: p.step.when.watch() for p in planned if p.step.when is not None}
        self._count = 0

    def read(self, recorder: Recorder) -> None:
        """Look at what was recorded since."""
        news = recorder.since(self._count)
        self._count += len(news)
        for op in news:
            self.work_over |= op.kind == "driver.end"
            self.work_given |= op.kind == "driver.planned"
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

    @property
    def pending(self) -> list[LiveFault]:
        """Those that are announced and not seen to have struck."""
        return [f for f in self.faults if f.pending]

    def struck(self, node: str) -> bool:
        """Whether a fault holds this node now; the head's too that of the store, without which it cannot go on."""
        store = self.topology.store
        nodes = {node, store.name} if node == "head" and store is not None else {node}
        return any(f.node in nodes for f in self.active)

    # -- breaking ----------------------------------------------------------------------------------

    def inject_all(self) -> None:
        """Inject each fault at its time, counted from now, or when its condition is true.

        Of a fault that comes back, what is left when the work is over is left out; of one that is for
        ``while working`` already what is left when the planned work has been given out.
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
                done = over or (step.while_working and seen.work_given)
                if done and (planned.repetition > 1 or step.while_working):
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
        for fault in begun:
            self._verify_notice(fault) if fault.pending else self._verify(fault)
        for fault in begun:
            # It may have begun another life by itself.
            if fault.fault.shown_by == "die" and not fault.pending:
                self._strike_again(fault.node)
        if begun:
            self.load.go_on(struck=any(not fault.pending for fault in begun))

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

    def _inject(self, planned: PlannedFault, site: Site) -> LiveFault | None:
        """Break one node, or announce that it will be broken; None if it was skipped."""
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
        fault.since = len(recorder.snapshot())
        fault.injected = self.live.clock.mono()
        recorder.record("fault.inject", node=site.node, data=fault.facts)
        if step.fault.announced_s:
            # Nobody waits for anybody: its time comes while others are told, or healed.
            take = partial(self._take, fault)
            fault.alarm = self.live.clock.after(step.fault.announced_s, take)
        try:
            step.fault.inject(cluster, site)
        except Missed as error:
            recorder.record(
                "fault.effect", node=site.node, verified=False, how=str(error), data=fault.facts
            )
            return None
        recorder.record("fault.done", node=site.node, data=fault.facts)
        return fault

    def _skip(self, planned: PlannedFault, site: Site, why: str) -> None:
        recorder = self.live.recorder
        node, facts = site.node or None, {"id": site.id, "fault": planned.step.fault.name}
        target = site.node or str(planned.step.target)
        recorder.record("fault.plan", node=node, target=target, undo="nothing", data=facts)
        recorder.record("fault.skipped", node=node, why=why, data=facts)
        recorder.record(
            "fault.healed", node=node, verified=True, how="nothing was done", data=facts
        )

    def _verify_notice(self, fault: LiveFault) -> None:
        """Show from outside that it is announced."""
        cluster, recorder = self.live.cluster, self.live.recorder
        # Looking takes its time, and what was looked for has been there since the call returned.
        done = self._done(fault)
        how = "it struck before anything showed that it was announced"

        def seen() -> bool:
            fault.announced = fault.fault.announced(cluster, fault.site)
            return bool(fault.announced) or self._over(fault)

        try:
            cluster.wait_until(
                seen, name=f"the notice of {fault.node} to show", timeout=SEEN_S, interval=0.1
            )
        except (WaitTimeout, CannotRun) as error:
            how = str(error)
        recorder.record(
            "fault.notice",
            node=fault.node,
            wall=done.wall,
            mono=done.mono,
            seconds=fault.fault.announced_s,
            verified=bool(fault.announced),
            how=fault.announced or how,
            data=fault.facts,
        )

    def _over(self, fault: LiveFault) -> bool:
        """Whether its time has come, or its node is down already."""
        assert fault.injected is not None
        if self.live.clock.mono() - fault.injected >= fault.fault.announced_s:
            return True
        kind = f"engine.{fault.fault.shown_by}"
        news = self.live.recorder.since(fault.since)
        return any(op.kind == kind and op.node == fault.node for op in news)

    def _take(self, fault: LiveFault) -> None:
        """Its time has come; from a thread of the clock's."""
        with fault.turn:
            if fault.alarm is None or self.live.recorder.closed:
                return
            self.live.recorder.record("fault.strike", node=fault.node, data=fault.facts)
            try:
                fault.fault.strike(self.live.cluster, fault.site)
            except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to: it is told
                fault.failed = f"{type(error).__name__}: {error}"

    def _calm(self, fault: LiveFault) -> None:
        """It does not strike any more, if it has not yet."""
        if fault.alarm is not None:
            fault.alarm.cancel()
            with fault.turn:
                fault.alarm = None

    def see_struck(self) -> None:
        """Show of each announced fault whose time has come, or whose node left before, that it took effect."""
        for fault in self.pending:
            if self._over(fault):
                self._verify(fault)
                self._calm(fault)
                self._strike_again(fault.node)
                self.load.go_on()

    def _done(self, fault: LiveFault) -> Op:
        return next(
            op
            for op in self.live.recorder.since(fault.since)
            if op.kind == "fault.done" and op.data["id"] == fault.site.id
        )

    def _verify(self, fault: LiveFault) -> None:
        """Show from outside that it took effect: the engine's event, and what holds from then on."""
        cluster, recorder = self.live.cluster, self.live.recorder
        node, facts = fault.node, fault.facts
        event: Op | None = None
        shown = f"{fault.announced}; " if fault.announced else ""
        try:
            if fault.fault.shown_by is not None:
                kind = f"engine.{fault.fault.shown_by}"

                def seen() -> Op | None:
                    ops = recorder.since(fault.since)
                    return next((op for op in ops if op.kind == kind and op.node == node), None)

                event = cluster.wait_until(
                    seen, name=f"{kind} of {node}", timeout=SEEN_S, interval=0.02
                )
                shown += f"{kind} (op {event.index}); "
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
                how=f"{shown}{fault.failed or error}",
                data=facts,
            )
            return
        # What was to be announced and was not is another fault than the one that was asked for.
        fault.verified = bool(fault.announced) or not fault.fault.announced_s
        if event is None:
            # Looking takes its time, and what was looked for has been there since the call returned.
            event = self._done(fault)
        recorder.record(
            "fault.effect",
            source=event.source,
            node=node,
            wall=event.wall,
            mono=event.mono,
            verified=fault.verified,
            how=f"{shown}{holds}" if fault.verified else f"it was not announced; {shown}{holds}",
            data=facts,
        )

    # -- healing -----------------------------------------------------------------------------------

    def heal_due(self, history: History) -> bool:
        """Undo every fault whose time has come; whether there was any."""
        self.see_struck()
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
        if fault.pending:
            self._calm(fault)
            how = f"it was undone before its {fault.fault.announced_s:g} s were over"
            recorder.record("fault.effect", node=node, verified=False, how=how, data=facts)
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
        if fault.holds_on or fault.injected is None or fault.pending:
            return False
        since = self.live.clock.mono() - fault.injected
        if isinstance(heal, After):
            return since >= heal.seconds
        assert isinstance(heal, WhenDeclaredDead)
        since -= fault.fault.announced_s
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
