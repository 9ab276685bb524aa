"""Promises: what each check proves, what it finds, and when it says unknown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.registry import CHECKERS, run_checks
from simulator.history import History, Op

VALID, UNKNOWN, INVALID = Verdict.VALID, Verdict.UNKNOWN, Verdict.INVALID

PROMISES = (
    "at_most_once",
    "effects_exactly_once",
    "one_incarnation",
    "groups_whole",
    "resources_free",
)


@dataclass
class Story:
    """A run of twenty seconds in which worker-2 is killed at 10 s, dead for Ray at 14 s, and back at 16 s."""

    rows: list[tuple[float, str, str, str | None, dict[str, Any]]] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=dict)
    execs: int = 0

    def __post_init__(self) -> None:
        names = ("head", "worker-1", "worker-2")
        nodes = [{"name": n, "hostname": n, "resources": {"CPU": 1.0}} for n in names]
        self.add(-3, "cluster.nodes", nodes=nodes)
        self.add(-1, "workload.submit", job_id="j", workload="w")
        self.add(0, "driver.start", "driver", max_retries=-1, file="driver.jsonl")
        self.add(-2, "observer.start", "observer", poll_s=0.1)
        for n in range(24):
            self.add(n - 1.5, "observer.beat", "observer", n=n, gcs=True)
        for name in names:
            self.ray_node(-1.9, name, "1", "ALIVE")
        fault = {"id": "f1", "fault": "kill"}
        self.add(10, "fault.inject", node="worker-2", **fault)
        self.add(10.1, "engine.die", "engine", node="worker-2", exit_code=137)
        self.add(10.1, "fault.effect", "engine", node="worker-2", verified=True, **fault)
        self.ray_node(14, "worker-2", "1", "DEAD")
        self.add(15, "engine.start", "engine", node="worker-2")
        self.ray_node(16, "worker-2", "2", "ALIVE")
        self.add(16.2, "fault.healed", node="worker-2", verified=True, how="start", **fault)
        self.add(20, "driver.end", "driver", file="driver.jsonl")
        self.add(20.1, "workload.end", status="SUCCEEDED", message="")
        self.add(21, "run.end", status="completed")

    def add(
        self,
        when: float,
        kind: str,
        source: str = "orchestrator",
        node: str | None = None,
        **data: Any,
    ) -> Story:
        self.rows.append((when, kind, source, node, data))
        return self

    def drop(self, *kinds: str) -> Story:
        self.rows = [row for row in self.rows if row[1] not in kinds]
        return self

    def ray_node(self, when: float, node: str, life: str, state: str) -> None:
        data = {"ray_node_id": f"{node}-{life}", "hostname": node, "state": state}
        self.add(when, "ray.node", "observer", node, **data)

    def ledger(self, when: float, kind: str, node: str, **data: Any) -> Story:
        return self.add(when, kind, "ledger", node, file=f"{node}.jsonl", **data)

    def ran(
        self,
        key: str,
        node: str,
        start: float,
        end: float | None,
        actor: str | None = None,
        **more: Any,
    ) -> Story:
        """One execution of a task, or of an actor's call."""
        self.execs += 1
        what = "task" if actor is None else "call"
        facts = {"key": key, "exec": f"e{self.execs}"} | ({"actor": actor} if actor else {}) | more
        self.ledger(start, f"{what}.start", node, **facts)
        if end is not None:
            self.ledger(end, f"{what}.end", node, ok=True, **facts)
        return self

    def asked(self, when: float, key: str, kind: str = "driver.submit", **promised: Any) -> Story:
        return self.add(when, kind, "driver", key=key, file="driver.jsonl", **promised)

    def failed(self, when: float, key: str, kind: str = "driver.actor_failure") -> Story:
        return self.add(when, kind, "driver", key=key, error="ActorDiedError", file="driver.jsonl")

    def view(self, *, lost_line: str | None = None, until: float = 1e9) -> RunView:
        lines: dict[str, int] = {}
        ops: list[Op] = []
        for when, kind, source, node, data in sorted(self.rows, key=lambda row: row[0]):
            data = dict(data)
            if "file" in data:
                data["line"] = lines[data["file"]] = lines.get(data["file"], 0) + 1
            if when <= until:
                wall = 1000.0 + when
                ops.append(Op(len(ops), kind, source, wall, 50.0 + when, wall, node, data))
        if lost_line is not None:
            lines[lost_line] = lines.get(lost_line, 0) + 1
        if until > 22:
            files = {"files": lines}
            ops.append(Op(len(ops), "observer.end", "observer", 1022, 72, 1022, None, files))
        return RunView(History(ops), self.spec)


