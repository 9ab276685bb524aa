"""Did the faults hit something, did the cluster recover in time, and was everything undone?

A fault that took no effect, or that struck a node with nothing to lose, proves nothing about
recovery: these checks answer unknown then, and say what was missed by how much.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

from simulator.checkers.anatomy import TITLES, anatomy
from simulator.checkers.base import Finding, RunView, Verdict, worst
from simulator.checkers.evidence import MAX_SILENCE_S, blindness
from simulator.checkers.growth import GROWTH
from simulator.checkers.index import SLACK, Execution, FaultRecord, Index, index_of
from simulator.checkers.phases import Phase
from simulator.checkers.program import at_work
from simulator.history import Op


def _indices(*ops: Op | None) -> list[int]:
    return sorted({op.index for op in ops if op is not None})


def _scheduled(view: RunView) -> Sequence[dict[str, Any]]:
    schedule: Sequence[dict[str, Any]] = view.spec.get("schedule", ())
    return schedule


def check_fault_hit_work(view: RunView) -> Finding:
    """Every fault took effect, verified from outside, while its node had something to lose."""
    index = index_of(view)
    name = "fault_hit_work"
    faults = list(index.faults.values())
    schedule = _scheduled(view)
    if not faults and not schedule:
        return Finding(name, Verdict.VALID, "no fault was asked for")
    known = {f.id.partition(".")[0] for f in faults}  # f2.1 is the first node of f2
    # Of a fault that comes back, the first time is never left out: it is what must hit.
    known |= {str(op.data.get("id")) for op in index.all("schedule.left_out")}
    found = [_hit(view, f) for f in faults]
    for step in schedule:
        if str(step.get("id")) not in known:
            what = f"{step.get('fault')} of {step.get('target')}"
            found.append((Verdict.UNKNOWN, f"{what} was scheduled and never injected", []))
    if not found:
        text = "the work was over before the first fault was due: all were left out"
        cites = _indices(*index.all("schedule.left_out")[:20])
        return Finding(name, Verdict.UNKNOWN, text, cites)
    verdict = worst(v for v, _, _ in found)
    texts = [text for v, text, _ in found if v is verdict]
    more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
    cites = sorted({i for _, _, ops in found for i in ops})
    return Finding(name, verdict, texts[0] + more, cites, [text for _, text, _ in found])


def _hit(view: RunView, fault: FaultRecord) -> tuple[Verdict, str, list[int]]:
    index = index_of(view)
    what = f"{fault.fault} of {fault.node or '?'}"
    if fault.skipped is not None:
        why = fault.skipped.data.get("why", "no reason given")
        return Verdict.UNKNOWN, f"{what} was skipped: {why}", _indices(fault.skipped)
    if fault.inject is None or fault.node is None:
        return Verdict.UNKNOWN, f"{what} was planned and never injected", _indices(fault.plan)
    effect = fault.effect
    if effect is None:
        why = f"nothing reported that {what} took effect"
        return Verdict.UNKNOWN, why, _indices(fault.inject)
    if not effect.data.get("verified"):
        why = f"{what} could not be verified: {effect.data.get('how', '')}"
        return Verdict.UNKNOWN, why, _indices(fault.inject, effect)
    when = index.at(effect)
    # On the head, and on where it keeps its tables, depends what runs anywhere.
    of_all = fault.node in index.heads
    here = list(index.all_executions() if of_all else index.executions_on(fault.node))
    # Its owner may learn that it was cut off before the effect is seen.
    struck = index.at(fault.inject) - SLACK
    running = [
        e
        for e in here
        if e.running_at(when)
        or (e.cut_off is not None and e.start <= when and e.cut_off >= struck)
        # What a node does when it hears that it will be taken is at stake from then on.
        or (fault.announced and e.running_at(struck))
    ]
    end = index.first("driver.end") or index.last("program.end")
    # Its owner lets go of an object when it ends: from then on nobody needs a copy.
    over = end is not None and index.at(end) <= when
    objects = [] if over else index.only_copies(fault.node, when)
    if over and index.of_program:
        running = []  # what it left behind is nobody's work any more
    places = sorted(index.nodes) if of_all else [fault.node]
    others = [found for place in places for found in at_work(view, place, when)]
    cites = _indices(
        effect, *(e.start_op for e in running[:20]), *objects[:20], *(op for _, op in others[:20])
    )
    if running or objects or others:
        parts = []
        if running:
            keys = ", ".join(e.key for e in running[:3]) + (" ..." if len(running) > 3 else "")
            parts.append(f"{_counted(running, 'execution')} under way ({keys})")
        if objects:
            parts.append(f"the only copy of {_counted(objects, 'object')}")
        if others:
            names = ", ".join(text for text, _ in others[:3]) + (" ..." if len(others) > 3 else "")
            parts.append(names)
        hit = "hit the control plane of" if of_all else "hit"
        return Verdict.VALID, f"{what} {hit} {' and '.join(parts)}", cites
    why = _why_idle(index, here, "the cluster" if of_all else fault.node, when)
    if index.of_program and over and end is not None:
        why = f"the program had ended {when - index.at(end):.1f} s before"
    elif index.of_program and index.last("attempts.complete") is None:
        why = "Ray's records of the program's tasks were not collected"
    return Verdict.UNKNOWN, f"{what} hit no work: {why}", cites


def _counted(things: Sized, what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def _why_idle(index: Index, here: Sequence[Execution], place: str, when: float) -> str:
    everywhere = [e.end for e in index.all_executions() if e.end is not None]
    if not here:
        return f"nothing ever ran on {place}"
    if everywhere and max(everywhere) <= when and all(e.start <= when for e in here):
        return f"the work was over {when - max(everywhere):.1f} s before"
    before = max((e.end for e in here if e.end is not None and e.end <= when), default=None)
    if before is None:
        return f"the first work on {place} started {min(e.start for e in here) - when:.1f} s later"
    return f"{place} had been idle for {when - before:.1f} s"


def check_recovers(view: RunView) -> Finding:
    """Every mandatory phase of the recovery was seen, the last of them within the time allowed."""
    name = "recovers"
    mandatory = list(view.spec.get("mandatory_phases", ()))
    limit = view.spec.get("recovery_timeout_s")
    if not mandatory:
        if not _scheduled(view) and not index_of(view).faults:
            return Finding(name, Verdict.VALID, "no fault was asked for")
        return Finding(name, Verdict.UNKNOWN, "the experiment names no phase that must be seen")
    unknown = sorted(set(mandatory) - TITLES.keys() - GROWTH.keys())
    found = anatomy(view)
    wanted = [p for p in found.phases if p.mandatory]
    seen = [p for p in wanted if p.seconds is not None]
    last = max(seen, key=lambda p: p.seconds or 0.0, default=None)
    late = [p for p in seen if limit is not None and (p.seconds or 0.0) > float(limit)]
    missing = [p for p in wanted if not p.seen]
    details = [
        f"{p.name}: {p.seconds:.2f} s +/- {p.uncertainty:.2f}"
        if p.seconds is not None
        else f"{p.name}: {p.note}"
        for p in wanted
    ]
    metrics = {
        "limit_s": limit,
        "recovery_s": None if last is None or missing else round(last.seconds or 0.0, 6),
    }
    cites = sorted({i for p in seen for i in p.cites})
    unsure = {p.name: why for p in late if (why := _maybe_earlier(view, p, float(limit or 0)))}
    proven = [p for p in late if p.name not in unsure]
    if late and not proven:
        why = unsure[late[0].name]
        text = f"{late[0].title} was seen only after {late[0].seconds:.1f} s, but {why}"
        return Finding(name, Verdict.UNKNOWN, text, cites, [*details, *unsure.values()], metrics)
    if proven:
        first = proven[0]
        return Finding(
            name,
            Verdict.INVALID,
            f"{first.title} only after {first.seconds:.1f} s; {float(limit or 0):g} s are allowed"
            + (f" (and {len(proven) - 1} more too late)" if len(proven) > 1 else ""),
            cites,
            details,
            metrics,
        )
    if missing or unknown:
        text = (
            f"{missing[0].title}: {missing[0].note}"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
            if missing
            else f"there is no phase named {', '.join(unknown)}"
        )
        return Finding(name, Verdict.UNKNOWN, text, cites, details, metrics)
    assert last is not None
    within = f", within {float(limit):g} s" if limit is not None else ""
    return Finding(
        name,
        Verdict.VALID,
        f"all {len(wanted)} phases seen; the last, {last.title}, after {last.seconds:.1f} s{within}"
        if len(wanted) > 1
        else f"{last.title} after {last.seconds:.1f} s{within}; of these faults no other phase must be seen",
        cites,
        details,
        metrics,
    )


def _maybe_earlier(view: RunView, phase: Phase, limit: float) -> str | None:
    """Why a phase that was seen too late may have been in time all the same; None if it was late.

    What rests on the observer's word is told when the observer sees it: after a time of blindness,
    however early it was.
    """
    index, cited = index_of(view), set(phase.cites)
    injected = anatomy(view).injected_at
    if injected is None or phase.seconds is None:
        return None
    if not any(op.source == "observer" for op in view.history if op.index in cited):
        return None
    for blind in blindness(index):
        until_seen = blind.until >= injected + phase.seconds - MAX_SILENCE_S
        if until_seen and blind.begin <= injected + limit:
            return blind.text
    return None


def check_healed(view: RunView) -> Finding:
    """Every fault was undone, verified, and the steady state was true again afterwards."""
    index = index_of(view)
    name = "healed"
    faults = [f for f in index.faults.values() if f.inject is not None]
    ended = index.last("run.end") is not None and index.history.truncated is None
    after = [op for op in index.all("steady") if op.data.get("when") == "after"]
    wrong: list[str] = []
    unclear: list[str] = []
    for fault in faults:
        what = f"{fault.fault} of {fault.node or '?'}"
        if fault.healed is not None and fault.healed.data.get("verified"):
            continue
        if fault.healed is not None:
            wrong.append(f"{what} is not healed: {fault.healed.data.get('how', 'not verified')}")
        elif ended:
            wrong.append(f"{what} was never healed")
        else:
            unclear.append(f"{what}: the history ends before it was healed")
    if not after:
        unclear.append("nobody looked whether the steady state was true afterwards")
    elif not after[-1].data.get("ok"):
        problems = "; ".join(map(str, after[-1].data.get("problems", []))) or "no reason given"
        wrong.append(f"the cluster is not steady afterwards: {problems}")
    elif any(
        f.inject is not None and index.at(f.inject) > index.at(after[-1]) + SLACK for f in faults
    ):
        unclear.append("nobody looked at the steady state after the last fault")
    cites = _indices(*(f.healed or f.plan for f in faults), *after[-1:])
    if wrong or unclear:
        texts = wrong + unclear
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        verdict = Verdict.INVALID if wrong else Verdict.UNKNOWN
        return Finding(name, verdict, texts[0] + more, cites, texts)
    count = f"{len(faults)} faults healed" if len(faults) != 1 else "the fault is healed"
    return Finding(
        name,
        Verdict.VALID,
        f"{count if faults else 'no fault was injected'}, and the steady state is true",
        cites,
    )
