"""Did everything that was to be done to the outside world happen exactly once?

Effects are reported where they happen, to the ledger: by a workload of ours, whose submissions say which effect each
is to have, or by a program of the user's (`ray_sim.effect`), which says how many there are to be, if it likes, or
is compared with an undisturbed run of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.evidence import gaps_of
from simulator.checkers.index import index_of
from simulator.history import Op

#: How many names a summary and how many details a finding lists; its metrics have the counts.
NAMED, SHOWN = 3, 20

#: The mark by which a program says which effects there are to be: how many, or their keys.
PLAN = "effects"


def check_effects_exactly_once(view: RunView) -> Finding:
    """Every effect that was asked for or reported happened exactly once."""
    name = "effects_exactly_once"
    by_key = _done(view)
    plan, planned_by, cites = _plan(view)
    gaps = _gaps(view)
    program = view.history.first("program.submit") is not None
    if not by_key and not plan and not gaps:
        if not program:
            return Finding(name, Verdict.UNKNOWN, "no effect was reported, and none was asked for")
        if plan is None:
            return Finding(name, Verdict.VALID, "the program claims no effect")
    twice = {key: of_key for key, of_key in by_key.items() if len(of_key) > 1}
    missing, count = _missing(by_key.keys(), plan)
    metrics = {
        "effects": sum(map(len, by_key.values())),
        "keys": len(by_key),
        "twice": len(twice),
        "missing": None if plan is None else count,
    }
    details = [f"{key}: {_places(of_key)}" for key, of_key in list(twice.items())[:SHOWN]]
    details += [f"{key}: never" for key in missing[:SHOWN]]
    cited = [op.index for of_key in list(twice.values())[:SHOWN] for op in of_key] + cites

    def found(verdict: Verdict, text: str) -> Finding:
        return Finding(name, verdict, text, sorted(set(cited)), details, metrics)

    wrong = []
    if twice:
        wrong.append(f"{_count(twice, 'effect')} happened more than once: {_named(twice)}")
    open_end = _open_end(view)
    if count and not open_end and not gaps:
        which = f": {_named(missing)}" if missing else ""
        wrong.append(f"{count} of {_size(plan)} never happened{which}")
    if wrong:
        return found(Verdict.INVALID, "; ".join(wrong))
    if gaps:
        return found(Verdict.UNKNOWN, f"lines of the ledger are missing: {gaps[0]}")
    if open_end:
        return found(Verdict.UNKNOWN, open_end)
    if plan is None and program and not view.spec.get("schedule"):
        text = f"each of {_count(by_key, 'effect')} was reported once; nothing was broken"
        return found(Verdict.VALID, text)
    if plan is None:
        return found(
            Verdict.UNKNOWN,
            f"each of {_count(by_key, 'effect')} was reported once; whether one is missing, nobody "
            f'knows: say mark("{PLAN}", how many), or run with --baseline',
        )
    extra = len(by_key) - _size(plan)
    if extra > 0:
        return found(
            Verdict.INVALID, f"{len(by_key)} effects happened, and {planned_by} has {_size(plan)}"
        )
    return found(Verdict.VALID, f"each of {_count(by_key, 'effect')} happened exactly once")


def _done(view: RunView) -> dict[str, list[Op]]:
    """The effects that were reported, by their keys; a line that was received twice counts once."""
    done: dict[str, list[Op]] = {}
    lines: set[tuple[Any, Any]] = set()
    for op in view.history.of("program.effect"):
        line = (op.data.get("file"), op.data.get("line"))
        if None in line or line not in lines:
            lines.add(line)
            done.setdefault(str(op.data["key"]), []).append(op)
    return done


def _gaps(view: RunView) -> list[str]:
    """Lines that are missing, of those that report effects and of those that ask for them."""
    gaps = gaps_of(view)
    return [*gaps.ledger, *(gaps.driver if _asked_for(view) else ())]


def _asked_for(view: RunView) -> dict[str, Op]:
    """The effects that submissions of a workload of ours are to have."""
    index = index_of(view)
    asked = (*index.submits.values(), *index.calls.values())
    return {str(op.data["effect"]): op for op in asked if op.data.get("effect") is not None}


def _open_end(view: RunView) -> str:
    """Why more may have happened than is known; "" if what does it is over."""
    if view.history.first("driver.end") is not None:
        return ""
    end = view.history.last("program.end", "workload.end")
    if end is not None and end.data["status"] in ("SUCCEEDED", "FAILED"):
        return ""
    return "the program did not come to an end of its own"


def _plan(view: RunView) -> tuple[Collection[str] | int | None, str, list[int]]:
    """The keys that there are to be, or how many; who says so; what that rests on."""
    asked = _asked_for(view)
    if asked:
        done = _done(view)
        never = [op.index for key, op in asked.items() if key not in done]
        return asked.keys(), "what was asked for", never[:SHOWN]
    said = [op for op in view.history.of("program.mark") if op.data["name"] == PLAN]
    if said:
        value = said[-1].data.get("value")
        if isinstance(value, list):
            return {str(key) for key in value}, "the program's own plan", [said[-1].index]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value), "the program's own plan", [said[-1].index]
    effects = (view.spec.get("baseline") or {}).get("effects")
    if not effects or (not effects["count"] and not view.history.of("program.effect")):
        return None, "", []
    keys = None if effects["keys"] is None else set(effects["keys"])
    # Keys that are drawn anew by each run have none in common with those of another.
    if keys is None or not keys & _done(view).keys():
        return int(effects["count"]), "the undisturbed run", []
    return keys, "the undisturbed run", []


def _missing(done: Collection[str], plan: Collection[str] | int | None) -> tuple[list[str], int]:
    """Which are missing, where their names are known, and how many."""
    if plan is None:
        return [], 0
    if isinstance(plan, int):
        return [], max(0, plan - len(done))
    missing = sorted(set(plan) - set(done))
    return missing, len(missing)


def _size(plan: Collection[str] | int | None) -> int:
    return plan if isinstance(plan, int) else len(plan or ())


def _named(keys: Iterable[str]) -> str:
    names = list(keys)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _places(ops: Sequence[Op]) -> str:
    nodes = Counter(op.node or "?" for op in ops)
    return ", ".join(f"{n} times on {node}" if n > 1 else f"on {node}" for node, n in nodes.items())


def _count(things: Collection[object], one: str) -> str:
    return f"{len(things)} {one}{'s' * (len(things) != 1)}"
