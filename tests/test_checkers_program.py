"""The checks of a program's run: against mutations of a valid one, and what else may stand in it.

The valid one is made by the runner on the fake backend, with clocks that differ; beside it stand recorded ones:
``tests/histories/programs/<name>/`` holds ``spec.json`` and ``history.jsonl.gz`` of a real run.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import Lab, fake
from history_mutations import without
from program_mutations import MUTATIONS, cut_task, ended, with_attempts
from recorded import HISTORIES, flips_exactly, load, recorded

from simulator.backends.fake import Behaviour
from simulator.backends.fake.program import FakeProgram
from simulator.chaos import Chaos
from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.index import index_of
from simulator.checkers.judge import judge
from simulator.checkers.program import baseline_of, program_facts
from simulator.checkers.registry import OF_PROGRAMS, run_checks
from simulator.faults import Kill
from simulator.history import History, Op
from simulator.jobs import plan_program
from simulator.report.run import Run, load_run
from simulator.report.timeline import Outcome, build_timeline
from simulator.runner import RunRequest, run_view
from simulator.schedule import After, Named, Step
from simulator.workload import Script

PROGRAMS = HISTORIES / "programs"


def made(folder: Path) -> Path:
    """A run's directory: a worker is killed, its task runs again, and every effect is reported."""
    (folder / "orders.py").write_text("", encoding="utf-8")
    lab = Lab(folder / "runs", fake(Behaviour(clock_offset=0.25)))
    lab.backend.programs["orders.py"] = FakeProgram(tasks=40, effects=True, plan=True)
    program = plan_program(str(folder / "orders.py"))
    chaos = Chaos(Script(program), [Step(4, Kill(), Named("worker-1"), After(3))])
    request: RunRequest = replace(
        lab.request(), experiment=chaos, params=chaos.params, source="chaos"
    )
    return Path(lab.runner().run(request)["run_dir"])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def built(run_dir: Path) -> RunView:
    return run_view(run_dir)


@pytest.fixture(scope="module", params=["fake", *recorded(PROGRAMS)])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunView:
    if request.param == "fake":
        view: RunView = request.getfixturevalue("built")
        return view
    return load(PROGRAMS / request.param, tmp_path_factory.mktemp("history"))


def of(view: RunView, check: str) -> Finding:
    return next(f for f in run_checks(view) if f.check == check)


def test_the_original_is_valid_by_every_check(original: RunView) -> None:
    findings = run_checks(original)
    assert [f.check for f in findings] == list(OF_PROGRAMS)
    assert [f"{f.check}: {f.summary}" for f in findings if f.verdict is not Verdict.VALID] == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_flips_exactly_the_checks_that_it_should(original: RunView, name: str) -> None:
    flips_exactly(original, MUTATIONS[name])


def test_every_check_of_programs_is_flipped_by_some_mutation(built: RunView) -> None:
    assert {check for mutate in MUTATIONS.values() for check in mutate(built).flips} == {
        *OF_PROGRAMS
    }


# ---- what is not to be held against a program


def test_what_a_task_raises_by_itself_is_the_programs_own_business(built: RunView) -> None:
    task = cut_task(built)

    def own(op: Op) -> Mapping[str, Any]:
        if op.data["task_id"] != task.task_id:
            return {}
        return {"state": "FAILED", "error_type": "TASK_EXECUTION_EXCEPTION"}

    view = with_attempts(built, lambda op: dict(own(op)))
    assert of(view, "attempts_recovered").verdict is Verdict.VALID


@pytest.mark.parametrize(
    "change",
    [
        {"error": "Job finishes (01000000) as driver exits. Marking all non-terminal tasks."},
        {"error": "Worker running the task died: force exited because its job has finished"},
        {"error": "The actor is dead because it was killed by `ray.kill`."},
        {"ended": 4e9},
    ],
    ids=["left behind", "its job over", "killed by the program", "after its end"],
)
def test_what_the_program_did_not_wait_for_was_not_lost(
    built: RunView, change: dict[str, Any]
) -> None:
    task = cut_task(built)
    failed = {"state": "FAILED", "error_type": "WORKER_DIED", **change}
    view = with_attempts(built, lambda op: failed if op is task.last else {})
    assert of(view, "attempts_recovered").verdict is Verdict.VALID


