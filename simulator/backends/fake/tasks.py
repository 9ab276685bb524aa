"""Tasks, objects and actors of one simulated job: placed, cut off with their node, and run again.

Only what an experiment can observe is here: what a task asks for is held for its length, what runs on a node stops
with it, the owner learns of that when the GCS declares the node dead, retries are counted, an object whose
only copy died is made again if its task may be, and an actor comes back elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from simulator.backends.fake.groups import FakeGroup
from simulator.backends.fake.world import FakeNode, World
from simulator.innode.work import TICK_S, expected_value
from simulator.rayapi import Actor, Attempt, FailedAttempt

Done = Callable[["Outcome"], None]

ANSWER_S = 0.002  # from the end of a task to its owner's knowing

ROUNDING = 1e-9  # of sums of fractions
ONE_CPU: Mapping[str, float] = {"CPU": 1.0}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back to the owner: a value, or the error that it failed with for good."""

    value: Any = None
    error: str | None = None
    message: str = ""


@dataclass(eq=False)
class FakeTask:
    """A task as it was submitted, and where it is.

    Attributes
    ----------
    gpus
        Those that it was given.
    effect
        The deed that it does, and whether it does so with an idempotency key.
    bundle
        Of which group it uses which bundle, whose reservation is all that it needs.
    """

    key: str
    fn: str
    args: list[Any]
    seconds: float
    demand: Mapping[str, float]
    labels: Mapping[str, str]
    max_retries: int
    task_id: str
    done: Done
    needs: FakeTask | None = None
    prefers: str | None = None
    effect: tuple[str, bool] | None = None
    bundle: tuple[FakeGroup, int] | None = None
    attempt: int = 0
    node: FakeNode | None = None
    gpus: tuple[int, ...] = ()
    holders: set[FakeNode] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)  # attempts whose worker was killed

    @property
    def keeps_output(self) -> bool:
        """Whether its output is large and stays in the object store of the node that made it."""
        return self.fn == "make_block"


@dataclass(eq=False)
class FakeActor:
    """A named actor; a counter's checkpoint outlives it.

    Attributes
    ----------
    seconds
        How long each of its calls takes.
    retried
        Whether a call that was cut off is repeated.
    ticks
        Whether it says that it lives, whoever calls it.
    incarnation
        Id of the one that lives now.
    """

    name: str
    actor_id: str
    prefers: str
    cls: str = "Counter"
    fn: str = "counter_add"
    seconds: float = 0.0
    retried: bool = True
    ticks: bool = False
    incarnation: str = ""
    node: FakeNode | None = None
    alive: bool = False
    restarts: int = 0
    calls: int = 0
    total: int = 0
    pending: tuple[int, str, Done] | None = None


