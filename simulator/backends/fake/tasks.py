"""Tasks, objects and actors of one simulated job: placed, cut off with their node, and run again.

Only what an experiment can observe is here: a slot is held for a task's length, what runs on a node stops
with it, the owner learns of that when the GCS declares the node dead, retries are counted, an object whose
only copy died is made again if its task may be, and an actor comes back elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.backends.fake.world import FakeNode, World
from simulator.innode.work import expected_value
from simulator.rayapi import FailedAttempt

Done = Callable[["Outcome"], None]

ANSWER_S = 0.002  # from the end of a task to its owner's knowing


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back to the owner: a value, or the error that it failed with for good."""

    value: Any = None
    error: str | None = None
    message: str = ""


@dataclass(eq=False)
class FakeTask:
    """A task as it was submitted."""

    key: str
    fn: str
    args: list[Any]
    seconds: float
    cpus: int
    max_retries: int
    task_id: str
    done: Done
    needs: FakeTask | None = None
    prefers: str | None = None
    attempt: int = 0
    node: FakeNode | None = None
    holders: set[FakeNode] = field(default_factory=set)

    @property
    def keeps_output(self) -> bool:
        """Whether its output is large and stays in the object store of the node that made it."""
        return self.fn == "make_block"


@dataclass(eq=False)
class FakeActor:
    """A counter actor, whose checkpoint outlives it."""

    name: str
    actor_id: str
    prefers: str
    node: FakeNode | None = None
    alive: bool = False
    restarts: int = 0
    calls: int = 0
    total: int = 0
    pending: tuple[int, str, Done] | None = None


