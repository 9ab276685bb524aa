"""The language of schedules: what it means, that it can be written back, and how it says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import ClassVar, Literal

import pytest
from fakes import fake, topology
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.errors import BadInput, CannotRun, Problem
from simulator.faults import FAULTS, Fault, Kill, Pause, Restart, Site, Stop, register_fault
from simulator.schedule import (
    After,
    All,
    AtEnd,
    Between,
    Busiest,
    Every,
    Heal,
    HolderOfMostObjects,
    Labelled,
    Majority,
    Minority,
    Named,
    Never,
    NodeOfActor,
    NodeOfTask,
    Offering,
    RandomWorker,
    Several,
    Step,
    Target,
    Together,
    WhenDeclaredDead,
    conditions,
    example_of,
    parse_schedule,
    random_schedule,
    read_schedule,
    resolve,
)
from simulator.schedule.conditions import (
    ActorIs,
    ActorNumber,
    And,
    Condition,
    FaultIs,
    Marked,
    NodeIs,
    Not,
    Or,
    Tasks,
)
from simulator.schedule.parsing import grammar
from simulator.schedule.steps import PATIENCE_S


@dataclass(frozen=True)
class Nothing(Fault):
    """Does nothing, with parameters of every kind.

    Parameters
    ----------
    delay
        How much later a packet comes.
    percent
        How many packets.
    size, rate
        How much, and how much a second.
    """

    delay: float = field(default=100.0, metadata={"unit": "ms"})
    percent: float = 5.0
    size: int = field(default=1024, metadata={"unit": "bytes"})
    rate: float = field(default=1000.0, metadata={"unit": "kbit"})
    times: int = 3
    text: str = "1mbit"
    deep: bool = False
    direction: Literal["both", "in", "out"] = "both"
    ports: tuple[int, ...] = ()
    who: str | None = None

    name: ClassVar[str] = "nothing"
    summary: ClassVar[str] = "does nothing"
    undo: ClassVar[str] = "nothing"
    between_nodes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.percent > 100:
            raise ValueError(f"percent is {self.percent:g}; there are 100 in all")
        if self.times > 9:
            raise BadInput(
                [
                    Problem("times", f"is {self.times}", "use less"),
                    Problem("nothing", "is too much"),
                ]
            )

    def inject(self, cluster: Cluster, site: Site) -> None:
        """Nothing."""

    def holds(self, cluster: Cluster, site: Site) -> str:
        return "nothing is seen"

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        return "nothing was done"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = dict(FAULTS)
    register_fault(Nothing)
    yield
    FAULTS.clear()
    FAULTS.update(before)


def one(text: str) -> Step:
    (step,) = parse_schedule(text)
    return step


def problems_of(text: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        parse_schedule(text)
    return [str(problem) for problem in caught.value.problems]


# -- what it means -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("kill worker @20s restart +15s", Step(20, Kill(), Named("worker"), After(15))),
        ("kill worker @20s heal +15s", Step(20, Kill(), Named("worker"), After(15))),
        ("kill worker at 20s", Step(20, Kill(), Named("worker"), WhenDeclaredDead())),
        ("kill one(worker) @20 for 1.5min", Step(20, Kill(), RandomWorker("worker"), After(90))),
        ("kill all(worker) @10s for good", Step(10, Kill(), All("worker"), Never())),
        ("pause worker-2 @5s until dead", Step(5, Pause(), Named("worker-2"))),
        (
            "pause worker-2 @5s until dead at most 30s",
            Step(5, Pause(), Named("worker-2"), WhenDeclaredDead(30)),
        ),
        ("pause head @5s until the end", Step(5, Pause(), Named("head"), AtEnd())),
        ("stop(grace=5) worker @3s", Step(3, Stop(grace=5), Named("worker"))),
        ("stop(5s) worker @3s", Step(3, Stop(grace=5), Named("worker"))),
        ("restart worker @500ms busy", Step(0.5, Restart(), Named("worker"), when_busy=True)),
        (
            "nothing one(worker) @60s for 10s",
            Step(60, Nothing(), RandomWorker("worker"), After(10)),
        ),
        (
            "nothing minority from majority @30s for 20s",
            Step(30, Nothing(), Minority(), After(20), against=Majority()),
        ),
        (
            "nothing worker-1 from head out @10s",
            Step(10, Nothing(direction="out"), Named("worker-1"), AtEnd(), against=Named("head")),
        ),
        (
            "kill node_of(actor:Trainer) when 'tasks(finished) > 50'",
            Step(0, Kill(), NodeOfActor("Trainer"), when=Tasks("finished", ">", 50)),
        ),
        (
            "kill busiest when tasks(failed)>=1 within 30s for 5s",
            Step(0, Kill(), Busiest(), After(5), when=Tasks("failed", ">=", 1), patience=30),
        ),
        (
            "kill one(worker) every 30s from 10s until 300s",
            Step(10, Kill(), RandomWorker("worker"), every=Every(30, until=300)),
        ),
        ("kill one every 30s 4 times", Step(30, Kill(), RandomWorker(), every=Every(30, times=4))),
        (
            "kill one every 20s..40s",
            Step(Between(20, 40), Kill(), RandomWorker(), every=Every(Between(20, 40))),
        ),
        ("kill one @10s..20s", Step(Between(10, 20), Kill(), RandomWorker())),
        (
            "kill worker-1, one(gpu), head",
            Step(0, Kill(), Together((Named("worker-1"), RandomWorker("gpu"), Named("head")))),
        ),
        ("kill random(2) # of all", Step(0, Kill(), Several(2))),
        ("kill random(2, cpu)", Step(0, Kill(), Several(2, "cpu"))),
        ("kill label(ray.io/zone=a-1)", Step(0, Kill(), Labelled("ray.io/zone", "a-1"))),
        ("kill label(zone=1)", Step(0, Kill(), Labelled("zone", "1"))),
        ("kill resource(GPU)", Step(0, Kill(), Offering("GPU"))),
        ('kill node_of(actor:"my actor")', Step(0, Kill(), NodeOfActor("my actor"))),
        ("kill node_of(task:mine.work)", Step(0, Kill(), NodeOfTask("mine.work"))),
        ("kill holder_of_most_objects", Step(0, Kill(), HolderOfMostObjects())),
    ],
)
def test_a_text_means_a_step(text: str, step: Step) -> None:
    assert one(text) == step
    assert one(str(step)) == step


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("nothing(250ms)", Nothing(delay=250)),
        ("nothing(0.25s)", Nothing(delay=250)),
        ("nothing(250)", Nothing(delay=250)),
        ("nothing(percent=20%, size=2k)", Nothing(percent=20, size=2048)),
        ("nothing(rate=2mbit, times=4)", Nothing(rate=2000, times=4)),
        ("nothing(text=512m, deep=true)", Nothing(text="512m", deep=True)),
        ("nothing(ports=[80, 443])", Nothing(ports=(80, 443))),
        ("nothing(ports=80)", Nothing(ports=(80,))),
        ('nothing(text="a; b # c", who=none)', Nothing(text="a; b # c")),
        ("nothing(who='it')", Nothing(who="it")),
        ("nothing(who=actor:Trainer)", Nothing(who="actor:Trainer")),
        ('nothing(who=task:"a b")', Nothing(who="task:a b")),
        ('nothing(who="none")', Nothing(who="none")),
        ("nothing(direction=in)", Nothing(direction="in")),
        ("nothing()", Nothing()),
    ],
)
def test_parameters_are_read_with_their_units(text: str, fault: Nothing) -> None:
    assert one(f"{text} worker").fault == fault
    assert one(f"{fault} worker").fault == fault


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("tasks(running) < 3", Tasks("running", "<", 3)),
        ("node(worker-1) == dead", NodeIs("worker-1", "==", "dead")),
        ("actor(Trainer).mark >= 3", ActorNumber("Trainer", "mark", ">=", 3)),
        ("actor(counter-1).checkpoint >= 3", ActorNumber("counter-1", "checkpoint", ">=", 3)),
        ("actor(Trainer) != alive", ActorIs("Trainer", "!=", "alive")),
        ("mark(epoch)", Marked("epoch")),
        ("mark(loss) <= -0.5", Marked("loss", "<=", -0.5)),
        ("fault(f1.2) == healed", FaultIs("f1.2", "==", "healed")),
        (
            "mark(a) or not mark(b) and mark(c)",
            Or((Marked("a"), And((Not(Marked("b")), Marked("c"))))),
        ),
        (
            "(mark(a) or mark(b)) and not (mark(c) and mark(d))",
            And(
                (
                    Or((Marked("a"), Marked("b"))),
                    Not(And((Marked("c"), Marked("d")))),
                )
            ),
        ),
    ],
)
def test_a_text_means_a_condition(text: str, condition: Condition) -> None:
    assert one(f"kill worker when '{text}'").when == condition
    assert one(f'kill worker when "{text}" @3s').when == condition
    assert one(f"kill worker when {text} for 3s").when == condition
    assert str(condition) == text


def test_steps_are_parted_by_semicolons_and_lines_and_comments_say_nothing() -> None:
    text = """
    # first of all
    kill worker-1 @1s; pause worker-2 @2s  # two at once; really
    ;

    stop(5) worker-3 when 'mark(a)'; """
    assert [str(step) for step in parse_schedule(text)] == [
        "kill worker-1 @1s",
        "pause worker-2 @2s",
        "stop(grace=5) worker-3 when 'mark(a)'",
    ]


def test_what_downs_a_node_is_undone_once_it_is_dead_and_all_else_at_the_end() -> None:
    usual = {f: Step(0, f, RandomWorker()).heal for f in (Kill(), Pause(), Restart(), Nothing())}
    assert usual[Kill()] == usual[Pause()] == usual[Restart()] == WhenDeclaredDead()
    assert usual[Nothing()] == AtEnd()


def test_every_fault_has_an_example_that_can_be_read() -> None:
    for kind in FAULTS.values():
        assert isinstance(one(example_of(kind)).fault, kind)
        assert one(example_of(kind, "gpu")).target == RandomWorker("gpu")
    assert example_of(Stop) == "stop(grace=30s) one(worker) @20s"
    assert example_of(Nothing) == "nothing(delay=100ms) one(worker) from head @20s for 10s"


# -- that it can be written back -----------------------------------------------------------------------

names = st.text(min_size=1, max_size=8)
words = st.sampled_from(["worker", "worker-1", "head", "gpu", "my node", "for", "x.y/z", "none"])
groups = st.none() | st.sampled_from(["worker", "gpu-2", "all", "5"])
seconds = st.floats(0, 1e6) | st.integers(0, 1000).map(float)
positive = st.floats(0.001, 1e6)
comparisons = st.sampled_from(list(conditions.COMPARISONS))
equalities = st.sampled_from(["==", "!="])
numbers = st.floats(allow_nan=False, allow_infinity=False)

single_targets: st.SearchStrategy[Target] = st.one_of(
    st.builds(Named, words),
    st.builds(RandomWorker, groups),
    st.builds(All, groups),
    st.builds(Minority, groups),
    st.builds(Majority, groups),
    st.builds(Several, st.integers(1, 99), groups),
    st.builds(Labelled, names, names),
    st.builds(Offering, names),
    st.builds(NodeOfActor, names),
    st.builds(NodeOfTask, names),
    st.builds(Busiest),
    st.builds(HolderOfMostObjects),
)
targets = single_targets | st.lists(single_targets, min_size=2, max_size=3).map(
    lambda some: Together(tuple(some))
)
simple_conditions: st.SearchStrategy[Condition] = st.one_of(
    st.builds(Tasks, st.sampled_from(conditions.TASKS), comparisons, numbers),
    st.builds(NodeIs, names, equalities, st.sampled_from(conditions.NODE_STATES)),
    st.builds(ActorIs, names, equalities, st.sampled_from(conditions.ACTOR_STATES)),
    st.builds(FaultIs, names, equalities, st.sampled_from(conditions.FAULT_STATES)),
    st.builds(
        ActorNumber, names, st.sampled_from(conditions.NUMBERS_OF_ACTORS), comparisons, numbers
    ),
    st.builds(Marked, names),
    st.builds(Marked, names, comparisons, numbers),
)
any_condition = st.recursive(
    simple_conditions,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.lists(inner, min_size=2, max_size=3).map(lambda some: And(tuple(some))),
        st.lists(inner, min_size=2, max_size=3).map(lambda some: Or(tuple(some))),
    ),
    max_leaves=5,
)
between = st.tuples(positive, positive).map(lambda pair: Between(min(pair), max(pair)))
faults: st.SearchStrategy[Fault] = st.one_of(
    st.builds(Kill),
    st.builds(Pause),
    st.builds(Stop, seconds),
    st.builds(
        Nothing,
        delay=seconds,
        percent=st.floats(0, 100),
        size=st.integers(0, 2**40),
        times=st.integers(-5, 5),
        text=names,
        deep=st.booleans(),
        direction=st.sampled_from(["both", "in", "out"]),
        ports=st.lists(st.integers(0, 9)).map(tuple),
        who=st.none() | names | st.just("none"),
    ),
)
heals: st.SearchStrategy[Heal] = st.one_of(
    st.builds(WhenDeclaredDead), st.builds(WhenDeclaredDead, positive), st.builds(After, seconds),
    st.builds(AtEnd), st.builds(Never),
)  # fmt: skip


@st.composite
def steps(draw: st.DrawFn) -> Step:
    fault = draw(faults)
    at = draw(seconds | between)
    latest = at.high if isinstance(at, Between) else at
    every = draw(
        st.none()
        | st.builds(
            Every,
            positive | between,
            st.none() | positive.map(lambda more: latest + more),
            st.none() | st.integers(1, 9),
        )
    )
    if every is not None and at == 0:
        at = every.gap  # said without a time, a fault that comes back waits for its first time
        every = Every(every.gap, None, every.times)
    return Step(
        at=at,
        fault=fault,
        target=draw(targets),
        heal=draw(heals),
        when_busy=draw(st.booleans()),
        when=(when := draw(st.none() | any_condition)),
        patience=draw(positive) if when is not None else PATIENCE_S,
        against=draw(st.none() | targets) if fault.between_nodes else None,
        every=every,
    )


@given(steps())
def test_a_step_that_is_written_and_read_is_the_same(step: Step) -> None:
    register_fault(Nothing)
    assert parse_schedule(str(step)) == [step]


@given(st.lists(steps(), min_size=1, max_size=3))
def test_so_is_a_schedule(schedule: list[Step]) -> None:
    register_fault(Nothing)
    for parted in ("; ", "\n"):
        assert parse_schedule(parted.join(map(str, schedule))) == schedule


@given(st.text(max_size=40))
def test_any_other_text_is_a_problem_and_no_crash(text: str) -> None:
    with suppress(BadInput):
        assert parse_schedule(text)


# -- how it says what is wrong -------------------------------------------------------------------------


def test_three_bad_steps_are_three_problems_each_at_its_character() -> None:
    with pytest.raises(BadInput) as caught:
        parse_schedule("kil worker @20s; kill worker @20q; kill @5s")
    assert str(caught.value) == "\n".join(
        [
            "3 problems:",
            "  - --fault, step 1: there is no fault named 'kil'; did you mean kill?",
            "      kil worker @20s",
            "      ^^^",
            "  - --fault, step 2: the time has the unit 'q'; "
            "use one of ms, s, min, h, k, m, g, bit, kbit, mbit, gbit, %, /s, /min, /h",
            "      kill worker @20q",
            "                   ^^^",
            "  - --fault, step 3: '@' cannot stand here; "
            "expected whom to hit, such as worker-1, one(worker), all or head",
            "      kill @5s",
            "           ^",
        ]
    )


def test_all_that_is_wrong_with_one_step_comes_together() -> None:
    text = (
        "stop(grac=3, 4, grace=x) nobody_of(x), one(a=b) when 'task(x) > 1 or mark(a) > b' for 5k"
    )
    found = problems_of(text)
    assert [problem.split("\n")[0].removeprefix("--fault: ") for problem in found] == [
        "there is no parameter of stop named 'grac'; did you mean grace?",
        "only the first parameter may stand without its name; stop takes grace",
        "grace is x: input should be a valid number, unable to parse string as a number",
        "there is no target named 'nobody_of'; did you mean node_of?",
        "this is not how one is written; use one, or one(worker) for a group",
        "there is no condition named 'task'; did you mean tasks?",
        "'b' is no number; use mark(epoch) or mark(epoch) >= 5",
        "the time is 5k, a size; use a time, such as 10s or 100ms",
    ]
    for problem in found:
        _, line, marks = problem.split("\n")
        assert line.strip() == text
        begin, end = marks.index("^"), marks.rindex("^") + 1
        assert set(marks[begin:end]) == {"^"}
    pointed = [p.split("\n")[1][p.split("\n")[2].index("^") : len(p.split("\n")[2])] for p in found]
    assert pointed == [
        "grac", "4", "grace=x", "nobody_of", "one(a=b)", "task", "b", "5k",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "what", "at"),
    [
        ("", "has no step; for example: kill one(worker) @20s", None),
        ("# only a comment", "has no step", None),
        ("kill worker 20s", "what is 20s?; expected @20s, for 20s, every 20s or 5 times", "20s"),
        ("kill worker evry 30s", "'evry' is no word of the language here; did you mean every?", "evry"),
        ("kill worker foo", "'foo' is no word of the language here; did you mean for?", "foo"),
        ("nothing worker up", "nothing takes both or in or out", "up"),
        ("kill worker @5s @6s", "when it begins is said twice", "@6s"),
        ("kill worker @5s every 9s from 7s", "when it begins is said twice", "from 7s"),
        ("kill worker for 3s until dead", "when it is undone is said twice", "until dead"),
        ("kill worker until 20s", "an end in time belongs to every; say for how long", "until 20s"),
        ("kill worker from 5s", "from and a time belong to every; say when: @10s", "from 5s"),
        ("kill worker 3 times", "how often belongs to every; say every 30s as well", "3 times"),
        ("kill worker within 3s", "within belongs to when", "within 3s"),
        ("kill worker from head", "kill does not lie between nodes", "head"),
        ("kill worker every 0s", "a gap of 0s; it must be above 0", "every 0s"),
        ("kill worker @9s every 1s until 5s", "it ends at 5s, before its first time 9s", "every 1s"),
        ("kill worker @20s..10s", "20s..10s is no range", "20s..10s"),
        ("kill worker @-5s", "the time is -5s; no time is below 0", "-5s"),
        ("kill worker @5m", "a size; use a time, such as 10s or 100ms (minutes are min)", "5m"),
        ("kill random(0)", "the count is 0; use a whole number from 1 on", "0"),
        ("kill random", "", None),
        ("kill label(zone)", "use label(key=value)", "label(zone)"),
        ("kill resource()", "use resource(GPU)", "resource()"),
        ("kill node_of(Trainer)", "use node_of(actor:NAME)", "node_of(Trainer)"),
        ("kill busiest(2)", "use busiest", "busiest(2)"),
        ("kill(5) worker", "kill takes no parameters", "5"),
        ("stop(grace=1, grace=2) worker", "grace is said twice", "grace=2"),
        ("stop(512m) worker", "grace is 512m, a size; use a time", "512m"),
        ("nothing(percent=200) worker", "percent is 200; there are 100 in all", "nothing(percent=200)"),
        ("nothing(direction=up) worker", "direction is up; use both or in or out", "direction=up"),
        ("nothing(times=2s) worker", "times is 2s; use a plain number, without a unit", "times=2s"),
        ("nothing(times=2.5) worker", "times is 2.5", "times=2.5"),
        ("nothing(size=5zb) worker", "has the unit 'zb'", "5zb"),
        (r'nothing(text="a\q") worker', "a backslash that means nothing", r'"a\q"'),
        ("kill worker when 'mark(a)", "the quote is not closed", "'mark(a)"),
        ("kill worker when 'mark(a) mark(b)'", "'mark' cannot stand here; expected", "mark"),
        ("kill worker when 'tasks() > 3'", "tasks of what?; use tasks(finished) > 50", "tasks() > 3"),
        ("kill worker when 'tasks(done) > 3'", "the state is 'done'", "done"),
        ("kill worker when 'tasks(failed)'", "is compared with nothing", "tasks(failed)"),
        ("kill worker when 'tasks(failed) > 3s'", "the number is 3s; use a plain number", "3s"),
        ("kill worker when 'node(a) > dead'", "a state is not > another; use == or !=", ">"),
        ("kill worker when 'node(a) == ded'", "the state is 'ded'; did you mean dead?", "ded"),
        ("kill worker when 'node(a).mark > 3'", "node has no .mark", "mark"),
        ("kill worker when 'actor(a).marks > 3'", "did you mean mark?", "marks"),
        (
            "kill worker when 'fault(f1) healed'",
            "'healed' cannot stand here; expected the end",
            "healed",
        ),
        ("kill worker when", "the end cannot stand here", " "),
        ("kill worker when '" + "not " * 5000 + "mark(a)'", "is nested too deeply", None),
        ("kill worker for", "the end cannot stand here; expected good or a number", " "),
        ("kill one(worker", "expected", " "),
        ("kill worker ! @5s", "'!' cannot stand here; expected @10s, every 30s", "!"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_and_pointed_at(text: str, what: str, at: str | None) -> None:
    if not what:
        assert one(text)
        return
    (problem,) = problems_of(text)
    assert what in problem
    if at is not None:
        _, line, marks = problem.split("\n")
        shown = f"{line} "[marks.index("^") : len(marks)]
        assert shown == at


def test_a_fault_may_find_several_problems_with_its_parameters() -> None:
    first, second = problems_of("nothing(times=10) worker")
    assert first.startswith(
        "--fault: times: is 10; use less\n      nothing(times=10) worker\n      ^"
    )
    assert second.startswith("--fault: nothing: is too much\n")


def test_a_problem_says_in_which_line_of_a_text_it_is() -> None:
    found = problems_of("kill worker\n\n# nothing\nkil worker; pause worker\nkill")
    assert [problem.partition(":")[0] for problem in found] == [
        "--fault, line 4",
        "--fault, line 5",
    ]


# -- files ---------------------------------------------------------------------------------------------


def test_options_and_a_file_make_one_schedule(tmp_path: Path) -> None:
    file = tmp_path / "faults.txt"
    file.write_text("# mine\nkill worker-1 @1s\npause worker-2 @2s; stop worker-3 @3s\n")
    found = read_schedule(["kill worker-4 @4s", "kill worker-5 @5s; kill worker-6"], file)
    assert [str(step.target) for step in found] == [f"worker-{n}" for n in (4, 5, 6, 1, 2, 3)]


def test_yaml_says_the_same_as_text_and_as_python(tmp_path: Path) -> None:
    file = tmp_path / "faults.yaml"
    file.write_text(
        """