class Tasks:
    """The tasks and actors of one job.

    Parameters
    ----------
    run_id
        Names the part of the ledger that they write to.
    home
        Where their owner, the driver, is; by default on the head.
    """

    def __init__(self, world: World, run_id: str, home: FakeNode | None = None) -> None:
        self.world, self.run_id, self.home = world, run_id, home or world.head
        self.queue: list[FakeTask] = []
        self.placed: list[FakeTask] = []
        self.actors: list[FakeActor] = []
        self.failed: list[FailedAttempt] = []
        self.kept: list[FakeTask] = []  # whose outputs the owner still refers to
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.groups: list[FakeGroup] = []
        self.done_deeds: set[str] = set()
        self.killed: set[str] = set()  # incarnations whose process was, on a node that lives on
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
        demand: Mapping[str, float] = ONE_CPU,
        labels: Mapping[str, str] | None = None,
        needs: FakeTask | None = None,
        prefers: str | None = None,
        effect: tuple[str, bool] | None = None,
        bundle: tuple[FakeGroup, int] | None = None,
    ) -> FakeTask:
        task = FakeTask(
            key, fn, args, seconds, demand, labels or {}, max_retries, self.world.hex(48), done,
            needs, prefers, effect, bundle,
        )  # fmt: skip
        self.queue.append(task)
        self._note(task, state="PENDING_NODE_ASSIGNMENT")
        self.pump()
        return task

    def used(self, node: FakeNode, resource: str = "CPU") -> float:
        """How much of a resource is in use on a node, as the GCS would count it."""
        reserved = sum(group.used(node, resource) for group in self.groups)
        return reserved + sum(t.demand.get(resource, 0.0) for t in self.placed if t.node is node)

    def group(self, name: str, bundles: Sequence[Mapping[str, float]]) -> FakeGroup:
        """A placement group whose bundles are all on different nodes."""
        group = FakeGroup(self.world, name, self.run_id, self.world.hex(36), bundles)
        self.groups.append(group)
        self.pump()
        return group

    def cancel(self, task: FakeTask) -> None:
        """Give up a task that has not begun; its owner is told so."""
        if task in self.queue:
            self.queue.remove(task)
            self._fail(task, "TaskCancelledError", "it was cancelled")

    def pump(self) -> None:
        """Place whatever can be placed: groups, then tasks in the order of submission."""
        for group in self.groups:
            group.place(self._free)
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
            task.node, task.gpus = node, self._give_gpus(task, node)
            self.placed.append(task)
            node.do(self.world.behaviour.dispatch_s, lambda t=task, n=node: self._begin(t, n))  # type: ignore[misc]

    def _choose(self, task: FakeTask) -> FakeNode | None:
        up = self._up()
        if task.bundle is not None:
            group, number = task.bundle
            place = group.places[number]
            return place if place in up else None
        if task.prefers is not None:
            liked = next((n for n in up if n.name == task.prefers), None)
            if liked is not None:
                return liked
        if not task.demand:
            return next(iter(up), None)
        able = [n for n in up if self._can_take(n, task)]
        return max(able, key=lambda n: self._free(n, "CPU"), default=None)

    def _up(self) -> list[FakeNode]:
        """The nodes that the owner can give work to; what cuts one off from the head cuts it off from everybody."""
        return [n for n in self.world.nodes.values() if n.takes_work and self.world.reaches_head(n)]

    def _free(self, node: FakeNode, resource: str) -> float:
        return node.spec.resources.get(resource, 0.0) - self.used(node, resource)

    def _can_take(self, node: FakeNode, task: FakeTask) -> bool:
        if any(node.spec.labels.get(key) != value for key, value in task.labels.items()):
            return False
        enough = all(
            self._free(node, name) >= amount - ROUNDING for name, amount in task.demand.items()
        )
        wants = task.demand.get("GPU", 0.0)
        return enough and (not wants or len(self._gpus_with_room(node, wants)) >= math.ceil(wants))

    def _gpus_with_room(self, node: FakeNode, wants: float) -> list[int]:
        """Numbers of the GPUs that could take this task: whole free ones, or enough of one."""
        taken = dict.fromkeys(range(int(node.spec.resources.get("GPU", 0))), 0.0)
        for task in self.placed:
            for number in task.gpus if task.node is node else ():
                taken[number] += min(1.0, task.demand["GPU"])
        return [n for n, part in taken.items() if part + min(1.0, wants) <= 1.0 + ROUNDING]

    def _give_gpus(self, task: FakeTask, node: FakeNode) -> tuple[int, ...]:
        wants = task.demand.get("GPU", 0.0)
        return tuple(self._gpus_with_room(node, wants)[: math.ceil(wants)])

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
        self._note(made, state="PENDING_NODE_ASSIGNMENT")
        self.pump()
        return False

    def _begin(self, task: FakeTask, node: FakeNode) -> None:
        attempt = task.attempt
        if attempt in task.cut:
            return
        execution = self.world.hex(16)
        self._note(task, state="RUNNING", started=self.world.wall(), sent=self.world.wall())
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
            demand={name: float(amount) for name, amount in task.demand.items()},
            gpu_ids=[str(number) for number in task.gpus],
        )
        if task.effect is not None:
            self._do(task, node, *task.effect)

        def end() -> None:
            if attempt in task.cut:
                return
            self._write(node, "task.end", key=task.key, exec=execution, ok=True)
            node.do(ANSWER_S, lambda: node.when_heard(lambda: self._finish(task, node)))

        node.do(task.seconds, end)

    def _do(self, task: FakeTask, node: FakeNode, deed: str, idempotent: bool) -> None:
        """The deed itself; with an idempotency key, the outside world refuses to have it done twice."""
        facts = {"key": deed, "pid": 4000 + node.starts, "task_id": task.task_id}
        if not idempotent:
            self._write(node, "program.effect", **facts)
        elif deed not in self.done_deeds and not self.over:
            self.done_deeds.add(deed)
            file = f"effect-{deed}.jsonl"
            self.world.write(self.run_id, file, node, "program.effect", **facts)

    def _finish(self, task: FakeTask, node: FakeNode) -> None:
        if task.node is not node or self.over:
            return
        self.placed.remove(task)
        self._note(task, state="FINISHED", ended=self.world.wall())
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

    def actor(self, name: str, prefers: str, **kind: Any) -> FakeActor:
        """A counter, unless `kind` says otherwise: attributes of `FakeActor`."""
        actor = FakeActor(name, self.world.hex(32), prefers, **kind)
        self.actors.append(actor)
        self._tell(actor, "PENDING_CREATION")
        self._create(actor)
        return actor

    def call(self, actor: FakeActor, n: int, key: str, done: Done) -> None:
        """The n-th call; one that its node cut off is repeated when the actor is back, or fails."""
        actor.pending = (n, key, done)
        self._perform(actor)

    def _create(self, actor: FakeActor) -> None:
        up = self._up()
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
        actor.alive, actor.incarnation = True, self.world.hex(16)
        self._write(
            node,
            "actor.start",
            actor=actor.name,
            pid=5000 + node.starts,
            exec=actor.incarnation,
            restored=0 if actor.ticks else actor.calls,
        )
        if actor.ticks:
            self._tick(actor, node, actor.incarnation, 1)
        self._tell(actor, "ALIVE")
        self._perform(actor)

    def _tick(self, actor: FakeActor, node: FakeNode, incarnation: str, n: int) -> None:
        """It lives as long as its node runs: whether Ray has replaced it, it does not know."""
        if not self.over and incarnation not in self.killed:
            self._write(node, "actor.tick", actor=actor.name, incarnation=incarnation, n=n)
            node.do(TICK_S, lambda: self._tick(actor, node, incarnation, n + 1))

    def _perform(self, actor: FakeActor) -> None:
        node = actor.node
        if actor.alive and actor.pending is not None and node is not None:
            n, key, done = actor.pending
            hear = partial(self._execute, actor, node, n, key, done)
            node.do(ANSWER_S, lambda: node.when_heard(hear))

    def _execute(self, actor: FakeActor, node: FakeNode, n: int, key: str, done: Done) -> None:
        if self.over or not actor.alive or actor.node is not node:
            return
        execution, incarnation = self.world.hex(16), actor.incarnation
        self._write(
            node,
            "call.start",
            actor=actor.name,
            key=key,
            exec=execution,
            incarnation=incarnation,
        )

        def end() -> None:
            if incarnation in self.killed:
                return
            if n == actor.calls + 1:
                actor.calls, actor.total = n, actor.total + n
            self._write(node, "call.end", actor=actor.name, key=key, exec=execution)
            node.do(ANSWER_S, lambda: node.when_heard(answer))

        def answer() -> None:
            if not self.over and actor.pending is not None and actor.pending[1] == key:
                actor.pending = None
                value = actor.total if actor.fn == "counter_add" else expected_value(actor.fn, [n])
                done(Outcome(value + (key in self.world.script.wrong)))

        if actor.seconds:
            node.do(actor.seconds, end)
        else:
            end()

    def _tell(self, actor: FakeActor, state: str) -> None:
        where = actor.node.hostname if actor.node is not None and state == "ALIVE" else None
        self.world.ray_event(
            "ray.actor",
            where,
            {
                "actor_id": actor.actor_id,
                "name": actor.name,
                "class": actor.cls,
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
            self._lost(task, "NODE_DIED", ray_node_id, "The worker died with its node.")
        for task in self._known():
            task.holders.discard(node)
        for actor in self.actors:
            if actor.node is node:
                self._restart(actor)
        for group in self.groups:
            group.node_dead(node)
        self.pump()

    def worker_gone(self, worker: FakeTask | FakeActor) -> None:
        """The process of a running task, or of a living actor, was killed; its node lives on."""
        if isinstance(worker, FakeActor):
            self.killed.add(worker.incarnation)
            self._restart(worker)
        elif worker.node is not None:
            entry = worker.node.entry
            worker.cut.add(worker.attempt)
            where = entry.ray_node_id if entry is not None else ""
            self._lost(worker, "WORKER_DIED", where, "The worker died unexpectedly.")
        self.pump()

    def _lost(self, task: FakeTask, why: str, ray_node_id: str, message: str) -> None:
        """An attempt is over without a result: there is another one, or the task has failed."""
        self.placed.remove(task)
        self._note(task, state="FAILED", ended=self.world.wall(), error_type=why)
        task.node = None
        self.failed.append(
            FailedAttempt(task.task_id, task.attempt, task.key, why, ray_node_id, self.world.wall())
        )
        if task.max_retries < 0 or task.attempt < task.max_retries:
            task.attempt += 1
            self.queue.insert(0, task)
            self._note(task, state="PENDING_NODE_ASSIGNMENT")
        else:
            self._fail(task, "WorkerCrashedError", message)

    def _restart(self, actor: FakeActor) -> None:
        actor.alive, actor.node = False, None
        actor.restarts += 1
        self._tell(actor, "RESTARTING")
        self._create(actor)
        if actor.pending is not None and not actor.retried:
            _, _, done = actor.pending
            actor.pending = None
            done(Outcome(None, "ActorUnavailableError", f"The actor {actor.name} was restarted."))

    def gcs_gone(self) -> None:
        """Nothing of the job is left, unless the tables are kept and the owner lives elsewhere."""
        if self.world.kept is None or self.home is self.world.head:
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
            for group in self.groups:
                group.remove()
        self.groups.clear()
        if self in self.world.on_nodes:
            self.world.on_nodes.remove(self)

    def _note(self, task: FakeTask, **what: Any) -> None:
        """What Ray would remember of the attempt that a task is in."""
        key = (task.task_id, task.attempt)
        before = self.attempts.get(key)
        if before is None:
            before = Attempt(task.task_id, task.attempt, task.key, "NORMAL_TASK", "NIL")
        entry = task.node.entry if task.node is not None else None
        where = before.ray_node_id if entry is None else entry.ray_node_id
        self.attempts[key] = replace(before, ray_node_id=where, **what)

    def remembered_actors(self) -> list[Actor]:
        """What Ray would remember of its actors."""
        found = []
        for actor in self.actors:
            entry = actor.node.entry if actor.node is not None else None
            alive = "ALIVE" if actor.alive else "RESTARTING"
            found.append(
                Actor(
                    actor.actor_id,
                    "Counter",
                    actor.name,
                    "DEAD" if self.over else alive,
                    actor.restarts,
                    "" if entry is None else entry.ray_node_id,
                    death="The job has finished." if self.over else "",
                )
            )
        return found

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
            result[entry.ray_node_id] = {
                name: (
                    sum(job.used(entry.node, name) for job in jobs)
                    + sum(d.get(name, 0.0) for node, d in world.left_behind if node is entry.node),
                    amount,
                )
                for name, amount in entry.node.spec.resources.items()
            }
    return result
