"""A user's script under faults, on the fake backend: what is recorded of it, and how it is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fakes import Lab, fake, finding, kinds, only

from simulator.backends.fake import Behaviour, FakeBackend
from simulator.backends.fake.program import FakeProgram
from simulator.backends.fake.ray import jobs_of
from simulator.chaos import Chaos
from simulator.errors import CannotRun, Interrupted
from simulator.faults import Kill
from simulator.jobs import plan_program
from simulator.runner import RunRequest, exit_code
from simulator.schedule import After, Named, Never, Step
from simulator.store import RunDir
from simulator.workload import Script

KILL = Step(4, Kill(), Named("worker-1"), After(3))


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """One whose cluster knows a script of the user's."""
    (lab.root.parent / "my_app.py").write_text("print('mine')\n", encoding="utf-8")
    lab.backend.programs["my_app.py"] = FakeProgram(tasks=40, seconds=1.0)
    return lab


def experiment(lab: Lab, *steps: Step, timeout: float = 300.0, **env: Any) -> Chaos:
    script = lab.root.parent / "my_app.py"
    program = plan_program(str(script), ["--n", "3"], runtime_env=env)
    return Chaos(Script(program, timeout), steps)


def asked(lab: Lab, chaos: Chaos, **more: Any) -> RunRequest:
    return replace(
        Lab(lab.root, lab.backend).request(),
        experiment=chaos,
        params=chaos.params,
        source="chaos",
        **more,
    )


def run(lab: Lab, *steps: Step, **more: Any) -> dict[str, Any]:
    return lab.runner().run(asked(lab, experiment(lab, *steps, **more)))


def fails(backend: FakeBackend, *output: str, every: float = 0.5) -> None:
    """The script is one that prints this and ends with exit code 1."""
    del backend.programs["my_app.py"]
    backend.job_prints(*output, exit_code=1, every=every)


# ---- what is recorded


def test_an_undisturbed_script_is_valid(lab: Lab) -> None:
    result = run(lab)
    assert (result["status"], result["verdict"]) == ("completed", "valid"), result["findings"]
    assert lab.phases == ["create", "gate", "load", "work", "heal", "collect", "down"]
    assert lab.backend.clusters() == []
    program = result["program"]
    assert (program["script"], program["arguments"]) == ("my_app.py", ["--n", "3"])
    assert (program["status"], program["exit_code"], program["tasks"]) == ("SUCCEEDED", 0, 40)
    assert program["seconds"] == pytest.approx(10.0, abs=0.6)
    assert result["params"]["script"] == "my_app.py"
    assert result["params"]["arguments"] == ["--n", "3"]


def test_a_script_under_a_fault_is_recorded_from_its_submission_to_its_last_attempt(
    lab: Lab,
) -> None:
    result = run(lab, KILL)
    assert (result["status"], result["verdict"]) == ("completed", "valid"), result["findings"]
    history = lab.history(result)
    order = [
        *("program.submit", "program.start", "fault.inject", "fault.effect", "fault.healed"),
        *("program.end", "attempts.complete", "run.end"),
    ]
    places = [kinds(history).index(kind) for kind in order]
    assert places == sorted(places)
    assert only(history, "program.start").node == "head"
    end = only(history, "program.end")
    assert (end.data["status"], end.data["exit_code"]) == ("SUCCEEDED", 0)
    attempts = [op for op in history.of("program.attempt") if op.data["state"] == "FAILED"]
    assert [(op.node, op.data["error_type"]) for op in attempts] == [("worker-1", "NODE_DIED")]
    (failed,) = history.of("attempt.failed")
    assert failed.data["key"] == attempts[0].data["key"]
    again = [
        op
        for op in history.of("program.attempt")
        if op.data["task_id"] == failed.data["task_id"] and op.data["attempt"] == 1
    ]
    assert [op.data["state"] for op in again] == ["FINISHED"]
    assert len(history.of("program.attempt")) == 41


def test_how_many_tasks_are_where_is_recorded_as_it_changes(lab: Lab) -> None:
    history = lab.history(run(lab, KILL))
    counts = [op.data for op in history.of("program.tasks")]
    assert len(counts) > 3
    assert [c["finished"] for c in counts] == sorted(c["finished"] for c in counts)
    assert counts[0]["pending"] > 0
    assert any(c["failed"] == 1 for c in counts)
    for before, after in pairwise(counts):
        assert before != after


