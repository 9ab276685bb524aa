"""What stands in for the programs that run inside a node, and for its table of processes.

Only what a fault and its proof need: burdens with their marks, a disk to spill to, limits, one raylet, its agents, and
a worker for each task and actor. Nothing here computes, allocates or fills anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from signal import SIGCONT, SIGSTOP, SIGTERM, Signals

from simulator.backends.base import Completed, Limits, Load, NodeProcess
from simulator.backends.fake.ray import workers
from simulator.backends.fake.tasks import FakeActor, FakeTask
from simulator.backends.fake.world import FakeNode, World
from simulator.innode.burden import ANY, REFUSED
from simulator.innode.supervisor import GCS_DIED, RAYLET_DIED, RAYLET_LEFT
from simulator.topology import parse_size

SPILL_FOLDER = "/spill"

_CPUS = 2.0
_MEMORY = 2 * 1024**3
_IDLE = 200 * 1024**2  # what a node holds that does nothing
_PROGRAM = ("python", "-m")
_CORE = {10: "raylet", 11: "ray::DashboardAgent", 12: "ray::RuntimeEnvAgent"}
_GCS = {9: "gcs_server"}
_OOM_S = 0.2  # until memory is full


# ---- limits


def made_limits(node: FakeNode) -> Limits:
    return Limits(_CPUS, parse_size(node.spec.memory) if node.spec.memory else _MEMORY)


def limits(node: FakeNode) -> Limits:
    made, changed = made_limits(node), node.limited
    return Limits(
        made.cpus if changed.cpus is None else changed.cpus,
        made.memory if changed.memory is None else changed.memory,
    )


def set_limits(node: FakeNode, wanted: Limits) -> None:
    before = node.limited
    node.limited = Limits(
        before.cpus if wanted.cpus is None else wanted.cpus,
        before.memory if wanted.memory is None else wanted.memory,
    )


def load(node: FakeNode) -> Load:
    now = limits(node)
    shares = [float(b.argument) for b in node.burdens if b.kind == "memory"]
    taken = int((now.memory or 0) * max(shares, default=0.0))
    return Load(now, max(_IDLE, taken), node.oom_kills, node.world.clock.now)


# ---- programs


@dataclass(frozen=True, slots=True)
class Burden:
    """One burdening process, or with the kind ``disk`` a file; its argument is a number or a share."""

    mark: str
    kind: str
    argument: str


def run(world: World, node: FakeNode, argv: Sequence[str]) -> Completed | None:
    """What a program of ours would say; None for any other."""
    if tuple(argv[:2]) != _PROGRAM:
        return None
    if argv[2] == "simulator.innode.burden":
        return _burden(world, node, list(argv[3:]))
    if argv[2] == "simulator.innode.ray_private":
        return _ray_private(world, list(argv[3:]))
    return None


def _burden(world: World, node: FakeNode, argv: list[str]) -> Completed:
    verb, mark, *rest = argv

    def mine(burden: Burden) -> bool:
        return mark in (ANY, burden.mark)

    if verb == "start" and rest[0] == "oom":
        node.do(_OOM_S, lambda: _run_out(world, node))
        return Completed(0, '{"started": 1}\n')
    if verb == "start":
        count = int(rest[1]) if rest[0] == "cpu" else 1
        node.burdens += [Burden(mark, *rest)] * count
        return Completed(0, json.dumps({"started": count}) + "\n")
    if verb == "fill":
        if node.spec.spill_size is None:
            return Completed(REFUSED, '{"refused": "it has no disk of its own size"}\n')
        node.burdens = [b for b in node.burdens if b.kind != "disk" or not mine(b)]
        node.burdens.append(Burden(mark, "disk", rest[1]))
        return Completed(0, json.dumps(_disk(node, mark)) + "\n")
    found = [b for b in node.burdens if mine(b)]
    processes = [{"pid": 0, "kind": b.kind, "ticks": 1} for b in found if b.kind != "disk"]
    if verb == "look":
        said: dict[str, object] = {"processes": processes}
        if rest:
            said["disk"] = _disk(node, mark)
        return Completed(0, json.dumps(said) + "\n")
    node.burdens = [b for b in node.burdens if not mine(b)]
    return Completed(
        0, json.dumps({"ended": len(processes), "removed": len(found) - len(processes)}) + "\n"
    )


def _disk(node: FakeNode, mark: str) -> dict[str, int | None]:
    size = parse_size(node.spec.spill_size or "0k")
    fillers = {b.mark: float(b.argument) for b in node.burdens if b.kind == "disk"}
    free = int(size * (1 - max(fillers.values(), default=0.0)))
    return {"size": size, "free": free, "filler": size - free if mark in fillers else None}


def _run_out(world: World, node: FakeNode) -> None:
    node.oom_kills += 1
    world.emit("oom", node)
    worker = next(iter(workers(world, node)), None)
    if worker is not None:
        worker[1].worker_gone(worker[2])


def _ray_private(world: World, argv: list[str]) -> Completed:
    if world.gcs is None:
        return Completed(1, "no GCS answers\n")
    if argv == ["draining"]:
        found = {e.ray_node_id: e.draining for e in world.gcs.entries if e.alive}
        return Completed(0, json.dumps({k: v for k, v in found.items() if v is not None}) + "\n")
    entry = next((e for e in world.gcs.entries if e.ray_node_id == argv[2]), None)
    if entry is not None and entry.alive:
        entry.draining = _deadline(world, argv[0], float(argv[1]))
        _leave_when_idle(world, entry.node)
    return Completed(0, "")


def _deadline(world: World, verb: str, number: float) -> int:
    """In ms since 1970, of ``drain SECONDS`` or ``drain-by MS``; 0 for none."""
    if verb == "drain-by":
        return int(number)
    return int((world.wall() + number) * 1000) if number else 0


def _leave_when_idle(world: World, node: FakeNode) -> None:
    """A raylet that is drained leaves once nothing runs on it."""
    entry = node.entry
    if entry is None or entry.draining is None or not entry.alive or node.state != "running":
        return
    if next(iter(workers(world, node)), None) is None:
        world.end(node, RAYLET_LEFT, farewell=True)
    else:
        node.do(0.1, lambda: _leave_when_idle(world, node))


# ---- processes


def processes(world: World, node: FakeNode) -> list[NodeProcess]:
    """A row for each of Ray's own, and for each worker that works."""
    core = {**(_GCS if node.is_head else {}), **_CORE}
    rows = {pid: title for pid, title in core.items() if pid not in node.killed}
    rows |= {pid: f"ray::{_title(worker)}" for pid, _, worker in workers(world, node)}
    return [
        NodeProcess(pid, node.starts, "T" if pid in node.stopped else "S", title[:15], title)
        for pid, title in rows.items()
    ]


