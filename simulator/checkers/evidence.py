"""Was everything seen that a verdict rests on?

A run whose observer was blind, whose ledger lost lines or whose history was cut off can look
perfect, because what went wrong was never written down. This check answers unknown then, and tells
the other checks which kinds of evidence are incomplete, so that they do not call something wrong
that a missing line would explain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.index import LEFT, SLACK, Index, LedgerFile, index_of
from simulator.history import Op

#: Two heartbeats of the observer may be this far apart, seconds (it beats about once a second), and
#: away from any fault the GCS may be silent for as long.
MAX_SILENCE_S = 3.0

#: After a fault that hits the head was healed, the observer may need this long to find the new
#: GCS, seconds.
HEAD_GRACE_S = 30.0

#: Why Ray's records of task attempts are not all of them.
FORGOTTEN = "the head died, and with it Ray's records of task attempts"

#: How a node went down, by the engine's event.
_WENT = {
    "engine.die": "died by itself",
    "engine.oom": "ran out of memory by itself",
    "engine.pause": "was frozen",
}


@dataclass(slots=True)
class Gaps:
    """What is missing, in words, by the kind of evidence.

    Attributes
    ----------
    ledger, driver
        Lines written by tasks and actors, and by the driver.
    attempts
        Ray's records of failed attempts.
    run
        The end of the run itself.
    """

    ledger: list[str] = field(default_factory=list)
    driver: list[str] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)
    run: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Blindness:
    """A span, orchestrator's seconds, in which the observer did not see what the GCS had to say."""

    begin: float
    until: float
    text: str


def gaps_of(view: RunView) -> Gaps:
    """What is missing from the view's history, found once per view."""
    return view.once("gaps", lambda v: _gaps(index_of(v)))


def _gaps(index: Index) -> Gaps:
    gaps = Gaps()
    cut = index.history.truncated
    if cut is not None:
        for kind in (gaps.ledger, gaps.driver, gaps.attempts, gaps.run):
            kind.append(f"the history is damaged: {cut}")
    end = index.last("observer.end")
    if end is None:
        why = "the observer's last look is missing, so lines of the ledger may be too"
        gaps.ledger.append(why)
        gaps.driver.append(why)
    else:
        said = {str(name): int(lines) for name, lines in end.data.get("files", {}).items()}
        for name in sorted(said.keys() | index.files.keys()):
            file = index.files.get(name) or LedgerFile(name)
            problem = _compare(file, said.get(name, 0))
            if problem:
                (gaps.driver if file.of_driver else gaps.ledger).append(problem)
    for op in index.all("observer.garbled"):
        file = LedgerFile(str(op.data.get("file")))
        problem = f"{file.name}: line {op.data.get('line')} cannot be read"
        (gaps.driver if file.of_driver else gaps.ledger).append(problem)
    complete = index.last("attempts.complete")
    if complete is None:
        gaps.attempts.append("Ray's records of task attempts were not collected")
    elif complete.data.get("dropped"):
        gaps.attempts.append(f"Ray dropped {complete.data['dropped']} records of task attempts")
    elif complete.data.get("forgotten"):
        gaps.attempts.append(FORGOTTEN)
    run_end = index.last("run.end")
    if run_end is None:
        gaps.run.append("the run has no end: it was killed, or still goes on")
    elif run_end.data.get("status") != "completed":
        gaps.run.append(f"the run was not completed, it {_ended(run_end)}")
    return gaps


def _ended(op: Op) -> str:
    status = str(op.data.get("status"))
    return {"failed": "failed", "aborted": "was aborted", "interrupted": "was interrupted"}.get(
        status, f"ended as {status}"
    )


def _compare(file: LedgerFile, said: int) -> str:
    if file.missing:
        shown = ", ".join(map(str, file.missing[:5])) + (" ..." if len(file.missing) > 5 else "")
        return f"{file.name}: line {shown} missing ({file.lines} of {said} are there)"
    if file.repeated:
        return f"{file.name}: line {file.repeated[0]} was received twice"
    if file.lines != said:
        return f"{file.name}: {file.lines} lines in the history, the observer forwarded {said}"
    return ""