- kill one(worker) @20s for 15s; pause worker-1 @30s
- fault: nothing(percent=20%)
  parameters: {delay: 0.5s, times: 7, deep: true, ports: [1, 2], text: 512m}
  target: minority
  from: majority
  at: 10s..20s
  every: 30
  until: 300
  for: 10s
  when: tasks(finished) > 50
  within: 5s
  busy: true
- {fault: kill, target: "worker-1, worker-2", at: 5, until: the end}
- {fault: kill, target: all, every: 5s, times: 3, for: good}
"""
    )
    percent_20 = Nothing(percent=20, delay=500, times=7, deep=True, ports=(1, 2), text="512m")
    assert read_schedule([], file) == [
        Step(20, Kill(), RandomWorker("worker"), After(15)),
        Step(30, Pause(), Named("worker-1")),
        Step(
            Between(10, 20),
            percent_20,
            Minority(),
            After(10),
            when_busy=True,
            when=Tasks("finished", ">", 50),
            patience=5,
            against=Majority(),
            every=Every(30, until=300),
        ),
        Step(5, Kill(), Together((Named("worker-1"), Named("worker-2"))), AtEnd()),
        Step(5, Kill(), All(), Never(), every=Every(5, times=3)),
    ]


def test_every_problem_of_every_source_is_told_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "faults.yaml"
    file.write_text(
        """- kil worker
