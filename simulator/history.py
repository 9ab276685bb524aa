"""What happened in a run, as an append-only list of operations.

Everything that a run sees becomes an `Op` and one line of ``history.jsonl``: what the orchestrator
did, what the engine reported, what Ray believed, what the workload's tasks wrote to the effect
ledger. Verdicts, metrics and reports are functions of it, so it is flushed line by line and can be
read after the orchestrator was killed, with the last line cut anywhere.

Clocks: ``wall`` is the source's own wall clock, ``mono`` its own monotonic clock, ``received`` the
orchestrator's wall clock on receipt. Different sources may have different wall clocks (Docker
Desktop runs nodes in a virtual machine), so the orchestrator measures the offset and writes it as
``clock.offset`` operations; `History.at` applies them. All times are seconds.
"""

from __future__ import annotations

import fcntl
import gc
import json
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from sys import intern
from typing import IO, Any

#: Version of what a run's files hold. Readers take every version up to theirs.
SCHEMA = 1

SOURCES = ("orchestrator", "engine", "observer", "ledger", "driver", "ray", "cloud", "autoscaler")


@dataclass(frozen=True, slots=True)
class Op:
    """One thing that happened.

    Attributes
    ----------
    index
        Position in the history, from 0.
    kind
        What happened, as ``noun.verb``; docs/reference/history.md lists all kinds and their data.
    source
        Who says so, one of `SOURCES`.
    wall, mono
        The source's clocks, seconds; ``mono`` is None where the source has none.
    received
        The orchestrator's wall clock when it learned of it, seconds.
    node
        Name of the node concerned, or None.
    data
        Whatever else belongs to the kind; JSON values only.
    """

    index: int
    kind: str
    source: str
    wall: float
    mono: float | None
    received: float
    node: str | None
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(
            {
                "i": self.index,
                "kind": self.kind,
                "src": self.source,
                "wall": round(self.wall, 6),
                "mono": None if self.mono is None else round(self.mono, 6),
                "recv": round(self.received, 6),
                "node": self.node,
                "data": dict(self.data),
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, line: str) -> Op:
        return cls.from_raw(json.loads(line))

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> Op:
        """The operation of a parsed line; KeyError or TypeError if it is not one."""
        node, data = raw["node"], raw["data"]
        if not isinstance(data, dict):
            raise TypeError("an operation's data is a mapping")
        # Names that stand in a million operations are kept once.
        return cls(
            raw["i"],
            intern(raw["kind"]),
            intern(raw["src"]),
            raw["wall"],
            raw["mono"],
            raw["recv"],
            node if node is None else intern(node),
            data,
        )


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far a source's wall clock is ahead of the orchestrator's, seconds, give or take."""

    offset: float = 0.0
    uncertainty: float = 0.0


class History:
    """The operations of one run, in the order in which they were received.

    Parameters
    ----------
    ops
        Already recorded operations.
    truncated
        Says in words what is missing, when the file ended in the middle of a line; else None.
    """

    def __init__(self, ops: Iterable[Op] = (), *, truncated: str | None = None) -> None:
        self.ops: list[Op] = list(ops)
        self.truncated = truncated
        self._offsets: dict[str, ClockOffset] | None = None
        self._by_kind: tuple[int, dict[str, array[int]]] = (0, {})

    def __len__(self) -> int:
        return len(self.ops)

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def of(self, *kinds: str) -> list[Op]:
        """All operations of these kinds; a kind that ends with ``.`` matches its whole family."""
        places = self._places(kinds)
        if len(places) == 1:
            return [self.ops[i] for i in places[0]]
        return [self.ops[i] for i in sorted(chain.from_iterable(places))]

    def first(self, *kinds: str) -> Op | None:
        """The first operation of these kinds, as `of` takes them; None if there is none."""
        found = min((places[0] for places in self._places(kinds)), default=None)
        return None if found is None else self.ops[found]

    def last(self, *kinds: str) -> Op | None:
        """The last operation of these kinds, as `of` takes them; None if there is none."""
        found = max((places[-1] for places in self._places(kinds)), default=None)
        return None if found is None else self.ops[found]

    def _places(self, kinds: tuple[str, ...]) -> list[array[int]]:
        """Where the operations of these kinds stand in `ops`, per kind; none of them is empty.

        A long history is asked dozens of times, so each look at all of it is made once, and again
        only when it has grown.
        """
        count, known = self._by_kind
        if count != len(self.ops):
            ops, known = self.ops[:], {}
            for place, op in enumerate(ops):
                try:
                    known[op.kind].append(place)
                except KeyError:
                    known[op.kind] = array("L", [place])
            self._by_kind = (len(ops), known)  # at once: other threads ask too
        families = tuple(kind for kind in kinds if kind.endswith("."))
        return [
            places
            for kind, places in known.items()
            if kind in kinds or (families and kind.startswith(families))
        ]

    @property
    def offsets(self) -> Mapping[str, ClockOffset]:
        """Per source, its clock against the orchestrator's.

        Several measurements (start and end of a run) give their mean, and an uncertainty wide
        enough to hold all of them. The orchestrator itself is exact.
        """
        if self._offsets is None:
            self._offsets = _offsets(self.of("clock.offset"))
        return self._offsets

    def at(self, op: Op) -> float:
        """When it happened, in seconds of the orchestrator's wall clock."""
        return op.wall - self.offsets.get(op.source, ClockOffset()).offset

    def uncertainty(self, *ops: Op) -> float:
        """How far `at` may be off for a span between these operations, seconds."""
        return sum(self.offsets.get(op.source, ClockOffset()).uncertainty for op in ops)

    def append(self, op: Op) -> None:
        self.ops.append(op)
        if op.kind == "clock.offset":
            self._offsets = None

    def snapshot(self) -> History:
        """A copy that later appends do not change (for judging while a run goes on)."""
        return History(self.ops[:], truncated=self.truncated)


def _offsets(ops: Iterable[Op]) -> dict[str, ClockOffset]:
    measured: dict[str, list[ClockOffset]] = {}
    for op in ops:
        for source in op.data["sources"]:
            measured.setdefault(source, []).append(
                ClockOffset(op.data["offset"], op.data["uncertainty"])
            )
    result: dict[str, ClockOffset] = {}
    for source, found in measured.items():
        mean = sum(m.offset for m in found) / len(found)
        spread = max(abs(m.offset - mean) + m.uncertainty for m in found)
        result[source] = ClockOffset(mean, spread)
    return result


class Recorder:
    """Appends operations to a history in memory and to its file, from any thread.

    A line is flushed to the operating system before `record` returns: what was recorded survives
    a SIGKILL of this process. While it is open the file is locked, so that others can tell a run that
    goes on from one whose orchestrator is gone (`is_being_written`).
    """

    def __init__(
        self,
        path: Path,
        *,
        wall: Callable[[], float] = time.time,
        mono: Callable[[], float] = time.monotonic,
    ) -> None:
        self.history = History()
        self._wall, self._mono = wall, mono
        self._lock = threading.Lock()
        self._file: IO[str] | None = path.open("a", encoding="utf-8")
        with suppress(OSError):  # a file system without locks: nobody can tell then
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def record(
        self,
        kind: str,
        *,
        source: str = "orchestrator",
        node: str | None = None,
        wall: float | None = None,
        mono: float | None = None,
        data: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Op:
        """Append one operation; ``wall`` and ``mono`` default to the orchestrator's now."""
        now = self._wall()
        if source == "orchestrator" and wall is None:
            mono = self._mono()
        with self._lock:
            op = Op(
                index=len(self.history),
                kind=kind,
                source=source,
                wall=now if wall is None else wall,
                mono=mono,
                received=now,
                node=node,
                data={**(data or {}), **more},
            )
            if self._file is None:
                raise ValueError("the history is closed")
            # In memory first: a Ctrl-C between the two must not give the next one the same index.
            self.history.append(op)
            self._file.write(op.to_json() + "\n")
            self._file.flush()
        return op

    def snapshot(self) -> History:
        with self._lock:
            return self.history.snapshot()

    def since(self, index: int) -> list[Op]:
        """The operations from this index on: cheap to ask again and again."""
        with self._lock:
            return self.history.ops[index:]

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    @property
    def closed(self) -> bool:
        return self._file is None


def is_being_written(path: Path) -> bool:
    """Whether a recorder that lives has this history open; False where that cannot be told."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


@contextmanager
def without_collecting() -> Iterator[None]:
    """Pause the search for garbage cycles: a million operations hold none, and looking for them
    again and again while they are read or judged costs half the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


#: Lines parsed in one go: JSON's parser then makes each repeated key once, not once a line, which
#: halves the memory of a long history.
_BATCH = 1000


class _Shared:
    """Values that stand in many operations, kept once: an eighth of a long history's memory."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._demands: dict[tuple[tuple[str, Any], ...], Any] = {}

    def share(self, data: dict[str, Any]) -> None:
        """Replace what `data` has in common with earlier operations by theirs."""
        texts = self._texts
        for name in ("key", "exec", "file", "fn"):
            value = data.get(name)
            if type(value) is str:
                data[name] = texts.setdefault(value, value)
        demand = data.get("demand")
        if type(demand) is dict:
            data["demand"] = self._demands.setdefault(tuple(demand.items()), demand)


def _parse(lines: list[str], shared: _Shared) -> list[Op | None]:
    """The operations of some lines; None for each that cannot be read."""
    try:
        raws = json.loads(f"[{','.join(lines)}]")
        if len(raws) == len(lines):
            for raw in raws:
                shared.share(raw["data"])
            return [Op.from_raw(raw) for raw in raws]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return [_parse_one(line) for line in lines]


def _parse_one(line: str) -> Op | None:
    try:
        return Op.from_json(line)
    except (ValueError, KeyError, TypeError):
        return None


def read_history(path: Path) -> History:
    """Read ``history.jsonl``; a cut last line is left out and reported in `History.truncated`.

    A line in the middle that cannot be read is left out and reported too: what follows it is
    still evidence, and the checks answer "unknown" where they would have needed it.
    """
    ops: list[Op] = []
    bad: list[int] = []
    number, shared = 0, _Shared()
    with without_collecting(), path.open(encoding="utf-8", errors="replace") as lines:
        while batch := list(islice(lines, _BATCH)):
            for position, op in enumerate(_parse(batch, shared), number + 1):
                if op is None:
                    bad.append(position)
                else:
                    ops.append(op)
            number += len(batch)
    truncated = None
    if bad == [number]:
        truncated = f"line {number} of {path.name} is cut off; judged up to line {number - 1}"
    elif bad:
        shown = ", ".join(map(str, bad[:5])) + (" and more" if len(bad) > 5 else "")
        truncated = f"{len(bad)} lines of {path.name} cannot be read (line {shown})"
    elif not ops:
        truncated = f"{path.name} is empty"
    return History(ops, truncated=truncated)