def judged(check: str, story: Story, **how: Any) -> Finding:
    return CHECKERS[check](story.view(**how))


def test_a_run_in_which_nothing_was_promised_is_unknown_by_each_check() -> None:
    for finding in run_checks(Story().view(), PROMISES):
        assert finding.verdict is UNKNOWN, finding


def test_an_empty_history_is_unknown_by_each_check() -> None:
    for finding in run_checks(RunView(History(), {}), PROMISES):
        assert finding.verdict is UNKNOWN, finding
        assert "broke" not in finding.summary


# ---- at most once


def charged() -> Story:
    """Two charges on worker-2: one before it died, and one that was cut off, and failed."""
    story = Story()
    for n, (start, end) in enumerate(((5.0, 5.5), (9.8, None)), 1):
        key = f"teller/{n}"
        story.asked(start - 0.1, key, "driver.actor_call", at_most_once=True)
        story.ran(key, "worker-2", start, end, "teller")
    return story.failed(14.1, "teller/2")


def test_a_charge_that_was_cut_off_and_not_repeated_is_valid() -> None:
    found = judged("at_most_once", charged())
    assert found.verdict is VALID, found
    assert found.metrics == {"promised": 2, "executed": 2, "interrupted": 1}
    assert found.cites


def test_a_charge_that_was_repeated_elsewhere_is_named_with_its_places() -> None:
    found = judged("at_most_once", charged().ran("teller/2", "worker-1", 15, 15.5, "teller"))
    assert found.verdict is INVALID
    assert found.summary == (
        "teller/2 was executed twice (worker-2, worker-1) and was to be at most once"
    )


def test_asked_for_twice_it_may_run_twice() -> None:
    story = charged().asked(14.2, "teller/2", "driver.actor_call", at_most_once=True)
    story.ran("teller/2", "worker-1", 15, 15.5, "teller")
    assert judged("at_most_once", story).verdict is VALID


def test_what_nothing_interrupted_was_not_put_to_the_test() -> None:
    story = Story().asked(1, "t/1", "driver.actor_call", at_most_once=True)
    found = judged("at_most_once", story.ran("t/1", "worker-1", 1.1, 1.6, "t"))
    assert found.verdict is UNKNOWN
    assert "nothing put it to the test" in found.summary


def test_what_was_asked_for_and_never_ran_is_unknown() -> None:
    story = Story().asked(1, "t/1", "driver.actor_call", at_most_once=True).failed(2, "t/1")
    found = judged("at_most_once", story)
    assert (found.verdict, found.summary) == (UNKNOWN, "none of the 1 was ever executed")


def test_tasks_of_a_workload_that_retries_none_are_at_most_once() -> None:
    story = Story().drop("driver.start")
    story.add(0, "driver.start", "driver", max_retries=0, file="driver.jsonl")
    story.asked(9, "t-1").ran("t-1", "worker-2", 9.5, None).failed(10.2, "t-1", "driver.failure")
    assert judged("at_most_once", story).verdict is VALID
    assert judged("at_most_once", story.ran("t-1", "head", 11, 12)).verdict is INVALID


def test_work_that_may_be_repeated_is_not_judged() -> None:
    story = charged().asked(9, "t-1").ran("t-1", "worker-2", 9.5, None).ran("t-1", "head", 11, 12)
    assert judged("at_most_once", story).verdict is VALID


