"""Nodes as groups of processes on this machine: the embedded default where no Docker engine answers.

Each node is what one ``ray start`` starts, below a supervisor of its own, with its own loopback address
and its own temporary folder. A directory plays the container: specification, logs, exit code. Whether a
node lives is read from the processes that carry its mark, never from a file. Linux only: other systems
have neither ``/proc`` nor the whole of 127.0.0.0/8.

Below ``<state folder>/<cluster>/``: ``cluster.json`` (what it is), ``token``, ``ledger/``,
``<node>/{pid1, pid1.log, home/{node.json, ready, exit_code}}``, ``programs/<name>/{pid1, out, err,
exit_code}``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from simulator.assets import importable_path
from simulator.autoscaling import AUTOSCALER, AUTOSCALER_ENV, CLOUD, HEAD_ARGUMENTS, HEAD_ENV
from simulator.backends.base import (
    Check,
    ClusterRecord,
    ClusterSpec,
    Completed,
    Endpoint,
    EngineEvent,
    GpuKind,
    NodeProcess,
    NodeRecord,
    NodeState,
    definition,
    refuse_other,
    without_head,
)
from simulator.backends.nvidia import look_at_driver, visible_here
from simulator.backends.process import network
from simulator.backends.process.checks import checks, resolve_gpu, store_checks
from simulator.backends.process.copying import copy
from simulator.backends.process.launch import PID, follow, launch, noted_pid
from simulator.backends.process.programs import ProcessProgram
from simulator.backends.process.table import (
    MARKER,
    kill_all,
    living,
    living_owners,
    look,
    send,
)
from simulator.backends.process.watch import ProcessWatch, exit_code
from simulator.errors import BadInput, CannotRun, NotFound, Problem
from simulator.innode.processes import look as look_closely
from simulator.innode.ray_start import NO_DEVICE
from simulator.topology import RECONNECT_S, Gcs, NodeSpec, Topology, parse_size

_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_POLL_S = 0.02
#: A log file of Ray's is copied up to this size, bytes; of a larger one, its end.
_LOG_LIMIT = 32 * 1024**2
_FREEZE_S = 5.0


def state_root() -> Path:
    """Where nodes' directories are: ``$RAY_SIM_STATE_DIR`` or below the user's state folder."""
    given = os.environ.get("RAY_SIM_STATE_DIR")
    if given:
        return Path(given).absolute()
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base).absolute() / "ray-cluster-simulator" / "process"


class ProcessBackend:
    """Clusters as groups of processes; a `Backend` that can kill and pause nodes.

    Parameters
    ----------
    root
        Folder of all clusters' directories; by default `state_root`.
    """

    name = "process"

    def __init__(self, root: Path | None = None) -> None:
        # One spelling only: processes are marked with it.
        self.root = (root or state_root()).resolve()

    # -- this machine ------------------------------------------------------------------------------

    def version(self) -> str:
        # The distribution's own build of the kernel is in the run's platform already.
        release = ".".join(platform.release().split(".")[:2])
        return f"processes on {platform.system()} {release}"

    def check(self, topology: Topology | None = None) -> list[Check]:
        return checks(topology)

    def cores(self) -> int:
        return os.cpu_count() or 1

    def gpu_kind(self, topology: Topology) -> GpuKind:
        return resolve_gpu(topology, look_at_driver())

    def prepare(self, spec: ClusterSpec, say: Callable[[str], None]) -> ClusterSpec:
        # How large it is, the doctor judges: asking for all of that here would cost each start, and refuse some.
        found = [*self.check(), *store_checks(spec.topology)]
        blocking = [c for c in found if c.level == "problem"]
        if blocking:
            raise CannotRun(
                "the process backend cannot run here",
                why="; ".join(f"{c.name}: {c.text}" for c in blocking),
                remedy=blocking[0].remedy,
            )
        if spec.image is not None:
            say("processes need no image; --image is ignored")
        if spec.topology.lean_groups:
            say("processes share one Python, so profile lean has no effect: all nodes are whole")
        groups = (spec.topology.head, *spec.topology.worker_groups)
        if any(group.shm_size or group.spill_size for group in groups):
            say(
                "processes share the machine's memory and disk: shm_size, spill_size have no effect"
            )
        return replace(spec, image=None)

    def wall_clock(self) -> float:
        return time.time()

    # -- clusters ----------------------------------------------------------------------------------

    def clusters(self) -> list[ClusterRecord]:
        found = []
        for path in sorted(self.root.glob("*/cluster.json")):
            try:
                found.append(self.cluster(path.parent.name))
            except NotFound:
                continue  # it was removed while we looked
        return found

    def cluster(self, name: str) -> ClusterRecord:
        facts = self._facts(name)
        owners = cache(lambda: living_owners(self.root / name))
        return ClusterRecord(
            name=name,
            backend=self.name,
            gpu=facts["gpu"],
            nodes=[self._record(facts, node, owners) for node in facts["nodes"]],
            run_dir=Path(facts["run_dir"]) if facts["run_dir"] else None,
        )

    def create(self, spec: ClusterSpec) -> None:
        if not _NAME.fullmatch(spec.name):
            raise BadInput(Problem("--name", f"{spec.name!r} cannot be the name of a folder"))
        nodes = spec.topology.nodes()
        if len(nodes) > network.MOST_NODES:
            raise BadInput(
                Problem("topology", f"has {len(nodes)} nodes; processes: {network.MOST_NODES}")
            )
        self.root.mkdir(parents=True, mode=0o700, exist_ok=True)
        with _locked(self.root / ".lock"):
            self._create(spec, nodes)

    def _create(self, spec: ClusterSpec, nodes: Sequence[NodeSpec]) -> None:
        home = self.root / spec.name
        if (home / "cluster.json").exists():
            facts, made = self._facts(spec.name), self._made(spec.name)
            ours = [name for name, node in facts["nodes"].items() if "machine" not in node]
            refuse_other(spec, same=definition(made) == definition(spec), existing=ours)
        else:
            # Half of one, from a creation that was cut short.
            shutil.rmtree(home, ignore_errors=True)
            (home / "ledger").mkdir(parents=True)
            home.chmod(0o700)
            with os.fdopen(os.open(home / "token", os.O_WRONLY | os.O_CREAT, 0o600), "w") as token:
                token.write(secrets.token_hex(32))
            net = network.free_network(str(home), {c["network"] for c in self._all_facts()})
            head, driver = f"{net}.{network.FIRST_HOST}", look_at_driver()
            facts = {
                "name": spec.name,
                "spec": spec.to_json(),
                "gpu": spec.gpu,
                "env": dict(spec.env),
                "run_dir": str(spec.run_dir) if spec.run_dir else None,
                "network": net,
                "head": head,
                # A driver that does not answer now may show its devices to a node later.
                "has_gpu": bool(driver.devices or driver.error),
                "visible_gpus": ",".join(visible_here(driver)),
                "gcs_port": network.free_port(head),
                "dashboard_port": network.free_port(head),
                "nodes": {},
            }
        existing = facts["nodes"]
        free = _free_addresses(facts)
        facts["nodes"] = {
            node.name: existing.get(node.name) or {"address": next(free), **_description(node)}
            for node in nodes
        } | {name: node for name, node in existing.items() if "machine" in node}
        self._have_folders(facts, facts["nodes"].keys() - existing.keys())
        _write_whole(home / "cluster.json", json.dumps(facts, indent=1).encode())

    def _have_folders(self, facts: Mapping[str, Any], names: Collection[str]) -> None:
        """Make the folders of new nodes."""
        home = self.root / facts["name"]
        for name in names:
            # Of an earlier node of that name, whose removal was cut short: its exit code, its log.
            for folder in (self._tmp(facts, name), home / name):
                _remove_folder(folder)
            (home / name / "home").mkdir(parents=True)

    def spec(self, cluster: str) -> ClusterSpec:
        made = self._made(cluster)
        counts = Counter(node["group"] for node in self._facts(cluster)["nodes"].values())
        unmanaged = () if made.topology.autoscaling else made.topology.worker_groups
        groups = [g.group_name for g in unmanaged]
        return made.with_counts({group: counts[group] for group in groups})

    def remove_node(self, cluster: str, node: str) -> None:
        with _locked(self.root / ".lock"):
            facts, home = self._node(cluster, node)
            self._end(home)
            folders = (self._tmp(facts, node), home)
            del facts["nodes"][node]
            _write_whole(self.root / cluster / "cluster.json", json.dumps(facts, indent=1).encode())
            for folder in folders:
                _remove_folder(folder)

    def remove(self, cluster: str) -> None:
        if not _NAME.fullmatch(cluster):
            return  # no cluster can be named so, and a path above ours must never be removed
        home = self.root / cluster
        if not kill_all(home):
            left = ", ".join(str(p.pid) for p in living(home, below=True))
            raise CannotRun(f"some processes of {cluster} do not die", why=f"processes {left}")
        for folder in (_short_tmp(home), home):
            _remove_folder(folder)

    def endpoint(self, cluster: str) -> Endpoint:
        facts, home = self._node(cluster, "head")
        state = self._state(home, lambda: living_owners(home))
        if state not in ("running", "paused"):
            raise without_head(f"Ray's HTTP API of {cluster} cannot answer", state)
        token = (self.root / cluster / "token").read_text(encoding="utf-8").strip()
        return Endpoint(f"http://{facts['head']}:{facts['dashboard_port']}", token)

    # -- nodes -------------------------------------------------------------------------------------

    def start(self, cluster: str, node: str) -> None:
        facts, home = self._node(cluster, node)
        with _locked(home / ".lock"):
            if noted_pid(home, home) is not None:
                return
            if not kill_all(home):  # a supervisor that was killed alone leaves its raylet behind
                raise CannotRun(f"some processes of {node}'s earlier start do not die")
            for stale in ("exit_code", "ready"):
                (home / "home" / stale).unlink(missing_ok=True)
            spec = facts["nodes"][node]
            launch(
                home,
                [
                    sys.executable,
                    *("-m", "simulator.innode.supervisor"),
                    "head" if spec["role"] == "head" else "worker",
                    *spec["arguments"],
                    *self._own_arguments(facts, node),
                ],
                self._environment(facts, node),
                out=home / "pid1.log",
                cwd=home / "home",
            )

    def stop(self, cluster: str, node: str, grace: float) -> None:
        _, home = self._node(cluster, node)
        pid1 = noted_pid(home, home)
        process = look(pid1) if pid1 is not None else None
        if process is not None:
            send([process], signal.SIGTERM)
            end = time.monotonic() + grace
            while noted_pid(home, home) is not None and time.monotonic() < end:
                time.sleep(_POLL_S)
        self._end(home)

    def kill(self, cluster: str, node: str) -> None:
        _, home = self._running(cluster, node, "killed")
        self._end(home)

    def pause(self, cluster: str, node: str) -> None:
        _, home = self._running(cluster, node, "paused", ("running",))
        end = time.monotonic() + _FREEZE_S
        # A process that was being started may be missed by the first look.
        while True:
            awake = [p for p in living(home, below=True) if p.state not in "tT"]
            if not awake:
                return
            if time.monotonic() > end:
                self.resume(cluster, node)
                raise CannotRun(
                    f"{node} could not be frozen",
                    why=f"processes {', '.join(str(p.pid) for p in awake)} went on",
                )
            send(awake, signal.SIGSTOP)
            time.sleep(0.005)

    def resume(self, cluster: str, node: str) -> None:
        _, home = self._node(cluster, node)
        # The youngest first: the supervisor and the raylet find the rest as they left it.
        send(reversed(living(home, below=True)), signal.SIGCONT)

    def processes(self, cluster: str, node: str) -> list[NodeProcess]:
        """Those that carry the node's mark, and none else of this machine."""
        _, home = self._running(cluster, node, "looked into")
        rows = (look_closely(process.pid) for process in living(home))
        return [NodeProcess(**row) for row in rows if row is not None]

    def signal_process(
        self, cluster: str, node: str, process: NodeProcess, number: signal.Signals
    ) -> bool:
        _, home = self._node(cluster, node)
        wanted = (process.pid, process.started)
        mine = [p for p in living(home) if (p.pid, p.started) == wanted]
        send(mine, number)
        return bool(mine)

    def logs(self, cluster: str, node: str, tail: int | None = None) -> str:
        _, home = self._node(cluster, node)
        try:
            text = (home / "pid1.log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        if tail is None:
            return text
        return "".join(line + "\n" for line in text.splitlines()[-tail:] if tail > 0)

    def follow_logs(self, cluster: str, node: str, tail: int | None = None) -> Iterator[str]:
        _, home = self._node(cluster, node)
        path = home / "pid1.log"
        if not path.exists():
            return
        skip = 0
        if tail is not None:
            lines = path.read_bytes().splitlines(keepends=True)
            skip = sum(map(len, lines[: max(0, len(lines) - tail)]))
        yield from follow(path, lambda: noted_pid(home, home) is not None, skip)

    def node_logs(self, cluster: str, node: str, into: Path) -> None:
        facts, _ = self._node(cluster, node)
        # A head that was restarted has a session for each start; the last one is what is asked for.
        sessions = sorted(self._tmp(facts, node).glob("session_2*/logs"))
        for session in sessions[-1:]:
            _copy_logs(session, into)
        for session in sessions[:-1]:
            _copy_logs(session, into / "earlier" / session.parent.name)

    def execute(
        self,
        cluster: str,
        node: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        interactive: bool = False,
    ) -> Completed:
        facts, home = self._running(cluster, node, "used", ("running",))
        environment = {
            **self._environment(facts, node),
            # It ends with the node, but is no sign of the node's life.
            MARKER: str(home / "executed"),
            "RAY_ADDRESS": f"{facts['head']}:{facts['gcs_port']}",
            "RAY_API_SERVER_ADDRESS": f"http://{facts['head']}:{facts['dashboard_port']}",
            **(env or {}),
        }
        # Ctrl-C is for the program that has the terminal.
        with _uninterrupted(interactive):
            try:
                done = subprocess.run(
                    list(argv),
                    env=environment,
                    cwd=home / "home",
                    stdin=None if interactive else subprocess.DEVNULL,
                    stdout=None if interactive else subprocess.PIPE,
                    stderr=None if interactive else subprocess.STDOUT,
                    check=False,
                )
            except FileNotFoundError:
                return Completed(127, f"{argv[0]}: not found\n")
            except PermissionError:
                return Completed(126, f"{argv[0]}: cannot be executed\n")
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        return Completed(code, done.stdout.decode(errors="replace") if done.stdout else "")

    def copy_in(self, cluster: str, node: str, source: str, target: str) -> list[str]:
        """To any path of this machine; a relative one begins in the node's home."""
        _, home = self._node(cluster, node)
        return copy(source, target, from_=Path(), to=home / "home")

    def copy_out(self, cluster: str, node: str, source: str, target: str) -> list[str]:
        _, home = self._node(cluster, node)
        return copy(source, target, from_=home / "home", to=Path())

    # -- watching and programs ---------------------------------------------------------------------

    def watch(self, cluster: str, emit: Callable[[EngineEvent], None]) -> ProcessWatch:
        self._facts(cluster)
        return ProcessWatch(self.root / cluster / "cluster.json", emit)

    def run_program(
        self,
        cluster: str,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        keep_output: bool = True,  # noqa: ARG002 - a file that a program writes itself is kept whole
    ) -> ProcessProgram:
        facts = self._facts(cluster)
        folder = self.root / cluster / "programs" / name
        folder.mkdir(parents=True, exist_ok=True)
        if noted_pid(folder, folder) is not None:
            raise CannotRun(f"a program {name} runs beside {cluster} already")
        kill_all(folder)  # what its end left behind
        for old in ("out", "err"):
            (folder / old).unlink(missing_ok=True)
        head = next(name for name, spec in facts["nodes"].items() if spec["role"] == "head")
        environment = {**self._environment(facts, head), MARKER: str(folder), **env}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        launch(
            folder,
            [sys.executable, "-m", *argv],
            environment,
            out=folder / "out",
            err=folder / "err",
            note_exit=True,
        )
        return ProcessProgram(folder)

    def program(self, cluster: str, name: str) -> ProcessProgram | None:
        folder = self.root / cluster / "programs" / name
        return ProcessProgram(folder) if (folder / "out").exists() else None

    # -- Ray's autoscaler: HostsAutoscaler ---------------------------------------------------------

    def cloud_folder(self, cluster: str) -> str:
        # A socket lies in it, whose path may have 107 characters.
        return str(_short_tmp(self.root / cluster) / CLOUD)

    def start_autoscaler(self, cluster: str, files: Mapping[str, bytes]) -> None:
        _make_short_tmp(self.root / cluster)
        folder = Path(self.cloud_folder(cluster))
        folder.mkdir(mode=0o700, exist_ok=True)
        for name, data in files.items():
            _write_whole(folder / name, data)
        own = {"RAY_SIM_CLOUD": str(folder), "RAY_SIM_STATE_DIR": str(self.root)}
        for name, argv, env in (
            (CLOUD, ["simulator.backends.process.cloud", cluster], {}),
            (AUTOSCALER, ["simulator.innode.autoscaler"], AUTOSCALER_ENV),
        ):
            if not self._program_runs(cluster, name):
                keeper = ["simulator.innode.keeper", *argv]
                self.run_program(cluster, name, keeper, {**own, **env})

    def stop_autoscaler(self, cluster: str) -> None:
        for name in (AUTOSCALER, CLOUD):
            program = self.program(cluster, name)
            if program is not None:
                program.stop(timeout=5.0)

    def autoscaler_runs(self, cluster: str) -> bool | None:
        if self.program(cluster, AUTOSCALER) is None:
            return None
        return all(self._program_runs(cluster, name) for name in (CLOUD, AUTOSCALER))

    def cloud_file(self, cluster: str, name: str) -> bytes | None:
        try:
            return (Path(self.cloud_folder(cluster)) / name).read_bytes()
        except FileNotFoundError:
            return None

    def put_cloud_file(self, cluster: str, name: str, data: bytes) -> None:
        _write_whole(Path(self.cloud_folder(cluster)) / name, data)

    def make_machine(self, cluster: str, group: str, number: int, note: Mapping[str, Any]) -> str:
        """Have one more node of a group, which the cloud asked for; returns its name."""
        topology = self._made(cluster).topology
        node = topology.node_of(topology.group(group), number)
        with _locked(self.root / ".lock"):
            facts = self._facts(cluster)
            address = next(_free_addresses(facts), None)
            if address is None:
                raise CannotRun("no address is free for another node")
            facts["nodes"][node.name] = {
                "address": address,
                **_description(node),
                "machine": dict(note),
            }
            self._have_folders(facts, [node.name])
            _write_whole(self.root / cluster / "cluster.json", json.dumps(facts, indent=1).encode())
        return node.name

    def _program_runs(self, cluster: str, name: str) -> bool:
        folder = self.root / cluster / "programs" / name
        return noted_pid(folder, folder) is not None

    # -- the ledger --------------------------------------------------------------------------------

    def put_ledger_file(self, cluster: str, path: str, data: bytes) -> None:
        self._facts(cluster)
        target = self.root / cluster / "ledger" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(target, data)

    def fetch_ledger(self, cluster: str, path: str, into: Path) -> None:
        source = self.root / cluster / "ledger" / path
        if source.is_dir():
            shutil.copytree(source, into, dirs_exist_ok=True)

    # -- how it is done ----------------------------------------------------------------------------

    def described(self, cluster: str) -> Mapping[str, Mapping[str, Any]]:
        """What each node was made as, by name."""
        nodes: Mapping[str, Mapping[str, Any]] = self._facts(cluster)["nodes"]
        return nodes

    def _made(self, cluster: str) -> ClusterSpec:
        facts = self._facts(cluster)
        if "spec" not in facts:
            raise CannotRun(
                f"what {cluster} was made as is not known",
                why="it was made by an earlier version of the simulator",
                remedy=f"Take it down: python -m simulator down --name {cluster}",
            )
        return ClusterSpec.from_json(facts["spec"])

    def _facts(self, cluster: str) -> dict[str, Any]:
        try:
            if not _NAME.fullmatch(cluster):
                raise FileNotFoundError(cluster)
            text = (self.root / cluster / "cluster.json").read_text(encoding="utf-8")
        except OSError:
            known = [path.parent.name for path in self.root.glob("*/cluster.json")]
            hint = "start one: python -m simulator up"
            raise NotFound("cluster", cluster, known, hint=hint) from None
        facts: dict[str, Any] = json.loads(text)
        return facts

    def _all_facts(self) -> Iterator[dict[str, Any]]:
        for path in self.root.glob("*/cluster.json"):
            yield json.loads(path.read_text(encoding="utf-8"))

    def _node(self, cluster: str, node: str) -> tuple[dict[str, Any], Path]:
        facts = self._facts(cluster)
        if node not in facts["nodes"]:
            raise NotFound("node", node, facts["nodes"])
        return facts, self.root / cluster / node

    def _running(
        self,
        cluster: str,
        node: str,
        verb: str,
        states: Sequence[NodeState] = ("running", "paused"),
    ) -> tuple[dict[str, Any], Path]:
        facts, home = self._node(cluster, node)
        state = self._state(home, lambda: living_owners(home))
        if state not in states:
            remedy = f"resume {node}" if state == "paused" else f"restart {node}"
            raise CannotRun(f"{node} cannot be {verb}", why=f"it is {state}", remedy=remedy)
        return facts, home

    def _state(self, home: Path, owners: Callable[[], Collection[str]]) -> NodeState:
        """What a node is doing; `owners` costs a look at every process, and is rarely needed."""
        pid1 = noted_pid(home, home)
        process = look(pid1) if pid1 is not None else None
        if process is not None:
            return "paused" if process.state in "tT" else "running"
        if str(home) in owners():
            return "running"  # its supervisor was killed alone
        return "exited" if (home / PID).exists() else "created"

    def _record(
        self, facts: Mapping[str, Any], node: str, owners: Callable[[], Collection[str]]
    ) -> NodeRecord:
        spec, home = facts["nodes"][node], self.root / facts["name"] / node
        state = self._state(home, owners)
        return NodeRecord(
            name=node,
            role=spec["role"],
            group=spec["group"],
            state=state,
            hostname=node,
            address=spec["address"],
            exit_code=exit_code(home) if state == "exited" else None,
            resources=spec["resources"],
            labels=spec.get("labels", {}),  # a cluster of an older version
            managed="machine" in spec,
        )

    def _tmp(self, facts: Mapping[str, Any], node: str) -> Path:
        """The node's folder for Ray, by its name if that leaves room for the sockets."""
        name = node if len(node) <= 20 else facts["nodes"][node]["address"].rpartition(".")[2]
        return _short_tmp(self.root / facts["name"]) / name

    def _end(self, home: Path) -> None:
        """SIGKILL all that is left of a node, what a person executes there included."""
        if not kill_all(home):
            left = ", ".join(str(p.pid) for p in living(home, below=True))
            raise CannotRun(f"some processes of {home.name} do not die", why=f"processes {left}")

    def _own_arguments(self, facts: Mapping[str, Any], node: str) -> list[str]:
        """What is this node's alone, as arguments of ``ray start``."""
        address, role = facts["nodes"][node]["address"], facts["nodes"][node]["role"]
        _make_short_tmp(self.root / facts["name"])
        tmp = self._tmp(facts, node)
        tmp.mkdir(exist_ok=True)
        arguments = [
            f"--temp-dir={tmp}",
            f"--dashboard-agent-listen-port={network.free_port(address)}",
            "--min-worker-port=0",
            "--max-worker-port=0",
        ]
        if role == "head":
            if self._made(facts["name"]).topology.autoscaling:
                arguments += HEAD_ARGUMENTS
            arguments += [
                f"--port={facts['gcs_port']}",
                f"--dashboard-host={address}",
                f"--dashboard-port={facts['dashboard_port']}",
                f"--ray-client-server-port={network.free_port(address)}",
            ]
        return arguments

    def _environment(self, facts: Mapping[str, Any], node: str) -> dict[str, str]:
        home, spec = self.root / facts["name"], facts["nodes"][node]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        inherited.pop("CUDA_VISIBLE_DEVICES", None)
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        environment = {
            **inherited,
            **facts["env"],
            MARKER: str(home / node),
            # Ray's agents would paint their titles over the mark.
            "SPT_NOENV": "1",
            "RAY_SIM_CLUSTER": facts["name"],
            "RAY_SIM_NODE": node,
            "RAY_SIM_HEAD_ADDRESS": f"{facts['head']}:{facts['gcs_port']}",
            "RAY_SIM_NODE_IP": spec["address"],
            "RAY_SIM_LEDGER": str(home / "ledger"),
            "RAY_SIM_HOME": str(home / node / "home"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(home / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": _join(_PACKAGE_ROOT, importable_path(), os.environ.get("PYTHONPATH")),
            # The job's `python` is the one that has Ray.
            "PATH": _join(Path(sys.executable).parent, os.environ.get("PATH", os.defpath)),
            # No proxy of the machine's stands between nodes.
            "no_proxy": f"{direct},127.0.0.0/8" if direct else "127.0.0.0/8",
        }
        if "machine" in spec:
            environment["RAY_CLOUD_INSTANCE_ID"] = spec["machine"]["id"]
            environment["RAY_NODE_TYPE_NAME"] = spec["group"]
        topology = self._made(facts["name"]).topology
        if topology.outlives_head:
            environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(RECONNECT_S)
        if spec["role"] == "head":
            if topology.autoscaling:
                environment |= HEAD_ENV
            if topology.gcs is Gcs.ROCKSDB:
                tables = home / node / "gcs"
                tables.mkdir(exist_ok=True)
                environment["RAY_gcs_storage"] = "rocksdb"
                environment["RAY_gcs_storage_path"] = str(tables)
            # Ray has fixed ports for these, on all addresses; another Ray here may want them.
            for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"):
                environment[name] = str(network.free_port(spec["address"]))
        visible = _visible_gpus(facts, spec)
        if visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible
        if facts["has_gpu"] and not _has_device(facts, spec):
            environment[NO_DEVICE] = "1"
        return environment


def _free_addresses(facts: Mapping[str, Any]) -> Iterator[str]:
    """Addresses of the cluster's network that no node has."""
    taken = {node["address"] for node in facts["nodes"].values()}
    hosts = (f"{facts['network']}.{network.FIRST_HOST + i}" for i in range(network.MOST_NODES))
    return (address for address in hosts if address not in taken)


def _visible_gpus(facts: Mapping[str, Any], spec: Mapping[str, Any]) -> str | None:
    """CUDA's list of devices for a node: real ones on the head alone, as many as it declares.

    Ray refuses to declare more GPUs than are in the list, so each simulated one is in it as a device
    that does not exist: CUDA ignores everything from there on. Where the machine has no GPU there is
    nothing to hide, and Ray numbers the simulated ones as it would real ones.
    """
    declared = int(spec["resources"].get("GPU", 0))
    if _has_device(facts, spec):
        given: str = facts["visible_gpus"]
        return ",".join(given.split(",")[:declared])
    if declared and not facts["has_gpu"]:
        return None
    return ",".join(["-1"] * declared)


def _has_device(facts: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    """Whether the node's GPUs are the machine's."""
    return (facts["gpu"], spec["role"]) == ("real", "head")


def _description(node: NodeSpec) -> dict[str, Any]:
    return {
        "role": node.role,
        "group": node.group,
        "resources": dict(node.resources),
        "labels": dict(node.labels),
        "arguments": _arguments(node),
    }


def _arguments(node: NodeSpec) -> list[str]:
    """What a node offers, as arguments of ``ray start``."""
    resources = dict(node.resources)
    arguments = [
        f"--num-cpus={int(resources.pop('CPU', 0))}",
        f"--num-gpus={int(resources.pop('GPU', 0))}",
        # Never what Ray would detect: that is the whole machine's, once for every node.
        f"--memory={int(parse_size(node.memory) if node.memory else 1024**3)}",
    ]
    if resources:
        arguments.append(f"--resources={json.dumps(resources, separators=(',', ':'))}")
    if node.labels:
        labels = ",".join(f"{key}={value}" for key, value in sorted(node.labels.items()))
        arguments.append(f"--labels={labels}")
    return arguments


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise CannotRun(f"{folder} cannot be removed", remedy="Remove it by hand")


def _short_tmp(home: Path) -> Path:
    """A folder whose path leaves room for Ray's sockets: they may have 107 characters."""
    return Path("/tmp") / f"rs-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"


def _make_short_tmp(home: Path) -> Path:
    """The same, made; refused if somebody else put something in its place."""
    path = _short_tmp(home)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise CannotRun(f"{path} is not ours", remedy="Remove it, or use another name: --name")
    return path


def _copy_logs(source: Path, into: Path) -> None:
    """Copy a folder of logs; of a huge file its end, and what vanishes meanwhile not at all."""
    for path in source.rglob("*"):
        target = into / path.relative_to(source)
        try:
            if not path.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file, target.open("wb") as out:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_LIMIT))
                shutil.copyfileobj(file, out)
        except FileNotFoundError:
            continue


def _write_whole(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    part.write_bytes(data)
    part.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time does what is inside; over when its process ends, however."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _uninterrupted(yes: bool) -> Iterator[None]:
    if not yes or threading.current_thread() is not threading.main_thread():
        yield
        return
    # A handler, not SIG_IGN: the program that is executed would inherit that.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _join(*parts: Path | str | None) -> str:
    return os.pathsep.join(str(part) for part in parts if part)