def test_what_it_prints_is_kept_in_the_runs_folder_and_its_end_in_the_history(lab: Lab) -> None:
    fails(lab.backend, "one\n", "\x1b[36mtwo\x1b[0m\n", "ValueError: three\n")
    result = run(lab)
    printed = (Path(result["run_dir"]) / "program.log").read_text()
    assert printed == "one\n\x1b[36mtwo\x1b[0m\nValueError: three\n"
    end = only(lab.history(result), "program.end").data
    assert end["lines"] == ["one", "two", "ValueError: three"]
    assert end["log_whole"] is True


def test_the_job_knows_the_run_and_keeps_its_own_variables(lab: Lab) -> None:
    seen: dict[str, Any] = {}

    def look() -> None:
        for job_id, job in jobs_of(lab.backend.world("c")).items():
            seen[job_id] = dict(job.runtime_env)

    lab.on_phase["heal"] = look
    result = run(lab, env_vars={"TOKEN": "hush"}, pip=["left-pad"])
    (env,) = seen.values()
    run_id = Path(result["run_dir"]).name
    assert env["env_vars"] == {"TOKEN": "hush", "RAY_SIM_RUN": run_id}
    assert env["pip"] == ["left-pad"]
    for name in ("spec.json", "history.jsonl", "result.json"):
        assert "hush" not in (Path(result["run_dir"]) / name).read_text()


# ---- how it is judged


def test_without_retries_the_lost_task_is_named(lab: Lab) -> None:
    lab.backend.programs["my_app.py"] = FakeProgram(tasks=40, max_retries=0)
    result = run(lab, KILL)
    assert (result["status"], result["verdict"]) == ("completed", "invalid")
    assert exit_code(result) == 1
    lost = finding(result, "attempts_recovered")
    assert lost["verdict"] == "invalid"
    (failed,) = lab.history(result).of("attempt.failed")
    assert failed.data["key"] in lost["summary"]
    assert "NODE_DIED on worker-1" in lost["summary"]
    assert finding(result, "program_ended_well")["verdict"] == "invalid"
    assert finding(result, "fault_hit_work")["verdict"] == "valid"


def test_tasks_may_be_lost_where_the_script_deals_with_that_itself(lab: Lab) -> None:
    chaos = experiment(lab, KILL)
    relaxed = Chaos(chaos.script, chaos.steps, may_lose_tasks=True)
    result = lab.runner().run(asked(lab, relaxed))
    assert "attempts_recovered" not in {f["check"] for f in result["findings"]}
    assert result["verdict"] == "valid"


def test_a_script_that_ends_before_the_fault_proves_nothing_and_nobody_waits(lab: Lab) -> None:
    late = Step(600, Kill(), Named("worker-1"))
    result = run(lab, late)
    history = lab.history(result)
    assert (result["status"], result["verdict"]) == ("completed", "unknown")
    assert only(history, "fault.skipped").data["why"] == "my_app.py had ended before"
    assert "my_app.py had ended before" in finding(result, "fault_hit_work")["summary"]
    assert finding(result, "program_ended_well")["verdict"] == "valid"
    assert only(history, "run.end").wall - only(history, "run.start").wall < 60


def test_a_script_that_fails_at_once_is_invalid_with_its_own_last_words(lab: Lab) -> None:
    fails(
        lab.backend,
        "Traceback (most recent call last):\n",
        '  File "my_app.py", line 3, in <module>\nModuleNotFoundError: no cow\n',
    )
    result = run(lab, KILL)
    assert (result["status"], result["verdict"]) == ("completed", "invalid")
    said = finding(result, "program_ended_well")
    assert said["summary"].startswith("my_app.py failed with exit code 1 after ")
    assert said["summary"].endswith("before any fault was injected: ModuleNotFoundError: no cow")
    assert lab.backend.clusters() == []