@pytest.mark.parametrize("file", ["worker-1.jsonl", "driver.jsonl"])
def test_a_line_that_is_missing_could_be_a_second_execution(file: str) -> None:
    assert judged("at_most_once", charged(), lost_line=file).verdict is UNKNOWN


def test_a_second_execution_is_proven_whatever_else_is_missing() -> None:
    story = charged().ran("teller/2", "worker-1", 15, 15.5, "teller")
    assert judged("at_most_once", story, lost_line="worker-1.jsonl").verdict is INVALID


# ---- one incarnation


def alive(
    story: Story, life: str, node: str, start: float, end: float, *, ticks: bool = True
) -> Story:
    story.ledger(start, "actor.start", node, actor="teller", exec=life, pid=1, restored=0)
    when = start
    while ticks and when <= end:
        story.ledger(when, "actor.tick", node, actor="teller", incarnation=life, n=1)
        when = round(when + 0.25, 6)
    return story


def replaced(until: float = 10.0, **how: Any) -> Story:
    """A teller on worker-2 until some time, and from 14.6 s on one on worker-1."""
    return alive(alive(Story(), "a", "worker-2", 1, until, **how), "b", "worker-1", 14.6, 20)


def test_an_incarnation_that_ended_before_the_next_began_is_valid() -> None:
    found = judged("one_incarnation", replaced())
    assert found.verdict is VALID, found
    assert found.metrics["incarnations"] == 2
    assert found.metrics["longest_overlap_s"] == 0


def test_one_that_lives_on_unseen_by_ray_is_found_by_its_own_ticks() -> None:
    found = judged("one_incarnation", replaced(until=18.0))
    assert found.verdict is INVALID
    assert "teller: the one on worker-2 lived on until 3.40 s after the one on worker-1" in (
        found.summary
    )
    assert found.metrics["longest_overlap_s"] == pytest.approx(3.4)


def test_one_that_wakes_up_is_found_too_and_when_it_did() -> None:
    story = replaced()
    story.ledger(18.2, "actor.tick", "worker-2", actor="teller", incarnation="a", n=99)
    found = judged("one_incarnation", story)
    assert found.verdict is INVALID
    assert "it was silent until 3.60 s after" in found.summary


def test_a_call_that_the_old_one_executes_is_a_sign_of_life_and_said() -> None:
    story = replaced().ran("teller/7", "worker-2", 18, 18.3, "teller", incarnation="a")
    found = judged("one_incarnation", story)
    assert found.verdict is INVALID
    assert "1 call executed" in found.summary


def test_three_incarnations_one_after_the_other_are_valid() -> None:
    story = alive(Story(), "a", "worker-2", 1, 10)
    alive(story, "b", "worker-1", 11, 13)
    assert judged("one_incarnation", alive(story, "c", "head", 14, 20)).verdict is VALID


def test_the_first_of_three_that_outlives_the_second_is_found() -> None:
    story = alive(Story(), "a", "worker-2", 1, 16)
    alive(story, "b", "worker-1", 11, 13)
    found = judged("one_incarnation", alive(story, "c", "head", 14, 20))
    assert found.verdict is INVALID
    assert "worker-2 lived on until 5.00 s after the one on worker-1" in found.summary


def test_an_actor_that_was_never_replaced_proves_nothing() -> None:
    found = judged("one_incarnation", alive(Story(), "a", "worker-1", 1, 20))
    assert found.verdict is UNKNOWN
    assert "none of 1 actors was ever replaced" in found.summary


def test_one_that_says_nothing_by_itself_may_have_lived_on_unseen() -> None:
    found = judged("one_incarnation", replaced(ticks=False))
    assert found.verdict is UNKNOWN
    assert "it may have lived on unseen" in found.summary


def test_where_a_call_does_not_say_whose_it_is_its_file_does() -> None:
    story = replaced(ticks=False).ran("teller/7", "worker-2", 18, 18.3, "teller")
    assert judged("one_incarnation", story).verdict is INVALID


