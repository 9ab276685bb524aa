"""PID 1 of a node: starts Ray, watches the raylet, and says by its exit code why it ended.

``ray start --block`` is not used: it costs 64 MB a node, and after a drain it lives on without a
raylet. This program starts Ray's processes, adopts them (a container's PID 1 does by nature; a
process node asks to be a subreaper), reaps what dies, and ends when the raylet ends. It sleeps
until a signal wakes it.

Exit codes:

== ============================================================================
 0 stopped as asked (SIGTERM)
 2 wrong usage
10 ``ray start`` failed
11 the raylet died: killed, crashed, or told that the GCS had given it up
12 the raylet left by itself, with exit code 0: it was drained
13 the GCS died (on the head)
14 the GCS cannot keep its tables where it is told to (on the head)
== ============================================================================

What SIGTERM means is chosen by ``RAY_SIM_ON_TERM``: ``now`` (the raylet signs off, then everything
ends) or ``drain`` (Ray moves its work away first, for at most ``RAY_SIM_DRAIN_S`` seconds). A second
SIGTERM always means now. The last exit code also stands in ``exit_code`` in ``RAY_SIM_HOME``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from types import FrameType

from simulator.innode import store

STOPPED, USAGE, START_FAILED, RAYLET_DIED, RAYLET_LEFT, GCS_DIED, NO_STORE = (
    0,
    2,
    10,
    11,
    12,
    13,
    14,
)

#: Seconds that the raylet has to sign off, and then the others to end, before SIGKILL.
RAYLET_GRACE_S = float(os.environ.get("RAY_SIM_GRACE_S", "6"))
OTHERS_GRACE_S = 2.0
#: How often it is looked whether the GCS is there while Ray starts, seconds.
LOOK_S = 0.5

#: What a node's object store may hold unless told otherwise; Ray keeps it in shared memory.
OBJECT_STORE_BYTES = 104857600

_PR_SET_CHILD_SUBREAPER = 36


def say(text: str) -> None:
    now = time.time()
    stamp = time.strftime("%H:%M:%S", time.localtime(now))
    print(f"{stamp}.{int(now * 1000) % 1000:03d} supervisor: {text}", flush=True)


def home(name: str = "") -> str:
    """The folder where the node's marker files are, or one of them."""
    return os.path.join(os.environ.get("RAY_SIM_HOME", "/tmp/ray-sim"), name)


def node_name() -> str:
    return os.environ.get("RAY_SIM_NODE") or socket.gethostname()


def own_address() -> str:
    return os.environ.get("RAY_SIM_NODE_IP") or socket.gethostbyname(socket.gethostname())


