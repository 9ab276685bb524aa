"""What stands in for `simulator.rayapi.RayApi` where there is no Ray to ask."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from simulator.backends.fake.placement import FakePlacement
from simulator.backends.fake.promises import FakePromises
from simulator.backends.fake.stream import FakeStream
from simulator.backends.fake.tasks import FakeActor, FakeTask, Tasks, usage
from simulator.backends.fake.world import FakeNode, World
from simulator.rayapi import (
    Actors,
    Attempts,
    FailedAttempts,
    Job,
    JobLog,
    NodePorts,
    NoSuchJob,
    RayActor,
    RayNode,
    RayUnreachable,
    RunningTask,
    RunningWork,
    TaskCounts,
    Usage,
    job_id_taken,
)

_TASK_PID, _ACTOR_PID = 4000, 5000

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
    entrypoint: str = ""
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    status: str = "PENDING"
    message: str = "Job has not started yet."
    program: FakeJob | None = None
    logs: str = ""
    exit_code: int | None = None
    driver_node: str = ""
    began: float = 0.0
    ended: float | None = None
    home: FakeNode | None = None
    home_id: str = ""

    def runs(self) -> None:
        """Its driver has begun."""
        self.status, self.message = "RUNNING", "Job is currently running."
        self.driver_node = self.home_id

    def end(self, world: World, status: str, message: str, exit_code: int | None = None) -> None:
        if self.ended is None:
            self.status, self.message, self.exit_code = status, message, exit_code
            self.ended = world.clock.now


class _WithItsNode:
    """Has a job end when its driver's node is declared dead."""

    def __init__(self, world: World, submitted: _Submitted) -> None:
        self._world, self._submitted = world, submitted

    def node_joined(self, node: FakeNode) -> None:
        """A job that died does not come back."""

    def node_dead(self, node: FakeNode, ray_node_id: str) -> None:  # noqa: ARG002 - it may be back
        if ray_node_id != self._submitted.home_id or self._submitted.ended is not None:
            return
        text = "Job supervisor actor died because its node has died."
        self._submitted.end(self._world, "FAILED", text)
        if self._submitted.program is not None:
            self._submitted.program.tasks.stop()

    def gcs_gone(self) -> None:
        """The job's record is gone with it."""


