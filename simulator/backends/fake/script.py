"""How a simulated machine behaves, and the ways in which it can be told to misbehave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Times and sizes of a simulated machine that does what it should. All times are seconds.

    Attributes
    ----------
    head_start_s, start_s
        From starting a node to its being alive in the GCS.
    start_jitter_s
        At most so much longer, drawn with the seed.
    carries
        How many nodes may start at once; if more do, all of those time out. None for any number.
    detect_s
        From a node's death to DEAD in the GCS. None takes it from the cluster's settings: 4.3 with
        short health checks, 29.3 for a killed node and 64.7 for a frozen one with Ray's defaults.
    gcs_patience_s
        How long a worker lives without a GCS; one that keeps its tables is waited for three minutes.
    store_patience_s
        How long a GCS lives whose store has ended.
    exit_s
        From SIGTERM, or from noticing that Ray gave it up, to the end of PID 1.
    driver_start_s
        From submitting a job to its driver's first line.
    dispatch_s
        From a free slot to the beginning of a task in it.
    actor_start_s
        To create an actor, or to restart one.
    poll_s, beat_s
        The observer's periods.
    clock_offset
        How far the nodes' wall clock is ahead of the orchestrator's.
    most_rows
        Of how many attempts Ray tells in one answer.
    """

    head_start_s: float = 3.0
    start_s: float = 2.0
    start_jitter_s: float = 0.5
    carries: int | None = None
    detect_s: float | None = None
    gcs_patience_s: float = 60.0
    store_patience_s: float = 2.5
    exit_s: float = 0.4
    driver_start_s: float = 1.0
    dispatch_s: float = 0.01
    actor_start_s: float = 0.6
    poll_s: float = 0.1
    beat_s: float = 1.0
    clock_offset: float = 0.0
    most_rows: int = 10_000


@dataclass(slots=True)
class FailedStart:
    """A start that goes wrong: PID 1 exits after so many seconds, or lives and never joins."""

    after: float
    exit_code: int | None
    lines: tuple[str, ...] = ()


@dataclass(slots=True)
class LostLine:
    """Which line of the ledger gets lost, how often, and whether on disk or on its way."""

    kind: str
    key: str | None
    where: str
    times: int


@dataclass(frozen=True, slots=True)
class Printed:
    """What a program that is not simulated writes, a piece every so many seconds, and its end."""

    output: tuple[str, ...]
    exit_code: int
    every: float


@dataclass
class Script:
    """What is to go wrong; each entry is used up as it happens."""

    errors: dict[str, list[BaseException]] = field(default_factory=dict)
    starts: dict[str, list[FailedStart]] = field(default_factory=dict)
    start_seconds: dict[str, float] = field(default_factory=dict)
    deaf: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost_lines: list[LostLine] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    observer_silent: bool = False
    job_ends: tuple[str, str] | None = None
    job_never_starts: bool = False
    job_prints: Printed | None = None
    hooks: dict[str, list[Callable[[], None]]] = field(default_factory=dict)

    def loses(self, where: str, kind: str, key: str) -> bool:
        """Whether this line gets lost there; uses the entry up."""
        for line in self.lost_lines:
            if (
                line.times > 0
                and line.where == where
                and line.kind == kind
                and line.key in (None, key)
            ):
                line.times -= 1
                return True
        return False
