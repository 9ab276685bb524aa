"""Experiments: found by name or path, and their parameters checked all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.checkers.anatomy import HEAD
from simulator.checkers.growth import GROWTH
from simulator.checkers.registry import CHECKERS
from simulator.errors import BadInput, NotFound
from simulator.experiment import (
    DEFAULT_CHECKS,
    PHASES,
    known_experiments,
    load_experiment,
    params_data,
)
from simulator.schedule import Never, WhenDeclaredDead
from simulator.topology import load_topology

MINE = '''
"""Two workers die."""
from simulator import Experiment, Kill, Params, Step, TaskStream
from simulator.schedule import Named

class Mine(Experiment):
    name = "mine"
    claim = "Nothing is lost."

    class Params(Params):
        tasks: int = 10

    def workload(self, params):
        return TaskStream(tasks=params.tasks)

    def schedule(self, params, topology):
        return [Step(at=1, fault=Kill(), target=Named("worker-1"))]
'''


def written(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", sorted(known_experiments()))
def test_every_experiment_that_comes_along_loads_and_plans(name: str) -> None:
    experiment = load_experiment(name)
    topology = load_topology(experiment.topology)
    params = experiment.parse_params([])
    assert experiment.name == name
    assert experiment.claim.endswith(".")
    assert set(experiment.checks) <= set(CHECKERS)
    known = GROWTH if topology.autoscaling else (*PHASES, *HEAD)
    assert set(experiment.mandatory_phases(params)) <= set(known)
    breaks = experiment.schedule(params, topology) or topology.autoscaling
    assert breaks or not experiment.mandatory_phases(params)
    assert list(experiment.problems(params, topology)) == []
    assert experiment.workload(params).nominal_seconds(topology) > 0
    assert experiment.recovery_timeout(params) > 0
    for field in experiment.Params.model_fields.values():
        assert field.description


def test_every_check_is_a_known_one() -> None:
    assert set(DEFAULT_CHECKS) <= set(CHECKERS)


def test_an_experiment_of_ones_own_is_loaded_from_its_file(tmp_path: Path) -> None:
    experiment = load_experiment(written(tmp_path, MINE))
    assert (experiment.name, experiment.claim) == ("mine", "Nothing is lost.")
    assert experiment.workload(experiment.parse_params(["tasks=3"])).name == "task_stream"


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean node_failure"):
        load_experiment("node_failur")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def (", "cannot be imported: SyntaxError"),
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("", "defines 0 experiments; define exactly one subclass of simulator.Experiment"),
        (MINE + MINE.replace("Mine", "Yours"), "defines 2 experiments"),
        ("from simulator import Experiment", "defines 0 experiments"),
        (MINE.replace('    name = "mine"', ""), "Mine has no name; set it"),
        (MINE.replace('"mine"', '"../mine"'), "letters, digits, - and _"),
        (MINE.replace('"mine"', "3"), "letters, digits, - and _"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3 (line 1)"),
        (
            MINE + "\n    def __init__(self):\n        raise ValueError('no')\n",
            "Mine() cannot be made: ValueError: no (line",
        ),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_experiment(written(tmp_path, text))
    assert said in str(caught.value)


def test_parameters_are_read_with_their_types() -> None:
    params = load_experiment("node_failure").parse_params(
        ["tasks=500", "task_seconds=0.25", "comes_back=false", "victim=worker-2"]
    )
    data = params_data(params)
    assert (data["tasks"], data["task_seconds"]) == (500, 0.25)
    assert (data["comes_back"], data["victim"]) == (False, "worker-2")


@pytest.mark.parametrize("text", ["2020-13-45", "!!int x", "[" * 3000])
def test_what_only_looks_like_yaml_is_text(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_experiment("node_failure").parse_params([f"tasks={text}"])
    assert [p.where for p in caught.value.problems] == ["--param tasks"]
    assert load_experiment("node_failure").parse_params([f"victim={text}"]).victim == text


def test_every_problem_of_the_parameters_comes_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        load_experiment("node_failure").parse_params(
            ["task=500", "tasks=many", "task_seconds=-1", "retries", "max_retires=0"]
        )
    said = {p.where: p.what for p in caught.value.problems}
    assert set(said) == {
        "--param task=500",
        "--param tasks",
        "--param task_seconds",
        "--param retries",
        "--param max_retires=0",
    }
    assert "did you mean tasks" in said["--param task=500"]
    assert "did you mean max_retries" in said["--param max_retires=0"]
    assert said["--param tasks"].startswith("is 'many'")
    assert said["--param retries"] == "is not key=value"


def test_parameters_cannot_be_changed_afterwards() -> None:
    params = load_experiment("node_failure").parse_params([])
    with pytest.raises(ValueError, match="frozen"):
        params.tasks = 3


def test_a_worker_that_stays_away_needs_no_rejoin() -> None:
    experiment = load_experiment("node_failure")
    topology = load_topology("default")
    back, away = (experiment.parse_params([f"comes_back={b}"]) for b in ("true", "false"))
    assert list(experiment.mandatory_phases(back)) == list(PHASES)
    assert set(PHASES) - set(experiment.mandatory_phases(away)) == {"rejoined", "full_throughput"}
    assert isinstance(experiment.schedule(back, topology)[0].heal, WhenDeclaredDead)
    assert isinstance(experiment.schedule(away, topology)[0].heal, Never)


def test_one_worker_is_too_few_to_lose_one() -> None:
    experiment = load_experiment("node_failure")
    topology = load_topology("default").with_workers(1)
    (problem,) = experiment.problems(experiment.parse_params([]), topology)
    assert "has 1 workers" in problem.what
    assert problem.remedy == "--workers 2 or more"