def write_whole(name: str, text: str) -> None:
    """Write a marker file so that nobody ever reads half of it."""
    part = home(f".{name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, home(name))


def forget(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(home(name))


def write_marker() -> int:
    """The node's identity, for whoever runs inside; returns how often this node was started."""
    try:
        with open(home("node.json"), encoding="utf-8") as file:
            count = int(json.load(file)["start_of_node"]) + 1
    except (OSError, ValueError, KeyError, TypeError):
        count = 1
    marker = {"node": node_name(), "start_of_node": count, "boot": os.urandom(8).hex()}
    write_whole("node.json", json.dumps(marker) + "\n")
    return count


def option(extra: list[str], name: str, default: str) -> str:
    """Value of an option among arguments, written ``--name=value`` or ``--name value``."""
    for i, argument in enumerate(extra):
        if argument.startswith(name + "="):
            return argument.partition("=")[2]
        if argument == name and i + 1 < len(extra):
            return extra[i + 1]
    return default


def ray_command(role: str, extra: list[str]) -> list[str]:
    """``ray start`` for this node; what is given in `extra` wins over what is set here."""
    command = [sys.executable, "-m", "simulator.innode.ray_start"]
    if PathFinder.find_spec("ray") is None:
        command = ["ray", "start"]  # an image whose `python` is not the one that has Ray
    defaults = {
        "--node-name": node_name(),
        "--node-ip-address": own_address(),
        "--object-store-memory": str(OBJECT_STORE_BYTES),
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


def descendants() -> dict[int, str]:
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
        state, parent = text[text.rindex(")") + 2 :].split()[:2]
        if state not in "ZX":
            names[int(entry)] = text[text.index("(") + 1 : text.rindex(")")]
            parents[int(entry)] = int(parent)
    me, found = os.getpid(), {}
    for pid, name in names.items():
        above = parents[pid]
        while above != me and above in parents:
            above = parents[above]
        if above == me:
            found[pid] = name
    return found


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def words(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


class Supervisor:
    """Starts Ray's processes, watches them, ends them."""

    def __init__(self, role: str, extra: list[str]) -> None:
        self.role, self.extra = role, extra
        self.raylet = self.gcs = 0
        self.asked = 0
        self.watched: set[int] = set()
        self.ended: dict[int, int] = {}  # wait status of the watched ones
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def run(self) -> int:
        """Be PID 1 until there is a reason to end; returns the exit code that names it."""
        if os.getpid() != 1:
            become_subreaper()
        os.makedirs(home(), exist_ok=True)
        forget("ready")
        forget("exit_code")
        count = write_marker()
        temp = option(self.extra, "--temp-dir", "/tmp/ray")
        # After a SIGKILL this file says that a cluster runs here; a head would refuse to start.
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(temp, "ray_current_cluster"))
        command = ray_command(self.role, self.extra)
        say(f"start {count} of {self.role} {node_name()}: {' '.join(command)}")
        code = self._without_store()
        if code is None:
            secret = store.secret_arguments(os.environ) if self.role == "head" else []
            code = self._start([*command, *secret], os.path.join(temp, "session_latest", "logs"))
        if code is None:
            code = self._watch()
        forget("ready")
        write_whole("exit_code", f"{code}\n")
        return code

    def _without_store(self) -> int | None:
        """The exit code, where the GCS could not keep its tables."""
        if self.role != "head":
            return None
        problem = store.problem(os.environ, give_up=lambda: bool(self.asked))
        if self.asked:
            return STOPPED
        if problem:
            say(f"the GCS cannot keep its tables: {problem}")
            return NO_STORE
        return None

    def _start(self, command: list[str], logs: str) -> int | None:
        began, began_wall = time.monotonic(), time.time()
        try:
            starter = self.spawn(command)
        except OSError as error:
            say(f"ray start failed: {command[0]}: {error.strerror}")
            return START_FAILED
        gcs_ended = self._wait_for(starter)
        if self.asked:
            # The raylet may be there, and work on it, before `ray start` says so.
            say("asked to stop while starting")
            if starter not in self.ended:
                send(starter, signal.SIGKILL)
            self.wait(lambda: starter in self.ended)
            self._find_core()
            return self._shut_down()
        if gcs_ended:
            # `ray start` would wait for it as long as a raylet does.
            say("the GCS ended while Ray was starting")
            last_words(logs, began_wall, ["gcs_server.out", "gcs_server.err"])
            self.end_all(0.0)
            return GCS_DIED
        status = self.ended[starter]
        self._find_core()
        if status or not self.raylet:
            why = words(status) if status else "it left no raylet behind"
            say(f"ray start failed: {why}")
            names = [f"{part}.{end}" for part in ("gcs_server", "raylet") for end in ("out", "err")]
            last_words(logs, began_wall, names)
            self.end_all(0.0)
            return START_FAILED
        write_whole("ready", f"{time.time()}\n")
        say(f"ready after {time.monotonic() - began:.1f} s; the raylet is process {self.raylet}")
        return None

    def _wait_for(self, starter: int) -> bool:
        """Wait until ``ray start`` is over, or asked to stop; True if on the head the GCS has ended meanwhile.

        That is the starter's child and not ours, so no signal tells of its end.
        """
        look = LOOK_S if self.role == "head" else None
        seen = False
        while not self.wait(lambda: bool(self.asked) or starter in self.ended, look):
            there = "gcs_server" in descendants().values()
            if seen and not there:
                return True
            seen = there
        return False

    def _find_core(self) -> None:
        """Find the processes whose end is the node's end, and watch no others."""
        # A child of theirs has their name until it becomes what it is to be; the parent is the older one.
        for pid, name in sorted(descendants().items()):
            if name == "raylet":
                self.raylet = self.raylet or pid
            elif name == "gcs_server":
                self.gcs = self.gcs or pid
        self.watched, self.ended = {self.raylet, self.gcs}, {}

    def _watch(self) -> int:
        self.wait(lambda: bool(self.asked or self.ended))
        forget("ready")
        # Who died by itself matters more than a request that came at the same moment.
        if self.raylet in self.ended:
            status = self.ended[self.raylet]
            say(f"the raylet ended with {words(status)}")
            self.end_all(0.5)
            return RAYLET_DIED if status else RAYLET_LEFT
        if self.gcs in self.ended:
            say(f"the GCS ended with {words(self.ended[self.gcs])}")
            self.end_all(0.5)
            return GCS_DIED
        return self._shut_down()

    def _shut_down(self) -> int:
        how = os.environ.get("RAY_SIM_ON_TERM", "now")
        say(f"asked to stop: {how}")
        if how == "drain" and self.raylet:
            self._drain(float(os.environ.get("RAY_SIM_DRAIN_S", "30")))
        if self.raylet and self.raylet not in self.ended:
            send(self.raylet, signal.SIGTERM)
            self.wait(lambda: self.raylet in self.ended, RAYLET_GRACE_S)
        self.end_all(OTHERS_GRACE_S)
        say("stopped as asked")
        return STOPPED

    def _drain(self, seconds: float) -> None:
        """Let Ray move its work away; over when the raylet leaves, in time or not at all."""
        asked, end = self.asked, time.monotonic() + seconds
        drainer = self.spawn(
            [sys.executable, "-m", "simulator.innode.ray_private", "drain", str(seconds)]
        )

        def over() -> bool:
            refused = bool(self.ended.get(drainer))
            return refused or self.asked > asked or self.raylet in self.ended

        if not self.wait(over, end - time.monotonic()):
            say(f"not drained within {seconds:g} s")
        if self.ended.get(drainer):
            say("the drain was refused")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if number != signal.SIGCHLD:
            self.asked += 1

    def spawn(self, command: list[str]) -> int:
        stdin = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        pid = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            file_actions=stdin,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them; others should not
        )
        self.watched.add(pid)
        return pid

    def wait(self, until: Callable[[], bool], seconds: float | None = None) -> bool:
        """Reap what dies until something is true; False if it is not after so many seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            self._reap()
            if until():
                return True
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return False
            # With a deadline, what is waited for may be a grandchild, of which no signal tells.
            select.select([self._wake], [], [], None if left is None else min(left, 0.05))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid in self.watched:
                    self.ended[pid] = status

    def end_all(self, grace: float) -> None:
        """SIGTERM to all that is left, SIGKILL after `grace` seconds, until nothing is left."""
        if grace:
            for pid in descendants():
                send(pid, signal.SIGTERM)
            self.wait(lambda: not descendants(), grace)
        for _ in range(100):
            left = descendants()
            if not left:
                return
            for pid in left:
                send(pid, signal.SIGKILL)
            self.wait(lambda: not descendants(), 0.1)


def become_subreaper() -> None:
    """Make the kernel hand us the orphans below us, as it does for a container's PID 1."""
    import ctypes  # not needed in containers

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this system has no subreapers")


def last_words(folder: str, since: float, names: list[str], count: int = 8) -> None:
    """Print the end of log files: why Ray did not start stands there and nowhere else."""
    for name in names:
        with contextlib.suppress(OSError):
            if os.stat(os.path.join(folder, name)).st_mtime < since:
                continue  # left by an earlier start
            with open(os.path.join(folder, name), "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4000))
                lines = file.read().decode(errors="replace").splitlines()[-count:]
            for line in lines:
                print(f"{name}: {line[:300]}", flush=True)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in ("head", "worker"):
        print(__doc__, file=sys.stderr)
        print("usage: python -m simulator.innode.supervisor head|worker [ray start arguments]")
        return USAGE
    if sys.argv[1] == "worker" and not os.environ.get("RAY_SIM_HEAD_ADDRESS"):
        print("RAY_SIM_HEAD_ADDRESS is not set; a worker needs it, as ip:port", file=sys.stderr)
        return USAGE
    return Supervisor(sys.argv[1], sys.argv[2:]).run()


if __name__ == "__main__":
    sys.exit(main())
