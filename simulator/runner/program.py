"""A program of the user's on the cluster: submitted unchanged, judged by what can be seen from outside.

It is a Ray job as `submit` makes one. Ray is asked how the job stands and how many of its tasks are where; at
the end, what became of each attempt and of each actor. What it prints goes to a file of the run's. What it
reports by itself (`ray_sim.mark` and `ray_sim.effect`) comes by the ledger, as everything does that is written there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from simulator import jobs
from simulator.errors import CannotRun
from simulator.innode.importable.ray_sim import RUN
from simulator.rayapi import Attempt, Job, NoSuchJob, TaskCounts
from simulator.runner.live import LiveRun
from simulator.runner.load import BUSY_S, LEDGER_WORKLOAD, Load, Struck, nothing_struck
from simulator.store import PROGRAM_LOG
from simulator.waiting import Deadline
from simulator.workload import Script

#: How long Ray may take to set up what the program runs in (its packages, say), seconds.
BEGIN_S = 900.0

#: How often it is looked whether it has ended, seconds.
LOOK_S = 0.5

#: How long it may take to end once Ray was told to stop it, seconds.
STOP_S = 20.0

#: How long Ray's processes keep what they know of tasks before they tell it, seconds, and some more.
FLUSH_S = 2.0

#: Of what it printed last, how much goes to the history: lines, and bytes.
TAIL_LINES, TAIL_BYTES = 30, 8000

#: The most tasks that failed of which Ray is asked one by one.
MOST_FAILED = 300

_COLOURS = re.compile("\x1b\\[[0-9;]*m")


class ProgramLoad(Load):
    """A program of the user's.

    Parameters
    ----------
    folder
        The run's directory: there goes what the program prints.
    """

    def __init__(self, live: LiveRun, script: Script, folder: Path) -> None:
        super().__init__(live)
        self.script = script
        self._log = folder / PROGRAM_LOG
        self._tail = b""
        self._output: jobs.JobOutput | None = None
        self._driver: str | None = None
        self._ray_jobs: list[str] = []
        self._counts: TaskCounts | None = None
        self._setup = self._seen_over = 0.0
        self._began = 0.0
        self._limit: Deadline | None = None
        self._silence: Deadline | None = None
        self._last_wait = False
        self._next_look = 0.0

    # -- its life ----------------------------------------------------------------------------------

    def begin(self) -> None:
        live, program = self.live, self.script.program
        live.put(LEDGER_WORKLOAD, self.script.spec({}))  # and with it the folder of its marks
        variables = {**(program.runtime_env.get("env_vars") or {}), RUN: live.run_id}
        program = replace(program, runtime_env={**program.runtime_env, "env_vars": variables})
        self.job = self.new_job_id()
        live.recorder.record(
            "program.submit",
            job_id=self.job,
            script=program.script,
            arguments=list(program.arguments),
        )
        asked = live.clock.mono()

        def asking() -> None:
            nonlocal asked
            asked = live.clock.mono()  # packed and uploaded; Ray counts from here

        submitted = jobs.submit(
            live.cluster.ray,
            program,
            job_id=self.job,
            resources=live.cluster.driver_needs(),
            say=live.listener.say,
            asking=asking,
        )
        self._output = jobs.JobOutput(live.cluster.ray, submitted, self._print)
        said = False

        def begun() -> Job | None:
            nonlocal said
            try:
                job = live.cluster.ray.job(submitted.job_id)
            except CannotRun as error:
                self._silent(nothing_struck)
                if self.over:
                    raise CannotRun(
                        f"{program.script} is lost from sight", why=str(error)
                    ) from None
                return None
            if job.status != "PENDING":
                return job
            if not said and live.clock.mono() - asked > jobs.PENDING_S:
                said = True
                live.listener.say(job.message)
            return None

        job = live.cluster.wait_until(
            begun, name=f"the beginning of {program.script}", timeout=BEGIN_S, interval=0.1
        )
        self._began, self._setup = live.clock.wall(), live.clock.mono() - asked
        self._limit = Deadline(self.script.timeout_s, clock=live.clock.mono)
        if job.over and job.exit_code is None:
            first, *more = job.message.strip().splitlines() or [""]
            self._ended(job.status, job)
            raise CannotRun(f"{program.script} could not be started", why=first, details=more[-10:])
        self._place(job)
        live.recorder.record(
            "program.start", node=self._driver, wall=self._began, setup_s=round(self._setup, 3)
        )
        self._take(job)

    def wait_planned(self) -> None:
        self.drain()

    def drain(self, struck: Struck = nothing_struck) -> None:
        """Wait for its end; what it was not done with in time, Ray is told to stop."""
        if self.job is None:
            return
        # Whatever holds the head now holds it until the end: there is no more to be waited for.
        self._last_wait = True
        while not self.over:
            self.live.look()
            self.ask(struck)
            self.look_at_job(struck)
            if not self.over:
                self.live.clock.sleep(LOOK_S)

    def stop(self, why: str) -> None:
        assert self.job is not None
        ray, clock = self.live.cluster.ray, self.live.clock
        limit = Deadline(STOP_S, clock=clock.mono)
        try:
            job = ray.job(self.job)
            while not job.over and not limit.passed:
                ray.stop_job(self.job)  # again: one that is being set up cannot be stopped yet
                clock.sleep(LOOK_S)
                job = ray.job(self.job)
        except CannotRun as error:
            self._ended("LOST", None, f"{why}; {error}")
            return
        # It may have ended by itself in the last moment.
        self._ended(job.status if job.over else "LOST", job, why if job.status == "STOPPED" else "")

    def _ended(self, status: str, job: Job | None, why: str = "") -> None:
        """Record how it ended, once.

        Parameters
        ----------
        why
            Why it was stopped, if we did that.
        """
        if self.over:
            return
        self.over, self._seen_over = True, self.live.clock.mono()
        whole = False
        if self._output is not None:
            whole = job is not None and self._output.finish(job)
            self._output.close()
            self._output.hand_on_the_rest()
        seconds = None
        if job is not None and job.seconds is not None:
            seconds = max(0.0, job.seconds - self._setup)
        text = _COLOURS.sub("", self._tail.decode("utf-8", errors="replace"))
        lines = text.splitlines()[-TAIL_LINES:]
        self.live.recorder.record(
            "program.end",
            # Ray's own count: we may have been busy when it ended.
            wall=None if seconds is None else self._began + seconds,
            status=status,
            exit_code=None if job is None else job.exit_code,
            seconds=None if seconds is None else round(seconds, 3),
            message=("" if job is None else job.message).strip()[-500:],
            why=why,
            lines=[line[:300] for line in lines],
            log_whole=whole,
        )
        self.live.look()

    def _print(self, data: bytes) -> None:
        with self._log.open("ab") as file:
            file.write(data)
        self._tail = (self._tail + data)[-TAIL_BYTES:]

    # -- what faults ask of it ---------------------------------------------------------------------

    @property
    def driver_node(self) -> str | None:
        return self._driver

    @property
    def idle(self) -> bool:
        return self.over

    @property
    def too_late(self) -> str:
        return f"{self.script.program.script} had ended before" if self.over else ""

    def wait_busy(self, nodes: Sequence[str]) -> None:
        """Until Ray says that a task runs, or an actor lives, on one of them."""
        clock = self.live.clock
        deadline = Deadline(BUSY_S, clock=clock.mono)
        while not deadline.passed and not self.over:
            try:
                running = self.live.cluster.ray.running()
            except CannotRun:
                running = {}
            if any(self.live.ray_nodes.get(node) in nodes for node in running):
                return
            clock.sleep(LOOK_S)
            self.look_at_job(nothing_struck)

    # -- what Ray says of it -----------------------------------------------------------------------

    def look(self, struck: Struck) -> None:
        """How many of its tasks are in which state, where that has changed."""
        self.look_at_job(struck)  # a new head would know of none
        if self.over or struck("head") or not self._ray_jobs:
            return
        try:
            each = [self.live.cluster.ray.task_counts(job) for job in self._ray_jobs]
        except CannotRun:
            return
        counts = TaskCounts(
            finished=sum(c.finished for c in each),
            failed=sum(c.failed for c in each),
            running=sum(c.running for c in each),
            pending=sum(c.pending for c in each),
            dropped=sum(c.dropped for c in each),
        )
        if counts != self._counts:
            self._counts = counts
            self.live.recorder.record(
                "program.tasks",
                finished=counts.finished,
                failed=counts.failed,
                running=counts.running,
                pending=counts.pending,
                dropped=counts.dropped,
            )

    def look_at_job(self, struck: Struck) -> None:
        """Notice its end, take what it printed, and stop it when its time is over."""
        clock = self.live.clock
        if self.over or self.job is None or clock.mono() < self._next_look:
            return
        self._next_look = clock.mono() + LOOK_S
        try:
            job = self.live.cluster.ray.job(self.job)
        except NoSuchJob:
            self._ended("LOST", None)
            return
        except CannotRun:
            self._silent(struck)
            return
        self._silence = None
        self._take(job)
        if not self.over and self._limit is not None and self._limit.passed:
            self.stop(f"it was not over within {self._limit.seconds:g} s")

    def _take(self, job: Job) -> None:
        self._place(job)
        if job.over:
            self._ended(job.status, job)
        elif self._output is not None:
            self._output.catch_up(job)

    def _place(self, job: Job) -> None:
        """Keep what Ray says of the driver: it forgets that with the job."""
        if job.ray_job_id and job.ray_job_id not in self._ray_jobs:
            self._ray_jobs.append(job.ray_job_id)
        if job.driver_node:
            self._driver = self.live.ray_nodes.get(job.driver_node, self._driver)

    def _silent(self, struck: Struck) -> None:
        if struck("head") and not self._last_wait:
            self._silence = None
            return
        if self._silence is None:
            self._silence = Deadline(jobs.PATIENCE_S, clock=self.live.clock.mono)
        elif self._silence.passed:
            self._ended("LOST", None)

    def complete(self) -> None:
        """One record for each attempt of its tasks and for each of its actors."""
        live = self.live
        live.clock.sleep(max(0.0, self._seen_over + FLUSH_S - live.clock.mono()))
        rows = dropped = left_out = 0
        for ray_job in self._ray_jobs:
            found = live.cluster.ray.attempts(ray_job)
            attempts = {(a.task_id, a.attempt): a for a in found.rows}
            if found.dropped and self._have_all_failed(ray_job, attempts):
                left_out += found.dropped
            else:
                dropped += found.dropped
            for attempt in attempts.values():
                self._record(attempt)
            rows += len(attempts)
            actors = live.cluster.ray.actors_of(ray_job)
            for actor in actors.rows:
                live.recorder.record(
                    "program.actor",
                    source="ray",
                    node=live.ray_nodes.get(actor.ray_node_id),
                    data={"class": actor.class_name},
                    actor_id=actor.actor_id,
                    name=actor.name,
                    state=actor.state,
                    restarts=actor.restarts,
                    detached=actor.detached,
                    death=actor.death[:300],
                )
            if actors.dropped:
                text = f"Ray keeps {actors.dropped} of the program's actors to itself"
                live.recorder.record("run.note", text=text)
        live.recorder.record(
            "attempts.complete",
            source="ray",
            rows=rows,
            dropped=dropped,
            left_out=left_out,
            forgotten=self.head_was_lost,
        )

    def _have_all_failed(self, ray_job: str, attempts: dict[tuple[str, int], Attempt]) -> bool:
        """Add every attempt of the tasks that ever failed; whether Ray had all of them.

        Ray lists so many attempts and no more. Those that matter are few, and can be asked for.
        """
        ray = self.live.cluster.ray
        failed = ray.attempts(ray_job, state="FAILED")
        tasks = {attempt.task_id for attempt in failed.rows}
        if failed.dropped or len(tasks) > MOST_FAILED:
            return False
        for task in sorted(tasks):
            found = ray.attempts(ray_job, task_id=task)
            if found.dropped:
                return False
            attempts.update({(a.task_id, a.attempt): a for a in found.rows})
        return True

    def _record(self, attempt: Attempt) -> None:
        key, node = _key(attempt), self.live.ray_nodes.get(attempt.ray_node_id)
        if attempt.state == "FAILED" and attempt.ended is not None:
            self.live.recorder.record(
                "attempt.failed",
                source="ray",
                node=node,
                wall=attempt.ended,
                key=key,
                task_id=attempt.task_id,
                attempt=attempt.attempt,
                error_type=attempt.error_type,
            )
        moments = (attempt.started, attempt.sent, attempt.ended)
        self.live.recorder.record(
            "program.attempt",
            source="ray",
            node=node,
            wall=next((moment for moment in moments if moment is not None), self._began),
            key=key,
            task_id=attempt.task_id,
            attempt=attempt.attempt,
            name=attempt.name,
            type=attempt.kind,
            state=attempt.state,
            actor_id=attempt.actor_id or None,
            error_type=attempt.error_type,
            error=attempt.error.strip()[:300],
            sent=attempt.sent,
            started=attempt.started,
            ended=attempt.ended,
        )

    @property
    def leaves_nothing(self) -> bool:
        """Detached actors are meant to outlive their program."""
        try:
            actors = [
                a for job in self._ray_jobs for a in self.live.cluster.ray.actors_of(job).rows
            ]
        except CannotRun:
            return True
        return not any(actor.detached and actor.state != "DEAD" for actor in actors)


def _key(attempt: Attempt) -> str:
    """What a person calls the task: its name, and enough of its id to tell it from others of that name."""
    return f"{attempt.name}-{attempt.task_id[:8]}"