def check_evidence(view: RunView) -> Finding:
    """Everything that a verdict rests on was seen: no blind observer, no missing line."""
    index, gaps = index_of(view), gaps_of(view)
    missing = [
        *gaps.run,
        *(text for _, text in unasked(index)),
        *(b.text for b in blindness(index)),
        *gaps.ledger,
        *gaps.driver,
        *gaps.attempts,
    ]
    # A damaged history is said once, not once for each kind of evidence.
    missing = list(dict.fromkeys(missing))
    lines = sum(file.lines for file in index.files.values())
    metrics = {
        "operations": len(index.history),
        "ledger_lines": lines,
        "beats": len(index.beats),
        "longest_silence_s": round(_silence(index)[0], 3),
    }
    cites = [op.index for kind in ("observer.start", "observer.end") for op in index.all(kind)]
    cites += [op.index for op, _ in unasked(index)[:20]]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        return Finding(
            "evidence",
            Verdict.UNKNOWN,
            f"cannot be sure: {missing[0]}{more}",
            cites,
            missing[:20],
            metrics,
        )
    return Finding(
        "evidence",
        Verdict.VALID,
        f"the observer saw the whole run; all {lines} lines of the ledger arrived",
        cites,
        metrics=metrics,
    )


def unasked(index: Index) -> list[tuple[Op, str]]:
    """Nodes that went down while the run was under way, and no fault of it did that.

    Whatever a run with such a node shows, it does not show what the experiment claims. The run is under
    way from the steady state before to the one after; what healing does to a node is the fault's doing.
    Nor is it one that Ray's autoscaler let go.
    """
    left = let_go(index)
    looks = index.all("steady")
    begin = min(
        (index.at(op) for op in looks if op.data.get("when") == "before"), default=-math.inf
    )
    ends = [op for op in looks if op.data.get("when") == "after"] or index.all("run.end")
    until = max(map(index.at, ends), default=math.inf)
    found = []
    for op in index.engine_ops:
        how = _WENT.get(op.kind)
        if how is None or not begin <= index.at(op) <= until or _by_a_fault(index, op, 0.0):
            continue
        if op.node in left:
            continue
        code = op.data.get("exit_code")
        more = "" if code is None else f" (exit code {code})"
        found.append((op, f"{op.node} {how}{more}, no fault of this run did it"))
    for node, ops in index.node_ops.items():
        lives = {op.data.get("ray_node_id"): op for op in reversed(ops) if _is(op, "ALIVE")}
        for op in ops:
            life = lives.get(op.data.get("ray_node_id"))
            # Of nodes that died before, the observer has only ever heard that they are dead.
            if not _is(op, "DEAD") or life is None or not begin <= index.at(op) <= until:
                continue
            died = any(
                down.kind == "engine.die"
                and down.node == node
                and index.at(life) <= index.at(down) <= index.at(op) + index.history.uncertainty(op)
                for down in index.engine_ops
            )
            # Ray learns of it later than the engine, which says more.
            if not died and node not in left and not _by_a_fault(index, op, MAX_SILENCE_S):
                found.append(
                    (op, f"Ray declared {node} dead by itself, no fault of this run did it")
                )
    return sorted(found, key=lambda pair: index.at(pair[0]))


def let_go(index: Index) -> set[str]:
    """Machines that Ray's autoscaler had asked for, and that were drained or taken back when it had enough of them."""
    asked = {name for op in index.all("cloud.asked") for name in op.data.get("nodes", ())}
    taken_back = {str(op.data.get("node")) for op in index.all("cloud.terminate")}
    drained = {
        op.node
        for op in index.engine_ops
        if op.kind == "engine.die" and op.data.get("exit_code") in LEFT
    }
    return {name for name in asked if name in taken_back or name in drained}


def _is(op: Op, state: str) -> bool:
    return op.data.get("state") == state


def _by_a_fault(index: Index, op: Op, late: float) -> bool:
    """Was a fault on its node from injection to heal, or on the head, on which all others depend?

    Parameters
    ----------
    late
        How long after the heal it may have been seen, seconds.
    """
    heads, when = index.heads, index.at(op)
    for fault in index.injected():
        if fault.inject is None or (fault.node != op.node and fault.node not in heads):
            continue
        grace = HEAD_GRACE_S if fault.node in heads else late
        slack = SLACK + index.history.uncertainty(op)
        healed = math.inf if fault.healed is None else index.at(fault.healed) + grace
        if index.at(fault.inject) - slack <= when <= healed + slack:
            return True
    return False


