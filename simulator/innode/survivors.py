"""The driver of the `Survivors` workload: one of everything that a head remembers, and a client that uses it.

Runs as a Ray job. It makes actors, a placement group, an entry in the GCS's key-value store and a Serve application,
has tasks run and others wait, says ``ready``, and from then on calls whatever there is, several times a second, each
from a thread of its own: how long nothing came back is the downtime that a client sees. ``--survey`` is another
program, which is run when the cluster is whole again, whatever became of the first: it knows the names only, and
looks for each.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ray

from simulator.innode import ray_private, work
from simulator.innode.ledger import CONTROL, WORKLOAD, Ledger, read_json, root
from simulator.innode.stream import Stream, described, workers

SURVEY = "driver-survey.jsonl"
#: How long anything may take to answer, seconds: in a probe, while it is made, and when it is looked for.
PROBE_S, MADE_S, FOUND_S = 2.0, 60.0, 20.0
#: From one call of a probe to the next, and from when on a call that came back was a wait, seconds.
PERIOD_S, WAIT_S = 0.2, 1.0
#: A new actor needs a new process, which takes its time on a crowded machine, seconds.
NEW_ACTOR_WAIT_S = 6.0
#: How long tasks may still take once the end was asked for, seconds.
LAST_S = 60.0


class Gone(Exception):
    """What is looked for is not there any more; the text says how that shows."""


class Member:
    """An actor whose state is all in its memory."""

    def __init__(self) -> None:
        self._count = 0

    def count(self) -> dict[str, int]:
        """One more; and which process says so."""
        self._count += 1
        return {"pid": os.getpid(), "count": self._count}


class Probe(threading.Thread):
    """Calls something again and again, and writes when it stops to come back, and when it comes back again."""

    def __init__(self, out: Ledger, what: str, call: Callable[[], object], wait_s: float) -> None:
        super().__init__(name=f"probe-{what}", daemon=True)
        self._out, self._what, self._call, self._wait_s = out, what, call, wait_s
        self._good = self._failed = 0
        self._stopping = threading.Event()

    def run(self) -> None:
        last, failures = None, 0
        while not self._stopping.is_set():
            try:
                self._call()
            except Exception as error:  # noqa: BLE001 - whatever Ray says is what is recorded
                failures, self._failed = failures + 1, self._failed + 1
                if failures == 1:
                    self._write(ok=False, last_ok=last, **described(error))
            else:
                now, self._good = time.time(), self._good + 1
                if last is None or failures or now - last > self._wait_s:
                    self._write(ok=True, last_ok=last, failures=failures)
                last, failures = now, 0
            self._stopping.wait(PERIOD_S)

    def _write(self, **data: Any) -> None:
        self._out.write("driver.probe", what=self._what, **data)

    def end(self) -> None:
        self._stopping.set()
        self.join(PROBE_S)
        self._out.write(
            "driver.probed",
            what=self._what,
            calls=self._good,
            failed=self._failed,
            hangs=self.is_alive(),
        )


class Survivors(Stream):
    """Makes, uses, waits, ends."""

    def __init__(self, run_id: str, spec: Mapping[str, Any]) -> None:
        super().__init__(run_id, spec)
        self.places = sorted(workers(spec["workers"]).values())
        self.app: Any = None
        self.member = ray.remote(num_cpus=0)(Member)
        self.detached = self.member.options(
            name="detached", lifetime="detached", **at(self.places[0])
        ).remote()
        self.named = self.member.options(name="named", **at(self.places[-1])).remote()
        self.plain = self.member.options(**at(self.places[-1])).remote()

    # -- making ------------------------------------------------------------------------------------

    def make(self) -> None:
        self.made("worker_nodes", nodes=self.places)
        for name, actor in (
            ("detached_actor", self.detached),
            ("named_actor", self.named),
            ("actor", self.plain),
        ):
            self.made(name, **ray.get(actor.count.remote(), timeout=MADE_S))
        group = ray.util.placement_group(
            [{"CPU": 1}] * len(self.places),
            strategy="STRICT_SPREAD",
            name="group",
            lifetime="detached",
        )
        ray.get(group.ready(), timeout=MADE_S)
        self.made("placement_group", id=group.id.hex(), nodes=bundles(group))
        ray_private.kv_put(kv_key(self.run_id), self.run_id)
        self.made("kv", value=self.run_id)
        if self.spec["serve"]:
            self.app = serve_app(self.run_id)
            self.made("serve", **self.app.remote().result(timeout_s=MADE_S))
        self.task("recorded-1", 0.1, 1)
        self.collect(MADE_S)
        # Ray's processes hand in what they know of tasks once a second.
        end = time.monotonic() + FOUND_S
        while not (rows := records("recorded-1")) and time.monotonic() < end:
            time.sleep(0.5)
        self.made("task_records", rows=rows)
        for number, place in enumerate(self.places, 1):
            self.task(f"running-{number}", self.seconds, 1, **at(place))
        end = time.monotonic() + MADE_S
        while not self.all_run() and time.monotonic() < end:
            time.sleep(PERIOD_S)
        # No node has two CPUs from now on, while the others run.
        for number in range(int(self.spec["queued"])):
            self.task(f"queued-{number + 1}", 0.5, 2)

    def all_run(self) -> bool:
        """Whether all that are to run have begun, by what they wrote themselves."""
        begun = {
            line["data"]["key"]
            for path in (root() / self.run_id).glob("*.jsonl")
            for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())
            if line["kind"] == "task.start"
        }
        return begun >= {a.key for a in self.pending.values() if a.key.startswith("running-")}

    def made(self, item: str, **evidence: Any) -> None:
        self.out.write("driver.made", item=item, evidence=evidence)

    def task(self, key: str, seconds: float, cpus: int, **options: Any) -> None:
        count = 20_000
        args = [self.submitted * count, count]
        remote = self.square_sum.options(name=key, num_cpus=cpus, **options)
        self.submit(key, "square_sum", args, remote.remote(self.run_id, key, seconds, *args))

    # -- using -------------------------------------------------------------------------------------

    def probes(self) -> list[Probe]:
        """One for each way in which a client depends on the head, or does not."""
        run = ray.remote(num_cpus=0)(work.nothing)

        def new_actor() -> None:
            actor = self.member.options(**at(self.places[-1])).remote()
            try:
                ray.get(actor.count.remote(), timeout=FOUND_S)
            finally:
                with suppress(Exception):
                    ray.kill(actor)

        calls: dict[str, Callable[[], object]] = {
            "actor_call": lambda: ray.get(self.plain.count.remote(), timeout=PROBE_S),
            "task": lambda: ray.get(run.options(**at(self.places[0])).remote(), timeout=PROBE_S),
            # `ray.get_actor` keeps the names that it was asked for before.
            "name_lookup": ray.util.list_named_actors,
            "kv": lambda: ray_private.kv_get(kv_key(self.run_id)),
            "new_actor": new_actor,
        }
        if self.app is not None:
            calls["serve_request"] = lambda: self.app.remote().result(timeout_s=PROBE_S)
        return [
            Probe(self.out, what, call, NEW_ACTOR_WAIT_S if what == "new_actor" else WAIT_S)
            for what, call in calls.items()
        ]

    def run(self) -> None:
        self.out.write(
            "driver.start",
            job_id=ray.get_runtime_context().get_job_id(),
            tasks=1 + len(self.places) + int(self.spec["queued"]),
            task_seconds=self.seconds,
            slots=int(ray.cluster_resources().get("CPU", 1)),
            max_retries=int(self.spec["max_retries"]),
        )
        self.make()
        self.out.write("driver.planned", tasks=self.submitted)
        probes = self.probes()
        for probe in probes:
            probe.start()
        time.sleep(2.0)  # each has been called by then
        self.out.write("program.mark", name="ready", value=None)
        control, until = root() / self.run_id / CONTROL, None
        while until is None or (self.pending and time.monotonic() < until):
            self.collect(0.5)
            if until is None and read_json(control).get("finish"):
                until = time.monotonic() + LAST_S
        for probe in probes:
            probe.end()
        with suppress(Exception):
            self.found_by_its_handle()

    def end(self) -> None:
        super().end()
        self.leave_nothing()

    def found_by_its_handle(self) -> None:
        """Of the actor without a name only this program can tell."""
        self.out.write(
            "driver.found",
            item="actor",
            found=True,
            evidence=ray.get(self.plain.count.remote(), timeout=PROBE_S),
        )

    def leave_nothing(self) -> None:
        """What is detached outlives this job, and would be in the way of the next run."""
        with suppress(Exception):
            ray.kill(self.detached)
        with suppress(Exception):
            ray.util.remove_placement_group(ray.util.get_placement_group("group"))
        with suppress(Exception):
            ray_private.kv_del(kv_key(self.run_id))
        if self.app is not None:
            with suppress(Exception):
                from ray import serve

                serve.shutdown()


def at(node_id: str) -> dict[str, Any]:
    """Options: on this node, and on no other."""
    return {"label_selector": {"ray.io/node-id": node_id}}


def bundles(group: Any) -> list[str]:
    """The nodes of a placement group's bundles; raises `Gone` if it is not placed."""
    table = ray.util.placement_group_table(group)
    if table.get("state") != "CREATED":
        raise Gone(f"its state is {table.get('state')}")
    return sorted(table["bundles_to_node_id"].values())


