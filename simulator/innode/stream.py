"""The driver of the `TaskStream` workload: a steady stream of work on every node, recorded as its owner sees it.

Runs as a Ray job. It keeps a bounded number of tasks in flight, holds one object and one stateful actor on
every worker, and writes what it asked for and what came back to the ledger. The plan is a number of tasks; when
the orchestrator says that a fault is in, it goes on beyond the plan until told to finish, so that there is
work to measure until the cluster is whole again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from simulator.innode import work
from simulator.innode.ledger import CONTROL, DRIVER, WORKLOAD, Ledger, read_json, root


@dataclass
class Asked:
    """One submission that has not come back: its key, and what else came back with it."""

    key: str
    fn: str
    args: list[Any]
    since: float  # on the monotonic clock, seconds
    via: str | None = None  # key of the producer whose block it consumes
    kept: str | None = None  # name of the kept object that it looks at


@dataclass
class Actor:
    """A named actor, and how often it was called; not called again before it is `due`."""

    name: str
    handle: Any
    fn: str = "counter_add"
    calls: int = 0
    due: float = 0.0


class Stream:
    """Submits, waits, records. All state of the driver."""

    def __init__(self, run_id: str, spec: Mapping[str, Any]) -> None:
        self.run_id, self.spec = run_id, spec
        self.out = Ledger(run_id, DRIVER)
        self.pending: dict[Any, Asked] = {}
        self.calls: dict[Any, tuple[Actor, str]] = {}
        self.blocks: dict[str, tuple[str, Any]] = {}
        self.actors: list[Actor] = []
        self.copied: set[str] = set()
        self.submitted = self.results = self.failures = 0
        self.seconds = float(spec["task_seconds"])
        retries = int(spec["max_retries"])
        self.square_sum = ray.remote(max_retries=retries)(work.square_sum)
        self.make_block = ray.remote(max_retries=retries)(work.make_block)
        self.block_sum = ray.remote(max_retries=retries)(work.block_sum)

    def submit(
        self,
        key: str,
        fn: str,
        args: list[Any],
        ref: Any,
        *,
        via: str | None = None,
        kept: str | None = None,
        **promised: Any,
    ) -> None:
        self.out.write("driver.submit", key=key, fn=fn, args=args, **promised)
        self.submitted += 1
        self.pending[ref] = Asked(key, fn, args, time.monotonic(), via, kept)

    def prepare(self, nodes: Mapping[str, str]) -> None:
        """What is there before the stream begins, on the workers of these names and Ray node ids."""
        self.place_actors(nodes)
        self.hold_objects(nodes)

    def hold_objects(self, nodes: Mapping[str, str]) -> None:
        """Make one object on every worker, fetched by nobody: its only copy is there."""
        length = int(self.spec["block_bytes"]) // 8
        made = []
        for seed, (name, node_id) in enumerate(sorted(nodes.items()), 1):
            key = f"block-{name}"
            self.out.write("driver.submit", key=key, fn="make_block", args=[seed, length])
            self.submitted += 1
            ref = self.make_block.options(name=key, num_cpus=0, **preferring(node_id)).remote(
                self.run_id, key, 0.0, seed, length
            )
            self.blocks[name] = (key, ref)
            made.append(ref)
        if not made:
            return
        ray.wait(made, num_returns=len(made), timeout=60, fetch_local=False)
        where = _locations(made, timeout=10.0)
        hosts = {n["NodeID"]: n["NodeName"] for n in ray.nodes()}
        for name, (key, ref) in self.blocks.items():
            found = where[ref]
            self.out.write(
                "driver.object",
                object=name,
                key=key,
                hosts=[hosts[i] for i in found["node_ids"]],
                bytes=found["object_size"],
            )
            self.out.write("driver.result", key=key, value=None)
            self.results += 1

    def look_at_objects(self) -> None:
        """Need every kept object again: what was lost with its node must be rebuilt."""
        length = int(self.spec["block_bytes"]) // 8
        for seed, (name, (_, ref)) in enumerate(sorted(self.blocks.items()), 1):
            key = f"look-{name}"
            looked = self.block_sum.options(name=key, num_cpus=0).remote(self.run_id, key, 0.0, ref)
            self.submit(key, "block_sum", [seed, length], looked, kept=name)

    def place_actors(self, nodes: Mapping[str, str]) -> None:
        """One counter on every worker; it may restart anywhere."""
        counter = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)(work.Counter)
        for name, node_id in sorted(nodes.items()):
            actor = f"counter-{name}"
            handle = counter.options(name=actor, **preferring(node_id)).remote(self.run_id, actor)
            self.actors.append(Actor(actor, handle))

    def call_actors(self) -> None:
        """The next call of every counter whose last one came back."""
        now = time.monotonic()
        waiting = {actor.name for actor, _ in self.calls.values()}
        for actor in self.actors:
            if actor.name not in waiting and now >= actor.due:
                actor.calls += 1
                actor.due = now + float(self.spec["actor_period_s"])
                key = f"{actor.name}/{actor.calls}"
                self.out.write(
                    "driver.actor_call",
                    actor=actor.name,
                    key=key,
                    fn="counter_add",
                    args=[actor.calls],
                )
                self.calls[actor.handle.add.remote(actor.calls)] = (actor, key)

    def submit_next(self, number: int) -> None:
        """The number-th task of the stream; every few of them is a chain of two."""
        count = int(self.spec["loop"])
        every = int(self.spec["chain_every"])
        if every and number % every == 0:
            length = int(self.spec["chain_bytes"]) // 8
            made, used = f"p-{number}", f"c-{number}"
            self.out.write("driver.submit", key=made, fn="make_block", args=[number, length])
            self.submitted += 1
            block = self.make_block.options(name=made).remote(
                self.run_id, made, self.seconds, number, length
            )
            total = self.block_sum.options(name=used).remote(self.run_id, used, self.seconds, block)
            self.submit(used, "block_sum", [number, length], total, via=made)
        else:
            key, start = f"t-{number}", number * count
            ref = self.square_sum.options(name=key).remote(
                self.run_id, key, self.seconds, start, count
            )
            self.submit(key, "square_sum", [start, count], ref)

    def speculate(self) -> None:
        """A second copy of each task that is late; whichever comes back first answers, and neither is cancelled.

        The copy has a key of its own, so that no execution is taken for a repetition.
        """
        patience = self.spec.get("speculate_after_s")
        if patience is None:
            return
        now = time.monotonic()
        for asked in list(self.pending.values()):
            copy = f"{asked.key}-copy"
            late = now - asked.since >= float(patience)
            if not late or asked.fn != "square_sum" or asked.key in self.copied:
                continue
            self.copied.update((asked.key, copy))
            ref = self.square_sum.options(name=copy, scheduling_strategy="SPREAD").remote(
                self.run_id, copy, self.seconds, *asked.args
            )
            self.submit(copy, "square_sum", asked.args, ref)

    def collect(self, timeout: float) -> None:
        """Record whatever came back, waiting up to `timeout` seconds for the first of it."""
        refs = [*self.pending, *self.calls]
        if not refs:
            time.sleep(timeout)
            return
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if ready:
            more, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            ready = more or ready
        for ref in ready:
            if ref in self.calls:
                self._called(*self.calls.pop(ref), ref)
            else:
                self._came_back(self.pending.pop(ref), ref)

    def _came_back(self, asked: Asked, ref: Any) -> None:
        keys = [asked.key] if asked.via is None else [asked.via, asked.key]
        try:
            value = ray.get(ref)
        except Exception as error:  # noqa: BLE001 - whatever Ray says is what is recorded
            for key in keys:
                self.failures += 1
                self.out.write("driver.failure", key=key, **described(error))
            self.came_back(asked, failed=True)
            return
        for key in keys:
            self.results += 1
            self.out.write("driver.result", key=key, value=value if key == asked.key else None)
        if asked.kept is not None:
            self.out.write("driver.object_back", object=asked.kept, key=asked.key, value=value)
        self.came_back(asked, failed=False)

    def _called(self, actor: Actor, key: str, ref: Any) -> None:
        try:
            value = ray.get(ref)
        except Exception as error:  # noqa: BLE001
            self.out.write("driver.actor_failure", actor=actor.name, key=key, **described(error))
            self.call_failed(actor)
            return
        self.out.write(
            "driver.actor_result",
            actor=actor.name,
            key=key,
            fn=actor.fn,
            args=[int(key.rpartition("/")[2])],
            value=value,
        )

    # Where another kind of stream differs

    def in_flight(self) -> int:
        """How many submissions of the stream itself are not back."""
        return len(self.pending)

    def came_back(self, asked: Asked, *, failed: bool) -> None:
        """It has its result, or failed for good."""

    def call_failed(self, actor: Actor) -> None:
        """A call of it failed for good."""

    def all_is_back(self) -> bool:
        """Whether nothing is to be waited for any more, when nothing more is submitted."""
        return not self.pending and not self.calls

    def run(self) -> None:
        nodes = workers(self.spec["workers"])
        slots = int(ray.cluster_resources().get("CPU", 1))
        planned = int(self.spec["tasks"])
        window = max(1, round(slots * float(self.spec["in_flight_per_slot"])))
        self.out.write(
            "driver.start",
            job_id=ray.get_runtime_context().get_job_id(),
            tasks=planned,
            task_seconds=self.seconds,
            slots=slots,
            max_retries=int(self.spec["max_retries"]),
        )
        self.prepare(nodes)
        control = root() / self.run_id / CONTROL
        number, looked, said = 0, False, False
        asked: Mapping[str, Any] = {}
        next_look = 0.0
        while True:
            now = time.monotonic()
            if now >= next_look:
                asked, next_look = read_json(control), now + 0.1
            go_on, finish = bool(asked.get("go_on")), bool(asked.get("finish"))
            if go_on and not looked and asked.get("look", True):
                looked = True
                self.look_at_objects()
            if number >= planned and not said:
                said = True
                self.out.write("driver.planned", tasks=number)
            open_ended = go_on and not finish
            while self.in_flight() < window and (number < planned or open_ended):
                number += 1
                self.submit_next(number)
            if number < planned or open_ended:
                self.call_actors()
            elif self.all_is_back():
                break
            self.speculate()
            self.collect(0.1)

    def end(self) -> None:
        self.out.write(
            "driver.end", submitted=self.submitted, results=self.results, failures=self.failures
        )


def _locations(refs: list[Any], timeout: float) -> Mapping[Any, Mapping[str, Any]]:
    """Where Ray says the copies are; its owner hears of them a moment after the object is ready."""
    end = time.monotonic() + timeout
    while True:
        where: Mapping[Any, Mapping[str, Any]] = ray.experimental.get_object_locations(refs)
        if all(where[ref]["node_ids"] for ref in refs) or time.monotonic() > end:
            return where
        time.sleep(0.02)


def preferring(node_id: str) -> dict[str, Any]:
    """Options: on this node while it lives, anywhere else once it is gone.

    A soft node affinity does not do: Ray ignores it for actors that ask for no resources.
    """
    return {
        "label_selector": {"ray.io/node-id": node_id},
        "fallback_strategy": [{"label_selector": {"ray.io/node-id": f"!{node_id}"}}],
    }


def described(error: Exception) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error).strip()[:500]}


def workers(hostnames: Mapping[str, str]) -> dict[str, str]:
    """Name of each worker that Ray holds alive -> its Ray node id."""
    alive = {n["NodeName"]: n["NodeID"] for n in ray.nodes() if n["Alive"]}
    return {name: alive[host] for name, host in hostnames.items() if host in alive}


def main(kind: type[Stream], description: str | None) -> None:
    """The program: a stream of this kind, for the run that the command line names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--run", required=True, help="id of the run; its folder below the ledger")
    run_id: str = parser.parse_args().run
    spec = read_json(root() / run_id / WORKLOAD)
    ray.init(address="auto", namespace=run_id, log_to_driver=False)
    stream = kind(run_id, spec)
    stream.run()
    stream.end()


if __name__ == "__main__":
    main(Stream, __doc__)
