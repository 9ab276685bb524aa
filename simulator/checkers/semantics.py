"""Was what the program promised kept: at most once, only one of a name, whole groups, nothing left in use?

These promises are easily made in a docstring and easily broken by one option of a submission, or by a node
that Ray has given up and that goes on. So nothing here is asked of the program or of Ray's books where the
effect ledger can tell: executions, deeds and lives of actors are what they wrote there themselves, on nodes
that Ray may have lost sight of.

A promise that nothing put to the test is not known to be kept.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.evidence import blindness, gaps_of
from simulator.checkers.index import SLACK, Execution, Index, index_of
from simulator.checkers.results import SHOWN
from simulator.history import Op

#: Amounts of resources are sums of fractions: smaller ones are none.
ROUNDING = 1e-6


@dataclass
class _Case:
    """What is proven wrong, with the operations that prove it, and what cannot be told."""

    check: str
    metrics: dict[str, Any] = field(default_factory=dict)
    wrong: list[tuple[str, Sequence[Op]]] = field(default_factory=list)
    unclear: list[tuple[str, Sequence[Op]]] = field(default_factory=list)

    def finding(self, valid: str, cites: Iterable[Op] = ()) -> Finding:
        """Invalid by what is wrong, else unknown by what is unclear, else valid."""
        for found, verdict in ((self.wrong, Verdict.INVALID), (self.unclear, Verdict.UNKNOWN)):
            if found:
                more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
                cited = sorted({op.index for _, ops in found[:SHOWN] for op in ops})
                return Finding(
                    self.check,
                    verdict,
                    found[0][0] + more,
                    cited,
                    [text for text, _ in found[:SHOWN]],
                    self.metrics,
                )
        cited = sorted({op.index for op in cites})[:SHOWN]
        return Finding(self.check, Verdict.VALID, valid, cited, metrics=self.metrics)

    def unless_complete(self, *gaps: list[str]) -> None:
        """Lines that are missing may be those that would prove something wrong."""
        self.unclear += [(f"cannot be sure: {text}", ()) for kind in gaps for text in kind[:1]]


# ---- at most once


def check_at_most_once(view: RunView) -> Finding:
    """What is not to be repeated was executed at most once for each time that it was asked for."""
    index, gaps = index_of(view), gaps_of(view)
    case = _Case("at_most_once")
    asked = _at_most_once(index)
    again = Counter(op.data["key"] for op in index.again if op.kind in _ASKING)
    ran = {key: index.executions[key] for key in asked if key in index.executions}
    for key, of_key in ran.items():
        if len(of_key) > 1 + again[key]:
            places = ", ".join(str(e.node) for e in of_key)
            times = "twice" if len(of_key) == 2 else f"{len(of_key)} times"
            case.wrong.append(
                (
                    f"{key} was executed {times} ({places}) and was to be at most once",
                    [asked[key], *(e.start_op for e in of_key)],
                )
            )
    tested = [key for key in asked if _put_to_the_test(index, key, ran.get(key, []))]
    case.metrics = {"promised": len(asked), "executed": len(ran), "interrupted": len(tested)}
    case.unless_complete(gaps.ledger, gaps.driver)
    if not asked:
        case.unclear.insert(0, ("nothing was submitted that is to be executed at most once", ()))
    elif not ran:
        case.unclear.insert(0, (f"none of the {len(asked)} was ever executed", ()))
    elif not tested:
        text = f"none of the {len(asked)} was interrupted: nothing put it to the test"
        case.unclear.append((text, ()))
    return case.finding(
        f"none of {len(ran)} was executed twice; {len(tested)} of {len(asked)} were interrupted",
        [asked[key] for key in tested],
    )


_ASKING = ("driver.submit", "driver.actor_call")


def _at_most_once(index: Index) -> dict[str, Op]:
    """What is never to be repeated: said of each, or of all tasks of a workload that retries none."""
    start = index.first("driver.start")
    none_is_retried = start is not None and start.data.get("max_retries") == 0
    return {
        **{k: op for k, op in index.submits.items() if none_is_retried or _promised(op)},
        **{k: op for k, op in index.calls.items() if _promised(op)},
    }


def _promised(op: Op) -> bool:
    return bool(op.data.get("at_most_once"))


def _put_to_the_test(index: Index, key: str, ran: Sequence[Execution]) -> bool:
    """Did anything happen to it that makes work be repeated where it may?"""
    return (
        key in index.failures
        or key in index.actor_failures
        or key in index.attempts
        or any(e.end_op is None for e in ran)
        or any(down.hit(e) for e in ran for down in index.downs(e.node))
    )


# ---- one incarnation


@dataclass
class Life:
    """One incarnation of a named actor, by what it wrote itself.

    Attributes
    ----------
    signs
        All that it wrote, in the order of time; the first is its beginning.
    ticks
        How many of them it wrote without being called.
    """

    actor: str
    id: str
    signs: list[tuple[float, Op]]
    ticks: int = 0

    @property
    def begin(self) -> float:
        return self.signs[0][0]

    @property
    def last(self) -> float:
        return self.signs[-1][0]

    @property
    def node(self) -> str | None:
        return self.signs[0][1].node


def lives_of(view: RunView) -> dict[str, list[Life]]:
    """By name of the actor, its incarnations in the order of their beginnings."""
    return view.once("lives", lambda v: _lives(index_of(v)))


def _lives(index: Index) -> dict[str, list[Life]]:
    def clock(op: Op) -> float:
        # The monotonic clock is never set, and all nodes of a machine share it.
        return index.at(op) if op.mono is None else op.mono

    found: dict[tuple[str, str], Life] = {}
    in_file: dict[tuple[str, Any], str] = {}

    def sign(actor: str, identity: str, op: Op) -> Life:
        life = found.setdefault((actor, identity), Life(actor, identity, []))
        life.signs.append((clock(op), op))
        return life

    for op in index.all("actor.start"):
        actor, identity = str(op.data["actor"]), str(op.data["exec"])
        in_file[actor, op.data.get("file")] = identity
        sign(actor, identity, op)
    for op in index.all("actor.tick"):
        sign(str(op.data["actor"]), str(op.data["incarnation"]), op).ticks += 1
    for e in index.all_executions():
        if e.actor is not None:
            # Where a call does not say whose it is, it is the one whose process wrote it.
            same_file = in_file.get((e.actor, e.start_op.data.get("file")), "")
            identity = str(e.start_op.data.get("incarnation") or same_file)
            for op in [e.start_op, *([e.end_op] if e.end_op else [])]:
                sign(e.actor, identity, op)
    lives: dict[str, list[Life]] = defaultdict(list)
    for life in found.values():
        life.signs.sort(key=lambda pair: pair[0])
        lives[life.actor].append(life)
    for of_name in lives.values():
        of_name.sort(key=lambda life: life.begin)
    return dict(lives)


def check_one_incarnation(view: RunView) -> Finding:
    """Of each named actor, no incarnation lived on after the next one had begun."""
    gaps = gaps_of(view)
    case = _Case("one_incarnation")
    lives = lives_of(view)
    replaced = [(a, b) for of_name in lives.values() for a, b in pairwise(of_name)]
    case.wrong = [_both_lived(old, new) for old, new in replaced if old.last > new.begin]
    longest = max((old.last - new.begin for old, new in replaced), default=0.0)
    case.metrics = {
        "actors": len(lives),
        "incarnations": sum(map(len, lives.values())),
        "overlapping": len(case.wrong),
        "longest_overlap_s": round(max(0.0, longest), 3),
    }
    case.unless_complete(gaps.ledger)
    if not lives:
        case.unclear.insert(0, ("no named actor wrote that it lives", ()))
    elif not replaced:
        text = f"none of {len(lives)} actors was ever replaced, so no two could live at once"
        case.unclear.append((text, ()))
    silent = [old for old, _ in replaced if not old.ticks]
    case.unclear += [
        (
            f"{old.actor} on {old.node} wrote only when it was called: it may have lived on unseen",
            [old.signs[0][1]],
        )
        for old in silent
    ]
    return case.finding(
        f"{len(lives)} actors, {len(replaced)} times replaced; none lived on when the next began",
        [op for old, new in replaced for op in (old.signs[-1][1], new.signs[0][1])],
    )


def _both_lived(old: Life, new: Life) -> tuple[str, Sequence[Op]]:
    after = [(when - new.begin, op) for when, op in old.signs if when > new.begin]
    calls = sum(op.kind == "call.start" for _, op in after)
    # A frozen one was not alive in between, and wakes up.
    first, last = after[0][0], after[-1][0]
    woke = f"it was silent until {first:.2f} s after, " if first > 1.0 else ""
    text = (
        f"{old.actor}: the one on {old.node} lived on until {last:.2f} s after the one on {new.node} "
        f"had begun ({woke}{_counted(len(after), 'sign')} of life, {_counted(calls, 'call')} executed)"
    )
    return text, [old.signs[0][1], new.signs[0][1], after[0][1], after[-1][1]]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


# ---- nothing left in use


def check_resources_free(view: RunView) -> Finding:
    """When all jobs were gone, every resource of every living node was free, and nobody waited for any."""
    index = index_of(view)
    case = _Case("resources_free")
    seen = index.last("cluster.resources")
    if seen is None:
        case.unclear.append(("nobody looked at the resources when the job was gone", ()))
        return case.finding("")
    end = index.last("workload.end")
    if end is None or end.data.get("status") not in ("SUCCEEDED", "FAILED", "STOPPED"):
        status = "is not known to have ended" if end is None else f"is {end.data.get('status')}"
        case.unclear.append((f"the job {status}, so what is in use may still be its own", [seen]))
        return case.finding("")
    if index.history.truncated is not None:
        case.unclear.append((f"the history is damaged: {index.history.truncated}", ()))
    if not seen.data["nodes"]:
        why = seen.data.get("why") or "no node was alive"
        case.unclear.append((f"Ray did not say what is in use: {why}", [seen]))
    offered = _offered(index)
    looked = 0
    for node, resources in sorted(seen.data["nodes"].items()):
        for name, (used, total) in sorted(resources.items()):
            looked += 1
            if used > ROUNDING:
                case.wrong.append((f"{node}: {used:g} of {total:g} {name} still in use", [seen]))
        totals = {_plain(name): total for name, (_, total) in resources.items()}
        for name, amount in offered.get(node, {}).items() if resources else ():
            total = totals.get(_plain(name), 0.0)
            if abs(total - amount) > ROUNDING:
                text = f"{node} offers {amount:g} {name}, and Ray's report counts {total:g}"
                case.unclear.append((text, [seen]))
        if not resources:
            case.unclear.append((f"Ray reports nothing of {node}", [seen]))
    for demand, count in seen.data.get("waiting", ()):
        wants = " and ".join(f"{amount:g} {name}" for name, amount in demand.items())
        case.wrong.append((f"somebody still waits for {wants} ({count} times)", [seen]))
    case.metrics = {"nodes": len(seen.data["nodes"]), "resources": looked}
    return case.finding(
        f"all free when the job was gone: {looked} resources of {len(seen.data['nodes'])} nodes",
        [seen],
    )


def _plain(resource: str) -> str:
    """A resource's name as both sides have it: Ray's report writes ``my_disk`` as ``myDisk``."""
    return resource.replace("_", "").lower()


def _offered(index: Index) -> Mapping[str, Mapping[str, float]]:
    """What each node was started with, as it was last listed."""
    return {
        node["name"]: {r: float(a) for r, a in (node.get("resources") or {}).items() if a}
        for op in index.all("cluster.nodes")
        for node in op.data.get("nodes", [])
    }


# ---- placement groups


@dataclass(frozen=True)
class Group:
    """A placement group of the run, as the observer saw it.

    Attributes
    ----------
    ops
        Its ``ray.group`` operations while its program was there, at least one.
    until
        When it was removed, or its program ended; infinity if neither was seen.
    """

    name: str
    ops: Sequence[Op]
    until: float

    @property
    def final(self) -> Op:
        return self.ops[-1]

    @property
    def places(self) -> Sequence[str | None]:
        """The node of each bundle in the end."""
        places: Sequence[str | None] = self.final.data.get("nodes") or self.final.data["hosts"]
        return places


def check_groups_whole(view: RunView) -> Finding:
    """Every placement group that lost a bundle was whole again: all of them on living nodes."""
    index = index_of(view)
    case = _Case("groups_whole")
    groups, blind = _groups(index), blindness(index)
    again: dict[str, list[float | None]] = {}
    for group in groups:
        again[group.name] = _whole_again(index, group)
        # What the GCS says of groups is asked about once a second.
        unseen = [b for b in blind if b.begin < group.until and b.until > group.until - 1.0]
        if unseen:
            text = f"what became of {group.name} was not seen: {unseen[0].text}"
            case.unclear.append((text, [group.final]))
            continue
        problem = _not_whole(index, group)
        if problem:
            case.wrong.append((f"{group.name} was not whole in the end: {problem}", group.ops[-3:]))
        else:
            _roll_called(index, group, case)
    lost = sum(map(len, again.values()))
    case.metrics = {"groups": len(groups), "lost_bundles": lost, "whole_again_s": again}
    case.unless_complete(gaps_of(view).run)
    if index.last("observer.end") is None:
        case.unclear.append(("the observer's last look is missing", ()))
    if not groups:
        case.unclear.insert(0, ("the run had no placement group", ()))
    elif not lost:
        text = f"none of {len(groups)} lost a bundle, so none had to be placed again"
        case.unclear.append((text, [g.final for g in groups]))
    worst = max((s for times in again.values() for s in times if s is not None), default=0.0)
    return case.finding(
        f"{len(groups)} whole in the end; {lost} times bundles were lost and placed again, "
        f"within {worst:.1f} s",
        [op for group in groups for op in group.ops],
    )


def _groups(index: Index) -> list[Group]:
    """Those that came to be in this run and were seen while their program was there."""
    begin = index.first("workload.submit")
    ends = [op for kind in ("driver.end", "workload.end") if (op := index.last(kind)) is not None]
    over = min(map(index.at, ends), default=math.inf)
    by_id: dict[str, list[Op]] = {}
    for op in index.all("ray.group"):
        by_id.setdefault(str(op.data["group_id"]), []).append(op)
    found = []
    for ops in by_id.values():
        if begin is not None and index.at(ops[0]) < index.at(begin):
            continue
        removed = (index.at(op) for op in ops if op.data["state"] == "REMOVED")
        until = min([*removed, over])
        ops = [op for op in ops if index.at(op) <= until and op.data["state"] != "REMOVED"]
        if ops:
            found.append(Group(str(ops[0].data["name"] or ops[0].data["group_id"]), ops, until))
    return found


def _whole_again(index: Index, group: Group) -> list[float | None]:
    """For each time that it lost bundles, after how many seconds it was whole; None for never."""
    found: list[float | None] = []
    whole: Op | None = None
    lost_at: float | None = None
    for op in group.ops:
        if whole is not None and lost_at is None:
            # Ray learns later than the engine that a node is gone.
            downs = [
                down.begin
                for node in whole.data.get("nodes") or ()
                for down in index.downs(node)
                if index.at(whole) <= down.begin <= index.at(op)
            ]
            lost_at = min(downs, default=index.at(op))
            found.append(None)
        if op.data["state"] == "CREATED":
            if lost_at is not None:
                found[-1] = round(index.at(op) - lost_at, 3)
            whole, lost_at = op, None
    return found


def _not_whole(index: Index, group: Group) -> str:
    """What is wrong with it in the end; "" if nothing is."""
    places, state = group.places, group.final.data["state"]
    missing = [str(i) for i, node in enumerate(places) if node is None]
    if state != "CREATED":
        which = f", with bundle {', '.join(missing)} placed nowhere" if missing else ""
        return f"Ray has it as {state}{which}"
    if missing:
        return f"bundle {', '.join(missing)} is placed nowhere"
    if group.final.data.get("strategy") == "STRICT_SPREAD" and len(set(places)) < len(places):
        return f"two of its bundles are on one node ({', '.join(map(str, places))})"
    for i, node in enumerate(places):
        gone = _gone(index, str(node), group.until)
        if gone:
            return f"bundle {i} is on {node}, {gone}"
    return ""


def _gone(index: Index, node: str, when: float) -> str:
    """Why a node was not there at that time; "" if it was."""
    state = ""
    for op in index.engine_ops:
        if op.node == node and index.at(op) <= when:
            state = op.kind.removeprefix("engine.")
    if state in ("die", "pause"):
        return "which had died" if state == "die" else "which was frozen"
    alive: set[Any] = set()
    for op in index.node_ops.get(node, ()):
        if index.at(op) <= when:
            change = alive.add if op.data.get("state") == "ALIVE" else alive.discard
            change(op.data.get("ray_node_id"))
    return "" if alive else "which Ray did not hold alive"


def _roll_called(index: Index, group: Group, case: _Case) -> None:
    """Where tasks were sent through its bundles: did one run in each since it was placed as it is?"""
    sent: dict[int, list[Op]] = {}
    for op in index.submits.values():
        if op.data.get("group") == group.name:
            sent.setdefault(int(op.data["bundle"]), []).append(op)
    since = index.at(group.final) - SLACK - index.history.uncertainty(group.final)
    for bundle, ops in sorted(sent.items()):
        node = group.places[bundle]
        ran = [e for op in ops for e in index.executions.get(op.data["key"], ()) if e.whole]
        if any(e.node == node and e.start >= since for e in ran):
            continue
        text = f"{group.name}: bundle {bundle} is on {node}, and no task ran in it there"
        failed = [f for op in ops if (f := index.failures.get(op.data["key"])) is not None]
        late = [f for f in failed if index.at(f) >= since]
        (case.wrong if late else case.unclear).append((text, [group.final, *late[-1:]]))