def blindness(index: Index) -> list[Blindness]:
    """When the observer did not see what the GCS had to say; nothing if it always did."""
    start, end = index.first("observer.start"), index.last("observer.end")
    if start is None:
        return [Blindness(-math.inf, math.inf, "no observer watched this run")]
    found = []
    injected = index.injected()
    if injected and injected[0].inject is not None:
        late = index.at(start) - index.at(injected[0].inject)
        if late > index.history.uncertainty(start):
            text = f"the observer started {late:.1f} s after the first injection"
            found.append(Blindness(-math.inf, index.at(start), text))
    if end is not None:
        ended = index.at(end) + index.history.uncertainty(end)
        acts = [op for f in index.faults.values() for op in (f.effect, f.healed) if op is not None]
        acts += index.all("workload.end") + index.all("program.end")
        last = max(acts, key=index.at, default=None)
        if last is not None and index.at(last) > ended:
            gone = index.at(last) - ended
            text = f"the observer ended {gone:.1f} s before {last.kind}"
            found.append(Blindness(index.at(end), math.inf, text))
    silence, since = _silence(index)
    if silence > MAX_SILENCE_S and since is not None:
        begin = index.at(since)
        if not _excused(index, begin, begin + silence):
            text = f"the observer was silent for {silence:.1f} s after op {since.index}"
            found.append(Blindness(begin, begin + silence, text))
    for begin, until, op in _blind(index):
        long = until - begin > MAX_SILENCE_S or _around_a_fault(index, begin, until)
        if long and not _excused(index, begin, until):
            span = f"for {until - begin:.1f} s" if until < math.inf else "until its end"
            text = f"the GCS did not answer the observer {span} from op {op.index} on"
            found.append(Blindness(begin, until, text))
    return found


def _silence(index: Index) -> tuple[float, Op | None]:
    """The longest time between two signs of life of the observer, and the sign before it."""
    signs = [*index.all("observer.start"), *index.beats, *index.all("observer.end")]
    signs.sort(key=index.at)
    longest, since = 0.0, None
    for before, after in pairwise(signs):
        # Its own monotonic clock, where there is one: a wall clock may be set in between.
        gap = (
            after.mono - before.mono
            if after.mono is not None and before.mono is not None
            else index.at(after) - index.at(before)
        )
        if gap > longest:
            longest, since = gap, before
    return longest, since


def _blind(index: Index) -> list[tuple[float, float, Op]]:
    """Spans in which the GCS did not answer: from when to when, and the first operation of each."""
    kinds = [*index.all("observer.blind"), *index.all("observer.seeing"), *index.beats]
    kinds += index.all("observer.end")
    spans: list[tuple[float, float, Op]] = []
    since: Op | None = None
    for op in sorted(kinds, key=index.at):
        if op.kind == "observer.blind" or (
            op.kind == "observer.beat" and op.data.get("gcs") is False
        ):
            since = since or op
        elif since is not None and op.kind != "observer.end":
            spans.append((index.at(since), index.at(op), since))
            since = None
    if since is not None:
        spans.append((index.at(since), math.inf, since))
    return spans


def _around_a_fault(index: Index, begin: float, until: float) -> bool:
    """Between the first injection and the last heal every moment counts, a short one too."""
    injected = [index.at(f.inject) for f in index.injected() if f.inject is not None]
    healed = [index.at(f.healed) for f in index.faults.values() if f.healed is not None]
    if not injected:
        return False
    last = max(healed) if len(healed) == len(injected) else math.inf
    return until >= min(injected) and begin <= last


def _excused(index: Index, begin: float, until: float) -> bool:
    """Did a fault of the head explain that the GCS was silent in this span?"""
    heads = index.heads
    for fault in index.injected():
        if fault.node not in heads or fault.inject is None:
            continue
        healed = fault.healed or fault.heal
        last = index.at(healed) + HEAD_GRACE_S if healed is not None else math.inf
        if begin >= index.at(fault.inject) - MAX_SILENCE_S and until <= last:
            return True
    return False
