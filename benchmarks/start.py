"""How long until a head and N workers are alive: ours, ours lean, ray.cluster_utils.Cluster, plain docker compose up.

    python benchmarks/start.py --pairs 5 --workers 3 16

All are started in turn, so many times each, in a turn that rotates, and the medians are compared. "Alive" is
the same for all: from the call until the GCS, asked every 50 ms by one program beside all of them, counts N + 1
nodes ALIVE. Imports are not in it, for none of them; the image is there; what starts is taken down before the
next one.

Equal: 1 CPU a node, object stores of 100 MiB, dashboard and client server on the head, Ray's own health
settings, token authentication, no usage reports, no log monitor on workers. Not equal, since it cannot be:
cluster_utils's nodes share one host's processes, address, /tmp and network (so they pay for no container),
plain Compose watches nothing and starts all at once.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from figures import ROOT, Figure, finish, load, parser, relative, say

from simulator.backends.docker import DockerBackend, engine_answers
from simulator.errors import SimulatorError
from simulator.topology import load_topology

HERE = Path(__file__).resolve().parent
NAME = "bench-start"

CLUSTER_UTILS, COMPOSE, OURS, LEAN = "cluster_utils", "plain Compose", "ours", "ours, lean"

#: At most so many times a peer, per number of workers (issue: 3 and 16; others are held to the first).
TARGETS: Mapping[int, Mapping[str, Sequence[tuple[float, str]]]] = {
    3: {OURS: ((1.1, CLUSTER_UTILS), (1.0, COMPOSE)), LEAN: ((0.9, CLUSTER_UTILS),)},
    16: {OURS: ((1.0, CLUSTER_UTILS),), LEAN: ((0.8, CLUSTER_UTILS),)},
}

#: Plain Compose's nodes give up by themselves when they have not started within 30 s.
GIVE_UP_S = 120.0
DOWN_S = 120.0


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds until all were alive, or None and how many were at most."""

    seconds: float | None
    alive: int
    why: str = ""


class Child:
    """A program of contenders.py: lines of JSON from it, a line to it, its end when its input ends."""

    def __init__(self, *words: str, env: Mapping[str, str]) -> None:
        self.words = words
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "contenders.py"), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=dict(env),
            # A Ctrl-C is ours: the child's end is that of its input.
            start_new_session=True,
        )
        self.messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.errors: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._read_errors, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Ray prints too.
            with suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    self.messages.put(message)
        self.messages.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors = [*self.errors[-20:], line.rstrip()]

    def say(self, text: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def next(self, key: str, until: float) -> dict[str, Any]:
        """The next message that has this key.

        Raises
        ------
        RuntimeError
            The child ended before; with its last words.
        TimeoutError
            It did not come in time.
        """
        while True:
            try:
                message = self.messages.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"{self.words[0]}: no {key} in time") from None
            if message is None:
                last = self.errors[-1].strip()[:200] if self.errors else "no words"
                raise RuntimeError(f"it ended: {last}")
            if key in message:
                return message

    def end(self, seconds: float) -> None:
        """End its input, wait, and end by force what is left below it."""
        with suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
            return
        below: list[psutil.Process] = []
        with suppress(psutil.Error):
            below = psutil.Process(self.process.pid).children(recursive=True)
        for process in below:
            with suppress(psutil.Error):
                process.kill()
        self.process.kill()
        self.process.wait()


