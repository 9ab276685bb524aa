"""What outlived the head: each thing that was there before it died, and whether the same was there afterwards.

What was made is the driver's word (``driver.made``); what was found is that of a program that came new to the cluster
when it was whole again (``survey.found``), of the driver for what only its program can reach, of the ledger for
tasks, and of the runner for the job. The same is there only if it shows that it is: an actor by its process and its
count, a placement group by its id and nodes, nodes by their ids in Ray. docs/guides/head-failure.md explains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.evidence import gaps_of
from simulator.checkers.index import SLACK, Index, index_of
from simulator.history import Op

#: What each thing is called, in the order in which they are shown.
ITEMS: Mapping[str, str] = {
    "worker_nodes": "worker nodes, the same to Ray",
    "job": "the job, to its end",
    "detached_actor": "a detached actor and its state",
    "named_actor": "an actor with a name and its state",
    "actor": "an actor without a name and its state",
    "placement_group": "a placement group",
    "kv": "an entry in the key-value store",
    "serve": "a Serve application and its replica",
    "running_tasks": "tasks that were running",
    "queued_tasks": "tasks that were waiting",
    "task_records": "Ray's records of finished tasks",
}

#: What a store keeps, by its name in the topology; what is not named is gone with the head.
KEPT: Mapping[str, frozenset[str]] = {
    "memory": frozenset(),
    "rocksdb": frozenset(ITEMS) - {"task_records"},
    "redis": frozenset(ITEMS) - {"task_records"},
}

#: What the client called, in words.
CALLS: Mapping[str, str] = {
    "actor_call": "a call of an actor",
    "task": "a new task",
    "serve_request": "a request to Serve, by its handle",
    "name_lookup": "asking for the names of actors",
    "kv": "reading the key-value store",
    "new_actor": "a new actor",
}

#: These need the GCS.
OF_THE_GCS = ("name_lookup", "kv", "new_actor")


@dataclass(slots=True)
class Item:
    """One thing.

    Attributes
    ----------
    expected
        Whether it is to be there.
    survived
        Whether the same was there; None if nobody knows.
    how
        By what that shows, or why it is not known.
    """

    name: str
    expected: bool
    survived: bool | None = None
    how: str = ""
    cites: list[int] = field(default_factory=list)

    @property
    def title(self) -> str:
        return ITEMS[self.name]

    @property
    def as_expected(self) -> bool | None:
        return None if self.survived is None else self.survived == self.expected

    def to_data(self) -> dict[str, Any]:
        return {
            "item": self.name,
            "title": self.title,
            "expected": self.expected,
            "survived": self.survived,
            "how": self.how,
            "cites": sorted(self.cites),
        }


@dataclass(frozen=True, slots=True)
class Outage:
    """Between two calls that came back there were more than a second or so.

    Attributes
    ----------
    what
        What was called.
    begin, end
        The last call that came back before, and the first one after; None if none did.
    failures
        Calls that ended with an error meanwhile; others just waited.
    """

    what: str
    begin: float
    end: float | None
    failures: int
    error: str
    ops: tuple[Op, ...]

    @property
    def seconds(self) -> float | None:
        return None if self.end is None else self.end - self.begin


@dataclass(slots=True)
class Survival:
    """All of it.

    Attributes
    ----------
    store
        Where the head kept its tables.
    struck
        When the first fault that took effect was injected; None if none did.
    head_died
        Whether it went down at all.
    """

    store: str
    struck: float | None
    head_died: bool
    items: Sequence[Item]
    outages: Sequence[Outage]

    def since(self, when: float) -> float:
        """Seconds since the fault; where there was none, the time itself."""
        return when - (self.struck or 0.0)

    def to_data(self) -> dict[str, Any]:
        """For result.json; seconds since the fault."""

        def since(when: float | None) -> float | None:
            return None if when is None else round(self.since(when), 6)

        return {
            "store": self.store,
            "head_died": self.head_died,
            "items": [item.to_data() for item in self.items],
            "outages": [
                {
                    "what": o.what,
                    "title": CALLS.get(o.what, o.what),
                    "from_s": since(o.begin),
                    "to_s": since(o.end),
                    "seconds": None if o.seconds is None else round(o.seconds, 6),
                    "failures": o.failures,
                    "error": o.error,
                }
                for o in self.outages
            ],
        }


def survival_of(view: RunView) -> Survival | None:
    """What became of everything; None of a run that made nothing of the kind."""
    return view.once("survival", _survival)


def _survival(view: RunView) -> Survival | None:
    index = index_of(view)
    made = {str(op.data["item"]): op for op in index.all("driver.made")}
    if not made:
        return None
    topology = view.spec.get("topology")
    store = str((topology or {}).get("gcs", "memory"))
    items = _Items(view, index, store, made)
    return Survival(store, items.struck, items.head_died, items.found, outages_of(index))


class _Items:
    def __init__(self, view: RunView, index: Index, store: str, made: Mapping[str, Op]) -> None:
        self.view, self.index, self.made = view, index, made
        self.after = {
            str(op.data["item"]): op
            for kind in ("survey.found", "driver.found")
            for op in index.all(kind)
        }
        # What was only tried has put nothing to the test.
        hits = (f.inject for f in index.injected() if f.inject is not None and f.took_effect)
        self.struck = next(map(index.at, hits), None)
        self.head_died = self.struck is not None and any(
            op.kind == "engine.die" and op.node == "head" and index.at(op) >= self.struck - SLACK
            for op in index.engine_ops
        )
        # One that only stalled, or could not reach its store, has lost nothing.
        kept = KEPT.get(store, frozenset()) if self.head_died else frozenset(ITEMS)
        tasks = ("running_tasks", "queued_tasks")
        names = [n for n in ITEMS if n in made or n == "job" or n in tasks]
        self.found = [Item(name, name in kept) for name in names]
        for item in self.found:
            if self.struck is None:
                item.how = "nothing was broken, as far as was seen"
            elif item.name == "job":
                self._job(item)
            elif item.name in tasks:
                self._tasks(item)
            else:
                self._thing(item)

    def _job(self, item: Item) -> None:
        end, said = self.index.last("workload.end"), self.index.first("driver.end")
        item.cites += [op.index for op in (end, said) if op is not None]
        if end is None:
            item.how = "nobody saw its end"
            return
        status = str(end.data.get("status"))
        item.survived = status == "SUCCEEDED" and said is not None
        item.how = f"Ray says {status}" + (
            "" if item.survived else f": {end.data.get('message') or 'no reason'}"
        )

    def _tasks(self, item: Item) -> None:
        """Those that were under way when the head was struck, or had not begun."""
        index, struck = self.index, self.struck
        assert struck is not None
        prefix = item.name.partition("_")[0]
        keys = [k for k in index.submits if k.startswith(f"{prefix}-")]
        item.cites += [index.submits[k].index for k in keys]
        if not keys:
            item.how = "there was none"
            return
        begun = {
            key: [e for e in index.executions.get(key, ()) if e.start < struck] for key in keys
        }
        if prefix == "running" and not all(
            any(e.running_at(struck) for e in begun[k]) for k in keys
        ):
            item.how = "not all of them ran when the head was struck"
            return
        if prefix == "queued" and any(begun.values()):
            item.how = "not all of them waited when the head was struck"
            return
        if gaps := gaps_of(self.view).ledger:
            item.how = gaps[0]
            return
        back = [k for k in keys if k in index.results]
        again = [k for k in keys if len(index.executions.get(k, ())) > 1]
        item.cites += [index.results[k].index for k in back]
        item.survived = len(back) == len(keys) and not again
        item.how = f"{len(back)} of {len(keys)} came back"
        if back:
            item.how += f", {', '.join(again)} after a second time" if again else ", run once each"

    def _thing(self, item: Item) -> None:
        before, after = self.made[item.name], self.after.get(item.name)
        item.cites.append(before.index)
        was: Mapping[str, Any] = before.data.get("evidence") or {}
        if item.name == "task_records" and not was.get("rows"):
            item.how = "Ray had none of it before either"
            return
        if after is None:
            self._unseen(item)
            return
        item.cites.append(after.index)
        found = after.data.get("found")
        if found is None:
            item.how = f"looked for in vain: {after.data.get('error')}: {after.data.get('message')}"
        elif not found:
            item.survived, item.how = False, str(after.data.get("why"))
        else:
            item.survived, item.how = _same(item.name, was, after.data.get("evidence") or {})

    def _unseen(self, item: Item) -> None:
        """Nobody looked; of what is the program's own, its end says enough."""
        lost = self.index.last("workload.end")
        ended = self.index.first("driver.end")
        if item.name == "actor" and ended is None and lost is not None:
            item.cites.append(lost.index)
            item.survived, item.how = False, "its owner, the job's driver, was lost"
        else:
            item.how = "nobody looked for it afterwards"


