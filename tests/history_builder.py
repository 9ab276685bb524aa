"""Builds histories of runs that never were, as real runs would have written them.

A small discrete simulation of the main job: a stream of tasks on every node, kept objects and counters on
every worker, one worker killed in the middle, its work retried elsewhere, the worker restarted and full again.
Clocks of the sources differ from the orchestrator's, lines carry their place in the ledger, and the observer's
last look counts them: a built history is valid by every check, and each check can be made to fail on it.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from simulator.history import History, Op
from simulator.innode.work import expected_value

T0 = 1_763_000_000.0

#: How far each source's wall clock is ahead of the orchestrator's, seconds.
OFFSETS = {"engine": 0.25, "observer": 0.25, "ledger": 0.25, "driver": 0.25, "ray": 0.25}
CLOCK_UNCERTAINTY = 0.002

MANDATORY = [
    "effect", "first_failure", "first_retry", "actor_alive", "declared_dead", "objects_rebuilt",
    "throughput", "rejoined", "full_throughput",
]  # fmt: skip

CHECKS = [
    "no_task_lost", "results_right", "executions_explained", "fault_hit_work", "recovers", "healed", "evidence",
]  # fmt: skip


@dataclass
class Plan:
    """What the built run is like; times are seconds since the load began, or since the injection.

    Attributes
    ----------
    fault
        None for a run without any; "pause" for one that is too short to be noticed.
    victim
        The node that is killed.
    retries
        False: the work that was cut off fails for good.
    comes_back
        False: the victim stays dead.
    """

    workers: int = 3
    slots_per_node: int = 1
    task_seconds: float = 1.0
    inject_at: float = 15.0
    after_s: float = 6.0
    chain_every: int = 5
    fault: str | None = "kill"
    victim: str = "worker-2"
    retries: bool = True
    comes_back: bool = True
    idle_before_fault: bool = False
    seed: int = 1

    effect_s: float = 0.12
    failure_s: float = 0.16
    actor_s: float = 1.4
    rebuilt_s: float = 1.1
    dead_s: float = 4.3
    restart_s: float = 4.6
    rejoin_s: float = 9.0

    @property
    def nodes(self) -> list[str]:
        return ["head", *self.worker_names]

    @property
    def worker_names(self) -> list[str]:
        return [f"worker-{i}" for i in range(1, self.workers + 1)]

    @property
    def slots(self) -> int:
        return len(self.nodes) * self.slots_per_node


@dataclass
class _Task:
    key: str
    fn: str
    args: list[Any]
    nominal: float
    producer: _Task | None = None
    consumer: _Task | None = None
    made_on: str | None = None


@dataclass
class _Built:
    """Events as they happen, not yet in order."""

    rows: list[tuple[float, int, str, str, str | None, dict[str, Any]]] = field(
        default_factory=list
    )

    def add(
        self, when: float, kind: str, source: str, node: str | None = None, /, **data: Any
    ) -> None:
        self.rows.append((when, len(self.rows), kind, source, node, data))


class Builder:
    """One built run."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.out = plan, _Built()
        self.random = random.Random(plan.seed)
        self.execs = 0
        self.task_numbers = 0
        self.begin = 12.0  # when the load begins, after create and gate
        inject = self.begin + plan.inject_at
        self.inject = inject if plan.fault else None
        self.effect = inject + plan.effect_s
        killed = plan.fault == "kill"
        self.dies = self.effect if killed else None
        self.back = inject + plan.rejoin_s if killed and plan.comes_back else None
        stop = inject + (plan.rejoin_s if killed else 0.0) + plan.after_s
        self.finish = inject - 3.0 if plan.idle_before_fault else stop
        self.ended = 0.0

    def alive(self, node: str, when: float) -> bool:
        if node != self.plan.victim or self.dies is None or when < self.dies:
            return True
        return self.back is not None and when >= self.back + 0.4

    def build(self) -> tuple[History, dict[str, Any]]:
        self._run_tasks()
        if not self.plan.idle_before_fault:
            self._actors_and_objects()
        self._frame()
        return self._history(), self._spec()

    # Work

    def _execute(self, task: _Task, node: str, start: float, lasts: float) -> float | None:
        """START, and END if its node lives until then; when it ended."""
        self.execs += 1
        exec_id = f"{self.execs:016x}"
        back = self.back is not None and start >= self.back
        where = {"file": f"{node}-{2 if back and node == self.plan.victim else 1}-1001.jsonl"}
        self.out.add(
            start, "task.start", "ledger", node, key=task.key, exec=exec_id, fn=task.fn,
            task_id=f"task{self.execs:08x}", pid=1001, start_of_node=1, nominal_s=task.nominal,
            demand={"CPU": 1.0}, **where,
        )  # fmt: skip
        end = start + lasts
        if self.dies is not None and node == self.plan.victim and start < self.dies <= end:
            return None
        self.out.add(end, "task.end", "ledger", node, key=task.key, exec=exec_id, ok=True, **where)
        return end

    def _answer(self, task: _Task, when: float) -> None:
        value = expected_value(task.fn, task.args)
        self.out.add(when, "driver.result", "driver", key=task.key, value=value)
        self.ended = max(self.ended, when)

    def _next_task(self, queue: deque[_Task], now: float) -> _Task | None:
        if queue:
            return queue.popleft()
        if now >= self.finish:
            return None
        self.task_numbers += 1
        number, plan = self.task_numbers, self.plan
        if plan.chain_every and number % plan.chain_every == 0:
            made = _Task(f"p-{number}", "make_block", [number, 1000], plan.task_seconds)
            used = _Task(
                f"c-{number}", "block_sum", [number, 1000], plan.task_seconds, producer=made
            )
            made.consumer = used
            for task in (made, used):
                self._submit(task, now)
            return made
        task = _Task(f"t-{number}", "square_sum", [number * 100, 100], plan.task_seconds)
        self._submit(task, now)
        return task

    def _submit(self, task: _Task, now: float) -> None:
        self.out.add(
            now - 0.01, "driver.submit", "driver", key=task.key, fn=task.fn, args=task.args
        )

    def _run_tasks(self) -> None:
        plan = self.plan
        queue: deque[_Task] = deque()
        delayed: list[tuple[float, int, _Task]] = []
        free = [
            (self.begin + 0.5 + 0.05 * i, i, node)
            for i, node in enumerate(n for n in plan.nodes for _ in range(plan.slots_per_node))
        ]
        heapq.heapify(free)
        count = len(free)
        revived = self.back is None
        while free:
            now, _, node = heapq.heappop(free)
            if not self.alive(node, now):
                if not revived and self.back is not None:
                    count += 1
                    heapq.heappush(free, (self.back + 0.5 + 0.01 * (count % 50), count, node))
                continue
            while delayed and delayed[0][0] <= now:
                queue.appendleft(heapq.heappop(delayed)[2])
            task = self._next_task(queue, now)
            if task is None:
                if delayed:
                    count += 1
                    heapq.heappush(free, (delayed[0][0] + 0.01, count, node))
                continue
            if task.producer is not None and self._block_lost(task.producer, now):
                queue.appendleft(task)
                task = task.producer
            lasts = task.nominal * (1 + self.random.uniform(0.005, 0.02))
            end = self._execute(task, node, now, lasts)
            count += 1
            if end is None:
                assert self.dies is not None
                assert self.inject is not None
                seen = self.inject + plan.failure_s
                self._failed(task, node, seen)
                if plan.retries:
                    heapq.heappush(delayed, (seen + 0.2, count, task))
                if self.back is not None:
                    heapq.heappush(free, (self.back + 0.5 + 0.01 * (count % 50), count, node))
                continue
            task.made_on = node
            if task.consumer is not None:
                if task.consumer not in queue:
                    queue.append(task.consumer)
            else:
                if task.producer is not None:
                    self._answer(task.producer, end + 0.006)
                self._answer(task, end + 0.005)
            heapq.heappush(free, (end + self.random.uniform(0.001, 0.004), count, node))

    def _block_lost(self, producer: _Task, now: float) -> bool:
        return (
            self.dies is not None
            and producer.made_on == self.plan.victim
            and now > self.dies
            and (self.back is None or now < self.back)
        )

    def _failed(self, task: _Task, node: str, when: float) -> None:
        self.out.add(
            when, "attempt.failed", "ray", node, key=task.key, task_id=f"task-{task.key}", attempt=0,
            error_type="NODE_DIED",
        )  # fmt: skip
        if not self.plan.retries:
            for lost in (task, *([task.consumer] if task.consumer else [])):
                self.out.add(
                    when + 0.01, "driver.failure", "driver", key=lost.key, error="NodeDiedError",
                    message=f"Task failed because {node} died",
                )  # fmt: skip

    def _actors_and_objects(self) -> None:
        plan, out = self.plan, self.out
        killed = self.dies is not None
        for seed, worker in enumerate(plan.worker_names, 1):
            block = _Task(f"block-{worker}", "make_block", [seed, 1000], 0.0)
            self._submit(block, self.begin + 0.1)
            self._execute(block, worker, self.begin + 0.12, 0.03)
            held = {"object": worker, "key": block.key, "hosts": [f"host-{worker}"], "bytes": 8000}
            out.add(self.begin + 0.2, "driver.object", "driver", nodes=[worker], **held)
            self._answer(block, self.begin + 0.21)
            if self.inject is not None:
                look = _Task(f"look-{worker}", "block_sum", [seed, 1000], 0.0)
                self._submit(look, self.inject + 0.4)
                lost = killed and worker == plan.victim
                since = self.inject + (plan.rebuilt_s if lost else 0.45)
                if lost:
                    self._execute(block, "worker-1", since - 0.2, 0.03)
                ended = self._execute(look, "worker-1", since, 0.02)
                assert ended is not None
                self._answer(look, ended + 0.003)
                value = expected_value(look.fn, look.args)
                out.add(
                    ended + 0.004, "driver.object_back", "driver", object=worker, key=look.key,
                    value=value,
                )  # fmt: skip
            self._counter(worker)

    def _counter(self, worker: str) -> None:
        plan, out = self.plan, self.out
        name, identity = f"counter-{worker}", f"actor-{worker}"
        facts = {"actor_id": identity, "name": name, "class": "Counter"}

        def state(when: float, now: str, node: str | None, restarts: int) -> None:
            host = None if node is None else f"host-{node}"
            out.add(
                when,
                "ray.actor",
                "observer",
                node,
                **facts,
                state=now,
                restarts=restarts,
                hostname=host,
            )

        def start(when: float, node: str, calls: int) -> None:
            out.add(
                when, "actor.start", "ledger", node, actor=name, pid=1002, restored=calls,
                exec=f"{identity}-{when}", file=f"{node}-1-{name}.jsonl",
            )  # fmt: skip

        state(self.begin + 0.05, "PENDING_CREATION", None, 0)
        state(self.begin + 0.3, "ALIVE", worker, 0)
        start(self.begin + 0.28, worker, 0)
        node, calls, now = worker, 0, self.begin + 0.6
        hit = self.dies is not None and worker == plan.victim
        while now < self.finish:
            calls += 1
            key = f"{name}/{calls}"
            out.add(
                now,
                "driver.actor_call",
                "driver",
                actor=name,
                key=key,
                fn="counter_add",
                args=[calls],
            )
            done = None
            if hit and node == worker and self.dies is not None and now + 0.35 >= self.dies:
                if now < self.dies:
                    self._call(name, key, node, now + 0.002, None)
                assert self.inject is not None
                state(self.inject + plan.failure_s, "RESTARTING", None, 1)
                node, now = "worker-1", max(now, self.inject + plan.actor_s)
                state(now, "ALIVE", node, 1)
                start(now - 0.02, node, calls - 1)
            done = now + 0.004
            self._call(name, key, node, now + 0.002, done)
            out.add(
                done + 0.002, "driver.actor_result", "driver", actor=name, key=key, fn="counter_add",
                args=[calls], value=expected_value("counter_add", [calls]),
            )  # fmt: skip
            now += 0.5
        self.ended = max(self.ended, now)

    def _call(self, actor: str, key: str, node: str, start: float, end: float | None) -> None:
        self.execs += 1
        facts = {
            "actor": actor,
            "key": key,
            "exec": f"{self.execs:016x}",
            "file": f"{node}-1-{actor}.jsonl",
        }
        self.out.add(start, "call.start", "ledger", node, **facts)
        if end is not None:
            self.out.add(end, "call.end", "ledger", node, **facts)

    # The run around it

    def _frame(self) -> None:
        plan, out, begin = self.plan, self.out, self.begin
        killed = self.dies is not None
        orchestrator = "orchestrator"
        last = max(self.ended, self.finish, self.back or 0.0, (self.inject or 0.0) + 1.0) + 0.2
        end = last + 3.0
        nodes = [
            {
                "name": n, "role": "head" if n == "head" else "worker", "group": n.partition("-")[0],
                "hostname": f"host-{n}", "address": "10.0.0.1", "resources": {"CPU": plan.slots_per_node},
            }
            for n in plan.nodes
        ]  # fmt: skip
        out.add(0.0, "run.start", orchestrator, schema=1, run_id="built", experiment="node_failure")
        for when, phase in ((0.1, "create"), (8.0, "gate"), (begin, "load"), (last + 0.1, "heal")):
            out.add(when, "run.phase", orchestrator, phase=phase)
        out.add(7.0, "cluster.nodes", orchestrator, nodes=nodes)
        for when in (7.1, end - 1.0):
            for source, offset in OFFSETS.items():
                out.add(
                    when, "clock.offset", orchestrator, sources=[source], offset=offset,
                    uncertainty=CLOCK_UNCERTAINTY,
                )  # fmt: skip
        out.add(8.1, "steady", orchestrator, when="before", ok=True, problems=[])
        out.add(8.2, "observer.start", "observer", poll_s=0.1)
        for n in range(int(end - 1.2 - 8.2)):
            out.add(9.2 + n, "observer.beat", "observer", n=n + 1, gcs=True)
        for node in plan.nodes:
            out.add(5.0, "engine.start", "engine", node)
            self._ray_node(8.25, node, f"id-{node}-1", "ALIVE")
        out.add(begin, "workload.submit", orchestrator, job_id="01", workload="TaskStream")
        out.add(
            begin + 0.01, "driver.start", "driver", tasks=100, task_seconds=plan.task_seconds,
            slots=plan.slots, max_retries=3 if plan.retries else 0,
        )  # fmt: skip
        if self.inject is not None:
            self._fault(last)
        out.add(self.finish, "workload.finish", orchestrator)
        counts: dict[str, int] = defaultdict(int)
        for row in out.rows:
            counts[row[2]] += 1
        out.add(last - 0.01, "driver.planned", "driver", tasks=self.task_numbers)
        out.add(
            last, "driver.end", "driver", submitted=counts["driver.submit"],
            results=counts["driver.result"], failures=counts["driver.failure"],
        )  # fmt: skip
        out.add(last + 0.05, "workload.end", orchestrator, status="SUCCEEDED", message="")
        out.add(last + 0.5, "steady", orchestrator, when="after", ok=True, problems=[])
        rows = counts["task.start"]
        out.add(last + 0.6, "attempts.complete", "ray", rows=rows, dropped=0)
        out.add(end - 0.9, "observer.end", "observer", files={})
        out.add(end, "run.end", orchestrator, status="completed")
        if killed:
            assert self.inject is not None
            message = "Unexpected termination: health check failed"
            self._ray_node(
                self.inject + plan.dead_s, plan.victim, f"id-{plan.victim}-1", "DEAD", message
            )
            if self.back is not None:
                out.add(self.inject + plan.restart_s + 0.3, "engine.start", "engine", plan.victim)
                self._ray_node(self.back, plan.victim, f"id-{plan.victim}-2", "ALIVE")

    def _ray_node(
        self, when: float, node: str, identity: str, state: str, message: str = ""
    ) -> None:
        self.out.add(
            when, "ray.node", "observer", node, ray_node_id=identity, hostname=f"host-{node}", state=state,
            reason="UNEXPECTED_TERMINATION" if message else "", message=message,
        )  # fmt: skip

    def _fault(self, last: float) -> None:
        plan, out, node = self.plan, self.out, self.plan.victim
        assert self.inject is not None
        killed = plan.fault == "kill"
        facts = {"id": "f1", "fault": plan.fault}
        undo = "restart" if killed else "resume"
        out.add(
            self.inject - 0.02, "fault.plan", "orchestrator", node, **facts, target=node, undo=undo
        )
        out.add(self.inject, "fault.inject", "orchestrator", node, **facts)
        engine = "engine.die" if killed else "engine.pause"
        code = {"exit_code": 137} if killed else {}
        out.add(self.effect, engine, "engine", node, **code)
        out.add(
            self.effect,
            "fault.effect",
            "engine",
            node,
            **facts,
            verified=True,
            how=f"{engine} was reported",
        )
        out.add(self.inject + 0.2, "fault.done", "orchestrator", node, **facts)
        out.add(self.inject + 0.3, "workload.go_on", "orchestrator")
        heal = self.inject + (plan.restart_s if killed else 0.5)
        joined = self.back if self.back is not None else heal
        how = undo if plan.comes_back else "nothing"
        out.add(heal, "fault.heal", "orchestrator", node, **facts, how=how)
        out.add(joined + 0.1, "fault.healed", "orchestrator", node, **facts, verified=True, how=how)

    def _history(self) -> History:
        lines: dict[str, int] = {}
        ops: list[Op] = []
        for index, (when, _, kind, source, node, data) in enumerate(
            sorted(self.out.rows, key=lambda r: r[:2])
        ):
            if source == "driver":
                data["file"] = "driver.jsonl"
            if "file" in data:
                data["line"] = lines[data["file"]] = lines.get(data["file"], 0) + 1
            if kind == "observer.end":
                data["files"] = dict(lines)
            received = T0 + when + (0.0 if source == "orchestrator" else 0.05)
            wall = T0 + when + OFFSETS.get(source, 0.0)
            ops.append(Op(index, kind, source, wall, 1000.0 + when, received, node, data))
        return History(ops)

    def _spec(self) -> dict[str, Any]:
        schedule = []
        if self.plan.fault:
            schedule = [
                {
                    "id": "f1",
                    "fault": self.plan.fault,
                    "target": self.plan.victim,
                    "when": "after warm-up",
                }
            ]
        return {
            "schema": 1, "run_id": "built", "experiment": "node_failure", "seed": self.plan.seed, "params": {},
            "mandatory_phases": MANDATORY if self.plan.fault else [], "recovery_timeout_s": 60.0,
            "checks": list(CHECKS), "schedule": schedule,
        }  # fmt: skip


def build(plan: Plan | None = None, **changes: Any) -> tuple[History, dict[str, Any]]:
    """History and spec of a built run; `changes` are attributes of `Plan`."""
    return Builder(plan or Plan(**changes)).build()


def beginnings(history: History, every: int) -> Iterator[History]:
    """The history as it grew, one step for every so many operations."""
    for length in range(0, len(history) + 1, every):
        yield History(history.ops[:length])