@pytest.mark.parametrize(
    ("error_type", "node", "lost"),
    [
        ("WORKER_DIED", "worker-2", False),
        ("WORKER_DIED", "worker-1", True),
        ("NODE_DIED", "worker-2", True),
    ],
)
def test_of_what_dies_with_a_failing_program_only_what_a_fault_explains_was_lost(
    built: RunView, error_type: str, node: str, lost: bool
) -> None:
    """The driver raised because worker-1 was killed; half a second later it is gone, and its workers too."""
    task, inject = cut_task(built), built.history.first("fault.inject")
    assert inject is not None
    ended = built.history.at(inject) + 0.2
    ahead = built.history.offsets["ray"].offset
    ops = []
    for op in built.history:
        if op is task.attempts[0]:
            continue
        if op is task.last:
            data = {**op.data, "state": "FAILED", "error_type": error_type, "ended": ended + ahead}
            op = replace(op, node=node, data=data)
        if op.kind == "program.end":
            op = replace(op, wall=ended + 0.5, data={**op.data, "status": "FAILED"})
        ops.append(op)
    finding = of(RunView(History(ops), built.spec), "attempts_recovered")
    assert finding.verdict is (Verdict.INVALID if lost else Verdict.VALID)


def test_work_that_its_owner_missed_before_the_effect_was_seen_was_hit(built: RunView) -> None:
    """Ray's milliseconds and the engine's event need not agree."""
    effect = built.history.first("fault.effect")
    assert effect is not None
    early = built.history.at(effect) - 0.002 + built.history.offsets["ray"].offset
    task = cut_task(built)
    view = with_attempts(built, lambda op: {"ended": early} if op is task.attempts[0] else {})
    ops = [
        replace(op, wall=op.wall - 0.05) if op.kind == "fault.inject" else op for op in view.history
    ]
    assert of(RunView(History(ops), built.spec), "fault_hit_work").verdict is Verdict.VALID


def test_a_task_that_still_runs_when_the_program_ends_was_not_lost(built: RunView) -> None:
    task = cut_task(built)
    view = with_attempts(
        built, lambda op: {"state": "RUNNING", "ended": None} if op is task.last else {}
    )
    finding = of(view, "attempts_recovered")
    assert finding.verdict is Verdict.VALID
    assert finding.summary.endswith("was lost; the program ended without waiting for 1")


def test_the_line_that_says_what_went_wrong_is_the_summary(built: RunView) -> None:
    lines = [
        "Traceback:",
        "(f pid=7, ip=1) ValueError: inner",
        "ray.exceptions.RayTaskError: x",
        "",
    ]
    finding = of(ended(built, status="FAILED", exit_code=1, lines=lines), "program_ended_well")
    assert finding.summary.endswith(": ray.exceptions.RayTaskError: x")
    finding = of(ended(built, status="FAILED", exit_code=2, lines=["usage: x", "bad n"]),
                 "program_ended_well")  # fmt: skip
    assert re.search(r"failed with exit code 2 after [\d.]+ s: bad n$", finding.summary)


# ---- effects


def effects(view: RunView, *, plan: Any = None, baseline: Any = None) -> Finding:
    """The finding for other plans: in the program's own mark, or of an undisturbed run."""
    ops = []
    for op in view.history:
        if op.kind == "program.mark":
            op = replace(op, data={**op.data, "value": plan})
        ops.append(op)
    spec = {**view.spec, **({"baseline": baseline} if baseline else {})}
    return of(RunView(History(ops), spec), "effects_exactly_once")


def keys_of(view: RunView) -> list[str]:
    return [str(op.data["key"]) for op in view.history.of("program.effect")]


def test_a_plan_may_name_its_keys(built: RunView) -> None:
    assert effects(built, plan=keys_of(built)).verdict is Verdict.VALID
    finding = effects(built, plan=[*keys_of(built), "order-9"])
    assert (finding.verdict, finding.summary) == (
        Verdict.INVALID, "1 of 41 never happened: order-9",
    )  # fmt: skip


def test_without_a_plan_the_undisturbed_run_is_the_measure(built: RunView) -> None:
    keys = keys_of(built)
    whole = {"seconds": 9.0, "effects": {"count": 40, "keys": keys}}
    assert effects(built, baseline=whole).verdict is Verdict.VALID
    more = {"seconds": 9.0, "effects": {"count": 41, "keys": [*keys, "order-9"]}}
    assert "never happened: order-9" in effects(built, baseline=more).summary
    # Keys that each run draws anew say only how many there were.
    drawn = {"seconds": 9.0, "effects": {"count": 41, "keys": [f"u-{n}" for n in range(41)]}}
    assert effects(built, baseline=drawn).summary == "1 of 41 never happened"
    many = {"seconds": 9.0, "effects": {"count": 40, "keys": None}}
    assert effects(built, baseline=many).verdict is Verdict.VALID


def test_a_program_that_reports_nothing_claims_nothing(built: RunView) -> None:
    view = without(built, *built.history.of("program.effect", "program.mark"))
    assert of(view, "effects_exactly_once").summary == "the program claims no effect"


