"""`chaos` as a command: what is the script's and what is ours, wrong input, streams, exit codes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from cli import Command
from fakes import fake

from simulator.backends.base import Completed
from simulator.backends.fake import FakeBackend
from simulator.backends.fake.program import FakeProgram

KILL = ("--fault", "kill worker-1 @4s for 3s")


@pytest.fixture
def backend() -> FakeBackend:
    backend = fake()
    backend.programs["my_app.py"] = FakeProgram(tasks=40)
    return backend


@pytest.fixture
def command(command: Command) -> Command:
    Path("my_app.py").write_text("print('mine')\n")
    return command


def spec_of(data: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads((Path(data["run_dir"]) / "spec.json").read_text())
    return spec


def test_a_script_is_run_under_faults_and_judged(command: Command, backend: FakeBackend) -> None:
    done = command("chaos", "my_app.py", *KILL, "--seed", "7", "--json")
    assert done.code == 0, done.err
    assert (done.data["experiment"], done.data["verdict"]) == ("chaos", "valid")
    assert done.data["program"]["retried"] == 1
    assert Path(done.data["report"]).is_file()
    assert Path(done.data["run_dir"]).parent.name == "chaos"
    assert "Backend: fake" in done.err
    assert "my_app.py runs on head" in done.err
    assert backend.clusters() == []


def test_its_report_is_printed(command: Command) -> None:
    done = command("chaos", "my_app.py", *KILL)
    assert "my_app.py ended well after" in " ".join(done.out.replace("┃", " ").split())
    assert "attempts_recovered" in done.out


def test_options_stand_anywhere_and_those_behind_two_dashes_are_the_scripts(
    command: Command,
) -> None:
    done = command("chaos", "--seed", "3", "my_app.py", "one", *KILL, "--json", "--", "--seed", "9")
    assert done.data["seed"] == 3
    assert done.data["program"]["arguments"] == ["one", "--seed", "9"]


def test_an_unknown_option_is_told_where_those_of_the_script_stand(command: Command) -> None:
    done = command("chaos", "my_app.py", "--epochs", "3")
    assert done.code == 2
    said = " ".join(done.err.replace("│", " ").split())
    assert "chaos has no option --epochs" in said
    assert "chaos SCRIPT ... -- --epochs" in said
    assert "--fault" in command("chaos", "my_app.py", "--falt", "x").err


def test_every_problem_is_said_before_anything_starts(
    command: Command, backend: FakeBackend
) -> None:
    done = command(
        "chaos", "not_there.py", "--fault", "kill worker-9 @4s", "--fault", "kill worker-8 @4s",
        "--health", "quick", "--junit", "nowhere/x.xml",
    )  # fmt: skip
    assert done.code == 2
    for words in (
        "not_there.py: there is no such file", "worker-9", "--health quick", "--junit nowhere",
    ):  # fmt: skip
        assert words in done.err
    assert [c for c in backend.calls if c.method == "create"] == []
    assert "--fault" in command("chaos", "my_app.py", "--fault", "bite worker @4s").err


def test_a_script_that_cannot_be_packed_is_refused(command: Command) -> None:
    Path(".gitignore").write_text("my_app.py\n")
    done = command("chaos", "my_app.py", "--working-dir", ".")
    assert done.code == 2
    assert "is left out of" in done.err


def test_a_script_that_fails_is_exit_code_1_with_its_last_words(
    command: Command, backend: FakeBackend
) -> None:
    del backend.programs["my_app.py"]
    backend.job_prints("one\n", "ValueError: two\n", exit_code=3, every=0.1)
    done = command("chaos", "my_app.py", *KILL)
    assert done.code == 1
    assert "failed with exit code 3" in done.out
    assert "The last that the program printed" in done.out
    assert "ValueError: two" in done.out
    assert backend.clusters() == []


def test_without_a_fault_it_is_said_that_nothing_is_broken(command: Command) -> None:
    done = command("chaos", "my_app.py", "--json")
    assert done.code == 0
    assert "no fault was asked for" in done.err


def test_a_fault_on_the_head_is_said_to_hit_the_script_itself(command: Command) -> None:
    done = command("chaos", "my_app.py", "--fault", "pause head @4s for 2s", "--json")
    assert "the script's driver runs on the head" in done.err


def test_a_baseline_is_said_and_compared_with(command: Command) -> None:
    done = command("chaos", "my_app.py", *KILL, "--baseline", "--json", "--seed", "7")
    assert done.code == 0
    assert "Undisturbed: 10.0 s" in done.err
    assert done.data["program"]["baseline_s"] == pytest.approx(10.0, abs=0.2)
    assert done.data["program"]["slowdown"] > 1.1


def test_a_baseline_that_fails_is_shown_and_nothing_is_broken(
    command: Command, backend: FakeBackend
) -> None:
    del backend.programs["my_app.py"]
    backend.job_prints("ValueError: two\n", exit_code=1)
    done = command("chaos", "my_app.py", *KILL, "--baseline", "--json", "--repeat", "3")
    assert done.code == 1
    assert "does not end well undisturbed, so nothing was broken" in done.err
    assert done.data["verdict"] == "invalid"
    assert done.data["program"]["baseline_s"] is None
    assert [c for c in backend.calls if c.method == "kill"] == []


def test_calls_of_rays_can_be_made_to_fail_too(command: Command) -> None:
    fault = "NodeManagerService.RequestWorkerLease fails 25%"
    done = command("chaos", "my_app.py", *KILL, "--rpc-fault", fault, "--json")
    spec = spec_of(done.data)
    assert spec["rpc_faults"] == [fault]
    words = shlex.split(spec["command"])
    assert words[words.index("--rpc-fault") + 1] == fault
    assert command("chaos", "my_app.py", "--rpc-fault", "nothing").code == 2


def test_repeats_give_runs_and_a_summary(command: Command) -> None:
    done = command("chaos", "my_app.py", *KILL, "--repeat", "2", "--seed", "7", "--json")
    assert [r["seed"] for r in done.data["runs"]] == [7, 8]
    assert done.data["summary"]["verdicts"] == {"valid": 2, "unknown": 0, "invalid": 0}


def test_a_run_can_be_judged_again_from_its_folder(command: Command) -> None:
    first = command("chaos", "my_app.py", *KILL, "--json").data
    again = command("check", "chaos/latest", "--json").data
    assert again["program"] == first["program"]
    assert again["findings"] == first["findings"]


def test_the_command_that_replays_it_is_kept_without_secrets(command: Command) -> None:
    done = command(
        "chaos", "my_app.py", "one", *KILL, "--runtime-env", '{"env_vars": {"TOKEN": "hush"}}',
        "--timeout", "60", "--may-lose-tasks", "--workers", "4", "--seed", "7", "--json", "--", "-v",
    )  # fmt: skip
    spec = spec_of(done.data)
    words = shlex.split(spec["command"])
    assert words[:5] == ["python", "-m", "simulator", "chaos", "my_app.py"]
    assert words[-3:] == ["--", "one", "-v"]
    assert "hush" not in json.dumps(spec)
    again = command(*words[3:]).code
    assert again == done.code
    replayed = json.loads(Path("runs/latest/spec.json").read_text())
    same = ("seed", "params", "topology", "schedule", "health", "command", "checks")
    assert {k: replayed[k] for k in same} == {k: spec[k] for k in same}


def test_a_run_is_replayed_with_the_same_faults(command: Command) -> None:
    first = command(
        "chaos", "my_app.py", "one", "--fault", "kill one(worker) @4s for 3s", "--seed", "3",
        "--baseline", "--json",
    ).data  # fmt: skip
    again = command("replay", "chaos/latest", "--json")
    assert again.code == 0, again.err
    assert spec_of(again.data)["schedule"] == spec_of(first)["schedule"]
    assert again.data["program"]["arguments"] == ["one"]
    assert again.data["program"]["baseline_s"] == first["program"]["baseline_s"]
    Path("my_app.py").unlink()
    gone = command("replay", "chaos/latest")
    assert gone.code == 2
    assert "my_app.py: there is no such file" in gone.err


def test_a_run_whose_variables_were_not_kept_is_not_replayed(command: Command) -> None:
    env = '{"env_vars": {"TOKEN": "hush"}}'
    assert command("chaos", "my_app.py", *KILL, "--runtime-env", env, "--json").code == 0
    done = command("replay", "latest")
    assert done.code == 2
    assert "are not kept" in done.err


def test_faults_may_be_drawn_and_stand_in_the_command_as_they_were_drawn(command: Command) -> None:
    done = command(
        "chaos", "my_app.py", "--fault", "random", "--rate", "0.5", "--budget", "2", "--seed", "5",
        "--json",
    )  # fmt: skip
    spec = spec_of(done.data)
    assert len(spec["params"]["faults"]) == 2
    words = shlex.split(spec["command"])
    assert [words[i + 1] for i, w in enumerate(words) if w == "--fault"] == spec["params"]["faults"]


def test_a_failing_schedule_is_shrunk(command: Command, backend: FakeBackend) -> None:
    backend.programs["my_app.py"] = FakeProgram(tasks=40, max_retries=0)
    faults = ("pause worker-2 @2s for 1s", "kill worker-1 @4s for 3s", "pause worker-3 @3s for 1s")
    asked = [word for fault in faults for word in ("--fault", fault)]
    assert command("chaos", "my_app.py", *asked, "--json").code == 1
    done = command("shrink", "latest", "--json")
    assert done.code == 0, done.err
    assert [f["step"] for f in done.data["faults"]] == ["kill worker-1 @4s for 3s"]


def test_a_cluster_that_is_up_can_be_reused(command: Command, backend: FakeBackend) -> None:
    assert command("up", "--name", "lab").code == 0
    backend.answers["env"] = Completed(0, "")  # no settings of ours: Ray's own
    done = command("chaos", "my_app.py", *KILL, "--reuse", "lab", "--json")
    assert done.code == 0, done.err
    assert [c.name for c in backend.clusters()] == ["lab"]