class FakeRay:
    """The same methods as `RayApi`, answered by a simulated cluster.

    Parameters
    ----------
    find
        Gives the cluster at every call; raises `NotFound` when it is gone.
    called
        Told the name of every method before it answers; may raise what was scripted.
    programs
        Simulated jobs, by the module or the script that their entrypoint runs.
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
                labels=dict(entry.node.spec.labels),
                since=entry.since,
                until=entry.until,
            )
            for entry in (world.gcs.entries if world.gcs else [])
        ]

    def ports(self) -> dict[str, NodePorts]:
        """Every node's raylet has the same: each is alone at its address."""
        world = self._ask("ports")
        return {
            e.ray_node_id: NodePorts(7001, 7002) for e in (world.gcs.entries if world.gcs else [])
        }

    def running(self) -> dict[str, RunningWork]:
        world = self._ask("running")
        found: dict[str, RunningWork] = {}
        for ray_node_id, node in _alive(world):
            work = RunningWork(
                tuple(t.fn for job in _programs(world) for t in job.placed if t.node is node),
                tuple(a.name for job in _programs(world) for a in job.actors if _lives(a, node)),
            )
            if work:
                found[ray_node_id] = work
        return found

    def running_tasks(self) -> list[RunningTask]:
        world = self._ask("running_tasks")
        return [
            RunningTask(worker.key, worker.fn, ray_node_id, pid=pid)
            for ray_node_id, node in _alive(world)
            for pid, _, worker in workers(world, node)
            if isinstance(worker, FakeTask)
        ]

    def actors(self) -> list[RayActor]:
        world = self._ask("actors")
        where = {
            worker: (ray_node_id, pid)
            for ray_node_id, node in _alive(world)
            for pid, _, worker in workers(world, node)
        }
        return [
            RayActor(a.actor_id, a.name, "Counter", *where.get(a, ("", 0)), alive=a.alive)
            for job in _programs(world)
            for a in job.actors
        ]

    def living_actors(self) -> list[RayActor]:
        return [actor for actor in self.actors() if actor.alive and actor.ray_node_id]

    def objects_held(self) -> dict[str, int]:
        world = self._ask("objects_held")
        return {
            ray_node_id: sum(node in made.holders for job in _programs(world) for made in job.kept)
            for ray_node_id, node in _alive(world)
        }

    def usage(self) -> Usage:
        world = self._ask("usage")
        by_node = usage(world, _programs(world))
        total: dict[str, tuple[float, float]] = {}
        for resources in by_node.values():
            for name, (used, amount) in resources.items():
                before = total.get(name, (0.0, 0.0))
                total[name] = (before[0] + used, before[1] + amount)
        return Usage(total=total, by_node=by_node)

    def has_package(self, name: str) -> bool:
        return name in packages_of(self._ask("has_package"))

    def put_package(self, name: str, path: Path) -> None:
        packages_of(self._ask("put_package"))[name] = path.read_bytes()

    def submit(
        self,
        entrypoint: str,
        job_id: str,
        *,
        resources: Mapping[str, float] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        world = self._ask("submit")
        if job_id in jobs_of(world):
            raise job_id_taken(job_id)
        submitted = jobs_of(world)[job_id] = _Submitted(
            entrypoint, dict(runtime_env or {}), began=world.clock.now
        )
        able = (n for n in world.nodes.values() if all(map(n.spec.resources.get, resources or ())))
        home = next(able, None) if resources else world.head
        # One that no node can take waits for ever, as with Ray.
        if home is not None and not world.script.job_never_starts:
            submitted.home = home
            submitted.home_id = home.entry.ray_node_id if home.entry is not None else ""
            world.on_nodes.append(_WithItsNode(world, submitted))
            home.do(world.behaviour.driver_start_s, lambda: self._begin(world, job_id, submitted))

    def _begin(self, world: World, job_id: str, submitted: _Submitted) -> None:
        def ended(status: str, message: str) -> None:
            submitted.end(world, status, message, {"SUCCEEDED": 0, "FAILED": 1}.get(status))

        if submitted.ended is not None:
            return
        if world.script.job_ends is not None:
            status, message = world.script.job_ends
            world.script.job_ends = None
            submitted.logs = message
            submitted.end(world, status, message)  # with no exit code: no driver began
            return
        argv = shlex.split(submitted.entrypoint)
        script = next((word for word in argv if word.endswith(".py")), argv[0])
        module = argv[argv.index("-m") + 1] if "-m" in argv[:-1] else script
        factory = self._programs.get(module)
        if factory is None:
            self._print(world, job_id, submitted, module)
            return
        variables = submitted.runtime_env.get("env_vars") or {}
        run_id = variables.get("RAY_SIM_RUN", "")
        if "--run" in argv[:-1]:
            run_id = argv[argv.index("--run") + 1]
        ray_job_id = f"{len(jobs_of(world)):02x}000000"
        submitted.runs()
        if submitted.home is not None:
            world.drivers[ray_job_id] = submitted.home
        submitted.program = factory(world, run_id, ray_job_id, ended)
        submitted.program.begin()

    def _print(self, world: World, job_id: str, submitted: _Submitted, module: str) -> None:
        """A program that is not simulated does what was scripted for it, or fails."""
        printed, world.script.job_prints = world.script.job_prints, None
        if printed is None:
            known = ", ".join(sorted(self._programs))
            submitted.end(
                world, "FAILED", f"no simulated program is called {module}; there is {known}"
            )
            return
        submitted.runs()
        submitted.logs = f"Running entrypoint for job {job_id}: {submitted.entrypoint}\n"

        def write(text: str) -> None:
            if submitted.ended is None:
                submitted.logs += text

        def end() -> None:
            if printed.exit_code == 0:
                submitted.end(world, "SUCCEEDED", "Job finished successfully.", 0)
            else:
                failed = f"Job entrypoint command failed with exit code {printed.exit_code}"
                submitted.end(world, "FAILED", failed, printed.exit_code)

        home = submitted.home or world.head
        for number, text in enumerate(printed.output):
            home.do(printed.every * number, partial(write, text))
        home.do(printed.every * len(printed.output), end)

    def job(self, job_id: str) -> Job:
        submitted = self._job("job", job_id)
        return Job(
            job_id,
            submitted.status,
            submitted.message,
            submitted.exit_code,
            submitted.driver_node,
            None if submitted.ended is None else submitted.ended - submitted.began,
            submitted.program.ray_job_id if submitted.program is not None else "",
        )

    def job_logs(self, job_id: str) -> str:
        return self._job("job_logs", job_id).logs

    def follow_job_log(self, job: Job) -> JobLog:
        self._job("follow_job_log", job.job_id)
        return _FakeLog(self, job.job_id)

    def read_job_log(self, job: Job) -> Iterator[bytes]:
        yield self._job("read_job_log", job.job_id).logs.encode()

    def stop_job(self, job_id: str) -> bool:
        submitted = self._job("stop_job", job_id)
        if submitted.program is not None:
            submitted.program.stop()
        else:
            submitted.end(self._find(), "STOPPED", "Job was intentionally stopped.")
        return True

    def failed_attempts(self, ray_job_id: str) -> FailedAttempts:
        tasks = self._tasks(self._ask("failed_attempts"), ray_job_id)
        return FailedAttempts([] if tasks is None else list(tasks.failed), 0)

    def attempts(
        self, ray_job_id: str, *, state: str | None = None, task_id: str | None = None
    ) -> Attempts:
        world = self._ask("attempts")
        tasks = self._tasks(world, ray_job_id)
        rows = [
            a
            for a in (tasks.attempts.values() if tasks is not None else ())
            if state in (None, a.state) and task_id in (None, a.task_id)
        ]
        most = world.behaviour.most_rows
        return Attempts(rows[:most], max(0, len(rows) - most))

    def actors_of(self, ray_job_id: str) -> Actors:
        tasks = self._tasks(self._ask("actors_of"), ray_job_id)
        return Actors([] if tasks is None else tasks.remembered_actors(), 0)

    def task_counts(self, ray_job_id: str) -> TaskCounts:
        tasks = self._tasks(self._ask("task_counts"), ray_job_id)
        states = (
            Counter(a.state for a in tasks.attempts.values()) if tasks is not None else Counter()
        )
        return TaskCounts(
            finished=states["FINISHED"],
            failed=states["FAILED"],
            running=states["RUNNING"],
            pending=states["PENDING_NODE_ASSIGNMENT"],
        )

    @staticmethod
    def _tasks(world: World, ray_job_id: str) -> Tasks | None:
        jobs = (job.program for job in jobs_of(world).values())
        return next((p.tasks for p in jobs if p and p.ray_job_id == ray_job_id), None)

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
            raise NoSuchJob(f"Ray knows of no job {job_id}")
        return submitted


class _FakeLog:
    """What was printed so far, and what comes while the reader waits."""

    def __init__(self, ray: FakeRay, job_id: str) -> None:
        self._ray, self._job_id, self._position = ray, job_id, 0

    def read(self, wait: float) -> bytes:
        submitted = self._ray._job("follow_job_log", self._job_id)
        if len(submitted.logs.encode()) == self._position:
            self._ray._find().clock.sleep(wait)
        new = submitted.logs.encode()[self._position :]
        self._position += len(new)
        return new

    def close(self) -> None:
        pass


def _programs(world: World) -> list[Tasks]:
    """What the programs that were submitted have running and hold."""
    return [j.program.tasks for j in jobs_of(world).values() if j.program is not None]


def _alive(world: World) -> list[tuple[str, FakeNode]]:
    """The nodes that the GCS holds alive, by Ray's ids."""
    entries = world.gcs.entries if world.gcs else []
    return [(entry.ray_node_id, entry.node) for entry in entries if entry.alive]


def _lives(actor: FakeActor, node: FakeNode) -> bool:
    return actor.alive and actor.node is node


def packages_of(world: World) -> dict[str, bytes]:
    """What was uploaded, by its name; it goes with the GCS."""
    return world.gcs.packages if world.gcs is not None else {}


def jobs_of(world: World) -> dict[str, _Submitted]:
    """The jobs that the GCS knows of; they go with it."""
    jobs: dict[str, _Submitted] = world.gcs.jobs if world.gcs is not None else {}
    return jobs


def workers(world: World, node: FakeNode) -> Iterator[tuple[int, Tasks, FakeTask | FakeActor]]:
    """The pid of each worker on a node, the job that it works for, and what it does."""
    jobs = [job.program.tasks for job in jobs_of(world).values() if job.program is not None]
    for job in jobs:
        for i, task in enumerate(t for t in job.placed if t.node is node):
            yield _TASK_PID + node.starts + i, job, task
        for i, actor in enumerate(a for a in job.actors if a.alive and a.node is node):
            yield _ACTOR_PID + node.starts + i, job, actor


BUILT_IN: Mapping[str, JobFactory] = {
    "simulator.innode.stream": FakeStream,
    "simulator.innode.placement": FakePlacement,
    "simulator.innode.promises": FakePromises,
}
