"""PID 1 of a node: starts Ray, watches the raylet, and says by its exit code why it ended.

``ray start --block`` is not used: it costs 64 MB a node, and after a drain it lives on without a
raylet. This program starts Ray's processes, adopts them (a container's PID 1 does by nature; a
process node asks to be a subreaper), reaps what dies, and ends when the raylet ends.

Exit codes: 0 stopped as asked; 10 ``ray start`` failed; 11 the raylet died; 12 the raylet left by
itself (drained, or told that it was given up); 13 the GCS died; 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

STOPPED, START_FAILED, RAYLET_DIED, RAYLET_LEFT, GCS_DIED = 0, 10, 11, 12, 13
GRACE_S = 8.0
DRAIN_S = 30.0

_PR_SET_CHILD_SUBREAPER = 36


def say(text: str) -> None:
    stamp = time.strftime("%H:%M:%S") + f".{int(time.time() * 1000) % 1000:03d}"
    print(f"{stamp} supervisor: {text}", flush=True)


def home() -> str:
    return os.environ.get("RAY_SIM_HOME", "/tmp/ray-sim")


def node_name() -> str:
    return os.environ.get("RAY_SIM_NODE") or socket.gethostname()


def own_address() -> str:
    return os.environ.get("RAY_SIM_NODE_IP") or socket.gethostbyname(socket.gethostname())


def write_marker() -> int:
    """The node's identity, for whoever runs inside; returns how often this node was started."""
    os.makedirs(home(), exist_ok=True)
    path = os.path.join(home(), "node.json")
    try:
        with open(path, encoding="utf-8") as file:
            count = int(json.load(file)["start_of_node"]) + 1
    except (OSError, ValueError, KeyError):
        count = 1
    part = path + ".part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump({"node": node_name(), "start_of_node": count, "boot": time.time()}, file)
    os.replace(part, path)
    return count


def ready(yes: bool) -> None:
    path = os.path.join(home(), "ready")
    if yes:
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{time.time()}\n")
    elif os.path.exists(path):
        os.unlink(path)


def ray_command(role: str, extra: list[str]) -> list[str]:
    """``ray start`` for this node; what is given in `extra` wins over what is set here."""
    address = own_address()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start"]
    defaults = {
        "--node-name": node_name(),
        "--node-ip-address": address,
        "--object-store-memory": "104857600",
    }
    if role == "head":
        defaults["--port"] = "6379"
        defaults["--dashboard-host"] = "0.0.0.0"
        command.append("--head")
    else:
        defaults["--address"] = os.environ["RAY_SIM_HEAD_ADDRESS"]
        # Workers' logs are collected from their files; following them costs 43 MB a node.
        defaults["--include-log-monitor"] = "false"
    given = {argument.partition("=")[0] for argument in extra}
    command += [f"{key}={value}" for key, value in defaults.items() if key not in given]
    return [*command, "--disable-usage-stats", *extra]


def children() -> dict[int, str]:
    """Name of every living process below this one, by pid."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        rest = text[text.rindex(")") + 2 :].split()
        if rest[0] in "ZX":
            continue
        names[int(entry)] = text[text.index("(") + 1 : text.rindex(")")]
        parents[int(entry)] = int(rest[1])
    found: dict[int, str] = {}
    me = os.getpid()
    for pid in names:
        above = parents[pid]
        while above not in (0, me) and above in parents:
            above = parents[above]
        if above == me:
            found[pid] = names[pid]
    return found


class Supervisor:
    """Starts Ray's processes, watches them, ends them."""

    def __init__(self, role: str, extra: list[str]) -> None:
        self.role, self.extra = role, extra
        self.asked_to_stop = False
        self.raylet = self.gcs = 0

    def main(self) -> int:
        if os.getpid() != 1:
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        ready(False)
        count = write_marker()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)
        command = ray_command(self.role, self.extra)
        say(f"start {count} of {self.role} {node_name()}: {' '.join(command[2:])}")
        began = time.monotonic()
        starter = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        code = starter.wait()
        if self.asked_to_stop:
            return self.shut_down()
        if code != 0:
            say(f"ray start failed with {code}")
            self.end_all(0.0)
            return START_FAILED
        for pid, name in children().items():
            if name == "raylet":
                self.raylet = pid
            elif name == "gcs_server":
                self.gcs = pid
        if not self.raylet:
            say("ray start succeeded but there is no raylet")
            self.end_all(0.0)
            return START_FAILED
        ready(True)
        say(f"ready after {time.monotonic() - began:.1f} s; raylet is {self.raylet}")
        return self.watch()

    def _asked(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.asked_to_stop = True

    def watch(self) -> int:
        while True:
            if self.asked_to_stop:
                return self.shut_down()
            try:
                # An empty handler for SIGTERM interrupts no wait: look every half a second.
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid, status = 0, 0
            if pid == 0:
                time.sleep(0.1)
                continue
            if pid == self.raylet:
                code = os.waitstatus_to_exitcode(status)
                ready(False)
                say(f"the raylet ended with {code}")
                self.end_all(0.5)
                return RAYLET_LEFT if code == 0 else RAYLET_DIED
            if pid == self.gcs:
                ready(False)
                say(f"the GCS ended with {os.waitstatus_to_exitcode(status)}")
                self.end_all(0.5)
                return GCS_DIED

    def shut_down(self) -> int:
        how = os.environ.get("RAY_SIM_ON_TERM", "now")
        say(f"asked to stop: {how}")
        ready(False)
        if how == "drain" and self.raylet:
            self.drain()
        if self.raylet:
            self.signal(self.raylet, signal.SIGTERM)
            self.wait_gone({self.raylet}, GRACE_S)
        self.end_all(2.0)
        say("stopped as asked")
        return STOPPED

    def drain(self) -> None:
        argv = [sys.executable, "-m", "simulator.innode.ray_private", "drain", str(DRAIN_S)]
        subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=DRAIN_S, check=False)
        self.wait_gone({self.raylet}, DRAIN_S)

    def signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def wait_gone(self, pids: set[int], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.reap()
            if not pids & set(children()):
                return True
            time.sleep(0.05)
        return False

    def reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return

    def end_all(self, grace: float) -> None:
        """SIGTERM to all that is left, SIGKILL after `grace` seconds, until nothing is left."""
        if grace:
            for pid in children():
                self.signal(pid, signal.SIGTERM)
            self.wait_gone(set(children()), grace)
        for _ in range(50):
            self.reap()
            left = children()
            if not left:
                return
            for pid in left:
                self.signal(pid, signal.SIGKILL)
            time.sleep(0.05)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in ("head", "worker"):
        print(__doc__, file=sys.stderr)
        print("usage: python -m simulator.innode.supervisor head|worker [ray start arguments]")
        return 2
    code = Supervisor(sys.argv[1], sys.argv[2:]).main()
    # Who was not our parent cannot ask the kernel for it any more.
    with open(os.path.join(home(), "exit_code"), "w", encoding="utf-8") as file:
        file.write(f"{code}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
