"""Ways in which a run could have gone wrong, applied to the history of one that did not.

Each mutation picks what it changes by its properties, so it works on built and on recorded histories, and says
which checks must answer differently afterwards; all others must answer as before. Lines of the ledger are taken
out, doubled and added *at the source*: the lines after them move up, and the observer's last count agrees.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from simulator.checkers.anatomy import anatomy
from simulator.checkers.base import RunView, Verdict
from simulator.checkers.index import Execution, index_of
from simulator.checkers.placement import Placed, placed_of
from simulator.checkers.semantics import Life, lives_of
from simulator.history import History, Op

INVALID, UNKNOWN = Verdict.INVALID, Verdict.UNKNOWN


@dataclass(frozen=True)
class Mutated:
    """A changed run and the verdicts that must differ from the original's."""

    view: RunView
    flips: Mapping[str, Verdict]


class NotHere(Exception):
    """The history has nothing that this mutation could change."""


Mutation = Callable[[RunView], Mutated]
MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


# Tools


def rebuilt(view: RunView, ops: Iterable[Op], **spec: Any) -> RunView:
    """A view of these operations, as if they had been recorded so from the start."""
    lines: dict[str, int] = defaultdict(int)
    fresh: list[Op] = []
    for index, op in enumerate(ops):
        data = op.data
        if "file" in data:
            lines[data["file"]] += 1
            data = {**data, "line": lines[data["file"]]}
        if op.kind == "observer.end":
            data = {**data, "files": dict(lines)}
        fresh.append(replace(op, index=index, data=data))
    return RunView(History(fresh), {**view.spec, **spec})


def without(view: RunView, *dropped: Op) -> RunView:
    gone = {id(op) for op in dropped}
    return rebuilt(view, (op for op in view.history if id(op) not in gone))


def doubled(view: RunView, op: Op) -> RunView:
    return rebuilt(
        view, (o for each in view.history for o in ([each, each] if each is op else [each]))
    )


def altered(view: RunView, op: Op, *, node: str | None = None, **data: Any) -> RunView:
    """The same history with one operation's data (or node) changed, and nothing else."""
    changed = replace(op, node=node or op.node, data={**op.data, **data})
    ops = [changed if each is op else each for each in view.history]
    return RunView(History(ops), view.spec)