def test_a_script_that_could_not_be_started_could_not_run(lab: Lab) -> None:
    lab.backend.job_ends("FAILED", "runtime_env setup failed: no such package\nits pip said so")
    del lab.backend.programs["my_app.py"]
    result = run(lab, KILL)
    assert (result["status"], exit_code(result)) == ("aborted", 4)
    assert "my_app.py could not be started: runtime_env setup failed" in result["error"]
    assert lab.backend.clusters() == []


def test_a_script_that_takes_too_long_is_stopped_and_invalid(lab: Lab) -> None:
    lab.backend.programs["my_app.py"] = FakeProgram(tasks=40, seconds=100.0)
    result = run(lab, timeout=20.0)
    assert result["verdict"] == "invalid"
    assert (
        "my_app.py was stopped: it was not over within 20 s"
        in (finding(result, "program_ended_well")["summary"])
    )
    assert only(lab.history(result), "program.end").data["status"] == "STOPPED"


def test_a_script_that_takes_too_long_is_stopped_while_faults_are_still_to_come(lab: Lab) -> None:
    lab.backend.programs["my_app.py"] = FakeProgram(tasks=40, seconds=100.0)
    result = run(lab, KILL, Step(500, Kill(), Named("worker-2")), timeout=30.0)
    assert "it was not over within 30 s" in finding(result, "program_ended_well")["summary"]
    assert finding(result, "fault_hit_work")["verdict"] == "unknown"


def test_a_script_whose_head_is_killed_is_lost_from_sight(lab: Lab) -> None:
    result = run(lab, Step(4, Kill(), Named("head"), After(3)))
    assert result["status"] == "completed", result["error"]
    ended = finding(result, "program_ended_well")
    assert ended["verdict"] == "unknown"
    assert "lost sight of my_app.py" in ended["summary"]
    # No new head takes workers back: healing it starts them anew too.
    assert finding(result, "whole_again")["verdict"] == "valid"
    assert only(lab.history(result), "program.end").data["status"] == "LOST"


def test_nobody_waits_for_a_script_whose_head_stays_dead(lab: Lab) -> None:
    result = run(lab, Step(4, Kill(), Named("head"), Never()))
    assert finding(result, "program_ended_well")["verdict"] == "unknown"
    history = lab.history(result)
    assert only(history, "program.end").data["status"] == "LOST"
    assert only(history, "run.end").wall - only(history, "fault.inject").wall < 200


def test_a_head_that_dies_by_itself_ends_the_run(lab: Lab) -> None:
    lab.on_phase["work"] = lambda: lab.backend.later(5.0, lambda: lab.backend.crash("c", "head"))
    result = run(lab)
    assert result["status"] in ("failed", "aborted")
    assert "the head is exited, and no fault of this run did it" in result["error"]


def test_ctrl_c_stops_the_script(lab: Lab) -> None:
    def interrupt() -> None:
        raise Interrupted("interrupted")

    lab.backend.before("ray.task_counts", interrupt)
    result = run(lab, KILL)
    assert result["status"] == "interrupted"
    end = only(lab.history(result), "program.end").data
    assert (end["status"], end["why"]) == ("STOPPED", "the run ended early")
    assert finding(result, "program_ended_well")["verdict"] == "unknown"
    assert lab.backend.clusters() == []


def test_records_that_could_not_be_fetched_make_the_run_unknown(lab: Lab) -> None:
    silent = CannotRun("Ray does not answer")
    lab.on_phase["collect"] = lambda: lab.backend.fail_next("ray.attempts", silent, times=9)
    result = run(lab, KILL)
    assert result["verdict"] == "unknown"
    assert "were not collected" in finding(result, "attempts_recovered")["summary"]
    assert "were not collected" in finding(result, "fault_hit_work")["summary"]


def many(tmp_path: Path, most_rows: int, retries: int = 3) -> Lab:
    """A script of more tasks than Ray lists at once."""
    (tmp_path / "my_app.py").write_text("", encoding="utf-8")
    lab = Lab(tmp_path / "runs", fake(Behaviour(most_rows=most_rows)))
    lab.backend.programs["my_app.py"] = FakeProgram(tasks=40, max_retries=retries)
    return lab