def kv_key(run_id: str) -> str:
    return f"ray-sim-{run_id}"


def records(name: str) -> int:
    """How many attempts of a task the State API lists."""
    from ray.util.state import list_tasks

    return len(list_tasks(filters=[("name", "=", name)], raise_on_missing_output=False))


def serve_app(run_id: str) -> Any:
    """A Serve application of one replica; its handle."""
    from ray import serve

    serve.start(proxy_location="Disabled")

    @serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.5})
    class App:
        def __init__(self) -> None:
            self._count = 0

        def __call__(self) -> dict[str, int]:
            self._count += 1
            return {"pid": os.getpid(), "count": self._count}

    app: Any = App  # Serve's decorator is not typed
    return serve.run(app.bind(), name=run_id, route_prefix=None)


# ---- looking for it


class Survey:
    """Looks for everything by its name, as a program that comes new to the cluster."""

    def __init__(self, run_id: str, spec: Mapping[str, Any]) -> None:
        self.run_id, self.spec = run_id, spec
        self.out = Ledger(run_id, SURVEY)

    def run(self) -> None:
        looks: dict[str, Callable[[], dict[str, Any]]] = {
            "worker_nodes": lambda: {"nodes": sorted(workers(self.spec["workers"]).values())},
            "detached_actor": lambda: self.actor("detached"),
            "named_actor": lambda: self.actor("named"),
            "placement_group": self.group,
            "kv": self.kv,
            "task_records": lambda: {"rows": records("recorded-1")},
        }
        if self.spec["serve"]:
            looks["serve"] = self.serve
        for item, look in looks.items():
            try:
                evidence = look()
            except Gone as why:
                self.out.write("survey.found", item=item, found=False, why=str(why))
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody knows
                self.out.write("survey.found", item=item, found=None, **described(error))
            else:
                self.out.write("survey.found", item=item, found=True, evidence=evidence)

    def end(self) -> None:
        self.out.write("survey.end")

    def actor(self, name: str) -> dict[str, Any]:
        try:
            found = ray.get_actor(name)
            return dict(ray.get(found.count.remote(), timeout=FOUND_S))
        except ValueError as error:
            raise Gone("Ray knows no actor of that name") from error
        except ray.exceptions.RayActorError as error:
            raise Gone(f"it is dead: {described(error)['message'][:200]}") from error

    def group(self) -> dict[str, Any]:
        try:
            group = ray.util.get_placement_group("group")
        except ValueError as error:
            raise Gone("Ray knows no placement group of that name") from error
        nodes = bundles(group)
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        run = ray.remote(num_cpus=1)(work.nothing)
        ray.get(
            [
                run.options(scheduling_strategy=strategy(group, index)).remote()
                for index in range(len(nodes))
            ],
            timeout=FOUND_S,
        )
        return {"id": group.id.hex(), "nodes": nodes}

    def kv(self) -> dict[str, Any]:
        value = ray_private.kv_get(kv_key(self.run_id))
        if value is None:
            raise Gone("there is no such key")
        return {"value": value}

    def serve(self) -> dict[str, Any]:
        from ray import serve

        found = serve.status().applications.get(self.run_id)
        if found is None:
            raise Gone("Serve knows no such application")
        handle = serve.get_app_handle(self.run_id)
        return {"status": found.status.value, **handle.remote().result(timeout_s=FOUND_S)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="id of the run; its folder below the ledger")
    parser.add_argument("--survey", action="store_true", help="look for what is left of it")
    asked = parser.parse_args()
    spec = read_json(root() / asked.run / WORKLOAD)
    ray.init(address="auto", namespace=asked.run, log_to_driver=False)
    program = (Survey if asked.survey else Survivors)(asked.run, spec)
    program.run()
    program.end()


if __name__ == "__main__":
    main()