def signal_process(
    world: World, node: FakeNode, process: NodeProcess, number: Signals, exit_s: float
) -> bool:
    """Signal it; whether it was there."""
    if (process.pid, process.started) not in {
        (p.pid, p.started) for p in processes(world, node)
    } or node.state != "running":
        return False
    pid = process.pid
    if number in (SIGSTOP, SIGCONT):
        _stop(world, node, pid, stop=number == SIGSTOP)
        return True
    worker = next((w for w in workers(world, node) if w[0] == pid), None)
    if worker is not None:
        worker[1].worker_gone(worker[2])
        return True
    node.killed.add(pid)
    # The supervisor ends the node with its raylet or its GCS, and the raylet ends with its agents.
    polite = number == SIGTERM and process.name == "raylet"
    code = GCS_DIED if pid in _GCS else RAYLET_LEFT if polite else RAYLET_DIED
    node.do(exit_s, lambda: world.end(node, code, farewell=polite))
    return True


def _stop(world: World, node: FakeNode, pid: int, *, stop: bool) -> None:
    if (pid in node.stopped) == stop:
        return
    (node.stopped.add if stop else node.stopped.discard)(pid)
    if _CORE.get(pid) == "raylet":
        (world.raylet_stopped if stop else world.raylet_continued)(node)


def _title(worker: FakeTask | FakeActor) -> str:
    return worker.key if isinstance(worker, FakeTask) else "Counter"