def test_a_sign_of_life_may_be_among_the_missing_lines() -> None:
    assert judged("one_incarnation", replaced(), lost_line="worker-2.jsonl").verdict is UNKNOWN


def test_a_wall_clock_that_is_set_makes_no_second_life() -> None:
    view = replaced().view()
    later = [
        Op(op.index, op.kind, op.source, op.wall + 60, op.mono, op.received, op.node, op.data)
        if op.data.get("incarnation") == "a"
        else op
        for op in view.history
    ]
    assert CHECKERS["one_incarnation"](RunView(History(later), {})).verdict is VALID


# ---- exactly once, of a workload of ours; tests/test_checkers_program.py has programs of users


def done(story: Story, key: str, node: str = "worker-1", when: float = 5.0) -> Story:
    return story.ledger(when, "program.effect", node, key=key, pid=1, task_id="t")


def posted() -> Story:
    """Two posts, each with its effect."""
    story = Story()
    for n in (1, 2):
        story.asked(n, f"post-{n}", effect=f"order-{n}")
        done(story, f"order-{n}", "worker-2", n + 0.5)
    return story


def test_each_effect_that_was_asked_for_happened_once_is_valid() -> None:
    found = judged("effects_exactly_once", posted())
    assert (found.verdict, found.summary) == (VALID, "each of 2 effects happened exactly once")


def test_an_effect_that_happened_twice_is_named_with_its_places() -> None:
    found = judged("effects_exactly_once", done(posted(), "order-1", "head", 15.0))
    assert found.verdict is INVALID
    assert found.summary == "1 effect happened more than once: order-1"
    assert found.details == ["order-1: on worker-2, on head"]
    assert len(found.cites) == 2


def test_a_line_that_was_received_twice_is_not_an_effect_that_happened_twice() -> None:
    view = posted().view()
    deed = next(op for op in view.history if op.kind == "program.effect")
    twice = RunView(History([*view.history.ops, deed]), {})
    assert CHECKERS["effects_exactly_once"](twice).verdict is UNKNOWN  # a gap, not a proof


def test_an_effect_that_never_happened_is_named() -> None:
    found = judged("effects_exactly_once", posted().asked(3, "post-3", effect="order-3"))
    assert (found.verdict, found.summary) == (INVALID, "1 of 3 never happened: order-3")


def test_an_effect_that_nobody_asked_for_is_wrong_too() -> None:
    found = judged("effects_exactly_once", done(posted(), "order-99"))
    assert found.verdict is INVALID
    assert found.summary == "3 effects happened, and what was asked for has 2"


@pytest.mark.parametrize("status", ["STOPPED", "LOST", None])
def test_what_is_missing_may_still_have_come_where_the_work_was_not_over(
    status: str | None,
) -> None:
    story = posted().asked(3, "post-3", effect="order-3").drop("workload.end", "driver.end")
    if status is not None:
        story.add(20, "workload.end", status=status)
    assert judged("effects_exactly_once", story).verdict is UNKNOWN


def test_a_missing_line_may_be_the_missing_effect() -> None:
    story = posted().asked(3, "post-3", effect="order-3")
    found = judged("effects_exactly_once", story, lost_line="effect-order-3.jsonl")
    assert found.verdict is UNKNOWN
    assert judged("effects_exactly_once", posted(), lost_line="driver.jsonl").verdict is UNKNOWN


# ---- resources


def left(nodes: dict[str, Any] | None = None, **more: Any) -> Story:
    free = {n: {"CPU": [0.0, 1.0], "memory": [0.0, 1e9]} for n in ("head", "worker-1", "worker-2")}
    seen = {"nodes": {**free, **(nodes or {})}, "waiting": [], "why": "", **more}
    return Story().add(20.5, "cluster.resources", **seen)


def test_everything_free_is_valid() -> None:
    found = judged("resources_free", left())
    assert found.verdict is VALID, found
    assert found.metrics == {"nodes": 3, "resources": 6}


def test_what_is_still_in_use_is_named_with_its_node() -> None:
    found = judged("resources_free", left({"worker-1": {"CPU": [0.25, 1.0]}}))
    assert (found.verdict, found.summary) == (INVALID, "worker-1: 0.25 of 1 CPU still in use")


