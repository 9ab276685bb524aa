"""The simulated driver of the `Promises` workload: what `simulator.innode.promises` does, without a Ray.

It reads the same specification and writes the same lines; a change there needs one here, and the tests compare
the kinds and fields of both.
"""

from __future__ import annotations

from functools import partial

from simulator.backends.fake.groups import FakeGroup
from simulator.backends.fake.stream import FakeStream
from simulator.backends.fake.tasks import FakeActor, FakeTask, Outcome
from simulator.innode.work import BUNDLE_CPU, GROUP, LAST_CALL_S, POST_CPU


class FakePromises(FakeStream):
    """Submits, waits, records."""

    group: FakeGroup

    def prepare(self, workers: list[str]) -> None:
        self.on_the_way: dict[int, FakeTask] = {}
        self.numbers: dict[str, int] = {}
        self.rolls = 0
        self.next_roll = 0.0
        self.last_call_until: float | None = None
        for name in workers:
            actor = self.tasks.actor(
                f"teller-{name}",
                name,
                cls="Teller",
                fn="charge",
                seconds=float(self.spec["task_seconds"]),
                retried=bool(self.spec["retried"]),
                ticks=True,
            )
            self.actors.append(actor)
        able = [n for n in self.world.nodes.values() if n.spec.resources.get("CPU")]
        alive = [n for n in able if n.believed_alive]
        self.group = self.tasks.group(GROUP, [{"CPU": BUNDLE_CPU}] * len(alive))

    def _look_at_objects(self) -> None:
        """Nothing is promised of objects."""

    def _submit_next(self, number: int) -> None:
        key, effect = f"post-{number}", f"order-{number}"
        self._asked(key, "post", [number], effect=effect)
        self.pending += 1
        self.tasks.submit(
            key,
            "post",
            [number],
            lambda outcome: self._came_back([key], outcome),
            seconds=float(self.spec["task_seconds"]),
            max_retries=-1,
            demand={"CPU": POST_CPU},
            effect=(effect, not self.spec["repeated"]),
        )

    def _call_actors(self) -> None:
        now = self.world.clock.now
        for actor in self.actors:
            if actor.name in self.calling or now < self.due.get(actor.name, 0.0):
                continue
            self.numbers[actor.name] = n = self.numbers.get(actor.name, 0) + 1
            key = f"{actor.name}/{n}"
            self.calling.add(actor.name)
            self.out(
                "driver.actor_call",
                actor=actor.name,
                key=key,
                fn="charge",
                args=[n],
                at_most_once=True,
            )
            self.tasks.call(actor, n, key, partial(self._charged, actor, key, n))
        if now >= self.next_roll:
            self.next_roll = now + float(self.spec["roll_call_s"])
            self._call_the_roll()

    def _charged(self, actor: FakeActor, key: str, n: int, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.due[actor.name] = self.world.clock.now + float(self.spec["task_seconds"])
        self._called(actor, key, n, outcome)

    def _call_the_roll(self) -> None:
        self.rolls += 1
        for bundle in range(len(self.group.bundles)):
            if bundle in self.on_the_way:
                continue
            key = f"roll-{bundle}-{self.rolls}"
            self._asked(key, "roll_call", [self.rolls], group=GROUP, bundle=bundle)
            self.pending += 1
            self.on_the_way[bundle] = self.tasks.submit(
                key,
                "roll_call",
                [self.rolls],
                partial(self._answered, bundle, key),
                seconds=0.0,
                max_retries=-1,
                demand={},
                bundle=(self.group, bundle),
            )

    def _answered(self, bundle: int, key: str, outcome: Outcome) -> None:
        del self.on_the_way[bundle]
        self._came_back([key], outcome)

    def in_flight(self) -> int:
        """Roll calls take no place of a post's."""
        return self.pending - len(self.on_the_way)

    def all_is_back(self) -> bool:
        """When all else is back, one last roll call; given up after a while."""
        if self.in_flight() or self.calling:
            return False
        now = self.world.clock.now
        if self.last_call_until is None:
            self._call_the_roll()
            self.last_call_until = now + LAST_CALL_S
            return False
        if self.on_the_way and now > self.last_call_until:
            for task in list(self.on_the_way.values()):
                self.tasks.cancel(task)
            self.last_call_until = now + LAST_CALL_S
        if self.on_the_way:
            return False
        if self.spec["leaked"]:
            self.world.left_behind.append((self.world.head, {"CPU": 0.25}))
        return True
