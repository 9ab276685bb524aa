"""The driver of the `Promises` workload: what is promised to happen at most once, exactly once, or in one place.

A stream (`simulator.innode.stream`) of another kind. Its tasks are *posts*: each does one deed in the outside
world and is tried again until it came back; an idempotency key keeps the deed from being done twice. On every
worker lives a named *teller*, whose *charges* are never tried again. A placement group has a bundle on every
node, and a *roll call* goes through each of them again and again: that it comes back shows that the bundle can
be used, whatever Ray says of the group. Each promise can be broken by a mistake that users make.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from simulator.innode import work
from simulator.innode.stream import Actor, Stream, main, preferring
from simulator.innode.work import BUNDLE_CPU, GROUP, LAST_CALL_S, POST_CPU

#: How many charges each teller has before it at any moment: one that it executes, one that waits.
IN_HAND = 2


class Promises(Stream):
    """Submits, waits, records."""

    def __init__(self, run_id: str, spec: Mapping[str, Any]) -> None:
        super().__init__(run_id, spec)
        self.post = ray.remote(max_retries=-1, num_cpus=POST_CPU)(work.post)
        self.roll_call = ray.remote(max_retries=-1, num_cpus=BUNDLE_CPU)(work.roll_call)
        self.bundles = 0
        self.group: Any = None
        self.on_the_way: dict[int, Any] = {}  # roll call by bundle
        self.rolls = 0
        self.next_roll = 0.0
        self.last_call_until: float | None = None

    def prepare(self, nodes: Mapping[str, str]) -> None:
        self.place_actors(nodes)
        self.bundles = sum(bool(n["Alive"] and n["Resources"].get("CPU")) for n in ray.nodes())
        self.group = placement_group(
            [{"CPU": BUNDLE_CPU}] * self.bundles, strategy="STRICT_SPREAD", name=GROUP
        )

    def look_at_objects(self) -> None:
        """Nothing is promised of objects."""

    # -- exactly once ------------------------------------------------------------------------------

    def submit_next(self, number: int) -> None:
        key, effect = f"post-{number}", f"order-{number}"
        # The mistake: what may run twice does its deed without an idempotency key.
        idempotent = not self.spec["repeated"]
        ref = self.post.options(name=key).remote(
            self.run_id, key, self.seconds, number, effect, idempotent=idempotent
        )
        self.submit(key, "post", [number], ref, effect=effect)

    # -- at most once, and only one of its name ----------------------------------------------------

    def place_actors(self, nodes: Mapping[str, str]) -> None:
        """One teller on every worker; it may restart anywhere, and its calls are not repeated."""
        # The mistake: what must not happen twice is submitted with retries.
        retries = -1 if self.spec["retried"] else 0
        teller = ray.remote(max_restarts=-1, max_task_retries=retries, num_cpus=0)(work.Teller)
        for name, node_id in sorted(nodes.items()):
            actor = f"teller-{name}"
            handle = teller.options(name=actor, **preferring(node_id)).remote(self.run_id, actor)
            self.actors.append(Actor(actor, handle, "charge"))

    def call_actors(self) -> None:
        """Charges, so that each teller always has some before it; and the roll call when it is due."""
        now = time.monotonic()
        in_hand = [actor.name for actor, _ in self.calls.values()]
        for actor in self.actors:
            for _ in range(IN_HAND - in_hand.count(actor.name) if now >= actor.due else 0):
                actor.calls += 1
                key = f"{actor.name}/{actor.calls}"
                self.out.write(
                    "driver.actor_call",
                    actor=actor.name,
                    key=key,
                    fn="charge",
                    args=[actor.calls],
                    at_most_once=True,
                )
                self.calls[actor.handle.charge.remote(actor.calls, self.seconds)] = (actor, key)
        if now >= self.next_roll:
            self.next_roll = now + float(self.spec["roll_call_s"])
            self.call_the_roll()

    def call_failed(self, actor: Actor) -> None:
        """While an actor restarts, each call fails at once: more of them would tell nothing more."""
        actor.due = time.monotonic() + self.seconds

    # -- placed as a whole -------------------------------------------------------------------------

    def call_the_roll(self) -> None:
        """Send a task through each bundle from which the one before is back."""
        self.rolls += 1
        for bundle in range(self.bundles):
            if self.on_the_way.get(bundle) in self.pending:
                continue
            key = f"roll-{bundle}-{self.rolls}"
            through = PlacementGroupSchedulingStrategy(
                self.group, placement_group_bundle_index=bundle
            )
            ref = self.roll_call.options(name=key, scheduling_strategy=through).remote(
                self.run_id, key, self.rolls
            )
            self.on_the_way[bundle] = ref
            self.submit(key, "roll_call", [self.rolls], ref, group=GROUP, bundle=bundle)

    def _missing(self) -> list[Any]:
        return [ref for ref in self.on_the_way.values() if ref in self.pending]

    def in_flight(self) -> int:
        """Roll calls take no place of a post's."""
        return len(self.pending) - len(self._missing())

    # -- the end -----------------------------------------------------------------------------------

    def all_is_back(self) -> bool:
        """When all else is back, one last roll call: is the group whole? Given up after a while."""
        if self.in_flight() or self.calls:
            return False
        now = time.monotonic()
        if self.last_call_until is None:
            self.call_the_roll()
            self.last_call_until = now + LAST_CALL_S
            return False
        missing = self._missing()
        if missing and now > self.last_call_until:
            for ref in missing:
                ray.cancel(ref)
            self.last_call_until = now + LAST_CALL_S
        if missing:
            return False
        if self.spec["leaked"]:
            self.leave_something_behind()
        return True

    def leave_something_behind(self) -> None:
        """The mistake: a detached actor outlives its program, and keeps what it was given."""
        holder = ray.remote(lifetime="detached", num_cpus=0.25)(work.Holder)
        ray.get(holder.options(name="left-behind").remote().hold.remote(), timeout=60)


if __name__ == "__main__":
    main(Promises, __doc__)