def test_what_somebody_still_waits_for_is_not_free_either() -> None:
    found = judged("resources_free", left(waiting=[[{"CPU": 2.0, "ssd": 1.0}, 3]]))
    assert found.verdict is INVALID
    assert found.summary == "somebody still waits for 2 CPU and 1 ssd (3 times)"


def test_a_node_of_which_nothing_is_reported_is_unknown() -> None:
    found = judged("resources_free", left({"worker-1": {}}))
    assert found.verdict is UNKNOWN
    found = judged("resources_free", left({"worker-1": {"CPU": [0.0, 0.5]}}))
    assert (found.verdict, found.summary) == (
        UNKNOWN,
        "worker-1 offers 1 CPU, and Ray's report counts 0.5",
    )


def test_a_resource_is_known_by_the_name_that_the_report_makes_of_it() -> None:
    story = left({"worker-1": {"CPU": [0.0, 1.0], "myDisk": [0.0, 2.0]}})
    story.rows[0][-1]["nodes"][1]["resources"]["my_disk"] = 2.0
    assert judged("resources_free", story).verdict is VALID
    story.rows[0][-1]["nodes"][1]["resources"]["my_disk"] = 3.0
    assert judged("resources_free", story).verdict is UNKNOWN


def test_a_dead_node_has_nothing_that_could_be_in_use() -> None:
    story = left()
    seen = story.rows[-1][-1]
    del seen["nodes"]["worker-2"]
    assert judged("resources_free", story).verdict is VALID


def test_a_ray_that_did_not_answer_said_nothing() -> None:
    story = Story().add(20.5, "cluster.resources", nodes={}, waiting=[], why="Ray does not answer")
    found = judged("resources_free", story)
    assert found.verdict is UNKNOWN
    assert "Ray does not answer" in found.summary


def test_a_job_that_is_still_there_may_use_what_it_has() -> None:
    story = left({"head": {"CPU": [1.0, 1.0]}}).drop("workload.end")
    assert judged("resources_free", story).verdict is UNKNOWN
    story.add(20.2, "workload.end", status="LOST")
    assert judged("resources_free", story).verdict is UNKNOWN


# ---- placement groups

WHOLE = ["head", "worker-1", "worker-2"]


def group(story: Story, when: float, state: str, nodes: list[Any], **more: Any) -> Story:
    data = {"group_id": "g", "name": "all", "namespace": "r", "strategy": "STRICT_SPREAD"}
    facts = data | {"state": state, "hosts": nodes, "nodes": nodes} | more
    return story.add(when, "ray.group", "observer", None, **facts)


def grouped(*, again: float | None = 16.5, story: Story | None = None) -> Story:
    """A group with a bundle on every node, which loses one and gets it back."""
    story = story or Story()
    group(story, 0.5, "PENDING", [None, None, None])
    group(story, 1, "CREATED", WHOLE)
    group(story, 14, "RESCHEDULING", ["head", "worker-1", None])
    if again is not None:
        group(story, again, "CREATED", WHOLE)
    return group(story, 20.4, "REMOVED", [None, None, None])


def test_a_group_that_is_whole_again_is_valid_and_says_after_how_long() -> None:
    found = judged("groups_whole", grouped())
    assert found.verdict is VALID, found
    assert found.metrics["whole_again_s"] == {"all": [pytest.approx(6.5)]}


def test_a_group_whose_bundle_is_placed_nowhere_is_not_whole() -> None:
    found = judged("groups_whole", grouped(again=None))
    assert found.verdict is INVALID
    assert found.summary == (
        "all was not whole in the end: Ray has it as RESCHEDULING, with bundle 2 placed nowhere"
    )
    assert found.metrics["whole_again_s"] == {"all": [None]}


