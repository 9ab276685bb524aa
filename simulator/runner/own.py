"""A workload of ours on the cluster: told what it is to do, heard of by the ledger, ended when told so."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from simulator.errors import CannotRun
from simulator.history import Op
from simulator.rayapi import NoSuchJob
from simulator.runner.live import LiveRun
from simulator.runner.load import (
    ANEW,
    BUSY_S,
    LEDGER_WORKLOAD,
    Load,
    Struck,
    nothing_struck,
)
from simulator.topology import Topology
from simulator.waiting import Deadline, WaitTimeout
from simulator.workload import Surveyed, Workload

#: How long the look at what is left may take, seconds: it gives each thing that is not there some time to answer.
SURVEY_S = 150.0

LEDGER_CONTROL = "control.json"

#: How long the workload has to say its first word, and its last, seconds; the last also gets what the
#: planned work takes, and as long as the experiment gives recovery.
START_S, DRAIN_S = 60.0, 120.0


class OwnLoad(Load):
    """A workload of ours.

    Attributes
    ----------
    drain_s
        How long it may take to finish what it has, seconds.
    """

    def __init__(
        self, live: LiveRun, workload: Workload, topology: Topology, recovery_s: float
    ) -> None:
        super().__init__(live)
        self.workload, self.topology = workload, topology
        self.drain_s = max(DRAIN_S, recovery_s)
        self._asked: dict[str, bool] = {}
        self._attempts: set[tuple[str, int]] = set()
        self._asked_before = False

    # -- its life ----------------------------------------------------------------------------------

    def begin(self) -> None:
        live = self.live
        roles = {n.name: n.role for n in self.topology.nodes()}
        hostnames = {name: host for host, name in live.names.items() if roles.get(name) == "worker"}
        live.put(LEDGER_WORKLOAD, self.workload.spec(hostnames))
        self.drain_s += 2 * self.workload.nominal_seconds(self.topology)
        self.job = self.new_job_id()
        live.recorder.record("workload.submit", job_id=self.job, workload=self.workload.name)
        live.cluster.ray.submit(
            self.workload.entrypoint(live.run_id), self.job, resources=live.cluster.driver_needs()
        )

        def began() -> bool:
            if live.recorder.snapshot().first("driver.start"):
                return True
            try:
                job = live.cluster.ray.job(self.job or "")
            except CannotRun:
                return False
            if job.over:
                raise CannotRun(
                    f"the workload ended before it began: {job.status}",
                    why=job.message,
                    details=live.cluster.ray.job_logs(job.job_id).splitlines()[-12:],
                )
            return False

        live.cluster.wait_until(
            began, name="the workload's beginning", timeout=START_S, interval=0.2
        )

    def wait_planned(self) -> None:
        live = self.live
        deadline = Deadline(self.drain_s, clock=live.clock.mono)
        while not self.over:
            if live.look().first("driver.end") or not live.reading:
                break
            if deadline.passed:
                text = f"the planned work was not done within {self.drain_s:.0f} s"
                live.recorder.record("run.note", text=text)
                break
            self.ask(nothing_struck)
            live.clock.sleep(0.5)
        # It had all its time here: what follows is only its last word.
        self.drain_s = deadline.left

    def drain(self, struck: Struck = nothing_struck) -> None:  # noqa: ARG002
        """Tell it to finish what it has, and wait for its last word."""
        if self.job is None or self.over:
            return
        live = self.live
        live.recorder.record("workload.finish")
        if live.recorder.snapshot().first("driver.end") is None:
            self._control(go_on=True, finish=True)
        status, message = "LOST", ""

        def over() -> bool:
            nonlocal status, message
            history = live.look()
            try:
                job = live.cluster.ray.job(self.job or "")
            except NoSuchJob as error:
                message = f"{error}: {ANEW}"
                return True
            except CannotRun as error:
                message = str(error)
                # Nobody starts the head again before this is over. Without its tables the job is gone with it;
                # with them it goes on by itself, and its last word comes by the ledger.
                gone = live.cluster.node("head").state == "exited"
                said_all = history.first("driver.end") is not None
                return gone and (said_all or not live.cluster.outlives_head())
            status, message = job.status, job.message
            return job.over

        try:
            live.cluster.wait_until(
                over, name="the workload's end", timeout=self.drain_s, interval=0.3
            )
        except WaitTimeout as error:
            message = str(error)
            with suppress(
                CannotRun
            ):  # on a cluster that stays up it would be there in the next run
                live.cluster.ray.stop_job(self.job)
        self._ended(status, message)

    def survey(self) -> None:
        live = self.live
        if not isinstance(self.workload, Surveyed):
            return
        job = self.new_job_id()
        live.recorder.record("workload.survey", job_id=job)

        def over() -> bool:
            return live.look().first("survey.end") is not None or live.cluster.ray.job(job).over

        try:
            live.cluster.ray.submit(
                self.workload.survey(live.run_id), job, resources=live.cluster.driver_needs()
            )
            live.cluster.wait_until(over, name="the survey's end", timeout=SURVEY_S, interval=0.3)
            if live.look().first("survey.end") is None:
                lines = live.cluster.ray.job_logs(job).splitlines()[-3:]
                live.recorder.record("run.note", text=f"the survey failed: {' / '.join(lines)}")
        except (CannotRun, WaitTimeout) as error:
            live.recorder.record("run.note", text=f"the survey failed: {error}")

    def stop(self, why: str) -> None:
        assert self.job is not None
        try:
            self.live.cluster.ray.stop_job(self.job)
        except CannotRun as error:
            self._ended("LOST", f"{why}; {error}")
        else:
            self._ended("STOPPED", why)

    def _ended(self, status: str, message: str) -> None:
        self.over = True
        self.live.recorder.record("workload.end", status=status, message=message[:500])

    # -- what faults ask of it ---------------------------------------------------------------------

    @property
    def driver_node(self) -> str | None:
        started = self.live.recorder.snapshot().first("driver.start")
        return None if started is None else started.node

    @property
    def idle(self) -> bool:
        return self.over or self.live.recorder.snapshot().first("driver.end") is not None

    def wait_busy(self, nodes: Sequence[str]) -> None:
        """Until a task on one of them is known to have begun and to have half of its time to go."""
        clock, recorder = self.live.clock, self.live.recorder
        deadline = Deadline(BUSY_S, clock=clock.mono)
        under_way: dict[str, Op] = {}
        looked = 0
        while not deadline.passed:
            news = recorder.since(looked)
            for op in news:
                if op.kind == "driver.end":
                    return
                if op.kind == "task.start" and op.node in nodes:
                    under_way[op.data["exec"]] = op
                elif op.kind == "task.end":
                    under_way.pop(op.data["exec"], None)
            looked += len(news)
            now = clock.wall()
            for op in under_way.values():
                if now - recorder.history.at(op) < op.data["nominal_s"] / 2:
                    return
            clock.sleep(0.01)

    def go_on(self, *, struck: bool = True) -> None:
        """Tell it that a fault was done, or announced, unless it has ended."""
        if self.live.recorder.snapshot().first("driver.end") is None:
            self.live.recorder.record("workload.go_on")
            # What is held on the nodes is needed again once some of it may be lost.
            self._control(go_on=True, look=struck or self._asked.get("look", False))

    def _control(self, **asked: bool) -> None:
        self._asked.update(asked)
        self.live.put(LEDGER_CONTROL, self._asked)

    # -- what Ray says of it -----------------------------------------------------------------------

    def look(self, struck: Struck) -> None:  # noqa: ARG002
        self._failed_attempts()

    def look_at_job(self, struck: Struck) -> None:  # noqa: ARG002
        try:
            job = self.live.cluster.ray.job(self.job or "")
        except NoSuchJob as error:
            if not self.over:
                self._ended("LOST", f"{error}: {ANEW}")
            return
        except CannotRun:
            return
        if job.over and not self.over:
            self._ended(job.status, job.message)

    def _failed_attempts(self) -> int | None:
        """Record the failed attempts that Ray knows of and we do not yet; how many it dropped."""
        started = self.live.recorder.snapshot().first("driver.start")
        if started is None:
            return None
        try:
            found = self.live.cluster.ray.failed_attempts(started.data["job_id"])
        except CannotRun:
            return None
        for row in found.rows:
            if (row.task_id, row.attempt) in self._attempts or not row.ended:
                continue
            self._attempts.add((row.task_id, row.attempt))
            self.live.recorder.record(
                "attempt.failed",
                source="ray",
                node=self.live.ray_nodes.get(row.ray_node_id),
                wall=row.ended,
                key=row.name,
                task_id=row.task_id,
                attempt=row.attempt,
                error_type=row.error_type,
            )
        return found.dropped

    def before_head_goes(self) -> None:
        self._asked_before = self._failed_attempts() is not None

    def complete(self) -> None:
        """Record the last of the failed attempts, and that there are no more."""
        dropped = self._failed_attempts()
        if dropped is not None:
            self.live.recorder.record(
                "attempts.complete",
                source="ray",
                rows=len(self._attempts),
                dropped=dropped,
                forgotten=self.head_was_lost and not self._asked_before,
            )
