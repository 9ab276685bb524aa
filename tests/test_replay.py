"""A run done again, and a schedule made as small as it can be: the logic, on the fake backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from cli import Command, runner_of, use_backends
from fakes import Lab
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import BadInput, CannotRun
from simulator.faults import Kill
from simulator.runner.replay import replay_request
from simulator.runner.shrink import Shrinker
from simulator.schedule import Named, PlannedFault, Step, parse_schedule
from simulator.store import RunDir


def planned(count: int) -> list[PlannedFault]:
    return [
        PlannedFault(f"f{i}", Step(i, Kill(), Named("worker-1")), ("worker-1",))
        for i in range(count)
    ]


@given(st.integers(1, 12), st.data())
def test_what_is_left_fails_and_nothing_of_it_can_be_left_out(
    count: int, data: st.DataObject
) -> None:
    plan = planned(count)
    guilty = data.draw(st.sets(st.sampled_from([p.id for p in plan]), min_size=1))
    shrinker = Shrinker(lambda part: guilty <= {p.id for p in part}, budget=1000)
    shrunk = shrinker.shrink(plan)
    assert {p.id for p in shrunk.plan} == guilty
    assert shrunk.complete


def test_two_of_eight_are_found_in_a_handful_of_runs() -> None:
    asked: list[Sequence[str]] = []

    def fails(part: Sequence[PlannedFault]) -> bool:
        asked.append([p.id for p in part])
        return {"f2", "f6"} <= {p.id for p in part}

    shrunk = Shrinker(fails, budget=100).shrink(planned(8))
    assert [p.id for p in shrunk.plan] == ["f2", "f6"]
    assert shrunk.runs == len(asked) == len({tuple(a) for a in asked}) < 20


def test_when_the_budget_is_spent_the_smallest_so_far_is_given_as_such() -> None:
    shrunk = Shrinker(lambda part: any(p.id == "f0" for p in part), budget=2).shrink(planned(8))
    assert (shrunk.complete, shrunk.runs) == (False, 2)
    assert "f0" in {p.id for p in shrunk.plan}
    assert len(shrunk.plan) < 8


# ---- replays


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "runs")


def test_a_replay_has_the_same_faults_on_the_same_targets(lab: Lab) -> None:
    first = RunDir(Path(lab.run(seed=11)["run_dir"]))
    request = replay_request(first)
    again = RunDir(Path(lab.runner().run(request)["run_dir"]))
    one, other = first.spec(), again.spec()
    assert (other["schedule"], other["seed"], other["params"]) == (
        one["schedule"],
        one["seed"],
        one["params"],
    )
    assert other["replays"] == str(first.path)
    assert [(op.node, op.data["id"]) for op in again.history().of("fault.inject")] == [
        (op.node, op.data["id"]) for op in first.history().of("fault.inject")
    ]


def test_a_replay_of_a_replay_pins_what_only_the_first_run_could_tell(lab: Lab) -> None:
    steps = parse_schedule("kill busiest @5s until dead")
    first = RunDir(Path(lab.run(seed=11, steps=steps)["run_dir"]))
    (struck,) = (op.node for op in first.history().of("fault.inject"))
    assert first.spec()["schedule"][0]["nodes"] == []
    again = RunDir(Path(lab.runner().run(replay_request(first))["run_dir"]))
    assert again.spec()["schedule"][0]["nodes"] == [struck]
    third = RunDir(Path(lab.runner().run(replay_request(again))["run_dir"]))
    assert [op.node for op in third.history().of("fault.inject")] == [struck]


def test_an_experiment_that_plans_something_else_now_is_refused(lab: Lab) -> None:
    run = RunDir(Path(lab.run()["run_dir"]))
    spec = run.spec()
    spec["schedule"][0]["when"] = "99 s after the load began"
    run.write_spec(spec)
    with pytest.raises(
        BadInput, match=r"f1: was kill of worker-\d 99 s after .* would now be kill"
    ):
        replay_request(run)


def test_parameters_that_the_experiment_no_longer_has_are_named(lab: Lab) -> None:
    run = RunDir(Path(lab.run()["run_dir"]))
    spec = run.spec()
    spec["params"]["gone"] = 1
    run.write_spec(spec)
    with pytest.raises(BadInput, match="gone"):
        replay_request(run)


# ---- shrinking a real run of the fake backend

FOUR = """
from simulator import After, Experiment, Kill, Named, Never, Pause, Step, TaskStream

class Four(Experiment):
    name = "four"
    claim = "One kill and three short pauses, and no task is ever tried again."
    checks = ("no_task_lost",)

    def workload(self, params):
        return TaskStream(tasks=80, max_retries=0)

    def schedule(self, params, topology):
        pauses = [Step(at, Pause(), Named("worker-1"), After(0.5)) for at in (3, 5, 9)]
        return [*pauses, Step(7, Kill(), Named("worker-2"), Never(), when_busy=True)]

    def mandatory_phases(self, params):
        return ()
"""


@pytest.fixture
def four(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = tmp_path / "four.py"
    file.write_text(FOUR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_SIM_RUNS", str(tmp_path / "runs"))
    use_backends(monkeypatch, lab.backend)
    return str(file)


@pytest.fixture
def command(four: str, capsys: pytest.CaptureFixture[str]) -> Command:
    return runner_of(capsys)


def test_the_one_fault_that_matters_is_found_and_its_run_replays(
    lab: Lab, command: Command, four: str
) -> None:
    assert command("run", four, "--seed", "3").code == 1
    shrunk = command("shrink", "--json")
    assert (shrunk.code, shrunk.data["complete"]) == (0, True)
    assert [(f["id"], f["fault"]) for f in shrunk.data["faults"]] == [("f4", "kill")]
    assert "it does not fail so" in shrunk.err
    assert lab.backend.clusters() == []
    smallest = RunDir(Path(shrunk.data["run_dir"]))
    assert [s["id"] for s in smallest.spec()["schedule"]] == ["f4"]
    again = command("replay", shrunk.data["run_dir"], "--json")
    assert (again.code, again.data["verdict"]) == (1, "invalid")
    latest = RunDir(Path(again.data["run_dir"])).spec()
    assert [s["id"] for s in latest["schedule"]] == ["f4"]


def test_a_run_that_did_not_fail_is_not_shrunk(lab: Lab, command: Command) -> None:
    lab.run()
    refused = command("shrink")
    assert refused.code == 2
    assert "did not fail: it is valid" in refused.err


def test_a_run_that_does_not_fail_again_is_said_to(lab: Lab, command: Command, four: str) -> None:
    command("run", four)
    run = RunDir(lab.latest().path)
    changed = Path(run.path / "experiment.py")
    changed.write_text(changed.read_text().replace("max_retries=0", "max_retries=3"))
    refused = command("shrink")
    assert (refused.code, "did not fail again" in refused.err) == (4, True)
    assert lab.backend.clusters() == []


def test_a_run_that_could_not_be_carried_out_ends_the_shrinking(
    lab: Lab, command: Command, four: str
) -> None:
    command("run", four)
    lab.backend.fail_next("create", CannotRun("no more addresses"))
    refused = command("shrink")
    assert (refused.code, "no more addresses" in refused.err) == (4, True)


def test_a_backend_that_is_not_there_is_named(command: Command, four: str) -> None:
    command("run", four)
    assert "--backend nowhere" in command("replay", "--backend", "nowhere").err