def _same(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether what was found is what was made, and by what that shows."""
    if name == "worker_nodes":
        kept = [n for n in was["nodes"] if n in now["nodes"]]
        return kept == was["nodes"], f"{len(kept)} of {len(was['nodes'])} have their ids in Ray"
    if name == "kv":
        return now["value"] == was["value"], "it holds the same value" if (
            now["value"] == was["value"]
        ) else "it holds another value"
    if name == "task_records":
        return now["rows"] > 0, f"the State API lists {now['rows']} of a task that was done before"
    if name == "placement_group":
        same = now["id"] == was["id"] and now["nodes"] == was["nodes"]
        return same, "the same id, bundles on the same nodes, and tasks run there" if (
            same
        ) else "another id, or bundles on other nodes"
    # An actor, or a replica of Serve.
    same = now["pid"] == was["pid"] and now["count"] > was["count"]
    if now["pid"] != was["pid"]:
        return False, f"process {now['pid']} instead of {was['pid']}: it was made anew"
    text = f"the same process, and it counts on from {was['count']} to {now['count']}"
    return same, text if same else f"the same process, but it counts {now['count']}"


def outages_of(index: Index) -> list[Outage]:
    """Every time for which a call of the client did not come back, in the order of their beginnings."""
    found: list[Outage] = []
    down: dict[str, Op] = {}
    for op in index.all("driver.probe"):
        what, last = str(op.data["what"]), op.data.get("last_ok")
        if not op.data["ok"]:
            down[what] = op
            continue
        began = down.pop(what, None)
        if last is None:
            continue  # its first call
        offset = index.at(op) - op.wall if op.wall is not None else 0.0
        found.append(
            Outage(
                what,
                float(last) + offset,
                index.at(op),
                int(op.data.get("failures") or 0),
                "" if began is None else str(began.data.get("error", "")),
                (op,) if began is None else (began, op),
            )
        )
    for what, op in down.items():
        if op.data.get("last_ok") is not None:
            offset = index.at(op) - op.wall if op.wall is not None else 0.0
            begin, error = float(op.data["last_ok"]) + offset, str(op.data.get("error", ""))
            found.append(Outage(what, begin, None, 1, error, (op,)))
    return sorted(found, key=lambda outage: outage.begin)


def check_outlives_head(view: RunView) -> Finding:
    """What the store keeps was there afterwards, and the same; what it does not keep was gone."""
    name = "outlives_head"
    found = survival_of(view)
    if found is None:
        return Finding(name, Verdict.UNKNOWN, "nothing was made whose survival could be seen")
    if found.store not in KEPT:
        return Finding(name, Verdict.UNKNOWN, f"what {found.store} keeps is not known")
    cites = sorted({i for item in found.items for i in item.cites})
    wrong = [item for item in found.items if item.as_expected is False]
    unseen = [item for item in found.items if item.as_expected is None]
    details = [f"{item.title}: {_word(item)} ({item.how})" for item in (*wrong, *unseen)]
    if wrong:
        first = wrong[0]
        text = f"{first.title}: {_word(first)}, and was not to be: {first.how}"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return Finding(name, Verdict.INVALID, text + more, cites, details)
    if unseen:
        return Finding(name, Verdict.UNKNOWN, f"{unseen[0].title}: {unseen[0].how}", cites, details)
    kept = [item for item in found.items if item.survived]
    lost = [item for item in found.items if not item.survived]
    count = f"{len(kept)} of {len(found.items)}"
    text = (
        f"with {found.store}, {count} things outlived the head"
        if found.head_died
        else f"{count} things are there as before; the head lived on"
    )
    if kept and lost:
        text += f"; lost, as was to be expected: {', '.join(item.title for item in lost)}"
    metrics = {"kept": len(kept), "lost": len(lost)}
    return Finding(name, Verdict.VALID, text, cites, metrics=metrics)


def _word(item: Item) -> str:
    return {True: "survived", False: "lost", None: "not known"}[item.survived]