def measure(words: Sequence[str], workers: int, scratch: Path, limit_s: float) -> Start:
    """Start one, see when all of it is alive, take it down."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(scratch / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(scratch),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    # Its copy of the token goes with the scratch folder, however it ends.
    judge = Child("alive", env={**env, "TMPDIR": str(scratch)})
    contender = Child(*words, env=env)
    most = 0
    try:
        until = time.monotonic() + limit_s
        judge.next("ready", until)
        contender.next("ready", until)
        until = time.monotonic() + limit_s
        contender.say()
        began = contender.next("began", until)["began"]
        known = contender.next("address", until)
        asked = {"address": known["address"], "token": known["token"], "wanted": workers + 1}
        judge.say(json.dumps(asked))
        while True:
            seen = judge.next("alive", until)
            most = max(most, seen["alive"])
            if seen["alive"] > workers:
                return Start(round(seen["at"] - began, 2), most)
    except TimeoutError:
        return Start(None, most, f"{most} of {workers + 1} alive after {limit_s:.0f} s")
    except RuntimeError as error:
        return Start(None, most, str(error))
    finally:
        judge.end(0.0)
        contender.end(DOWN_S)
        if words[0] != "cluster_utils":
            DockerBackend().remove(words[1])  # whatever became of who should have done it


def contenders(workers: int) -> dict[str, Sequence[str]]:
    """What is compared, by name, as words for contenders.py."""
    words: dict[str, Sequence[str]] = {
        CLUSTER_UTILS: ("cluster_utils", str(workers)),
        OURS: ("simulator", f"{NAME}-ours", str(workers), "default"),
        LEAN: ("simulator", f"{NAME}-lean", str(workers), "lean"),
        COMPOSE: ("compose", f"{NAME}-compose", str(workers)),
    }
    return words


def why_not() -> dict[str, str]:
    """What cannot be measured here, and why."""
    missing: dict[str, str] = {}
    silent = engine_answers(timeout=5.0)
    if silent is not None:
        missing |= dict.fromkeys((OURS, LEAN, COMPOSE), f"no Docker engine answers ({silent})")
    elif sys.platform != "linux":
        words = "nodes' addresses cannot be reached from this machine, so the GCS cannot be asked"
        missing |= dict.fromkeys((OURS, LEAN, COMPOSE), words)
    try:
        load_topology("lean")
    except SimulatorError:
        missing[LEAN] = "there is no topology lean"
    return missing


def rounds(workers: int, pairs: int, limit_s: float) -> dict[str, list[Start]]:
    """Every contender so many times, in turn; who is first rotates."""
    every, missing = contenders(workers), why_not()
    able = [name for name in every if name not in missing]
    found: dict[str, list[Start]] = {name: [] for name in every}
    for name, why in missing.items():
        found[name].append(Start(None, 0, why))
    for number in range(pairs):
        first = number % max(1, len(able))
        for name in [*able[first:], *able[:first]]:
            with tempfile.TemporaryDirectory(prefix="rs-bench-", dir="/tmp") as folder:
                (Path(folder) / "token").write_text(secrets.token_hex(32), encoding="utf-8")
                start = measure(every[name], workers, Path(folder), limit_s)
            found[name].append(start)
            shown = f"{start.seconds} s" if start.seconds is not None else start.why
            say(f"{workers} workers, pair {number + 1} of {pairs}, {name}: {shown}")
            if start.seconds is None and name == COMPOSE:
                able.remove(name)  # it would take as long each time, to say the same
    return found


def figures_of(workers: int, found: Mapping[str, Sequence[Start]]) -> list[Figure]:
    """Medians beside their targets."""
    medians = {
        name: statistics.median(s.seconds for s in starts if s.seconds is not None)
        if any(s.seconds is not None for s in starts)
        else None
        for name, starts in found.items()
    }
    targets = TARGETS.get(workers, TARGETS[3])
    made = []
    for name, starts in found.items():
        title = f"head + {workers} workers alive, {name}"
        failed = [s for s in starts if s.seconds is None]
        why = failed[0].why if medians[name] is None and failed else ""
        note = f"{len(failed)} of {len(starts)} starts failed" if failed and not why else ""
        details = {"seconds": [s.seconds for s in starts], "alive": [s.alive for s in starts]}
        pairs = targets.get(name, ())
        if not pairs or medians[name] is None:
            made.append(Figure(title, medians[name], "s", why=why, note=note, details=details))
            continue
        for factor, peer in pairs:
            made.append(
                relative(
                    title,
                    medians[name],
                    "s",
                    factor,
                    peer,
                    medians[peer],
                    note=note,
                    details=details,
                )
            )
    return made


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=5, help="how often each is started")
    arguments.add_argument("--workers", type=int, nargs="+", default=[3, 16], metavar="N")
    arguments.add_argument(
        "--limit",
        type=float,
        default=GIVE_UP_S,
        metavar="SECONDS",
        help="give up a start after this",
    )
    chosen = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` takes all down
    began_load, made = load(), []
    for workers in chosen.workers:
        made += figures_of(workers, rounds(workers, chosen.pairs, chosen.limit))
    options = {"pairs": chosen.pairs, "workers": chosen.workers, "limit_s": chosen.limit}
    return finish("start", made, began_load=began_load, options=options, save=chosen.save)


if __name__ == "__main__":
    sys.exit(main())