# ---- figures


def test_the_facts_count_what_the_history_holds(built: RunView) -> None:
    facts = program_facts(built)
    assert {k: facts[k] for k in ("tasks", "attempts", "retried", "lost", "effects", "marks")} == {
        "tasks": 40, "attempts": 41, "retried": 1, "lost": 0, "effects": 40, "marks": 1,
    }  # fmt: skip
    assert program_facts(RunView(History(), {})) == {}


def test_of_a_long_list_of_effects_a_baseline_keeps_the_number(built: RunView) -> None:
    facts = baseline_of(built)
    assert facts is not None
    assert facts["effects"]["count"] == len(facts["effects"]["keys"]) == 40
    short = baseline_of(built, keys=10)
    assert short is not None
    assert short["effects"] == {"count": 40, "keys": None}
    assert baseline_of(ended(built, status="FAILED")) is None


def test_its_attempts_stand_where_and_when_they_ran_by_the_orchestrators_clock(
    built: RunView,
) -> None:
    index = index_of(built)
    start, end = built.history.first("program.submit"), built.history.last("program.end")
    assert start is not None
    assert end is not None
    executions = list(index.all_executions())
    assert len(executions) == 41
    for e in executions:
        assert index.at(start) <= e.start <= index.at(end)
        assert e.end is None or e.end <= index.at(end) + 0.01
    (cut,) = [e for e in executions if e.end is None]
    assert cut.cut_off is not None
    assert cut.running_at(cut.start + 0.1)
    assert not cut.running_at(cut.cut_off + 0.1)


def test_the_recovery_of_a_program_has_the_phases_that_can_be_seen_of_it(built: RunView) -> None:
    phases = {p.name: p.seconds for p in judge(built).phases}
    assert list(phases) == [
        "effect", "first_failure", "first_retry", "actor_alive", "declared_dead", "rejoined",
    ]  # fmt: skip
    assert phases["first_retry"] is not None
    assert phases["rejoined"] is not None


# ---- as the reports show it


@pytest.fixture(scope="module")
def run(run_dir: Path) -> Run:
    return load_run(run_dir)


def test_the_picture_has_one_bar_for_each_attempt(run: Run) -> None:
    timeline = build_timeline(run)
    assert len(timeline.executions) == 41
    assert timeline.count(Outcome.CUT) == timeline.count(Outcome.AGAIN) == 1
    assert [(m.name, m.node) for m in timeline.marks] == [("effects", "head")]
    assert max(timeline.throughput.values) == pytest.approx(4.0, abs=0.1)
    (cut,) = [e for e in timeline.executions if e.outcome is Outcome.CUT]
    assert cut.end == pytest.approx(4.0, abs=0.1)


Writer = Callable[[Run], str]


def page(run: Run) -> str:
    from simulator.report.html import render_html

    return render_html(run)


def terminal(run: Run) -> str:
    from rich.console import Console

    from simulator.report import render_terminal

    out = io.StringIO()
    render_terminal(run, Console(width=120, file=out))
    return " ".join(out.getvalue().replace("┃", " ").split())


@pytest.mark.parametrize("show", [page, terminal])
def test_a_report_says_how_the_program_ended(run: Run, show: Writer) -> None:
    text = show(run)
    assert f"orders.py ended well after {run.result['program']['seconds']:.1f} s." in text
    assert "worker-1 was killed 4.00 s into the work, while it ran 1 task." in text


@pytest.mark.parametrize("show", [page, terminal])
def test_a_report_of_a_failure_shows_the_last_lines(run: Run, show: Writer) -> None:
    changed = ended(run.view, status="FAILED", exit_code=1, lines=["one", "ValueError: <two>"])
    findings = run_checks(changed)
    result = {**run.result, "verdict": "invalid", "findings": [f.to_data() for f in findings]}
    text = show(replace(run, view=changed, result=result, findings=findings))
    said = "ValueError: &lt;two&gt;" if show is page else "ValueError: <two>"
    assert said in text
    assert "orders.py failed with exit code 1 after " in text


def test_the_page_lists_marks_and_its_printed_lines(run: Run) -> None:
    text = page(run)
    assert '<section class="card" id="program">' in text
    assert "Its marks (1)" in text
    assert "<code>orders.py</code>" in text


def test_every_fault_in_the_guide_is_one_that_can_be_asked_for() -> None:
    from simulator.schedule import parse_schedule

    root = Path(__file__).parent.parent
    pages = [root / "README.md", root / "docs" / "guides" / "chaos.md"]
    texts = re.findall(r'--fault "([^"]+)"', "".join(page.read_text() for page in pages))
    assert len(texts) > 4
    for text in texts:
        assert len(parse_schedule(text)) == 1
