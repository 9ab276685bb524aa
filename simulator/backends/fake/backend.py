"""The backend whose clusters exist in memory only, and do as they are told.

Everything of this package that talks to a backend can be tried on it in moments: the runner, experiments,
faults and checks of one's own. What goes wrong can be scripted, and time passes only as it is slept away
(`simulator.backends.fake.clock`), so a run of two minutes takes a second and gives the same history each
time it is run with the same seed.

**It is never evidence that a fault works, or that Ray recovers.** What it shows is what was written into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from random import Random
from signal import Signals
from typing import Literal

from simulator.backends.base import (
    Answer,
    Check,
    ClusterRecord,
    ClusterSpec,
    Completed,
    Endpoint,
    EngineEvent,
    GpuKind,
    Limits,
    Load,
    NodeProcess,
    Program,
    definition,
    refuse_other,
    resolve_gpus,
)
from simulator.backends.fake import inside
from simulator.backends.fake.clock import FakeClock
from simulator.backends.fake.observer import FakeObserver
from simulator.backends.fake.ray import BUILT_IN, FakeRay, JobFactory
from simulator.backends.fake.script import Behaviour, FailedStart, LostLine, Printed, Script
from simulator.backends.fake.world import FakeNode, World
from simulator.backends.paths import Kind, destination, kind_of
from simulator.errors import CannotRun, NotFound
from simulator.netrules import Drop, Feature, NetRule
from simulator.topology import Topology


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the backend's, as `FakeBackend.calls` lists them; `when` by its clock, seconds."""

    method: str
    cluster: str
    node: str
    when: float


#: Where a relative path in a simulated node begins.
_HOME = "/home/ray"
_FOLDERS = ("/", "/tmp", "/home", _HOME)


def _absolute(path: str) -> str:
    """The same path from the root on; what stands at its end still does."""
    return path if path.startswith("/") else f"{_HOME}/{path}"


def _kind(files: Mapping[str, bytes], path: str) -> Kind:
    where = str(PurePosixPath(path))
    if where in files:
        return "file"
    below = any(PurePosixPath(name).is_relative_to(where) for name in files)
    return "folder" if below or where in _FOLDERS else "none"


class _Watch:
    def __init__(self, world: World, emit: Callable[[EngineEvent], None]) -> None:
        self._world, self._emit, self._open = world, emit, True
        world.watchers.append(self._deliver)

    def _deliver(self, event: EngineEvent) -> None:
        if self._open:
            self._emit(event)

    def close(self) -> None:
        if self._open:
            self._open = False
            with suppress(ValueError):  # the cluster was removed, and with it who watches
                self._world.watchers.remove(self._deliver)