def test_what_ray_says_of_a_node_that_is_gone_does_not_count() -> None:
    story = grouped()
    story.add(19, "engine.pause", "engine", node="worker-2")
    found = judged("groups_whole", story)
    assert found.verdict is INVALID
    assert "bundle 2 is on worker-2, which was frozen" in found.summary
    assert (
        judged("groups_whole", story.add(19.5, "engine.unpause", "engine", node="worker-2")).verdict
        is VALID
    )
    story.ray_node(19.8, "worker-2", "2", "DEAD")
    assert "worker-2, which Ray did not hold alive" in judged("groups_whole", story).summary


def test_two_bundles_on_one_node_are_not_spread() -> None:
    story = grouped(again=None)
    group(story, 16, "CREATED", ["head", "worker-1", "worker-1"])
    found = judged("groups_whole", story)
    assert found.verdict is INVALID
    assert "two of its bundles are on one node" in found.summary


def test_a_group_that_was_never_placed_is_not_whole() -> None:
    found = judged("groups_whole", group(Story(), 0.5, "PENDING", [None]))
    assert found.verdict is INVALID
    assert "Ray has it as PENDING" in found.summary


def test_a_group_that_lost_nothing_proves_nothing() -> None:
    found = judged("groups_whole", group(Story(), 1, "CREATED", ["head", "worker-1"]))
    assert found.verdict is UNKNOWN
    assert "none of 1 lost a bundle" in found.summary


def test_a_bundle_that_was_placed_elsewhere_before_anybody_looked_was_lost_too() -> None:
    story = group(Story(), 1, "CREATED", ["worker-2"])
    found = judged("groups_whole", group(story, 14.5, "CREATED", ["worker-1"]))
    assert found.verdict is VALID, found
    assert found.metrics["whole_again_s"] == {"all": [pytest.approx(4.5)]}


def test_a_group_that_was_there_before_the_run_is_not_its_own() -> None:
    story = group(Story(), -1.5, "RESCHEDULING", [None])
    assert judged("groups_whole", story).summary.startswith("the run had no placement group")


def test_an_observer_that_was_blind_at_the_end_did_not_see_what_became_of_it() -> None:
    story = grouped(again=None)
    for when, kind, _, _, data in story.rows:
        if kind == "observer.beat" and when > 18:
            data["gcs"] = False
    found = judged("groups_whole", story)
    assert found.verdict is UNKNOWN
    assert "what became of all was not seen" in found.summary
    assert judged("groups_whole", grouped().drop("observer.start")).verdict is UNKNOWN


def rolled(*ran: tuple[int, str, float]) -> Story:
    """Roll calls: through which bundle, where it ran, and when."""
    story = grouped()
    for bundle in range(3):
        for n in (1, 2):
            story.asked(n, f"roll-{bundle}-{n}", group="all", bundle=bundle)
    for n, (bundle, node, when) in enumerate(ran):
        story.ran(f"roll-{bundle}-{1 + n // 3}", node, when, when + 0.1)
    return story


FIRST = ((0, "head", 2.0), (1, "worker-1", 2.0), (2, "worker-2", 2.0))
AGAIN = ((0, "head", 18.0), (1, "worker-1", 18.0), (2, "worker-2", 18.0))


def test_a_task_in_every_bundle_since_it_was_placed_shows_that_the_group_can_be_used() -> None:
    found = judged("groups_whole", rolled(*FIRST, *AGAIN))
    assert found.verdict is VALID, found


def test_a_bundle_in_which_no_task_ran_since_is_only_said_to_be_whole() -> None:
    found = judged("groups_whole", rolled(*FIRST, *AGAIN[:2]))
    assert found.verdict is UNKNOWN
    assert "bundle 2 is on worker-2, and no task ran in it there" in found.summary
    elsewhere = rolled(*FIRST, *AGAIN[:2], (2, "worker-1", 18.0))
    assert judged("groups_whole", elsewhere).verdict is UNKNOWN


def test_a_bundle_whose_task_failed_is_not_whole() -> None:
    story = rolled(*FIRST, *AGAIN[:2]).failed(19.5, "roll-2-2", "driver.failure")
    assert judged("groups_whole", story).verdict is INVALID
