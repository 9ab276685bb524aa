"""When a fault may strike: each condition against histories, operation by operation."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import topology
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import BadInput
from simulator.history import History, Op
from simulator.schedule import Condition, parse_schedule, resolve

Event = tuple[str, str | None, dict[str, Any]]


def condition(text: str) -> Condition:
    (step,) = parse_schedule(f"kill worker when '{text}'")
    assert step.when is not None
    return step.when


def ops(events: list[Event]) -> list[Op]:
    return [
        Op(i, kind, "ledger", i, None, i, node, data) for i, (kind, node, data) in enumerate(events)
    ]


def course(text: str, events: list[Event]) -> str:
    """Before anything and after each operation: ``+`` where it is true, ``-`` where it is not."""
    asked = condition(text)
    watch = asked.watch()
    found = [watch.true]
    for op in ops(events):
        watch.see(op)
        found.append(watch.true)
    assert found[-1] == asked.holds(History(ops(events)))
    return "".join("+" if true else "-" for true in found)


def result(key: str) -> Event:
    return "driver.result", None, {"key": key, "value": 1}


def task(verb: str, exec_: str, node: str) -> Event:
    return f"task.{verb}", node, {"exec": exec_}


def counts(**states: int) -> Event:
    return "program.tasks", None, {"finished": 0, "failed": 0, "running": 0, **states}


def ray_node(node: str, identity: str, state: str) -> Event:
    return "ray.node", node, {"ray_node_id": identity, "state": state}


def engine(verb: str, node: str) -> Event:
    return f"engine.{verb}", node, {}


def ray_actor(identity: str, state: str, name: str = "", of: str = "Trainer") -> Event:
    return "ray.actor", None, {"actor_id": identity, "name": name, "class": of, "state": state}


def mark(name: str, value: Any = None, actor: str | None = None) -> Event:
    task_id = None if actor is None else "0123456789abcdef" + actor
    return "program.mark", None, {"name": name, "value": value, "task_id": task_id}


def fault(part: str, identity: str) -> Event:
    return f"fault.{part}", "worker-1", {"id": identity, "fault": "kill"}


# -- tasks ---------------------------------------------------------------------------------------------


def test_tasks_of_our_own_workloads_are_counted() -> None:
    failure = ("driver.failure", None, {"key": "c", "error": "E", "message": ""})
    events = [result("a"), failure, result("b"), result("c")]
    assert course("tasks(finished) > 1", events) == "---++"
    assert course("tasks(finished) == 2", events) == "---+-"
    assert course("tasks(failed) >= 1", events) == "--+++"
    assert course("tasks(failed) != 1", events) == "++---"


def test_a_running_task_ends_with_its_end_or_with_its_node() -> None:
    events = [
        task("start", "1", "worker-1"),
        task("start", "2", "worker-2"),
        task("start", "3", "worker-2"),
        task("end", "1", "worker-1"),
        engine("die", "worker-1"),
        engine("die", "worker-2"),
        task("end", "9", "worker-1"),
    ]
    assert course("tasks(running) >= 2", events) == "--++++--"
    assert course("tasks(running) < 1", events) == "+-----++"


def test_of_any_other_program_the_last_count_is_what_counts() -> None:
    events = [counts(finished=3, running=2), counts(finished=60), counts(finished=61, failed=1)]
    assert course("tasks(finished) > 50", events) == "--++"
    assert course("tasks(failed) >= 1", events) == "---+"
    assert course("tasks(running) == 2", events) == "-+--"


# -- nodes, actors and faults --------------------------------------------------------------------------


def test_a_killed_node_is_exited_at_once_and_dead_once_ray_says_so() -> None:
    events = [
        ray_node("worker-1", "a", "ALIVE"),
        ray_node("worker-2", "x", "ALIVE"),
        engine("die", "worker-1"),
        engine("die", "worker-2"),
        ray_node("worker-1", "a", "DEAD"),
        engine("start", "worker-1"),
        ray_node("worker-1", "b", "ALIVE"),
    ]
    assert course("node(worker-1) == alive", events) == "-++----+"
    assert course("node(worker-1) == exited", events) == "---+++--"
    assert course("node(worker-1) == dead", events) == "-----++-"
    assert course("node(worker-1) != dead", events) == "+++++--+"
    assert course("node(worker-2) == dead", events) == "--------"


def test_a_node_that_is_back_before_ray_noticed_is_not_dead_when_its_old_life_is() -> None:
    events = [
        ray_node("worker-1", "a", "ALIVE"),
        engine("die", "worker-1"),
        engine("start", "worker-1"),
        ray_node("worker-1", "b", "ALIVE"),
        ray_node("worker-1", "a", "DEAD"),
    ]
    assert course("node(worker-1) == dead", events) == "------"
    assert course("node(worker-1) == alive", events) == "-+-+++"


def test_a_frozen_node_is_paused_until_it_is_thawed() -> None:
    events = [
        ray_node("worker-1", "a", "ALIVE"),
        engine("pause", "worker-1"),
        ray_node("worker-1", "a", "DEAD"),
        engine("unpause", "worker-1"),
    ]
    assert course("node(worker-1) == paused", events) == "--++-"
    assert course("node(worker-1) == dead", events) == "---++"
    assert course("node(worker-1) == alive", events) == "-+---"


def test_an_actor_is_known_by_its_name_or_else_by_its_class() -> None:
    events = [
        ray_actor("a", "DEPENDENCIES_UNREADY"),
        ray_actor("a", "PENDING_CREATION"),
        ray_actor("a", "ALIVE"),
        ray_actor("b", "ALIVE", "Trainer", of="Other"),
        ray_actor("a", "DEAD"),
        ray_actor("b", "RESTARTING", "Trainer", of="Other"),
    ]
    assert course("actor(Trainer) == pending", events) == "-++----"
    assert course("actor(Trainer) == alive", events) == "---+++-"
    assert course("actor(Trainer) == restarting", events) == "------+"
    assert course("actor(Other) == dead", events) == "-------"
    assert course("actor(Nobody) != alive", events) == "-------"


def test_a_fault_is_healed_when_it_is_on_every_node_that_it_hit() -> None:
    events = [
        fault("plan", "f1.1"),
        fault("done", "f1.1"),
        fault("done", "f1.2"),
        fault("done", "f11"),
        fault("healed", "f1.2"),
        fault("healed", "f1.1"),
    ]
    assert course("fault(f1) == injected", events) == "--+++++"
    assert course("fault(f1) == healed", events) == "------+"
    assert course("fault(f1.2) == healed", events) == "-----++"
    assert course("fault(f1) != healed", events) == "++++++-"


def test_a_fault_that_was_skipped_was_neither_injected_nor_healed() -> None:
    events = [fault("plan", "f1"), fault("skipped", "f1"), fault("healed", "f1")]
    assert course("fault(f1) == skipped", events) == "--++"
    assert course("fault(f1) == healed", events) == "----"
    assert course("fault(f1) == injected", events) == "----"


# -- what a program says -------------------------------------------------------------------------------


def test_a_mark_counts_once_it_was_made_and_its_last_value_is_compared() -> None:
    events = [
        mark("other", 9),
        mark("epoch"),
        mark("epoch", 5),
        mark("epoch", True),
        mark("epoch", 2),
    ]
    assert course("mark(epoch)", events) == "--++++"
    assert course("mark(epoch) >= 5", events) == "---++-"
    assert course("mark(epoch) < 3", events) == "-----+"
    assert course("mark(epoch) != 5", [mark("epoch", "text")]) == "--"


def test_an_actors_mark_is_told_by_the_task_that_made_it() -> None:
    events = [
        mark("step", 7, actor="b"),
        mark("step", 3, actor="a"),  # in __init__: the GCS says only later that it is alive
        ray_actor("a", "ALIVE"),
        mark("step", 9),
        mark("step", "text", actor="a"),
        mark("loss", 1, actor="a"),
        ray_actor("b", "ALIVE", "mine", of="Other"),
    ]
    assert course("actor(Trainer).mark >= 3", events) == "---+++--"
    assert course("actor(mine).mark >= 3", events) == "-------+"


def test_a_tasks_id_ends_with_the_id_of_its_actor() -> None:
    raylet = pytest.importorskip("ray._raylet")
    job = raylet.JobID.from_int(3)
    driver = raylet.TaskID.for_driver_task(job)
    actor = raylet.ActorID.of(job, driver, 1)
    call = raylet.TaskID.for_actor_task(job, driver, 5, actor).hex()
    made = raylet.TaskID.for_actor_creation_task(actor).hex()
    for task_id in (call, made):
        said: Event = ("program.mark", None, {"name": "n", "value": 1, "task_id": task_id})
        assert course("actor(T).mark > 0", [said, ray_actor(actor.hex(), "ALIVE", of="T")]) == "--+"


def test_an_actors_checkpoint_is_what_it_found_and_what_it_did() -> None:
    def call(actor: str, n: int) -> Event:
        return "call.end", "worker-1", {"actor": actor, "key": f"{actor}/{n}", "exec": "1"}

    events: list[Event] = [
        ("actor.start", "worker-1", {"actor": "counter-worker-1", "restored": 0}),
        call("counter-worker-1", 1),
        call("counter-worker-2", 7),
        call("counter-worker-1", 2),
        ("actor.start", "worker-2", {"actor": "counter-worker-1", "restored": 1}),
    ]
    assert course("actor(counter-worker-1).checkpoint >= 2", events) == "----+-"
    assert course("actor(counter-worker-1).checkpoint == 0", events) == "-+----"


# -- put together --------------------------------------------------------------------------------------


def test_and_or_and_not() -> None:
    events = [mark("a"), mark("b"), mark("c")]
    assert course("mark(a) and mark(b)", events) == "--++"
    assert course("mark(b) or mark(a)", events) == "-+++"
    assert course("not mark(b)", events) == "++--"
    assert course("mark(c) or mark(a) and not mark(b)", events) == "-+-+"
    assert course("(mark(c) or mark(a)) and not mark(b)", events) == "-+--"
    assert course("not (mark(a) and mark(b))", events) == "++--"


@given(
    st.lists(st.sampled_from([result("a"), counts(finished=2), mark("a", 1), fault("done", "f1")]))
)
def test_what_is_shown_bit_by_bit_is_what_the_whole_history_shows(events: list[Event]) -> None:
    for text in (
        "tasks(finished) > 2",
        "mark(a) > 0 and fault(f1) == injected or tasks(failed) > 1",
    ):
        course(text, events)  # holds the two against each other


def test_one_condition_is_watched_in_two_runs_without_their_mixing() -> None:
    asked = condition("mark(a)")
    first, second = asked.watch(), asked.watch()
    first.see(ops([mark("a")])[0])
    assert (first.true, second.true) == (True, False)
    assert asked == condition("mark(a)")
    assert len({asked, condition("mark(a)")}) == 1


# -- in a plan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("kill one when 'node(worker-9) == dead'", "no node named 'worker-9'"),
        ("kill one when 'mark(a) or not node(nobody) == dead'", "no node named 'nobody'"),
        ("kill one; pause one when 'fault(f3) == healed'", "no fault of this schedule named 'f3'"),
        ("kill one @1s; pause one @2s when 'fault(f2.1) == healed'", "waits for itself"),
    ],
)
def test_a_condition_on_what_does_not_exist_is_refused(text: str, what: str) -> None:
    from random import Random

    with pytest.raises(BadInput, match=what):
        resolve(parse_schedule(text), topology(), Random(0))
    existing = "kill one @1s; pause one @2s when 'fault(f1.1) == healed and node(head) != dead'"
    assert len(resolve(parse_schedule(existing), topology(), Random(0))) == 2
