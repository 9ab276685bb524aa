"""The commands that show faults and schedules, and a run with other faults than its experiment's."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from cli import SHORT, Command

from simulator.backends.base import Capability
from simulator.backends.fake import FakeBackend
from simulator.faults import FAULTS, Pause
from simulator.schedule import parse_schedule
from simulator.store import Store


class CanFly:
    pass


def grounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can freeze a node."""
    monkeypatch.setattr(Pause, "needs", Capability("fly", CanFly, "can fly"))


# -- faults --------------------------------------------------------------------------------------------


def test_faults_lists_all_of_them_with_parameters_and_examples(command: Command) -> None:
    done = command("faults", "--backend", "fake")
    assert done.code == 0
    for name, kind in FAULTS.items():
        assert f" {name} " in done.out
        assert kind.summary.split(":")[0][:40] in done.out
    assert "grace=30s (number)  How long until SIGKILL follows" in done.out
    assert "stop(grace=30s) one(worker) @20s" in done.out
    assert "Backend: fake" in done.err


def test_faults_as_data_say_what_can_be_done_and_have_examples_that_parse(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    grounded(monkeypatch)
    rows = command("faults", "--json", "--topology", "cpu_only").data
    assert [row["name"] for row in rows] == list(FAULTS)
    by_name = {row["name"]: row for row in rows}
    assert by_name["kill"] == {
        "name": "kill",
        "summary": "SIGKILL to the whole node at once, as when a machine loses power",
        "parameters": [],
        "undo": "start",
        "able": True,
        "why_not": None,
        "example": "kill one(worker) @20s",
    }
    assert by_name["stop"]["parameters"] == [
        {
            "name": "grace",
            "type": "number",
            "default": 30.0,
            "unit": "s",
            "description": "How long until SIGKILL follows",
        }
    ]
    assert by_name["pause"]["able"] is False
    assert by_name["pause"]["why_not"] == "pause needs a backend that can fly; fake does not"
    assert [parse_schedule(row["example"])[0].fault.name for row in rows] == list(FAULTS)
    assert "not here: pause needs a backend that can fly" in " ".join(command("faults").out.split())


def test_examples_name_a_group_of_the_topology(command: Command) -> None:
    rows = command("faults", "--json", "--topology", "hybrid").data
    group = parse_schedule(rows[0]["example"])[0].target
    assert command("schedule", f"kill {group}", "--topology", "hybrid").code == 0
    assert str(group) != "one(worker)"


def test_faults_refuses_what_it_does_not_know(command: Command) -> None:
    done = command("faults", "--backend", "dokcer", "--topology", "hybird")
    assert (done.code, done.out) == (2, "")
    assert "2 problems" in done.err
    assert "did you mean hybrid" in done.err


# -- schedule ------------------------------------------------------------------------------------------

STEPS = (
    "kill one(worker) @20s for 15s; stop(grace=5) worker-1, head @60s busy for good",
    "pause node_of(actor:A) when 'tasks(finished) > 50'; restart one every 20s..40s 2 times",
)


def test_a_timeline_is_shown_without_anything_being_started(
    command: Command, backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = command("schedule", *STEPS, "--seed", "7")
    assert done.code == 0
    text = " ".join(done.out.split())
    assert "topology default (head, worker-1, worker-2, worker-3), seed 7" in text
    for part in (
        "f1 20 s kill worker-",
        "of one(worker)",
        "15 s later start",
        "node_of(actor:A): found when it is due",
        "when tasks(finished) > 50, within 120 s",
        "stop(grace=5) worker-1, head not before the end nothing",
        "in the middle of a task",
        "every 20s..40s 2 times",
        "█ holds ─ may hold ? waits for its condition",
    ):
        assert part in text
    lines = [line for line in done.out.splitlines() if line.startswith("f") and "█" in line]
    assert len(lines) == 4  # one waits for its condition
    assert "--backend auto" in done.err
    assert backend.calls == []
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_shows_the_same_and_none_draws_one_that_is_shown(command: Command) -> None:
    first = command("schedule", *STEPS, "--seed", "7", "--json").data
    assert first == command("schedule", *STEPS, "--seed", "7", "--json").data
    assert first != command("schedule", *STEPS, "--seed", "8", "--json").data
    drawn = command("schedule", *STEPS, "--json").data
    assert drawn == command("schedule", *STEPS, "--json", "--seed", str(drawn["seed"])).data


def test_a_schedule_as_data_is_what_a_runs_spec_holds(command: Command) -> None:
    shown = command("schedule", STEPS[0], "--seed", "7", "--json").data
    assert (shown["topology"], shown["seed"], shown["backend"]) == ("default", 7, None)
    ran = command(
        "run", "node_failure", "--fault", STEPS[0], "--seed", "7", "--keep", "--json", *SHORT
    )
    spec = Store().find(ran.data["run_dir"]).spec()
    assert shown["faults"] == spec["schedule"]


def test_what_the_backend_cannot_do_is_refused_where_a_backend_is_named(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    grounded(monkeypatch)
    assert command("schedule", "pause worker").code == 0
    done = command("schedule", "pause worker; kill worker; pause head", "--backend", "fake")
    assert (done.code, done.out) == (4, "")
    assert done.err.count("pause needs a backend that can fly; fake does not") == 1


def test_all_problems_of_all_options_come_together(command: Command, tmp_path: Path) -> None:
    (tmp_path / "faults.yaml").write_text("- kil worker\n- {fault: kill}\n")
    done = command(
        "schedule", "kill one(worker @5s; kill worker evry 5s", "pause nobody", "--file", "faults.yaml",
        "--backend", "dokcer", "--topology", "hybird", "--rate", "2",
    )  # fmt: skip
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: 7 problems:")
    for part in (
        "--backend dokcer: is not known",
        "no topology named 'hybird'",
        "STEPS 1, step 1: '@' cannot stand here; expected ',' or ')'\n      kill one(worker @5s\n"
        "                      ^",
        "STEPS 1, step 2: 'evry' is no word of the language here; did you mean every?",
        "faults.yaml:1: there is no fault named 'kil'; did you mean kill?\n      kil worker\n      ^^^",
        "faults.yaml:2: target is missing",
        "--rate: belongs to STEPS random; leave it out, or say random too",
    ):
        assert part in done.err


def test_targets_are_held_against_the_topology(command: Command) -> None:
    done = command("schedule", "kill wroker-1; kill all(gpus); pause one", "--topology", "hybrid")
    assert done.code == 2
    assert "no node or group named 'wroker-1'" in done.err
    assert "no group named 'gpus': did you mean gpu" in done.err
    assert command("schedule", "kill all(wroker)", "--workers", "5").code == 2
    assert command("schedule", "kill worker-5", "--workers", "5").code == 0


@pytest.mark.parametrize("condition", ["", " when 'fault(f9) == healed'"])
def test_whom_a_step_means_is_looked_at_though_another_cannot_be_read(
    command: Command, condition: str
) -> None:
    steps = f"kill worker-9 @5s{condition}; loss(percnt=3) worker-1 @1s", "random"
    done = command("schedule", *steps, "--rate", "0")
    assert done.code == 2
    assert done.err.startswith("error: 3 problems:")
    for part in ("no node or group named 'worker-9'", "named 'percnt'", "--rate: is 0 faults"):
        assert part in done.err


def test_no_step_at_all_is_wrong_usage_and_shows_an_example(command: Command) -> None:
    done = command("schedule")
    assert done.code == 2
    assert 'python -m simulator schedule "kill one(worker) @20s"' in done.err


def test_random_faults_are_drawn_from_what_the_backend_can_do(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    grounded(monkeypatch)
    line = ("schedule", "random", "--rate", "0.5", "--budget", "12", "--seed", "3", "--json")
    shown = command(*line).data
    assert shown == command(*line).data
    assert shown["backend"] == "fake"
    assert len(shown["faults"]) == 12
    drawn = {f["fault"] for f in shown["faults"]}
    assert len(drawn) > 2
    assert drawn < {name for name, kind in FAULTS.items() if kind.at_random} - {"pause"}
    assert {n for f in shown["faults"] for n in f["nodes"]} == {"worker-1", "worker-2", "worker-3"}
    both = command("schedule", "random  with head", "pause worker @1s", "--budget", "30", "--json")
    assert both.code == 4  # pause cannot be done, though it was not drawn
    with_head = command(
        "schedule", "random with head", "--budget", "30", "--seed", "1", "--json"
    ).data
    assert "head" in {n for f in with_head["faults"] for n in f["nodes"]}


@pytest.mark.parametrize("option", [("--rate", "0"), ("--rate", "nan"), ("--budget", "0")])
def test_figures_of_chance_that_make_no_sense_are_refused(
    command: Command, option: tuple[str, str]
) -> None:
    done = command("schedule", "random", *option)
    assert done.code == 2
    assert option[0] in done.err


# -- run -----------------------------------------------------------------------------------------------


def test_a_run_takes_other_faults_and_its_command_says_them_again(command: Command) -> None:
    done = command(
        "run", "node_failure", "--fault", "pause one(worker) @4s", "--seed", "3", "--json", *SHORT
    )
    assert done.code == 0
    spec = Store().find("latest").spec()
    assert spec["steps"] == ["pause one(worker) @4s"]
    assert [f["fault"] for f in spec["schedule"]] == ["pause"]
    words = shlex.split(spec["command"])[3:]
    assert command(*words, "--json").code == 0
    assert Store().find("latest").spec()["schedule"] == spec["schedule"]


def test_a_run_takes_faults_from_a_file_and_random_ones(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kill worker-2 @4s  # in the middle\n")
    done = command(
        "run", "node_failure", "--file", "mine.txt", "--fault", "random", "--budget", "2",
        "--seed", "5", "--json", *SHORT,
    )  # fmt: skip
    assert done.code in (0, 3)
    spec = Store().find("latest").spec()
    assert spec["steps"][0] == "kill worker-2 @4s"
    assert len(spec["steps"]) == 3
    # Drawn faults are said as they were drawn, whatever seed the next run has.
    assert "random" not in spec["command"]
    assert shlex.split(spec["command"]).count("--fault") == 3


def test_a_run_with_faults_that_cannot_be_read_starts_nothing(
    command: Command, backend: FakeBackend, tmp_path: Path
) -> None:
    done = command(
        "run",
        "node_failure",
        "--fault",
        "kill nobody; pause one",
        "--param",
        "tasks=x",
        "--budget",
        "3",
    )
    assert done.code == 2
    for part in ("no node or group named 'nobody'", "--param tasks", "--budget: belongs to"):
        assert part in done.err or part == "no node or group named 'nobody'"
    done = command("run", "node_failure", "--fault", "kill nobody; kil one")
    assert "there is no fault named 'kil'" in done.err
    done = command("run", "node_failure", "--fault", "kill nobody")
    assert "no node or group named 'nobody'" in done.err
    assert backend.calls == []
    assert not (tmp_path / "runs").exists()
