"""What stands in for `simulator.rayapi.RayApi` where there is no Ray to ask."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from simulator.backends.fake.placement import FakePlacement
from simulator.backends.fake.stream import FakeStream
from simulator.backends.fake.tasks import Tasks, usage
from simulator.backends.fake.world import World
from simulator.rayapi import FailedAttempts, Job, RayNode, RayUnreachable, Usage

#: What a simulated Ray says when asked for its version: nobody should take its word for Ray's.
VERSION = "simulated"


class FakeJob(Protocol):
    """A simulated program that is submitted as a job: its driver, and the tasks that it runs."""

    tasks: Tasks
    ray_job_id: str

    def begin(self) -> None: ...

    def stop(self) -> None: ...


#: Makes one: the world, the run's id, Ray's id of the job, and whom to tell ``(status, message)``.
JobFactory = Callable[[World, str, str, Callable[[str, str], None]], FakeJob]


@dataclass
class _Submitted:
    status: str = "PENDING"
    message: str = "Job has not started yet."
    program: FakeJob | None = None
    logs: str = ""


class FakeRay:
    """The same methods as `RayApi`, answered by a simulated cluster.

    Parameters
    ----------
    find
        Gives the cluster at every call; raises `NotFound` when it is gone.
    called
        Told the name of every method before it answers; may raise what was scripted.
    programs
        Simulated jobs, by the module that their entrypoint runs.
    """

    def __init__(
        self,
        find: Callable[[], World],
        called: Callable[[str], None],
        programs: Mapping[str, JobFactory],
    ) -> None:
        self._find, self._called, self._programs = find, called, programs

    def version(self) -> str:
        self._ask("version")
        return VERSION

    def nodes(self) -> list[RayNode]:
        world = self._ask("nodes")
        return [
            RayNode(
                ray_node_id=entry.ray_node_id,
                hostname=entry.node.hostname,
                address=entry.node.address,
                alive=entry.alive,
                is_head=entry.node.is_head,
                resources=dict(entry.node.spec.resources),
                message=entry.message,
            )
            for entry in (world.gcs.entries if world.gcs else [])
        ]

    def usage(self) -> Usage:
        world = self._ask("usage")
        running = [j.program.tasks for j in jobs_of(world).values() if j.program is not None]
        by_node = usage(world, running)
        total: dict[str, tuple[float, float]] = {}
        for resources in by_node.values():
            for name, (used, amount) in resources.items():
                before = total.get(name, (0.0, 0.0))
                total[name] = (before[0] + used, before[1] + amount)
        return Usage(total=total, by_node=by_node)

    def submit(
        self,
        entrypoint: str,
        job_id: str,
        *,
        resources: Mapping[str, float] | None = None,  # noqa: ARG002 - the driver is on the head
    ) -> None:
        world = self._ask("submit")
        submitted = jobs_of(world)[job_id] = _Submitted()
        if not world.script.job_never_starts:
            world.head.do(
                world.behaviour.driver_start_s,
                lambda: self._begin(world, submitted, shlex.split(entrypoint)),
            )

    def _begin(self, world: World, submitted: _Submitted, argv: list[str]) -> None:
        def ended(status: str, message: str) -> None:
            submitted.status, submitted.message = status, message

        if world.script.job_ends is not None:
            status, message = world.script.job_ends
            world.script.job_ends = None
            submitted.logs = message
            ended(status, message)
            return
        module = argv[argv.index("-m") + 1] if "-m" in argv[:-1] else argv[0]
        factory = self._programs.get(module)
        if factory is None:
            known = ", ".join(sorted(self._programs))
            ended("FAILED", f"no simulated program is called {module}; there is {known}")
            return
        run_id = argv[argv.index("--run") + 1] if "--run" in argv[:-1] else ""
        number = len(jobs_of(world))
        submitted.status, submitted.message = "RUNNING", "Job is currently running."
        submitted.program = factory(world, run_id, f"{number:02x}000000", ended)
        submitted.program.begin()

    def job(self, job_id: str) -> Job:
        submitted = self._job("job", job_id)
        return Job(job_id, submitted.status, submitted.message)

    def job_logs(self, job_id: str) -> str:
        return self._job("job_logs", job_id).logs

    def stop_job(self, job_id: str) -> None:
        submitted = self._job("stop_job", job_id)
        if submitted.program is not None:
            submitted.program.stop()
        else:
            submitted.status, submitted.message = "STOPPED", "Job was intentionally stopped."

    def failed_attempts(self, ray_job_id: str) -> FailedAttempts:
        world = self._ask("failed_attempts")
        for job in jobs_of(world).values():
            if job.program is not None and job.program.ray_job_id == ray_job_id:
                return FailedAttempts(list(job.program.tasks.failed), 0)
        return FailedAttempts([], 0)

    def _ask(self, method: str) -> World:
        world = self._find()
        self._called(f"ray.{method}")
        if not world.ray_answers:
            raise RayUnreachable(
                "Ray does not answer",
                why=f"the simulated head is {world.head.state}",
                remedy="is the head running?",
            )
        return world

    def _job(self, method: str, job_id: str) -> _Submitted:
        submitted = jobs_of(self._ask(method)).get(job_id)
        if submitted is None:
            raise RayUnreachable(f"Ray answered 404: there is no job {job_id}")
        return submitted


def jobs_of(world: World) -> dict[str, _Submitted]:
    """The jobs that the GCS knows of; they go with it."""
    jobs: dict[str, _Submitted] = world.gcs.jobs if world.gcs is not None else {}
    return jobs


BUILT_IN: Mapping[str, JobFactory] = {
    "simulator.innode.stream": FakeStream,
    "simulator.innode.placement": FakePlacement,
}