class Tasks:
    """The tasks and actors of one job. `run_id` names the part of the ledger that they write to."""

    def __init__(self, world: World, run_id: str) -> None:
        self.world, self.run_id = world, run_id
        self.queue: list[FakeTask] = []
        self.placed: list[FakeTask] = []
        self.actors: list[FakeActor] = []
        self.failed: list[FailedAttempt] = []
        self.kept: list[FakeTask] = []  # whose outputs the owner still refers to
        self.over = False
        world.on_nodes.append(self)

    # -- tasks -----------------------------------------------------------------------------------

    def submit(
        self,
        key: str,
        fn: str,
        args: list[Any],
        done: Done,
        *,
        seconds: float,
        max_retries: int,
        cpus: int = 1,
        needs: FakeTask | None = None,
        prefers: str | None = None,
    ) -> FakeTask:
        task = FakeTask(
            key, fn, args, seconds, cpus, max_retries, self.world.hex(48), done, needs, prefers
        )
        self.queue.append(task)
        self.pump()
        return task

    def used(self, node: FakeNode) -> int:
        """CPUs in use on a node, as the GCS would count them."""
        return sum(t.cpus for t in self.placed if t.node is node)

    def pump(self) -> None:
        """Place whatever can be placed, in the order of submission."""
        for task in self.queue[:]:
            if self.over:
                return
            if task not in self.queue:
                continue
            if task.needs is not None and not self._at_hand(task, task.needs):
                continue
            node = self._choose(task)
            if node is None:
                continue
            self.queue.remove(task)
            task.node = node
            self.placed.append(task)
            node.do(self.world.behaviour.dispatch_s, lambda t=task, n=node: self._begin(t, n))  # type: ignore[misc]

    def _choose(self, task: FakeTask) -> FakeNode | None:
        up = [n for n in self.world.nodes.values() if n.state == "running" and n.believed_alive]
        if task.prefers is not None:
            liked = next((n for n in up if n.name == task.prefers), None)
            if liked is not None:
                return liked
        if not task.cpus:
            return next(iter(up), None)
        free = {n: int(n.spec.resources.get("CPU", 0)) - self.used(n) for n in up}
        able = [n for n in up if free[n] >= task.cpus]
        return max(able, key=lambda n: free[n], default=None)

    def _at_hand(self, task: FakeTask, made: FakeTask) -> bool:
        """Is a copy of what it needs to be had now; if it is lost for good, have it made again."""
        if any(n.state == "running" for n in made.holders):
            return True
        if made.holders or made in self.placed or made in self.queue:
            return False  # on a node that may answer again, or being made
        if 0 <= made.max_retries <= made.attempt:
            self.queue.remove(task)
            text = f"the output of {made.key} is lost, and it has no retries left"
            self._fail(task, "ObjectLostError", text)
            return False
        made.done = lambda outcome: None
        made.attempt += 1
        made.task_id = self.world.hex(48)
        self.queue.append(made)
        self.pump()
        return False

    def _begin(self, task: FakeTask, node: FakeNode) -> None:
        execution = self.world.hex(16)
        self._write(
            node,
            "task.start",
            key=task.key,
            exec=execution,
            fn=task.fn,
            nominal_s=task.seconds,
            pid=4000 + node.starts,
            start_of_node=node.starts,
            task_id=task.task_id,
            demand={"CPU": float(task.cpus)},
        )

        def end() -> None:
            self._write(node, "task.end", key=task.key, exec=execution, ok=True)
            node.do(ANSWER_S, lambda: self._finish(task, node))

        node.do(task.seconds, end)

    def _finish(self, task: FakeTask, node: FakeNode) -> None:
        if task.node is not node or self.over:
            return
        self.placed.remove(task)
        task.node = None
        value = expected_value(task.fn, task.args)
        if task.keeps_output:
            task.holders.add(node)
        elif task.key in self.world.script.wrong:
            value += 1
        if task.needs is not None:
            task.needs.holders.add(node)
        if task.key not in self.world.script.forgotten:
            task.done(Outcome(value))
        self.pump()

    def _fail(self, task: FakeTask, error: str, message: str) -> None:
        def tell() -> None:
            if not self.over:
                task.done(Outcome(None, error, message))

        self.world.clock.after(0.0, tell)

    # -- actors ----------------------------------------------------------------------------------

    def actor(self, name: str, prefers: str) -> FakeActor:
        actor = FakeActor(name, self.world.hex(32), prefers)
        self.actors.append(actor)
        self._tell(actor, "PENDING_CREATION")
        self._create(actor)
        return actor

    def call(self, actor: FakeActor, n: int, key: str, done: Done) -> None:
        """Call ``add(n)``; a call that its node cut off is repeated when the actor is back."""
        actor.pending = (n, key, done)
        self._perform(actor)

    def _create(self, actor: FakeActor) -> None:
        up = [n for n in self.world.nodes.values() if n.state == "running" and n.believed_alive]
        liked = next((n for n in up if n.name == actor.prefers), None)
        others = sorted(up, key=lambda n: (n.is_head, sum(a.node is n for a in self.actors)))
        actor.node = liked or next(iter(others), None)
        if actor.node is None:
            self.world.clock.after(1.0, lambda: None if self.over else self._create(actor))
            return
        node = actor.node
        node.do(self.world.behaviour.actor_start_s, lambda: self._created(actor, node))

    def _created(self, actor: FakeActor, node: FakeNode) -> None:
        if self.over or actor.node is not node:
            return
        actor.alive = True
        self._write(
            node,
            "actor.start",
            actor=actor.name,
            pid=5000 + node.starts,
            exec=self.world.hex(16),
            restored=actor.calls,
        )
        self._tell(actor, "ALIVE")
        self._perform(actor)

    def _perform(self, actor: FakeActor) -> None:
        node = actor.node
        if actor.alive and actor.pending is not None and node is not None:
            n, key, done = actor.pending
            node.do(ANSWER_S, lambda: self._add(actor, node, n, key, done))

    def _add(self, actor: FakeActor, node: FakeNode, n: int, key: str, done: Done) -> None:
        if self.over or not actor.alive or actor.node is not node:
            return
        execution = self.world.hex(16)
        self._write(node, "call.start", actor=actor.name, key=key, exec=execution)
        if n == actor.calls + 1:
            actor.calls, actor.total = n, actor.total + n
        self._write(node, "call.end", actor=actor.name, key=key, exec=execution)

        def answer() -> None:
            if not self.over and actor.pending is not None and actor.pending[1] == key:
                actor.pending = None
                done(Outcome(actor.total + (key in self.world.script.wrong)))

        node.do(ANSWER_S, answer)

    def _tell(self, actor: FakeActor, state: str) -> None:
        where = actor.node.hostname if actor.node is not None and state == "ALIVE" else None
        self.world.ray_event(
            "ray.actor",
            where,
            {
                "actor_id": actor.actor_id,
                "name": actor.name,
                "class": "Counter",
                "state": state,
                "restarts": actor.restarts,
                "hostname": where,
            },
        )

    # -- what becomes of nodes -------------------------------------------------------------------

    def node_joined(self, node: FakeNode) -> None:  # noqa: ARG002
        self.pump()

    def node_dead(self, node: FakeNode, ray_node_id: str) -> None:
        for task in [t for t in self.placed if t.node is node]:
            self.placed.remove(task)
            task.node = None
            self.failed.append(
                FailedAttempt(
                    task.task_id,
                    task.attempt,
                    task.key,
                    "NODE_DIED",
                    ray_node_id,
                    self.world.wall(),
                )
            )
            if task.max_retries < 0 or task.attempt < task.max_retries:
                task.attempt += 1
                self.queue.insert(0, task)
            else:
                self._fail(task, "WorkerCrashedError", "The worker died with its node.")
        for task in self._known():
            task.holders.discard(node)
        for actor in self.actors:
            if actor.node is node:
                actor.alive, actor.node = False, None
                actor.restarts += 1
                self._tell(actor, "RESTARTING")
                self._create(actor)
        self.pump()

    def gcs_gone(self) -> None:
        """The owner lived on the head: nothing of the job is left."""
        self.stop(say=False)

    def _known(self) -> set[FakeTask]:
        tasks = {*self.queue, *self.placed, *self.kept}
        return tasks | {t.needs for t in tasks if t.needs is not None}

    def stop(self, *, say: bool = True) -> None:
        """The job is over: its tasks are cancelled and its actors end."""
        if self.over:
            return
        self.over = True
        self.queue.clear()
        self.placed.clear()
        if say:
            for actor in self.actors:
                self._tell(actor, "DEAD")
        if self in self.world.on_nodes:
            self.world.on_nodes.remove(self)

    def _write(self, node: FakeNode, kind: str, **data: Any) -> None:
        if self.over:
            return
        file = f"{node.hostname}-{node.starts}.jsonl"
        self.world.write(self.run_id, file, node, kind, **data)


def usage(world: World, jobs: list[Tasks]) -> Mapping[str, Mapping[str, tuple[float, float]]]:
    """By Ray node id, per resource: (used, total), over nodes that the GCS holds alive."""
    result: dict[str, Mapping[str, tuple[float, float]]] = {}
    for entry in world.gcs.entries if world.gcs else []:
        if entry.alive:
            used = sum(float(job.used(entry.node)) for job in jobs)
            result[entry.ray_node_id] = {
                name: (used if name == "CPU" else 0.0, amount)
                for name, amount in entry.node.spec.resources.items()
            }
    return result