- 5
- fault: kill
  target: one(
  at: soon
- target: worker
  fualt: kill
- fault: stop
  parameters: {grac: 3, grace: 5k}
  target: worker
  times: many
- fault: stop
  parameters: {grac: 3, grace: 5k}
  target: worker
  when: mark(
"""
    )
    with pytest.raises(BadInput) as caught:
        read_schedule(["kill", "pause worker", "kill worker @x"], file)
    assert [problem.where.replace(str(file), "FILE") for problem in caught.value.problems] == [
        "--fault 1",
        "--fault 3",
        "FILE:1",
        "FILE:2",
        "FILE:4: target",
        "FILE:5: at",
        "FILE:6",
        "FILE:7: fualt",
        "FILE:11: times",
        "FILE:13: parameters.grac",
        "FILE:13: parameters.grace",
        "FILE:15: when",
    ]
    text = str(caught.value)
    assert "is no key of a step; did you mean fault?" in text
    assert "fault is missing; for example fault: kill" in text
    assert "is 'many'; use a whole number" in text


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.yaml", b"a: 1", "is not a list; for example: - kill one(worker)"),
        ("a.yaml", b"", "has no step"),
        ("a.yaml", b"[", "is not YAML"),
        ("a.txt", b"\xff", "is no text in UTF-8"),
        ("a.txt", b"# none", "has no step"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(what)):
        read_schedule([], tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        read_schedule([], tmp_path / "none.txt")


# -- times ---------------------------------------------------------------------------------------------


def test_times_that_are_drawn_are_the_same_for_the_same_seed() -> None:
    schedule = parse_schedule("kill one @10s..20s; pause one every 5s..10s until 60s; stop one @1s")
    plans = [resolve(schedule, topology(), Random(seed)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    moments = [p.at for p in plans[0]]
    assert moments == sorted(moments)
    # The ids count in the order of the steps, whatever times are drawn.
    assert [p.id for p in plans[0] if p.step == schedule[0]] == ["f1"]
    assert [p.id for p in plans[0] if p.step == schedule[2]] == [f"f{len(moments)}"]
    kill = next(p for p in plans[0] if p.step.fault == Kill())
    assert 10 <= kill.at <= 20
    assert kill.to_data()["when"] == f"{kill.at:g} s after the load began"
    pauses = [p for p in plans[0] if p.step.fault == Pause()]
    assert [p.repetition for p in pauses] == list(range(1, len(pauses) + 1))
    gaps = [b.at - a.at for a, b in zip([*pauses][:-1], pauses[1:], strict=True)]
    assert all(4.999 <= gap <= 10.001 for gap in gaps)
    assert pauses[-1].at <= 60 < pauses[-1].at + 10


def test_fixed_times_take_nothing_from_what_others_draw() -> None:
    alone = resolve(parse_schedule("kill one @30s"), topology(9), Random(5))
    again = resolve(parse_schedule("kill one @30s"), topology(9), Random(5))
    assert alone == again
    assert [
        p.at for p in resolve(parse_schedule("kill one every 30s 3 times"), topology(), Random(0))
    ] == [30, 60, 90]


def test_without_an_end_a_fault_comes_back_for_ten_minutes() -> None:
    planned = resolve(parse_schedule("kill one every 60s"), topology(), Random(0))
    assert [p.at for p in planned] == [60.0 * n for n in range(1, 12)]


def test_a_fault_that_comes_back_too_often_is_refused() -> None:
    with pytest.raises(
        BadInput, match="strikes more than 1000 times; say until when, or how often"
    ):
        resolve(parse_schedule("kill one every 1ms"), topology(), Random(0))


@pytest.mark.parametrize(
    "make", [lambda: Every(0), lambda: Every(float("nan")), lambda: Every(1, times=0), lambda: Between(2, 1)]
)  # fmt: skip
def test_a_repetition_that_makes_no_sense_is_no_value(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"above 0|1 or more|no range"):
        make()


# -- by chance -----------------------------------------------------------------------------------------


def test_a_random_schedule_is_fixed_by_its_seed_and_hits_no_node_that_is_not_back() -> None:
    backend = fake()
    drawn = random_schedule(backend, topology(), 0.2, 40, seed=3)
    assert drawn == random_schedule(backend, topology(), 0.2, 40, seed=3)
    assert drawn != random_schedule(backend, topology(), 0.2, 40, seed=4)
    assert len(drawn) == 40
    assert {str(step.target) for step in drawn} == {"worker-1", "worker-2", "worker-3"}
    assert {step.fault.name for step in drawn} >= {"kill", "pause", "nothing"}
    assert not any(isinstance(step.heal, (AtEnd, Never)) for step in drawn)
    last: dict[str, float] = {}
    for step in drawn:
        assert isinstance(step.at, float)
        busy_until = last.get(str(step.target), 0.0)
        assert step.at >= busy_until
        lasts = step.heal.seconds if isinstance(step.heal, After) else 20.0
        last[str(step.target)] = step.at + lasts
    assert parse_schedule("\n".join(map(str, drawn))) == drawn


def test_the_head_is_hit_by_chance_only_if_that_is_asked_for() -> None:
    drawn = random_schedule(fake(), topology(), 0.2, 40, seed=3, head=True)
    assert "head" in {str(step.target) for step in drawn}


def test_only_what_can_be_done_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in FAULTS.values():
        if kind is not Kill:
            monkeypatch.setattr(kind, "unable", lambda self, backend: "nobody can")
    drawn = random_schedule(fake(), topology(), 1, 20, seed=0)
    assert {step.fault for step in drawn} == {Kill()}
    monkeypatch.setattr(Kill, "at_random", False)
    with pytest.raises(CannotRun, match="no fault to draw from"):
        random_schedule(fake(), topology(), 1, 20, seed=0)


def test_figures_of_chance_that_make_no_sense_are_all_refused() -> None:
    with pytest.raises(BadInput) as caught:
        random_schedule(fake(), topology(0), float("nan"), 0, seed=0)
    assert [p.where for p in caught.value.problems] == ["--rate", "--budget", "random faults"]


# -- the page ------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs/reference/schedule.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[str]:
    """What stands in backquotes in the first cell of each row of a section's table."""
    cells = [line.split(" | ")[0] for line in section(title).splitlines() if line.startswith("| `")]
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)


def stand_in(fault: str) -> None:
    """A fault of that name, where none is registered yet."""
    if fault not in FAULTS:
        made = type(fault, (Nothing,), {"name": fault, "__doc__": Nothing.__doc__})
        register_fault(dataclass(frozen=True)(made))


def test_every_example_of_the_page_can_be_read() -> None:
    indented = [line.strip() for line in PAGE.splitlines() if re.match(r"    [a-z]+(\(| )", line)]
    steps = [*rows("Examples"), *(line for line in indented if not line.startswith("$"))]
    assert len(steps) == 17
    for text in steps:
        stand_in(text.split("(")[0].split()[0])
        assert one(str(one(text))) == one(text), text


def test_every_word_of_the_pages_tables_can_be_read() -> None:
    assert len(rows("Whom")) > 18
    for target in rows("Whom"):
        assert one(f"kill {target}").target
    times = rows("When")
    assert len(times) == 10
    for words in times:
        before = "every 40s" if words in ("until 300s", "5 times") else ""
        assert one(f"kill worker {before} {words.replace('CONDITION', 'mark(a)')}")
    heals = [one(f"pause worker {words}").heal for words in rows("For how long")]
    assert {type(heal) for heal in heals} == {After, WhenDeclaredDead, AtEnd, Never}
    asked = [one(f"kill worker when '{text}'").when for text in rows("Conditions")]
    assert {type(c) for c in asked} == {
        Tasks, NodeIs, ActorIs, ActorNumber, Marked, FaultIs,
    }  # fmt: skip


def test_the_pages_yaml_python_and_grammar_are_right(tmp_path: Path) -> None:
    (text,) = blocks("In a file", "yaml")
    (tmp_path / "a.yaml").write_text(text)
    assert len(read_schedule([], tmp_path / "a.yaml")) == 2
    (code,) = blocks("In Python", "python")
    exec(code, {})
    (shown,) = blocks("The grammar", "lark")
    assert shown == grammar()
