"""The simulated driver of the `TaskStream` workload: what `simulator.innode.stream` does, without a Ray.

It reads the same specification, obeys the same control file and writes the same lines; a change there needs
one here, and the tests compare the kinds and fields of both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulator.backends.fake.driver import FakeDriver
from simulator.backends.fake.tasks import FakeActor, FakeTask, Outcome
from simulator.backends.fake.world import World

TICK_S = 0.1


class FakeStream(FakeDriver):
    """Submits, waits, records."""

    def __init__(
        self,
        world: World,
        run_id: str,
        ray_job_id: str,
        ended: Callable[[str, str], None],
    ) -> None:
        super().__init__(world, run_id, ray_job_id, ended)
        self.pending = 0
        self.calling: set[str] = set()
        self.due: dict[str, float] = {}
        self.actors: list[FakeActor] = []
        self.blocks: dict[str, FakeTask] = {}
        self.number = 0
        self.looked = self.said = False
        self.making = 0

    # -- its life --------------------------------------------------------------------------------

    def drive(self) -> None:
        slots = self.slots()
        self.planned = int(self.spec["tasks"])
        self.window = max(1, round(slots * float(self.spec["in_flight_per_slot"])))
        self.out(
            "driver.start",
            job_id=self.ray_job_id,
            tasks=self.planned,
            task_seconds=self.spec["task_seconds"],
            slots=slots,
            max_retries=self.spec["max_retries"],
        )
        workers = [
            name
            for name, host in sorted(self.spec["workers"].items())
            if any(n.hostname == host and n.believed_alive for n in self.world.nodes.values())
        ]
        self.prepare(workers)
        if not self.making:
            self._loop()

    def prepare(self, workers: list[str]) -> None:
        """What is there before the stream begins, on the workers of these names."""
        for name in workers:
            self.actors.append(self.tasks.actor(f"counter-{name}", name))
        self._hold_objects(workers)

    def _loop(self) -> None:
        if not self.over:
            self.tick()
        if not self.over:
            self.home.do(TICK_S, self._loop)

    def tick(self) -> None:
        """Submit what there is room for, as the control file says; end when all is back."""
        asked = self.read("control.json")
        go_on, finish = bool(asked.get("go_on")), bool(asked.get("finish"))
        if go_on and not self.looked and asked.get("look", True):
            self.looked = True
            self._look_at_objects()
        if self.number >= self.planned and not self.said:
            self.said = True
            self.out("driver.planned", tasks=self.number)
        open_ended = go_on and not finish
        while self.in_flight() < self.window and (self.number < self.planned or open_ended):
            self.number += 1
            self._submit_next(self.number)
        if self.number < self.planned or open_ended:
            self._call_actors()
        elif self.all_is_back():
            self.finish()

    def in_flight(self) -> int:
        """How many submissions of the stream itself are not back."""
        return self.pending

    def all_is_back(self) -> bool:
        """Whether nothing is to be waited for any more, when nothing more is submitted."""
        return not self.pending and not self.calling

    # -- what it asks for ------------------------------------------------------------------------

    def _submit_next(self, number: int) -> None:
        count, every = int(self.spec["loop"]), int(self.spec["chain_every"])
        seconds, retries = float(self.spec["task_seconds"]), int(self.spec["max_retries"])
        if every and number % every == 0:
            length = int(self.spec["chain_bytes"]) // 8
            made, used = f"p-{number}", f"c-{number}"
            self._asked(made, "make_block", [number, length])
            self._asked(used, "block_sum", [number, length])
            self.pending += 1
            block = self.tasks.submit(
                made,
                "make_block",
                [number, length],
                lambda outcome: None,
                seconds=seconds,
                max_retries=retries,
            )
            self.tasks.submit(
                used,
                "block_sum",
                [number, length],
                lambda outcome: self._came_back([made, used], outcome),
                seconds=seconds,
                max_retries=retries,
                needs=block,
            )
        else:
            key, args = f"t-{number}", [number * count, count]
            self._asked(key, "square_sum", args)
            self.pending += 1
            self.tasks.submit(
                key,
                "square_sum",
                args,
                lambda outcome: self._came_back([key], outcome),
                seconds=seconds,
                max_retries=retries,
            )

    def _asked(self, key: str, fn: str, args: list[Any], **promised: Any) -> None:
        self.out("driver.submit", key=key, fn=fn, args=args, **promised)
        self.submitted += 1
        if key in self.world.script.forgotten:
            # Its owner will never hear of it, and goes on as if it had never asked.
            self.pending -= 1

    def _came_back(self, keys: list[str], outcome: Outcome, kept: str | None = None) -> None:
        self.pending -= 1
        for key in keys:
            if outcome.error is not None:
                self.failures += 1
                self.out("driver.failure", key=key, error=outcome.error, message=outcome.message)
            else:
                self.results += 1
                value = outcome.value if key == keys[-1] else None
                self.out("driver.result", key=key, value=value)
        if kept is not None and outcome.error is None:
            self.out("driver.object_back", object=kept, key=keys[-1], value=outcome.value)
        if not self.over and not self.making:
            self.tick()

    def _hold_objects(self, workers: list[str]) -> None:
        length = int(self.spec["block_bytes"]) // 8
        for seed, name in enumerate(workers, 1):
            key = f"block-{name}"
            self.out("driver.submit", key=key, fn="make_block", args=[seed, length])
            self.submitted += 1
            self.making += 1
            block = self.tasks.submit(
                key,
                "make_block",
                [seed, length],
                lambda outcome: self._held(),
                seconds=0.0,
                max_retries=int(self.spec["max_retries"]),
                demand={},
                prefers=name,
            )
            self.blocks[name] = block
            self.tasks.kept.append(block)

    def _held(self) -> None:
        self.making -= 1
        if self.making:
            return
        for name, block in self.blocks.items():
            self.out(
                "driver.object",
                object=name,
                key=block.key,
                hosts=sorted(n.hostname for n in block.holders),
                bytes=int(self.spec["block_bytes"]),
            )
            self.out("driver.result", key=block.key, value=None)
            self.results += 1
        self._loop()

    def _look_at_objects(self) -> None:
        length = int(self.spec["block_bytes"]) // 8
        for seed, name in enumerate(sorted(self.blocks), 1):
            key = f"look-{name}"
            self._asked(key, "block_sum", [seed, length])
            self.pending += 1
            self.tasks.submit(
                key,
                "block_sum",
                [seed, length],
                lambda outcome, n=name, k=key: self._came_back([k], outcome, n),  # type: ignore[misc]
                seconds=0.0,
                max_retries=int(self.spec["max_retries"]),
                demand={},
                needs=self.blocks[name],
            )

    def _call_actors(self) -> None:
        now = self.world.clock.now
        for actor in self.actors:
            if actor.name in self.calling or now < self.due.get(actor.name, 0.0):
                continue
            n = actor.calls + 1
            key = f"{actor.name}/{n}"
            self.calling.add(actor.name)
            self.due[actor.name] = now + float(self.spec["actor_period_s"])
            self.out("driver.actor_call", actor=actor.name, key=key, fn="counter_add", args=[n])
            self.tasks.call(
                actor,
                n,
                key,
                lambda outcome, a=actor, k=key, i=n: self._called(a, k, i, outcome),  # type: ignore[misc]
            )

    def _called(self, actor: FakeActor, key: str, n: int, outcome: Outcome) -> None:
        self.calling.discard(actor.name)
        if outcome.error is not None:
            self.out(
                "driver.actor_failure",
                actor=actor.name,
                key=key,
                error=outcome.error,
                message=outcome.message,
            )
            return
        self.out(
            "driver.actor_result",
            actor=actor.name,
            key=key,
            fn=actor.fn,
            args=[n],
            value=outcome.value,
        )