def some(items: Iterable[Any], what: str) -> Any:
    """One from the middle: neither the first nor the last is typical."""
    found = list(items)
    if not found:
        raise NotHere(f"there is no {what}")
    return found[len(found) // 2]


def plain(view: RunView) -> Execution:
    """A task that ran once, whole, away from every victim, and whose value came back."""
    index = index_of(view)
    struck = {fault.node for fault in index.injected()}
    found: Execution = some(
        (
            of_key[0]
            for key, of_key in index.executions.items()
            if len(of_key) == 1
            and of_key[0].whole
            and of_key[0].actor is None
            and of_key[0].node not in struck
            and key in index.results
            and index.results[key].data["value"] is not None
            and not any(op.data["key"] == key for ops in index.objects_back.values() for op in ops)
        ),
        "task that ran once on a survivor",
    )
    return found


def placed(view: RunView) -> Placed:
    found = placed_of(view)
    if found is None:
        raise NotHere("the run's workload says nothing of places")
    return found


def of_places(view: RunView, verdict: Verdict) -> dict[str, Verdict]:
    """The check of the placement flips too, in a run that has it."""
    return {} if placed_of(view) is None else {"placed_right": verdict}


def of_promises(view: RunView, verdict: Verdict, *checks: str) -> dict[str, Verdict]:
    """These checks of promises flip too, in a run that has them."""
    return {name: verdict for name in checks if name in view.spec["checks"]}


def promised(view: RunView, check: str) -> None:
    if check not in view.spec["checks"]:
        raise NotHere(f"{check} is not judged in this run")


def by_the_ledger(view: RunView) -> dict[str, Verdict]:
    """Those that a line of the ledger more might have made say something else."""
    names = ("at_most_once", "effects_exactly_once", "one_incarnation")
    return {**of_places(view, UNKNOWN), **of_promises(view, UNKNOWN, *names)}


def first_fault(view: RunView) -> Any:
    return some(index_of(view).injected()[:1], "injected fault")


def without_fault(view: RunView) -> RunView:
    """As if the first fault had been skipped."""
    fault = first_fault(view)
    parts = [fault.inject, fault.done, fault.effect, fault.heal, fault.healed]
    gone = {id(op) for op in parts if op is not None}
    skipped = replace(
        fault.inject, kind="fault.skipped", data={**fault.inject.data, "why": "no node was busy"}
    )
    ops = [
        skipped if op is fault.inject else op
        for op in view.history
        if op is fault.inject or id(op) not in gone
    ]
    return rebuilt(view, ops)


def of_kind(view: RunView, kind: str, **data: Any) -> Op:
    found: Op = some(
        (
            op
            for op in view.history
            if op.kind == kind and all(op.data.get(k) == v for k, v in data.items())
        ),
        kind,
    )
    return found


# What the tasks did


@mutation
def end_dropped(view: RunView) -> Mutated:
    end = plain(view).end_op
    assert end is not None
    flips = {"executions_explained": INVALID, **of_places(view, UNKNOWN)}
    return Mutated(without(view, end), flips)


@mutation
def start_dropped(view: RunView) -> Mutated:
    flips = {"executions_explained": INVALID, **of_places(view, UNKNOWN)}
    return Mutated(without(view, plain(view).start_op), flips)


@mutation
def both_lines_dropped(view: RunView) -> Mutated:
    execution = plain(view)
    assert execution.end_op is not None
    changed = without(view, execution.start_op, execution.end_op)
    flips = {"executions_explained": INVALID, **of_places(view, UNKNOWN)}
    return Mutated(changed, flips)


@mutation
def start_doubled(view: RunView) -> Mutated:
    return Mutated(doubled(view, plain(view).start_op), {"executions_explained": INVALID})


@mutation
def end_doubled(view: RunView) -> Mutated:
    end = plain(view).end_op
    assert end is not None
    return Mutated(doubled(view, end), {"executions_explained": INVALID})


@mutation
def node_of_an_end_changed(view: RunView) -> Mutated:
    execution = plain(view)
    others = {e.node for e in index_of(view).all_executions()} - {execution.node}
    assert execution.end_op is not None
    other = some(sorted(str(node) for node in others), "other node")
    return Mutated(altered(view, execution.end_op, node=other), {"executions_explained": INVALID})


@mutation
def work_that_raised_has_a_result(view: RunView) -> Mutated:
    end = plain(view).end_op
    assert end is not None
    return Mutated(altered(view, end, ok=False), {"executions_explained": INVALID})


@mutation
def work_nobody_asked_for(view: RunView) -> Mutated:
    execution = plain(view)
    index = index_of(view)
    submit, result = index.submits[execution.key], index.results[execution.key]
    flips = {"executions_explained": INVALID, "no_task_lost": UNKNOWN}
    if submit.data.get("effect"):
        flips["effects_exactly_once"] = INVALID
    return Mutated(without(view, submit, result), flips)


@mutation
def ran_twice_without_a_reason(view: RunView) -> Mutated:
    execution = plain(view)
    start, end = execution.start_op, execution.end_op
    assert end is not None
    # Half a second later, so that it is the second execution; or when all places are free again.
    later = 0.5
    if placed_of(view) is not None:
        later += max(e.end or 0.0 for e in index_of(view).tasks()) - execution.start
    again = [
        replace(
            op,
            wall=op.wall + later,
            mono=None if op.mono is None else op.mono + later,
            data={**op.data, "exec": "0123456789abcdef"},
        )
        for op in (start, end)
    ]
    ops = [o for each in view.history for o in ([each, *again] if each is end else [each])]
    return Mutated(rebuilt(view, ops), {"executions_explained": INVALID})


@mutation
def start_of_the_retry_dropped(view: RunView) -> Mutated:
    """The task that was cut off came back, but its second execution never started."""
    index, fault = index_of(view), first_fault(view)
    injected = index.at(fault.inject)
    retries = [
        again
        for of_key in index.executions.values()
        if len(of_key) > 1 and of_key[0].actor is None and of_key[0].end is None
        for again in of_key[1:]
        if of_key[0].node == fault.node and again.node != fault.node and again.start > injected
    ]
    if not retries:
        raise NotHere("no task was cut off and tried again")
    flips = {"executions_explained": INVALID}
    taken = {
        key
        for key, ops in index.attempts.items()
        if key in index.submits and any(op.node == fault.node for op in ops)
    }
    if len({e.key for e in retries} | taken) == 1:
        flips["recovers"] = UNKNOWN
    return Mutated(without(view, max(retries, key=lambda e: e.start).start_op), flips)


@mutation
def actor_call_ran_twice(view: RunView) -> Mutated:
    index = index_of(view)
    struck = {fault.node for fault in index.injected()}
    call = some(
        (
            of_key[0]
            for of_key in index.executions.values()
            if of_key[0].actor and len(of_key) == 1 and of_key[0].node not in struck
        ),
        "actor call that ran once on a survivor",
    )
    again = [
        replace(op, wall=op.wall + 0.5, data={**op.data, "exec": "0123456789abcdef"})
        for op in (call.start_op, call.end_op)
    ]
    ops = [o for each in view.history for o in ([each, *again] if each is call.end_op else [each])]
    flips = {"executions_explained": INVALID, **of_promises(view, INVALID, "at_most_once")}
    return Mutated(rebuilt(view, ops), flips)


# Where they ran


def one_of(view: RunView, wanted: Callable[[Any], bool], what: str) -> Execution:
    """An execution of a kind that is chosen by what it needs."""
    found = placed(view)
    names = {kind.name for kind in found.kinds if wanted(kind)}
    execution: Execution = some(
        (e for (kind, _), ran in found.ran.items() if kind in names for e in ran if e.whole), what
    )
    return execution


def on_node(view: RunView, execution: Execution, node: str) -> RunView:
    """The same execution, all of it on another node."""
    ops = [
        replace(op, node=node) if op in (execution.start_op, execution.end_op) else op
        for op in view.history
    ]
    return RunView(History(ops), view.spec)


def with_nodes(view: RunView, change: Callable[[dict[str, Any]], dict[str, Any]]) -> RunView:
    """Every node offers something else than it did."""
    ops = [
        replace(op, data={"nodes": [change(dict(node)) for node in op.data["nodes"]]})
        if op.kind == "cluster.nodes"
        else op
        for op in view.history
    ]
    return RunView(History(ops), view.spec)


@mutation
def ran_where_there_is_no_gpu(view: RunView) -> Mutated:
    execution = one_of(view, lambda kind: "GPU" in kind.needs, "task that needs a GPU")
    nodes = [o.node for o in placed(view).nodes if not o.resources.get("GPU")]
    changed = on_node(view, execution, some(nodes, "node without a GPU"))
    return Mutated(changed, {"placed_right": INVALID})


@mutation
def ran_without_its_custom_resource(view: RunView) -> Mutated:
    custom = some((set(placed(view).resources) - {"CPU", "GPU"}), "custom resource")
    execution = one_of(view, lambda kind: custom in kind.needs, "task that needs it")
    nodes = [o.node for o in placed(view).nodes if not o.resources.get(custom)]
    changed = on_node(view, execution, some(nodes, "node without it"))
    return Mutated(changed, {"placed_right": INVALID})


@mutation
def ran_where_the_label_is_another(view: RunView) -> Mutated:
    execution = one_of(view, lambda kind: kind.labels, "task that needs a label")
    kind = next(k for k in placed(view).kinds if k.labels and execution.key.startswith(k.name))
    nodes = [o.node for o in placed(view).nodes if o.unlike(kind) and not o.short_of(kind)]
    changed = on_node(view, execution, some(nodes, "node with another label"))
    return Mutated(changed, {"placed_right": INVALID})


@mutation
def two_held_at_once_what_is_there_once(view: RunView) -> Mutated:
    """The second of two that ran one after the other began while the first still ran."""
    found = placed(view)
    pairs = [
        (first, second)
        for (name, node), ran in found.ran.items()
        for kind in found.kinds
        if kind.name == name
        and any(found.peaks[node, r].capacity < 2 * a for r, a in kind.needs.items())
        for first, second in pairwise(ran)
        if first.whole and second.start > (first.end or 0.0)
    ]
    first, second = some(pairs, "two tasks for something that is there once")
    back = second.start - first.start - 0.001
    op = second.start_op
    early = replace(op, wall=op.wall - back, mono=None if op.mono is None else op.mono - back)
    ops = [early if each is op else each for each in view.history]
    return Mutated(RunView(History(ops), view.spec), {"placed_right": INVALID})


@mutation
def given_no_gpu(view: RunView) -> Mutated:
    execution = one_of(view, lambda kind: "GPU" in kind.needs, "task that needs a GPU")
    return Mutated(altered(view, execution.start_op, gpu_ids=[]), {"placed_right": INVALID})


@mutation
def a_gpu_that_nobody_needs(view: RunView) -> Mutated:
    """A task that needs no GPU was given one."""
    execution = one_of(view, lambda kind: "GPU" not in kind.needs, "task that needs no GPU")
    return Mutated(altered(view, execution.start_op, gpu_ids=["0"]), {"placed_right": INVALID})


@mutation
def a_gpu_too_many(view: RunView) -> Mutated:
    """Its node gave out one that it does not have."""
    execution = one_of(view, lambda kind: "GPU" in kind.needs, "task that needs a GPU")
    return Mutated(altered(view, execution.start_op, gpu_ids=["77"]), {"placed_right": INVALID})


@mutation
def simulated_gpus_among_real_ones(view: RunView) -> Mutated:
    """A task that needs no GPU was given several, one of which does not exist."""
    execution = one_of(view, lambda kind: "GPU" not in kind.needs, "task that needs no GPU")
    changed = altered(view, execution.start_op, gpu_ids=["-1", "0", "1"])
    return Mutated(changed, {"placed_right": INVALID})


@mutation
def a_simulated_gpu_that_nobody_needs(view: RunView) -> Mutated:
    execution = one_of(view, lambda kind: "GPU" not in kind.needs, "task that needs no GPU")
    changed = altered(view, execution.start_op, gpu_ids=["-1"])
    return Mutated(changed, {"placed_right": INVALID})


@mutation
def needs_more_than_any_node_offers(view: RunView) -> Mutated:
    """The mistake that is planted by ``gpu_not_asked``, seen from the other side: the spec asks for more."""
    placed(view)
    kinds = [
        {**raw, "resources": {**raw["resources"], "GPU": 99}} if i == 0 else raw
        for i, raw in enumerate(view.spec["workload"]["kinds"])
    ]
    changed = rebuilt(view, view.history, workload={**view.spec["workload"], "kinds": kinds})
    return Mutated(changed, {"placed_right": INVALID})


@mutation
def which_gpu_was_not_recorded(view: RunView) -> Mutated:
    execution = one_of(view, lambda kind: "GPU" in kind.needs, "task that needs a GPU")
    return Mutated(altered(view, execution.start_op, gpu_ids=None), {"placed_right": UNKNOWN})


@mutation
def whether_it_was_given_a_gpu_was_not_recorded(view: RunView) -> Mutated:
    """A task that needs no GPU, on a node that has some."""
    found = placed(view)
    with_gpus = {o.node for o in found.nodes if o.resources.get("GPU")}
    names = {kind.name for kind in found.kinds if "GPU" not in kind.needs}
    execution = some(
        (
            e
            for (kind, node), ran in found.ran.items()
            if kind in names and node in with_gpus
            for e in ran
        ),
        "task that needs no GPU on a node that has one",
    )
    changed = altered(view, execution.start_op, gpu_ids="0")
    return Mutated(changed, {"placed_right": UNKNOWN})


@mutation
def a_kind_that_never_ran(view: RunView) -> Mutated:
    kind = placed(view).kinds[-1].name
    gone = [op for op in view.history if str(op.data.get("key", "")).startswith(f"{kind}-")]
    return Mutated(without(view, *gone), {"placed_right": UNKNOWN, "no_task_lost": UNKNOWN})


@mutation
def all_but_the_first_of_a_kind_removed(view: RunView) -> Mutated:
    """Not a line of them is left, and the driver's own totals agree."""
    kind = placed(view).kinds[-1]
    keys = {f"{kind.name}-{number}" for number in range(2, kind.count + 1)}
    left = len(index_of(view).submits) - len(keys)
    totals: dict[str, dict[str, Any]] = {
        "driver.planned": {"tasks": left},
        "driver.end": {"submitted": left, "results": left},
    }
    ops = [
        replace(op, data={**op.data, **totals.get(op.kind, {})})
        for op in view.history
        if op.data.get("key") not in keys
    ]
    return Mutated(rebuilt(view, ops), {"placed_right": UNKNOWN})


@mutation
def a_kind_of_which_there_should_be_more(view: RunView) -> Mutated:
    placed(view)
    kinds = [
        {**raw, "count": 1000} if i == 0 else raw
        for i, raw in enumerate(view.spec["workload"]["kinds"])
    ]
    changed = rebuilt(view, view.history, workload={**view.spec["workload"], "kinds": kinds})
    return Mutated(changed, {"placed_right": UNKNOWN})


def renumbered(view: RunView, number: str) -> Mutated:
    """The last task of a kind has another number, wherever it is spoken of."""
    kind = placed(view).kinds[-1]
    last, key = f"{kind.name}-{kind.count}", f"{kind.name}-{number}"
    ops = [
        replace(op, data={**op.data, "key": key}) if op.data.get("key") == last else op
        for op in view.history
    ]
    return Mutated(RunView(History(ops), view.spec), {"placed_right": UNKNOWN})


@mutation
def a_task_beyond_the_count_of_its_kind(view: RunView) -> Mutated:
    return renumbered(view, "99999")


@mutation
def a_number_that_is_none(view: RunView) -> Mutated:
    return renumbered(view, "²")


@mutation
def submitted_asking_for_less(view: RunView) -> Mutated:
    """It ran in the right place by luck: Ray did not know that it needs a GPU."""
    execution = one_of(view, lambda kind: "GPU" in kind.needs, "task that needs a GPU")
    demand = {n: a for n, a in execution.start_op.data["demand"].items() if n != "GPU"}
    return Mutated(altered(view, execution.start_op, demand=demand), {"placed_right": INVALID})


@mutation
def submitted_asking_for_more(view: RunView) -> Mutated:
    execution = one_of(view, lambda kind: "GPU" in kind.needs, "task that needs a GPU")
    demand = {**execution.start_op.data["demand"], "ssd": 1.0}
    return Mutated(altered(view, execution.start_op, demand=demand), {"placed_right": INVALID})


@mutation
def what_ray_was_asked_for_was_not_recorded(view: RunView) -> Mutated:
    execution = one_of(view, lambda kind: kind.needs, "task that needs something")
    return Mutated(altered(view, execution.start_op, demand={}), {"placed_right": UNKNOWN})


@mutation
def ended_before_it_began(view: RunView) -> Mutated:
    """By its node's own clock, which cannot be."""
    execution = one_of(view, lambda kind: kind.needs, "task that needs something")
    start, end = execution.start_op, execution.end_op
    assert end is not None
    assert start.mono is not None
    early = replace(end, mono=start.mono - 0.01)
    ops = [early if op is end else op for op in view.history]
    return Mutated(RunView(History(ops), view.spec), {"placed_right": UNKNOWN})


@mutation
def nodes_offer_more_by_a_later_list(view: RunView) -> Mutated:
    placed(view)
    listed = of_kind(view, "cluster.nodes")
    more = [
        {**node, "resources": {name: amount + 1 for name, amount in node["resources"].items()}}
        for node in listed.data["nodes"]
    ]
    last = of_kind(view, "run.end")
    again = replace(listed, wall=last.wall, mono=last.mono, data={"nodes": more})
    ops = [o for op in view.history for o in ([again, op] if op is last else [op])]
    return Mutated(rebuilt(view, ops), {"placed_right": UNKNOWN})


@mutation
def what_nodes_offer_was_not_recorded(view: RunView) -> Mutated:
    placed(view)
    gone = [op for op in view.history if op.kind == "cluster.nodes"]
    return Mutated(without(view, *gone), {"placed_right": UNKNOWN})


@mutation
def a_limit_that_was_never_reached(view: RunView) -> Mutated:
    placed(view)

    def more(node: dict[str, Any]) -> dict[str, Any]:
        resources = dict(node["resources"])
        return {**node, "resources": {**resources, "CPU": resources.get("CPU", 0) + 50}}

    return Mutated(with_nodes(view, more), {"placed_right": UNKNOWN})


@mutation
def a_label_that_every_node_has(view: RunView) -> Mutated:
    labels = {k: v for kind in placed(view).kinds for k, v in kind.labels.items()}
    changed = with_nodes(view, lambda node: {**node, "labels": labels})
    return Mutated(changed, {"placed_right": UNKNOWN})


@mutation
def labels_that_nobody_recorded(view: RunView) -> Mutated:
    placed(view)

    def bare(node: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in node.items() if key != "labels"}

    return Mutated(with_nodes(view, bare), {"placed_right": UNKNOWN})


# What was promised


@mutation
def charge_repeated_after_the_fault(view: RunView) -> Mutated:
    """The call that was cut off ran again where its actor was restarted, as it would with retries."""
    promised(view, "at_most_once")
    index = index_of(view)
    cut = some(
        (
            of_key[0]
            for key, of_key in index.executions.items()
            if of_key[0].actor and of_key[0].end_op is None and key in index.actor_failures
        ),
        "call that was cut off",
    )
    later = some(
        (
            of_key[0]
            for of_key in index.executions.values()
            if of_key[0].actor == cut.actor
            and of_key[0].whole
            and of_key[0].node != cut.node
            and of_key[0].start > cut.start
        ),
        "call of its actor's next incarnation",
    )
    again = [
        replace(op, data={**op.data, "key": cut.key, "exec": "0123456789abcdef"})
        for op in (later.start_op, later.end_op)
    ]
    ops = [o for each in view.history for o in ([each, *again] if each is later.end_op else [each])]
    return Mutated(rebuilt(view, ops), {"at_most_once": INVALID})


@mutation
def nobody_said_at_most_once(view: RunView) -> Mutated:
    promised(view, "at_most_once")
    ops = [
        replace(op, data={k: v for k, v in op.data.items() if k != "at_most_once"})
        if op.kind == "driver.actor_call"
        else op
        for op in view.history
    ]
    # What failed is lost then.
    flips = {"at_most_once": UNKNOWN, "no_task_lost": INVALID}
    return Mutated(RunView(History(ops), view.spec), flips)


@mutation
def deed_done_twice(view: RunView) -> Mutated:
    promised(view, "effects_exactly_once")
    changed = doubled(view, of_kind(view, "program.effect"))
    return Mutated(changed, {"effects_exactly_once": INVALID})


@mutation
def deed_never_done(view: RunView) -> Mutated:
    promised(view, "effects_exactly_once")
    changed = without(view, of_kind(view, "program.effect"))
    return Mutated(changed, {"effects_exactly_once": INVALID})


@mutation
def deed_that_nobody_asked_for(view: RunView) -> Mutated:
    promised(view, "effects_exactly_once")
    deed = of_kind(view, "program.effect")
    more = replace(deed, data={**deed.data, "key": "order-4711", "file": "effect-order-4711.jsonl"})
    ops = [o for each in view.history for o in ([each, more] if each is deed else [each])]
    return Mutated(rebuilt(view, ops), {"effects_exactly_once": INVALID})


@mutation
def nobody_reported_a_deed(view: RunView) -> Mutated:
    promised(view, "effects_exactly_once")
    ops = [
        replace(op, data={k: v for k, v in op.data.items() if k != "effect"})
        for op in view.history
        if op.kind != "program.effect"
    ]
    return Mutated(rebuilt(view, ops), {"effects_exactly_once": UNKNOWN})


def replacement(view: RunView) -> tuple[Life, Life]:
    promised(view, "one_incarnation")
    found: tuple[Life, Life] = some(
        (pair for of_name in lives_of(view).values() for pair in pairwise(of_name)),
        "actor that was replaced",
    )
    return found


@mutation
def old_incarnation_lives_on(view: RunView) -> Mutated:
    """It wrote one more tick, after the next one had begun."""
    old, new = replacement(view)
    tick = next(op for _, op in reversed(old.signs) if op.kind == "actor.tick")
    after = next(op for when, op in new.signs if when > new.begin)
    late = replace(tick, wall=after.wall, mono=after.mono)
    ops = [o for each in view.history for o in ([each, late] if each is after else [each])]
    return Mutated(rebuilt(view, ops), {"one_incarnation": INVALID})


@mutation
def old_incarnation_executes_a_call(view: RunView) -> Mutated:
    """The call of another actor was its own: executed by the one that had been replaced."""
    old, new = replacement(view)
    call = some(
        (
            e
            for e in index_of(view).all_executions()
            if e.actor == old.actor
            and e.node == new.node
            and e.start_op.data.get("incarnation") == new.id
        ),
        "call of the new incarnation",
    )
    changed = altered(view, call.start_op, incarnation=old.id)
    return Mutated(changed, {"one_incarnation": INVALID})


@mutation
def incarnations_that_do_not_tick(view: RunView) -> Mutated:
    replacement(view)
    gone = [op for op in view.history if op.kind == "actor.tick"]
    return Mutated(without(view, *gone), {"one_incarnation": UNKNOWN})


@mutation
def nothing_was_replaced(view: RunView) -> Mutated:
    """Only the first incarnation of each wrote anything."""
    promised(view, "one_incarnation")
    later = {life.id for of_name in lives_of(view).values() for life in of_name[1:]}
    gone = [
        op
        for op in view.history
        if op.data.get("incarnation") in later
        or (op.kind == "actor.start" and op.data["exec"] in later)
    ]
    executions = {op.data["exec"] for op in gone if op.kind == "call.start"}
    gone += [op for op in view.history if op.kind == "call.end" and op.data["exec"] in executions]
    flips = {"one_incarnation": UNKNOWN}
    answered = index_of(view).actor_results.keys() & {op.data.get("key") for op in gone}
    return Mutated(
        without(view, *gone), {**flips, **({"executions_explained": INVALID} if answered else {})}
    )


def last_placed(view: RunView) -> Op:
    promised(view, "groups_whole")
    placed_ops = [
        op for op in view.history if op.kind == "ray.group" and op.data["state"] == "CREATED"
    ]
    return some(placed_ops[-1:], "group that was placed")  # type: ignore[no-any-return]


@mutation
def group_never_whole_again(view: RunView) -> Mutated:
    return Mutated(without(view, last_placed(view)), {"groups_whole": INVALID})


@mutation
def two_bundles_on_one_node(view: RunView) -> Mutated:
    op = last_placed(view)
    nodes = [op.data["nodes"][0], *op.data["nodes"][:1], *op.data["nodes"][2:]]
    return Mutated(altered(view, op, nodes=nodes), {"groups_whole": INVALID})


@mutation
def bundle_on_a_node_that_nobody_knows(view: RunView) -> Mutated:
    op = last_placed(view)
    nodes = [*op.data["nodes"][:-1], "worker-99"]
    return Mutated(altered(view, op, nodes=nodes), {"groups_whole": INVALID})


@mutation
def group_lost_nothing(view: RunView) -> Mutated:
    last_placed(view)
    placed_ops = [
        op for op in view.history if op.kind == "ray.group" and op.data["state"] == "CREATED"
    ]
    lost = [
        op
        for op in view.history
        if op.kind == "ray.group"
        and op.index > placed_ops[0].index
        and op.data["state"] != "REMOVED"
    ]
    return Mutated(without(view, *lost), {"groups_whole": UNKNOWN})


@mutation
def no_roll_call_since_the_group_was_placed(view: RunView) -> Mutated:
    index, since = index_of(view), index_of(view).at(last_placed(view))
    gone = [
        op
        for key, asked in index.submits.items()
        if asked.data.get("bundle") == 0
        for e in index.executions.get(key, ())
        if e.start >= since - 1.0
        for op in (e.start_op, e.end_op)
        if op is not None
    ]
    some(gone, "roll call since then")
    # That of each there is a result all the same has no explanation.
    flips = {"groups_whole": UNKNOWN, "executions_explained": INVALID}
    return Mutated(without(view, *gone), flips)


def left(view: RunView) -> Op:
    promised(view, "resources_free")
    return of_kind(view, "cluster.resources")


@mutation
def something_left_in_use(view: RunView) -> Mutated:
    op = left(view)
    nodes = {**op.data["nodes"], "worker-1": {"CPU": [0.25, 1.0]}}
    return Mutated(altered(view, op, nodes=nodes), {"resources_free": INVALID})


@mutation
def somebody_still_waits(view: RunView) -> Mutated:
    changed = altered(view, left(view), waiting=[[{"CPU": 1.0}, 1]])
    return Mutated(changed, {"resources_free": INVALID})


@mutation
def nobody_looked_at_the_resources(view: RunView) -> Mutated:
    return Mutated(without(view, left(view)), {"resources_free": UNKNOWN})


@mutation
def ray_said_nothing_of_a_node(view: RunView) -> Mutated:
    op = left(view)
    changed = altered(view, op, nodes={**op.data["nodes"], "worker-1": {}})
    return Mutated(changed, {"resources_free": UNKNOWN})


# What came back


@mutation
def result_altered(view: RunView) -> Mutated:
    op = index_of(view).results[plain(view).key]
    return Mutated(altered(view, op, value=op.data["value"] + 1), {"results_right": INVALID})


@mutation
def actor_total_altered(view: RunView) -> Mutated:
    answers = [op for op in view.history if op.kind == "driver.actor_result"]
    op = some(answers[-1:], "actor result")
    return Mutated(altered(view, op, value=op.data["value"] + 1), {"results_right": INVALID})


@mutation
def rebuilt_object_altered(view: RunView) -> Mutated:
    op = of_kind(view, "driver.object_back")
    return Mutated(altered(view, op, value=op.data["value"] + 1), {"results_right": INVALID})


@mutation
def result_came_twice(view: RunView) -> Mutated:
    op = index_of(view).results[plain(view).key]
    return Mutated(doubled(view, op), {"results_right": INVALID})


@mutation
def result_dropped(view: RunView) -> Mutated:
    op = index_of(view).results[plain(view).key]
    return Mutated(without(view, op), {"no_task_lost": INVALID})


@mutation
def result_became_a_failure(view: RunView) -> Mutated:
    op = index_of(view).results[plain(view).key]
    data = {k: v for k, v in op.data.items() if k != "value"}
    failure = replace(op, kind="driver.failure", data={**data, "error": "WorkerCrashedError"})
    ops = [failure if each is op else each for each in view.history]
    return Mutated(rebuilt(view, ops), {"no_task_lost": INVALID})


@mutation
def actor_result_dropped(view: RunView) -> Mutated:
    return Mutated(without(view, of_kind(view, "driver.actor_result")), {"no_task_lost": INVALID})


@mutation
def driver_counted_more(view: RunView) -> Mutated:
    changed = altered(view, of_kind(view, "driver.end"), submitted=8000)
    return Mutated(changed, {"no_task_lost": UNKNOWN})


@mutation
def driver_counted_a_failure(view: RunView) -> Mutated:
    changed = altered(view, of_kind(view, "driver.end"), failures=1)
    return Mutated(changed, {"no_task_lost": UNKNOWN})


@mutation
def driver_planned_more(view: RunView) -> Mutated:
    changed = altered(view, of_kind(view, "driver.planned"), tasks=8000)
    return Mutated(changed, {"no_task_lost": UNKNOWN})


@mutation
def driver_did_not_finish(view: RunView) -> Mutated:
    return Mutated(without(view, of_kind(view, "driver.end")), {"no_task_lost": UNKNOWN})


@mutation
def workload_failed(view: RunView) -> Mutated:
    """After its driver's last word."""
    changed = altered(view, of_kind(view, "workload.end"), status="FAILED")
    return Mutated(changed, {"no_task_lost": UNKNOWN})


# What the faults did


@mutation
def effect_dropped(view: RunView) -> Mutated:
    effect = first_fault(view).effect
    flips = {"fault_hit_work": UNKNOWN, "recovers": UNKNOWN}
    return Mutated(without(view, effect), flips)


@mutation
def effect_not_verified(view: RunView) -> Mutated:
    effect = first_fault(view).effect
    flips = {"fault_hit_work": UNKNOWN, "recovers": UNKNOWN}
    return Mutated(altered(view, effect, verified=False), flips)


@mutation
def fault_skipped(view: RunView) -> Mutated:
    """Nothing was injected: what ran again has no reason now, and nothing recovered."""
    flips = {"fault_hit_work": UNKNOWN, "recovers": UNKNOWN, "evidence": UNKNOWN}
    return Mutated(without_fault(view), flips)


@mutation
def dead_dropped(view: RunView) -> Mutated:
    fault = first_fault(view)
    death = index_of(view).death(fault.node, index_of(view).at(fault.inject))
    if death is None:
        raise NotHere("nobody was declared dead")
    return Mutated(without(view, death), {"recovers": UNKNOWN})


@mutation
def rejoin_dropped(view: RunView) -> Mutated:
    fault = first_fault(view)
    rejoin = index_of(view).rejoin(fault.node, index_of(view).at(fault.inject))
    if rejoin is None:
        raise NotHere("the node did not come back")
    # What Ray says of a bundle there, on a node that nobody saw join, does not count.
    flips = {"recovers": UNKNOWN, **of_promises(view, INVALID, "groups_whole")}
    return Mutated(without(view, rejoin), flips)


@mutation
def actor_never_alive_again(view: RunView) -> Mutated:
    index, phase = index_of(view), anatomy(view).phase("actor_alive")
    alive = [op for op in view.history if op.index in phase.cites and op.kind == "ray.actor"]
    last = some(sorted(alive, key=index.at)[-1:], "actor that came back")
    return Mutated(without(view, last), {"recovers": UNKNOWN})


@mutation
def recovered_too_late(view: RunView) -> Mutated:
    seen = [p.seconds for p in anatomy(view).phases if p.seconds is not None]
    if not seen:
        raise NotHere("nothing had to recover")
    last = max(seen)
    changed = rebuilt(view, view.history, recovery_timeout_s=last / 2)
    return Mutated(changed, {"recovers": INVALID})


@mutation
def healed_dropped(view: RunView) -> Mutated:
    return Mutated(without(view, first_fault(view).healed), {"healed": INVALID})


@mutation
def heal_not_verified(view: RunView) -> Mutated:
    healed = first_fault(view).healed
    return Mutated(altered(view, healed, verified=False), {"healed": INVALID})


@mutation
def not_steady_afterwards(view: RunView) -> Mutated:
    op = of_kind(view, "steady", when="after")
    changed = altered(view, op, ok=False, problems=["worker-2 is not alive"])
    return Mutated(changed, {"healed": INVALID})


@mutation
def nobody_looked_afterwards(view: RunView) -> Mutated:
    return Mutated(without(view, of_kind(view, "steady", when="after")), {"healed": UNKNOWN})


# What nobody asked for


def befell(view: RunView, kind: str, **data: Any) -> Mutated:
    """Something befell a node that no fault was on, while nothing ran there."""
    index = index_of(view)
    struck = {fault.node for fault in index.injected()} | index.heads
    nodes = sorted({e.node for e in index.tasks() if e.node} - struck)
    node = some(nodes, "worker that no fault was on")
    last = max((e.end or e.start for e in index.executions_on(node)), default=0.0)
    moment = of_kind(view, "driver.end")
    if index.at(moment) <= last:
        raise NotHere("work until the very end")
    op = Op(0, kind, "orchestrator", index.at(moment), None, moment.received, node, data)
    ops = [o for each in view.history for o in ([each, op] if each is moment else [each])]
    # A bundle of a group was there.
    flips = {"evidence": UNKNOWN, **of_promises(view, INVALID, "groups_whole")}
    if kind == "engine.oom":
        flips.pop("groups_whole", None)
    return Mutated(rebuilt(view, ops), flips)


@mutation
def node_died_by_itself(view: RunView) -> Mutated:
    return befell(view, "engine.die", exit_code=137)


@mutation
def node_froze_by_itself(view: RunView) -> Mutated:
    return befell(view, "engine.pause")


@mutation
def node_out_of_memory_by_itself(view: RunView) -> Mutated:
    return befell(view, "engine.oom")


@mutation
def node_declared_dead_by_itself(view: RunView) -> Mutated:
    index = index_of(view)
    struck = {fault.node for fault in index.injected()} | index.heads
    node = some(sorted(set(index.node_ops) - struck), "worker that no fault was on")
    moment = of_kind(view, "driver.end")
    life = index.incarnation(node, index.at(moment))
    assert life is not None
    dead = replace(
        life, source="orchestrator", wall=index.at(moment), data={**life.data, "state": "DEAD"}
    )
    ops = [o for each in view.history for o in ([each, dead] if each is moment else [each])]
    flips = {"evidence": UNKNOWN, **of_promises(view, INVALID, "groups_whole")}
    return Mutated(rebuilt(view, ops), flips)


# What was seen


@mutation
def count_off(view: RunView) -> Mutated:
    end = of_kind(view, "observer.end")
    files = dict(end.data["files"])
    name = some(sorted(files), "ledger file")
    files[name] += 1
    flips = {"evidence": UNKNOWN, **({} if name == "driver.jsonl" else by_the_ledger(view))}
    return Mutated(altered(view, end, files=files), flips)


@mutation
def ledger_file_never_arrived(view: RunView) -> Mutated:
    end = of_kind(view, "observer.end")
    files = {**end.data["files"], "worker-9-1-4711.jsonl": 3}
    flips = {"evidence": UNKNOWN, **by_the_ledger(view)}
    return Mutated(altered(view, end, files=files), flips)


@mutation
def line_lost_on_the_way(view: RunView) -> Mutated:
    """Unlike `end_dropped`: the source wrote it, so nothing is proven against the run."""
    end = plain(view).end_op
    ops = [op for op in view.history if op is not end]
    flips = {"evidence": UNKNOWN, "executions_explained": UNKNOWN, **by_the_ledger(view)}
    return Mutated(RunView(History(ops), view.spec), flips)


@mutation
def result_lost_on_the_way(view: RunView) -> Mutated:
    result = index_of(view).results[plain(view).key]
    ops = [op for op in view.history if op is not result]
    flips = {
        "evidence": UNKNOWN,
        "no_task_lost": UNKNOWN,
        **of_promises(view, UNKNOWN, "at_most_once", "effects_exactly_once"),
    }
    return Mutated(RunView(History(ops), view.spec), flips)


@mutation
def observer_without_end(view: RunView) -> Mutated:
    flips = {
        "evidence": UNKNOWN,
        **by_the_ledger(view),
        **of_promises(view, UNKNOWN, "groups_whole"),
    }
    return Mutated(without(view, of_kind(view, "observer.end")), flips)


@mutation
def observer_silent(view: RunView) -> Mutated:
    """Ten seconds without a heartbeat."""
    beats = [op for op in view.history if op.kind == "observer.beat"]
    middle = some(beats, "heartbeat")
    gone = [op for op in beats if abs(op.wall - middle.wall) < 5.0]
    return Mutated(without(view, *gone), {"evidence": UNKNOWN})


@mutation
def observer_blind(view: RunView) -> Mutated:
    """The GCS does not answer for a moment, just after the injection."""
    index = index_of(view)
    injected = index.at(first_fault(view).inject)
    later = [op for op in index.beats if index.at(op) > injected]
    beat = some(later[:1], "heartbeat after the injection")
    return Mutated(altered(view, beat, gcs=False), {"evidence": UNKNOWN})


@mutation
def line_garbled(view: RunView) -> Mutated:
    """The observer could not read a line; what it says may be what is missing."""
    end = plain(view).end_op
    assert end is not None
    where = {"file": end.data["file"], "line": end.data["line"]}
    garbled = replace(end, kind="observer.garbled", source="observer", data=where)
    ops = [garbled if op is end else op for op in view.history]
    flips = {"evidence": UNKNOWN, "executions_explained": UNKNOWN, **by_the_ledger(view)}
    return Mutated(RunView(History(ops), view.spec), flips)


@mutation
def attempts_dropped(view: RunView) -> Mutated:
    op = of_kind(view, "attempts.complete")
    return Mutated(altered(view, op, dropped=7), {"evidence": UNKNOWN})


@mutation
def attempts_forgotten(view: RunView) -> Mutated:
    op = of_kind(view, "attempts.complete")
    return Mutated(altered(view, op, forgotten=True), {"evidence": UNKNOWN})


@mutation
def history_cut_off(view: RunView) -> Mutated:
    cut = History(view.history.ops, truncated="line 9 of history.jsonl is cut off")
    flips = {
        "evidence": UNKNOWN,
        **by_the_ledger(view),
        **of_promises(view, UNKNOWN, "groups_whole", "resources_free"),
    }
    return Mutated(RunView(cut, view.spec), flips)


@mutation
def run_interrupted(view: RunView) -> Mutated:
    op = of_kind(view, "run.end")
    flips = {"evidence": UNKNOWN, **of_promises(view, UNKNOWN, "groups_whole")}
    return Mutated(altered(view, op, status="interrupted"), flips)


def counts(view: RunView) -> Counter[str]:
    """How many operations of each kind; for asserting that a mutation changed something."""
    return Counter(op.kind for op in view.history)
