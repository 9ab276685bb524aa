"""Nodes as groups of processes on this machine: the embedded default where no Docker engine answers.

Each node is what one ``ray start`` starts, below a supervisor of its own, with its own loopback address
and its own temporary folder. A directory plays the container: specification, logs, exit code. Whether a
node lives is read from the processes that carry its marker, never from a file. Linux only: other systems have
neither ``/proc`` nor the whole of 127.0.0.0/8.

What it cannot do is said by `check`: nodes share one filesystem and one network, so there is no limit on
resources and no fault of the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from simulator.backends.base import (
    Check,
    ClusterRecord,
    ClusterSpec,
    Completed,
    Endpoint,
    EngineEvent,
    GpuKind,
    NodeRecord,
    NodeState,
)
from simulator.backends.process.table import MARKER, belongs, kill_all, living, run_state, send
from simulator.errors import CannotRun, NotFound
from simulator.topology import Gpus, NodeSpec, Topology

RAY_VERSION = "2.60.0"

#: What an idle node needs, bytes: measured, with a margin for its workers.
HEAD_MEMORY, WORKER_MEMORY = 1300 * 1024**2, 350 * 1024**2

_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_POLL_S = 0.02


def state_root() -> Path:
    """Where nodes' directories are: ``$RAY_SIM_STATE_DIR`` or below the user's state folder."""
    given = os.environ.get("RAY_SIM_STATE_DIR")
    if given:
        return Path(given).absolute()
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base).absolute() / "ray-cluster-simulator" / "process"


class ProcessBackend:
    """See the module's text.

    Parameters
    ----------
    root
        Folder of all clusters' directories; see `state_root`.
    """

    name = "process"

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or state_root()
        self._children: list[subprocess.Popen[bytes]] = []

    # -- this machine ------------------------------------------------------------------------------

    def check(self, topology: Topology | None = None) -> list[Check]:
        checks: list[Check] = []
        if sys.platform == "linux":
            checks.append(Check("ok", "system", "Linux"))
        else:
            checks.append(
                Check("problem", "system", f"{sys.platform} has no /proc", "use Docker instead")
            )
        try:
            version = metadata.version("ray")
        except metadata.PackageNotFoundError:
            checks.append(
                Check(
                    "problem",
                    "Ray",
                    "is not installed in this Python",
                    "pip install 'ray-cluster-simulator[local]'",
                )
            )
        else:
            level = "ok" if version == RAY_VERSION else "warning"
            remedy = "" if level == "ok" else f"tested with {RAY_VERSION}"
            checks.append(Check(level, "Ray", version, remedy))  # type: ignore[arg-type]
        if topology is not None:
            checks += _fits(topology)
        return checks

    def gpu_kind(self, topology: Topology) -> GpuKind:
        declared = topology.total("GPU") > 0
        if not declared:
            return "none"
        wanted = topology.head.gpus
        real = wanted is not Gpus.SIMULATED and _has_gpu()
        if wanted is Gpus.REAL and not real:
            raise CannotRun(
                "the topology wants a real GPU and nvidia-smi shows none",
                remedy="use gpus: auto or gpus: simulated",
            )
        return "real" if real else "simulated"

    def prepare(self, spec: ClusterSpec, say: Callable[[str], None]) -> ClusterSpec:
        blocking = [c for c in self.check() if c.level == "problem"]
        if blocking:
            raise CannotRun(
                "the process backend cannot run here",
                why="; ".join(str(c.as_problem()) for c in blocking),
            )
        if spec.image is not None:
            say("processes need no image; --image is ignored")
        return spec

    def wall_clock(self) -> float:
        return time.time()

    # -- clusters ----------------------------------------------------------------------------------

    def clusters(self) -> list[ClusterRecord]:
        if not self.root.is_dir():
            return []
        return [self.cluster(path.parent.name) for path in sorted(self.root.glob("*/cluster.json"))]

    def cluster(self, name: str) -> ClusterRecord:
        facts = self._facts(name)
        return ClusterRecord(
            name=name,
            backend=self.name,
            gpu=facts["gpu"],
            nodes=[self._record(name, node) for node in facts["nodes"]],
            run_dir=Path(facts["run_dir"]) if facts["run_dir"] else None,
        )

    def create(self, spec: ClusterSpec) -> None:
        home = self.root / spec.name
        if (home / "cluster.json").exists():
            return
        ledger = home / "ledger"
        ledger.mkdir(parents=True, mode=0o700, exist_ok=True)
        token = home / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        network = self._free_network(spec.name)
        nodes = spec.topology.nodes()
        facts: dict[str, Any] = {
            "name": spec.name,
            "gpu": spec.gpu,
            "run_dir": str(spec.run_dir) if spec.run_dir else None,
            "env": dict(spec.env),
            "network": network,
            "gcs_port": _free_port(f"{network}.10"),
            "dashboard_port": _free_port(f"{network}.10"),
            "tmp": str(_short_tmp(home)),
            "nodes": {
                node.name: {
                    "role": node.role,
                    "group": node.group,
                    "address": f"{network}.{10 + i}",
                    "resources": dict(node.resources),
                    "arguments": _arguments(node),
                }
                for i, node in enumerate(nodes)
            },
        }
        for node in nodes:
            (home / node.name / "home").mkdir(parents=True, exist_ok=True)
        part = home / "cluster.json.part"
        part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        part.replace(home / "cluster.json")

    def remove(self, cluster: str) -> None:
        home = self.root / cluster
        if not kill_all(home, below=True):
            raise CannotRun(
                f"some processes of {cluster} do not die",
                why=", ".join(map(str, living(home, below=True))),
            )
        self._reap()
        shutil.rmtree(_short_tmp(home), ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)

    def endpoint(self, cluster: str) -> Endpoint:
        facts = self._facts(cluster)
        token = (self.root / cluster / "token").read_text(encoding="utf-8").strip()
        return Endpoint(f"http://{facts['network']}.10:{facts['dashboard_port']}", token)

    # -- nodes -------------------------------------------------------------------------------------

    def start(self, cluster: str, node: str) -> None:
        facts, home = self._facts(cluster), self._home(cluster, node)
        if living(home):
            return
        spec = facts["nodes"][node]
        head = spec["role"] == "head"
        tmp = Path(facts["tmp"]) / node
        tmp.mkdir(parents=True, exist_ok=True)
        # Ports that would be the same on every node, or Ray's fixed defaults, are chosen freely:
        # nodes share this machine's ports with each other and with everybody else's Ray.
        arguments = [
            *spec["arguments"],
            f"--temp-dir={tmp}",
            f"--dashboard-agent-listen-port={_free_port(spec['address'])}",
            "--min-worker-port=0",
            "--max-worker-port=0",
        ]
        if head:
            arguments += [
                f"--port={facts['gcs_port']}",
                f"--dashboard-host={spec['address']}",
                f"--dashboard-port={facts['dashboard_port']}",
                f"--ray-client-server-port={_free_port(spec['address'])}",
            ]
        environment = self._environment(facts, cluster, node)
        if facts["gpu"] == "real" and not head:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        (home / "home" / "exit_code").unlink(missing_ok=True)
        with (home / "pid1.log").open("ab") as log:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "simulator.innode.supervisor",
                    spec["role"],
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=home / "home",
                env=environment,
                start_new_session=True,
            )
        self._children.append(child)
        (home / "pid1").write_text(str(child.pid), encoding="utf-8")

    def stop(self, cluster: str, node: str, grace: float) -> None:
        home = self._home(cluster, node)
        pid1 = self._pid1(home)
        if pid1 is not None:
            send([pid1], signal.SIGTERM)
            end = time.monotonic() + grace
            while self._pid1(home) is not None and time.monotonic() < end:
                time.sleep(_POLL_S)
        if living(home):
            self._kill(home)

    def kill(self, cluster: str, node: str) -> None:
        self._kill(self._home(cluster, node))

    def pause(self, cluster: str, node: str) -> None:
        home = self._home(cluster, node)
        # A process that was being started may be missed by the first look.
        for _ in range(50):
            pids = living(home)
            if pids and all(run_state(pid) in "tT" for pid in pids):
                return
            send(pids, signal.SIGSTOP)
            time.sleep(0.01)
        raise CannotRun(f"{node} could not be frozen")

    def resume(self, cluster: str, node: str) -> None:
        send(living(self._home(cluster, node)), signal.SIGCONT)

    def logs(self, cluster: str, node: str, tail: int | None = None) -> str:
        path = self._home(cluster, node) / "pid1.log"
        if not path.exists():
            return ""
        text = path.read_text(encoding="utf-8", errors="replace")
        if tail is None:
            return text
        return "".join(line + "\n" for line in text.splitlines()[-tail:])

    def follow_logs(self, cluster: str, node: str, tail: int | None = None) -> Iterator[str]:
        home = self._home(cluster, node)
        yield from self.logs(cluster, node, tail).splitlines()
        path = home / "pid1.log"
        skip = path.stat().st_size if path.exists() else 0
        yield from _follow(path, lambda: bool(living(home)), skip)

    def node_logs(self, cluster: str, node: str, into: Path) -> None:
        facts = self._facts(cluster)
        self._home(cluster, node)
        for session in sorted(Path(facts["tmp"], node).glob("session_2*")):
            logs = session / "logs"
            if logs.is_dir():
                shutil.copytree(logs, into, dirs_exist_ok=True, ignore_dangling_symlinks=True)

    def execute(
        self,
        cluster: str,
        node: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        interactive: bool = False,
    ) -> Completed:
        facts, home = self._facts(cluster), self._home(cluster, node)
        environment = {**self._environment(facts, cluster, node), **(env or {})}
        # For a person's own command the usual variables point at this cluster.
        environment["RAY_ADDRESS"] = f"{facts['network']}.10:{facts['gcs_port']}"
        environment.pop(MARKER)
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
        output = done.stdout.decode(errors="replace") if done.stdout else ""
        return Completed(done.returncode, output)

    # -- watching and programs ---------------------------------------------------------------------

    def watch(self, cluster: str, emit: Callable[[EngineEvent], None]) -> ProcessWatch:
        return ProcessWatch(self, cluster, emit)

    def run_program(
        self, cluster: str, name: str, argv: Sequence[str], env: Mapping[str, str]
    ) -> ProcessProgram:
        facts = self._facts(cluster)
        home = self.root / cluster / "programs" / name
        home.mkdir(parents=True, exist_ok=True)
        environment = {**self._environment(facts, cluster, "head"), **env, MARKER: str(home)}
        with (home / "out").open("wb") as out, (home / "err").open("wb") as err:
            child = subprocess.Popen(
                [sys.executable, "-m", *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=home,
                env=environment,
                start_new_session=True,
            )
        self._children.append(child)
        return ProcessProgram(home)

    def program(self, cluster: str, name: str) -> ProcessProgram | None:
        home = self.root / cluster / "programs" / name
        return ProcessProgram(home) if (home / "out").exists() else None

    def put_ledger_file(self, cluster: str, path: str, data: bytes) -> None:
        target = self.root / cluster / "ledger" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(data)
        part.replace(target)

    def fetch_ledger(self, cluster: str, path: str, into: Path) -> None:
        source = self.root / cluster / "ledger" / path
        if source.is_dir():
            shutil.copytree(source, into, dirs_exist_ok=True)

    # -- how it is done ----------------------------------------------------------------------------

    def _facts(self, cluster: str) -> dict[str, Any]:
        try:
            text = (self.root / cluster / "cluster.json").read_text(encoding="utf-8")
        except OSError:
            known = [p.parent.name for p in self.root.glob("*/cluster.json")]
            raise NotFound("cluster", cluster, known, hint="start one with: up") from None
        facts: dict[str, Any] = json.loads(text)
        return facts

    def _home(self, cluster: str, node: str) -> Path:
        facts = self._facts(cluster)
        if node not in facts["nodes"]:
            raise NotFound("node", node, facts["nodes"])
        return self.root / cluster / node

    def _pid1(self, home: Path) -> int | None:
        """The supervisor's pid while it lives."""
        self._reap()
        with contextlib.suppress(OSError, ValueError):
            pid = int((home / "pid1").read_text(encoding="utf-8"))
            if belongs(pid, home) and run_state(pid) not in ("", "Z", "X"):
                return pid
        return None

    def _state(self, home: Path) -> NodeState:
        if not (home / "pid1").exists():
            return "created"
        pid1 = self._pid1(home)
        if pid1 is not None:
            return "paused" if run_state(pid1) in "tT" else "running"
        return "running" if living(home) else "exited"

    def _record(self, cluster: str, node: str) -> NodeRecord:
        facts = self._facts(cluster)
        spec, home = facts["nodes"][node], self.root / cluster / node
        state = self._state(home)
        return NodeRecord(
            name=node,
            role=spec["role"],
            group=spec["group"],
            state=state,
            hostname=node,
            address=spec["address"],
            exit_code=self._exit_code(home) if state == "exited" else None,
            resources=spec["resources"],
        )

    def _exit_code(self, home: Path) -> int:
        """What the supervisor left as its last word; without one it was killed."""
        with contextlib.suppress(OSError, ValueError):
            return int((home / "home" / "exit_code").read_text(encoding="utf-8"))
        return 128 + signal.SIGKILL

    def _kill(self, home: Path) -> None:
        (home / "home" / "exit_code").unlink(missing_ok=True)
        if not kill_all(home):
            raise CannotRun(f"some processes of {home.name} do not die")
        self._reap()

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]

    def _environment(self, facts: Mapping[str, Any], cluster: str, node: str) -> dict[str, str]:
        home = self.root / cluster
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        paths = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **inherited,
            **facts["env"],
            MARKER: str(home / node),
            "RAY_SIM_CLUSTER": cluster,
            "RAY_SIM_NODE": node,
            "RAY_SIM_HEAD_ADDRESS": f"{facts['network']}.10:{facts['gcs_port']}",
            "RAY_SIM_NODE_IP": facts["nodes"][node]["address"],
            "RAY_SIM_LEDGER": str(home / "ledger"),
            "RAY_SIM_HOME": str(home / node / "home"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(home / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join(paths),
            # The job's `python` is the one that has Ray.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }

    def _free_network(self, name: str) -> str:
        """The first three numbers of the cluster's loopback addresses: 127.a.b."""
        taken = {
            json.loads(p.read_text(encoding="utf-8"))["network"]
            for p in self.root.glob("*/cluster.json")
        }
        digest = hashlib.sha256(name.encode()).digest()
        start = int.from_bytes(digest[:2], "big")
        for step in range(65536):
            number = (start + step) % 65536
            network = f"127.{64 + number // 256 % 128}.{number % 256}"
            if network not in taken:
                return network
        raise CannotRun("no loopback network is free")


class ProcessWatch:
    """Looks at every node's PID 1 fifty times a second and reports what changed."""

    def __init__(
        self, backend: ProcessBackend, cluster: str, emit: Callable[[EngineEvent], None]
    ) -> None:
        self._backend, self._cluster, self._emit = backend, cluster, emit
        self._homes = {
            node.name: backend.root / cluster / node.name for node in backend.cluster(cluster).nodes
        }
        self._last = {name: backend._state(home) for name, home in self._homes.items()}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="process-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(_POLL_S):
            for name, home in self._homes.items():
                now = self._backend._state(home)
                before = self._last[name]
                if now != before:
                    self._last[name] = now
                    self._changed(name, home, before, now)

    def _changed(self, name: str, home: Path, before: NodeState, now: NodeState) -> None:
        wall = time.time()
        if now == "exited":
            code = self._backend._exit_code(home)
            self._emit(EngineEvent("die", name, wall, code))
        elif now == "paused":
            self._emit(EngineEvent("pause", name, wall))
        elif before == "paused":
            self._emit(EngineEvent("unpause", name, wall))
        elif now == "running":
            self._emit(EngineEvent("start", name, wall))

    def close(self) -> None:
        self._ending.set()
        self._thread.join(timeout=5.0)


class ProcessProgram:
    """A program beside the nodes; what it prints goes to a file, so nothing is lost."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def lines(self) -> Iterator[str]:
        return _follow(self._home / "out", lambda: bool(living(self._home)), 0)

    def stop(self, timeout: float) -> int | None:
        pids = living(self._home)
        send(pids, signal.SIGTERM)
        end = time.monotonic() + timeout
        while living(self._home):
            if time.monotonic() > end:
                kill_all(self._home)
                return None
            time.sleep(_POLL_S)
        return 0

    def remove(self) -> None:
        kill_all(self._home)
        shutil.rmtree(self._home, ignore_errors=True)


def _follow(path: Path, alive: Callable[[], bool], skip: int) -> Iterator[str]:
    """Complete lines of a growing file, until its writer is gone and all was read."""
    rest = b""
    with path.open("rb") as file:
        file.seek(skip)
        idle = 0
        while True:
            data = file.read(1 << 20)
            if data:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
                continue
            idle += 1
            # Looking for the writer costs more than looking at the file: once a second will do.
            if idle % 20 == 0 and not alive():
                data = file.read()
                for line in (rest + data).splitlines():
                    yield line.decode(errors="replace")
                return
            time.sleep(0.05)


def _arguments(node: NodeSpec) -> list[str]:
    """What a node offers, as arguments of ``ray start``."""
    custom = {k: v for k, v in node.resources.items() if k not in ("CPU", "GPU", "memory")}
    arguments = [
        f"--num-cpus={int(node.resources.get('CPU', 0))}",
        f"--num-gpus={int(node.resources.get('GPU', 0))}",
        # Never what Ray would detect: that is the whole machine's, once for every node.
        f"--memory={1024**3}",
    ]
    if custom:
        arguments.append(f"--resources={json.dumps(custom)}")
    if node.labels:
        arguments.append("--labels=" + ",".join(f"{k}={v}" for k, v in node.labels.items()))
    return arguments


def _short_tmp(home: Path) -> Path:
    """A folder whose path leaves room for Ray's sockets: they may have 107 characters."""
    return Path("/tmp") / f"rs-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"


def _free_port(address: str) -> int:
    """A port that is free now on this address and on all, outside of Ray's own ranges."""
    for _ in range(100):
        port = 20000 + secrets.randbelow(10000)
        try:
            with socket.socket() as one, socket.socket() as every:
                one.bind((address, port))
                one.close()
                every.bind(("0.0.0.0", port))
                return port
        except OSError:
            continue
    raise CannotRun("no port is free between 20000 and 30000")


def _has_gpu() -> bool:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, timeout=10, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "GPU" in done.stdout


def _fits(topology: Topology) -> list[Check]:
    nodes = topology.nodes()
    need = HEAD_MEMORY + WORKER_MEMORY * (len(nodes) - 1)
    free = psutil.virtual_memory().available
    text = f"{need / 1e9:.1f} GB for {len(nodes)} nodes, {free / 1e9:.1f} GB free"
    memory = (
        Check("ok", "memory", text)
        if need <= free
        else Check("problem", "memory", text, "fewer workers: --workers N")
    )
    cores = os.cpu_count() or 1
    slots = topology.total("CPU")
    text = f"{cores} cores carry {slots:g} simulated CPUs"
    cpu = (
        Check("ok", "cores", text)
        if slots <= 8 * cores
        else Check("warning", "cores", text, "times will be those of a crowded machine")
    )
    return [memory, cpu]