class FakeBackend:
    """Simulated clusters, in memory, scriptable. Never evidence that a fault works.

    Parameters
    ----------
    seed
        Of everything that varies: ids, and how long nodes take to start.
    behaviour
        Times and sizes of the simulated machine.
    clock
        Simulated time; by default a new one that begins now.

    Attributes
    ----------
    calls
        Every call so far, in order.
    programs
        Simulated jobs by the module or the script that their entrypoint runs; add your own workload's
        here, and a script of yours with `simulator.backends.fake.program.FakeProgram`.
    checks
        What `check` answers.
    answers
        What `execute` gives for a command line, such as ``{"ray status": Completed(0, "...")}``.
    lacks
        What `network_lacks` answers.
    taken
        Addresses that somebody else has, when a node is to get one back.
    """

    name = "fake"

    def __init__(
        self,
        *,
        seed: int = 0,
        behaviour: Behaviour | None = None,
        clock: FakeClock | None = None,
    ) -> None:
        self.simulated_clock = clock or FakeClock()
        self.behaviour = behaviour or Behaviour()
        self.calls: list[Call] = []
        self.programs: dict[str, JobFactory] = dict(BUILT_IN)
        self.checks: list[Check] = [Check("ok", "engine", "simulated, in memory")]
        self.answers: dict[str, Completed] = {}
        self.lacks: dict[Feature, str] = {}
        self.taken: set[str] = set()
        self._script = Script()
        self._seed = seed
        self._worlds: dict[str, World] = {}
        self._programs: dict[tuple[str, str], FakeObserver] = {}

    # -- what is to go wrong -------------------------------------------------------------------------

    def fail_next(self, method: str, error: BaseException, *, times: int = 1) -> None:
        """Let the next call of a method raise: ``"start"``, ``"remove"``, ``"ray.nodes"`` and so on."""
        self._known_method(method)
        self._script.errors.setdefault(method, []).extend([error] * times)

    def before(self, method: str, action: Callable[[], None]) -> None:
        """Let something happen right before every call of a method."""
        self._known_method(method)
        self._script.hooks.setdefault(method, []).append(action)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen so many simulated seconds from now."""
        self.simulated_clock.after(seconds, action)

    def start_fails(
        self,
        node: str,
        *,
        times: int = 1,
        after: float = 1.0,
        exit_code: int = 1,
        lines: Sequence[str] = ("Timed out waiting for file .../metrics_agent_port",),
    ) -> None:
        """Let the next starts of a node end with an exit code after so many seconds."""
        failure = FailedStart(after, exit_code, tuple(lines))
        self._script.starts.setdefault(node, []).extend([failure] * times)

    def never_joins(self, node: str, *, times: int = 3) -> None:
        """Let the next starts of a node go on and on without its joining."""
        failure = FailedStart(0.0, None, ("[supervisor] still waiting for the raylet",))
        self._script.starts.setdefault(node, []).extend([failure] * times)

    def start_takes(self, node: str, seconds: float) -> None:
        self._script.start_seconds[node] = seconds

    def without_effect(self, method: str, node: str, *, times: int = 1) -> None:
        """Let the next ``kill``, ``stop``, ``pause``, ``resume``, ``set_limits`` or ``signal_process`` of a node do
        nothing.
        """
        self._script.deaf[method, node] += times

    def crash(self, cluster: str, node: str, exit_code: int = 1) -> None:
        """A node ends by itself, now."""
        world = self.world(cluster)
        with self.simulated_clock.lock:
            world.end(world.nodes[node], exit_code)

    def lose_line(
        self, kind: str, key: str | None = None, *, where: str = "stream", times: int = 1
    ) -> None:
        """Let a line of the ledger get lost: on its way (``stream``) or never written (``ledger``)."""
        if where not in ("stream", "ledger"):
            raise ValueError(f"where is {where!r}, not 'stream' or 'ledger'")
        self._script.lost_lines.append(LostLine(kind, key, where, times))

    def wrong_result(self, key: str) -> None:
        """Let the owner of this task, or of this actor call, receive a wrong value."""
        self._script.wrong.add(key)

    def lose_task(self, key: str) -> None:
        """Let the owner of this task (``t-<n>``) never hear of it again."""
        self._script.forgotten.add(key)

    def observer_stays_silent(self) -> None:
        self._script.observer_silent = True

    def crash_observer(self, cluster: str) -> None:
        """The observer of a run ends without a last word."""
        self._programs[cluster, "observer"].crash()

    def blind_observer(self, cluster: str, seconds: float) -> None:
        """The GCS does not answer the observer for so long."""
        self._programs[cluster, "observer"].blind_until = self.simulated_clock.now + seconds

    def job_never_starts(self) -> None:
        self._script.job_never_starts = True

    def job_ends(self, status: str = "FAILED", message: str = "Job entrypoint failed") -> None:
        """Let the next job end like this before its driver says anything."""
        self._script.job_ends = (status, message)

    def job_prints(self, *output: str, exit_code: int = 0, every: float = 1.0) -> None:
        """Let the next job whose program is not simulated write this and end.

        Parameters
        ----------
        output
            Pieces of text, with their line ends, one every so many seconds.
        """
        self._script.job_prints = Printed(output, exit_code, every)

    def world(self, cluster: str) -> World:
        """The inside of a simulated cluster, for tests that look closer."""
        if cluster not in self._worlds:
            raise NotFound("cluster", cluster, self._worlds)
        return self._worlds[cluster]

    # -- Backend -------------------------------------------------------------------------------------

    def version(self) -> str:
        self._called("version")
        return "simulated"

    def check(self, topology: Topology | None = None) -> list[Check]:  # noqa: ARG002 - any fits
        self._called("check")
        return list(self.checks)

    def cores(self) -> int:
        self._called("cores")
        return 2

    def gpu_kind(self, topology: Topology) -> GpuKind:
        self._called("gpu_kind")
        return resolve_gpus(
            topology, lambda: 0, "nodes in memory have none", "Use a backend with real nodes"
        )

    def prepare(self, spec: ClusterSpec, say: Callable[[str], None]) -> ClusterSpec:  # noqa: ARG002
        self._called("prepare", spec.name)
        return spec

    def clusters(self) -> list[ClusterRecord]:
        self._called("clusters")
        return [self._record(world) for _, world in sorted(self._worlds.items())]

    def create(self, spec: ClusterSpec) -> None:
        self._called("create", spec.name)
        existing = self._worlds.get(spec.name)
        if existing is None:
            rng = Random(f"{self._seed} {spec.name} {len(self.calls)}")
            self._worlds[spec.name] = World(
                spec, self.simulated_clock, self.behaviour, self._script, rng
            )
        else:
            same = definition(existing.spec) == definition(spec)
            refuse_other(spec, same=same, existing=existing.nodes)
            with self.simulated_clock.lock:
                existing.have(spec.topology.nodes())

    def cluster(self, name: str) -> ClusterRecord:
        self._called("cluster", name)
        return self._record(self.world(name))

    def spec(self, cluster: str) -> ClusterSpec:
        self._called("spec", cluster)
        world = self.world(cluster)
        counts = Counter(node.spec.group for node in world.nodes.values())
        return world.spec.with_counts(
            {g.group_name: counts[g.group_name] for g in world.spec.topology.worker_groups}
        )

    def start(self, cluster: str, node: str) -> None:
        self._called("start", cluster, node)
        with self.simulated_clock.lock:
            self.world(cluster).start(self._node(cluster, node))

    def stop(self, cluster: str, node: str, grace: float) -> None:
        self._called("stop", cluster, node)
        found = self._node(cluster, node)
        world = self.world(cluster)
        if found.state not in ("running", "paused") or self._deaf("stop", node):
            return
        takes = world.behaviour.exit_s
        if found.state == "running" and takes <= grace:
            found.do(takes, lambda: world.end(found, 0, farewell=True))
            self.simulated_clock.sleep(takes)
        else:
            self.simulated_clock.sleep(grace)
            with self.simulated_clock.lock:
                world.end(found, 137)

    def remove_node(self, cluster: str, node: str) -> None:
        self._called("remove_node", cluster, node)
        found = self._node(cluster, node)
        with self.simulated_clock.lock:
            self.world(cluster).remove(found)

    def remove(self, cluster: str) -> None:
        self._called("remove", cluster)
        world = self._worlds.pop(cluster, None)
        if world is None:
            return
        with self.simulated_clock.lock:
            world.watchers.clear()
            for node in world.breakable.values():
                world.end(node, 137)
            for program in [p for key, p in self._programs.items() if key[0] == cluster]:
                program.remove()

    def endpoint(self, cluster: str) -> Endpoint:
        """There is no HTTP here; `ray` answers instead."""
        self._called("endpoint", cluster)
        self.world(cluster)
        return Endpoint("http://simulated.invalid", "")

    def logs(self, cluster: str, node: str, tail: int | None = None) -> str:
        self._called("logs", cluster, node)
        lines = self._node(cluster, node).log
        kept = lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]
        return "".join(line + "\n" for line in kept)

    def follow_logs(self, cluster: str, node: str, tail: int | None = None) -> Iterator[str]:
        """What there is, and then what comes as time passes, until the node ends."""
        found = self._node(cluster, node)
        position = 0 if tail is None else max(0, len(found.log) - tail)
        while True:
            yield from found.log[position:]
            position = len(found.log)
            if found.state not in ("running", "paused"):
                return
            self.simulated_clock.sleep(0.5)

    def node_logs(self, cluster: str, node: str, into: Path) -> None:
        self._called("node_logs", cluster, node)
        found = self._node(cluster, node)
        into.mkdir(parents=True, exist_ok=True)
        lines = [line for line in found.log if line.startswith("[raylet]")]
        (into / "raylet.out").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def execute(
        self,
        cluster: str,
        node: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,  # noqa: ARG002
        interactive: bool = False,  # noqa: ARG002
    ) -> Completed:
        """What `answers` has for the command line, or what a program of ours would say; there is no shell."""
        self._called("execute", cluster, node)
        found = self._node(cluster, node)
        if found.state != "running":
            raise CannotRun(f"{node} is {found.state}", remedy=f"start it with: restart {node}")
        line = " ".join(argv)
        if line in self.answers:
            return self.answers[line]
        with self.simulated_clock.lock:
            said = inside.run(self.world(cluster), found, argv)
        return said or Completed(127, f"{argv[0]}: not in a simulated node\n")

    def copy_in(self, cluster: str, node: str, source: str, target: str) -> list[str]:
        """Into a node's few bytes of memory, which are there as long as the node is."""
        self._called("copy_in", cluster, node)
        files = self._node(cluster, node).files
        here = Path(source)
        into = destination(
            source, kind_of(here), _absolute(target), lambda path: _kind(files, path)
        )
        if here.is_file():
            files[str(into)] = here.read_bytes()
        for path in here.rglob("*"):
            if path.is_file():
                files[str(into / path.relative_to(here))] = path.read_bytes()
        return []

    def copy_out(self, cluster: str, node: str, source: str, target: str) -> list[str]:
        self._called("copy_out", cluster, node)
        files = self._node(cluster, node).files
        path = _absolute(source)
        kind = _kind(files, path)
        into = Path(destination(path, kind, target, lambda there: kind_of(Path(there))))
        root = PurePosixPath(path)
        if kind == "folder":
            into.mkdir(exist_ok=True)
        for name, data in files.items():
            if PurePosixPath(name).is_relative_to(root):
                file = into / PurePosixPath(name).relative_to(root)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        return []

    def watch(self, cluster: str, emit: Callable[[EngineEvent], None]) -> _Watch:
        self._called("watch", cluster)
        return _Watch(self.world(cluster), emit)

    def run_program(
        self,
        cluster: str,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],  # noqa: ARG002
        *,
        keep_output: bool = True,  # noqa: ARG002
    ) -> Program:
        self._called("run_program", cluster)
        if argv[0] != "simulator.innode.observer":
            raise CannotRun(f"{argv[0]} is not simulated")
        run_id = argv[list(argv).index("--run") + 1]
        with self.simulated_clock.lock:
            program = FakeObserver(
                self.world(cluster), run_id, lambda: self._programs.pop((cluster, name), None)
            )
        self._programs[cluster, name] = program
        return program

    def program(self, cluster: str, name: str) -> Program | None:
        self._called("program", cluster)
        return self._programs.get((cluster, name))

    def put_ledger_file(self, cluster: str, path: str, data: bytes) -> None:
        self._called("put_ledger_file", cluster)
        self.world(cluster).files[path] = data

    def fetch_ledger(self, cluster: str, path: str, into: Path) -> None:
        self._called("fetch_ledger", cluster)
        world = self.world(cluster)
        files = {p: "".join(line + "\n" for line in lines) for p, lines in world.ledger.items()}
        files.update({p: data.decode() for p, data in world.files.items()})
        for name, text in files.items():
            if path and not PurePosixPath(name).is_relative_to(path):
                continue
            target = into / PurePosixPath(name).relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")

    def wall_clock(self) -> float:
        self._called("wall_clock")
        return self.simulated_clock.wall() + self.behaviour.clock_offset

    # -- CanKill, CanPause, CanLimit, HasSpillDisk, CanSignal, ServesRay -----------------------------

    def kill(self, cluster: str, node: str) -> None:
        self._called("kill", cluster, node)
        found = self._node(cluster, node)
        if not self._deaf("kill", node):
            with self.simulated_clock.lock:
                self.world(cluster).end(found, 137)

    def pause(self, cluster: str, node: str) -> None:
        self._called("pause", cluster, node)
        found = self._node(cluster, node)
        if found.state == "running" and not self._deaf("pause", node):
            with self.simulated_clock.lock:
                self.world(cluster).pause(found)

    def resume(self, cluster: str, node: str) -> None:
        self._called("resume", cluster, node)
        found = self._node(cluster, node)
        if found.state == "paused" and not self._deaf("resume", node):
            with self.simulated_clock.lock:
                self.world(cluster).resume(found)

    # -- HostsStore ----------------------------------------------------------------------------------

    def store_answers(self, cluster: str) -> bool:
        self._called("store_answers", cluster)
        store = self.world(cluster).store
        return store is not None and store.state == "running"

    # -- CanShapeNetwork, CanDisconnect --------------------------------------------------------------

    def prepare_network(self, say: Callable[[str], None]) -> None:  # noqa: ARG002
        self._called("prepare_network")

    def network_lacks(self) -> Mapping[Feature, str]:
        self._called("network_lacks")
        return self.lacks

    def add_rule(self, cluster: str, node: str, site: str, rule: NetRule) -> None:
        self._called("add_rule", cluster, node)
        found = self._node(cluster, node)
        if found.state not in ("running", "paused"):
            raise CannotRun(f"the network of {node} cannot be shaped", why=f"it is {found.state}")
        if not self._deaf("add_rule", node):
            self._change(cluster, lambda: found.rules.__setitem__(site, rule))

    def remove_rule(self, cluster: str, node: str, site: str) -> None:
        self._called("remove_rule", cluster, node)
        found = self._node(cluster, node)
        if not self._deaf("remove_rule", node):
            self._change(cluster, lambda: found.rules.pop(site, None))

    def clear_rules(self, cluster: str, node: str) -> Sequence[str]:
        self._called("clear_rules", cluster, node)
        rules = self._node(cluster, node).rules
        there = sorted(rules)
        self._change(cluster, rules.clear)
        return there

    def rules(self, cluster: str, node: str) -> Mapping[str, NetRule]:
        self._called("rules", cluster, node)
        found = self._node(cluster, node)
        return dict(found.rules) if found.state in ("running", "paused") else {}

    def reach(
        self, cluster: str, node: str, address: str, port: int, timeout: float = 1.0
    ) -> Answer:
        """By the rules of both sides: nobody listens anywhere, so what gets through is refused."""
        self._called("reach", cluster, node)
        near = self._node(cluster, node)
        nodes = self.world(cluster).breakable.values()
        far = next((n for n in nodes if n.address == address and not n.unplugged), None)
        if near.unplugged:
            return "no route"
        dropped = any(
            flow.address == other.address
            and flow.remote_port in (0, port if here is near else 0)
            and flow.local_port in (0, port if here is far else 0)
            for here, other in ((near, far), (far, near))
            if here is not None and other is not None
            for rule in here.rules.values()
            if isinstance(rule, Drop) and rule.percent >= 100
            for flow in rule.flows
        )
        if far is None or dropped:
            self.simulated_clock.sleep(timeout)
            return "silence"
        return "refused"

    def unanswered(self, cluster: str, node: str, addresses: Sequence[str]) -> int:  # noqa: ARG002
        self._called("unanswered", cluster, node)
        return 0

    def disconnect(self, cluster: str, node: str) -> None:
        self._called("disconnect", cluster, node)
        found = self._node(cluster, node)
        if not self._deaf("disconnect", node):
            self._change(cluster, lambda: setattr(found, "unplugged", True))

    def connect(self, cluster: str, node: str, address: str = "") -> str:
        self._called("connect", cluster, node)
        found = self._node(cluster, node)
        if found.unplugged and not self._deaf("connect", node):
            wanted = address or found.address
            if wanted in self.taken:
                wanted = f"10.77.200.{len(self.taken)}"
            found.address = wanted
            self._change(cluster, lambda: setattr(found, "unplugged", False))
        return found.record().address

    def is_connected(self, cluster: str, node: str) -> bool:
        self._called("is_connected", cluster, node)
        return not self._node(cluster, node).unplugged

    def _change(self, cluster: str, action: Callable[[], object]) -> None:
        with self.simulated_clock.lock:
            action()
            self.world(cluster).network_changed()

    def why_unlimited(self, resource: Literal["cpus", "memory"]) -> str | None:  # noqa: ARG002
        self._called("why_unlimited")
        return None

    def limits(self, cluster: str, node: str) -> Limits:
        self._called("limits", cluster, node)
        return inside.limits(self._node(cluster, node))

    def made_limits(self, cluster: str, node: str) -> Limits:
        self._called("made_limits", cluster, node)
        return inside.made_limits(self._node(cluster, node))

    def set_limits(self, cluster: str, node: str, limits: Limits) -> None:
        self._called("set_limits", cluster, node)
        if not self._deaf("set_limits", node):
            inside.set_limits(self._node(cluster, node), limits)

    def load(self, cluster: str, node: str) -> Load:
        self._called("load", cluster, node)
        return inside.load(self._node(cluster, node))

    def ran_out_of_memory(self, cluster: str, node: str) -> bool:
        self._called("ran_out_of_memory", cluster, node)
        return self._node(cluster, node).oom_kills > 0

    def spill_folder(self, cluster: str, node: str) -> str | None:
        self._called("spill_folder", cluster, node)
        return inside.SPILL_FOLDER if self._node(cluster, node).spec.spill_size else None

    def processes(self, cluster: str, node: str) -> list[NodeProcess]:
        self._called("processes", cluster, node)
        return inside.processes(self.world(cluster), self._node(cluster, node))

    def signal_process(
        self, cluster: str, node: str, process: NodeProcess, number: Signals
    ) -> bool:
        self._called("signal_process", cluster, node)
        if self._deaf("signal_process", node):
            return True
        world = self.world(cluster)
        with self.simulated_clock.lock:
            return inside.signal_process(
                world, self._node(cluster, node), process, number, world.behaviour.exit_s
            )

    def ray(self, cluster: str) -> FakeRay:
        return FakeRay(lambda: self.world(cluster), self._called, self.programs)

    # -- inside --------------------------------------------------------------------------------------

    def _called(self, method: str, cluster: str = "", node: str = "") -> None:
        for action in self._script.hooks.get(method, []):
            action()
        self.calls.append(Call(method, cluster, node, self.simulated_clock.now))
        errors = self._script.errors.get(method)
        if errors:
            raise errors.pop(0)

    def _known_method(self, method: str) -> None:
        owner, name = (FakeRay, method[4:]) if method.startswith("ray.") else (type(self), method)
        if not callable(getattr(owner, name, None)):
            raise ValueError(f"there is no method {method!r}")

    def _deaf(self, method: str, node: str) -> bool:
        if self._script.deaf[method, node] > 0:
            self._script.deaf[method, node] -= 1
            return True
        return False

    def _node(self, cluster: str, node: str) -> FakeNode:
        nodes = self.world(cluster).breakable
        if node not in nodes:
            raise NotFound("node", node, nodes)
        return nodes[node]

    def _record(self, world: World) -> ClusterRecord:
        return ClusterRecord(
            name=world.name,
            backend=self.name,
            gpu=world.spec.gpu,
            nodes=[n.record() for n in world.nodes.values()],
            run_dir=world.spec.run_dir,
            labels=world.spec.labels,
            store=world.store.record() if world.store is not None else None,
        )