def test_of_more_attempts_than_ray_lists_those_of_tasks_that_failed_are_asked_for(
    tmp_path: Path,
) -> None:
    result = run(many(tmp_path, 12), KILL)
    assert result["verdict"] == "valid", result["findings"]
    history = RunDir(Path(result["run_dir"])).history()
    complete = only(history, "attempts.complete").data
    assert complete["dropped"] == 0
    assert complete["rows"] + complete["left_out"] >= 41
    assert "none of" in finding(result, "attempts_recovered")["summary"]
    (failed,) = history.of("attempt.failed")
    attempts = [
        op.data["state"]
        for op in history.of("program.attempt")
        if op.data["task_id"] == failed.data["task_id"]
    ]
    assert attempts == ["FAILED", "FINISHED"]


def test_where_not_even_those_are_all_there_the_answer_is_unknown(tmp_path: Path) -> None:
    result = run(many(tmp_path, 0), KILL)
    assert result["verdict"] == "unknown"
    assert "Ray dropped" in finding(result, "attempts_recovered")["summary"]
    assert finding(result, "evidence")["verdict"] == "unknown"


# ---- against an undisturbed run


def compared(lab: Lab, *steps: Step) -> list[dict[str, Any]]:
    chaos = experiment(lab, *steps)
    alone = chaos.undisturbed()
    return lab.runner().repeat(asked(lab, chaos), 1, baseline=asked(lab, alone))


def test_a_baseline_runs_first_on_the_same_cluster_and_says_how_much_longer_it_took(
    lab: Lab,
) -> None:
    alone, disturbed = compared(lab, KILL)
    assert (alone["verdict"], disturbed["verdict"]) == ("valid", "valid")
    assert [c.method for c in lab.backend.calls].count("create") == 1
    program = disturbed["program"]
    assert program["baseline_s"] == alone["program"]["seconds"]
    assert program["slowdown"] == pytest.approx(
        program["seconds"] / program["baseline_s"], abs=0.01
    )
    assert program["slowdown"] > 1.1
    summary = finding(disturbed, "program_ended_well")["summary"]
    assert summary.endswith(f"times the {program['baseline_s']:.1f} s undisturbed")
    assert alone["program"]["slowdown"] is None


def test_a_baseline_that_fails_ends_it(lab: Lab) -> None:
    fails(lab.backend, "ValueError: three\n")
    (alone,) = compared(lab, KILL)
    assert alone["verdict"] == "invalid"
    assert lab.backend.clusters() == []


def test_effects_are_compared_with_those_of_the_baseline(lab: Lab) -> None:
    lab.backend.programs["my_app.py"] = FakeProgram(tasks=40, effects=True)
    _, disturbed = compared(lab, KILL)
    assert finding(disturbed, "effects_exactly_once")["verdict"] == "valid"
    assert finding(disturbed, "effects_exactly_once")["metrics"]["keys"] == 40


def test_an_effect_that_got_lost_is_named(lab: Lab) -> None:
    lab.backend.programs["my_app.py"] = FakeProgram(tasks=40, effects=True)
    chaos = experiment(lab, KILL)
    (alone,) = lab.runner().repeat(asked(lab, chaos.undisturbed()), 1)
    keys = [f"square-{n}" for n in range(1, 41)]
    baseline = {
        "run_id": "a",
        "seconds": alone["program"]["seconds"],
        "effects": {"count": 40, "keys": keys},
    }
    lab.backend.lose_line("program.effect", "square-9", where="ledger")
    result = lab.runner().run(asked(lab, chaos, baseline=baseline))
    lost = finding(result, "effects_exactly_once")
    assert lost["verdict"] == "invalid"
    assert lost["summary"] == "1 of 40 never happened: square-9"


def test_the_spec_holds_what_it_was_compared_with(lab: Lab) -> None:
    compared(lab, KILL)
    spec = json.loads((lab.latest().path / "spec.json").read_text())
    assert spec["workload"] == {
        "name": "program", "script": "my_app.py", "arguments": ["--n", "3"], "timeout_s": 300.0,
    }  # fmt: skip
    assert spec["baseline"]["seconds"] == pytest.approx(10.0, abs=0.6)
    assert (
        spec["claim"] == "my_app.py ends well although the cluster gets: kill worker-1 @4s for 3s."
    )
