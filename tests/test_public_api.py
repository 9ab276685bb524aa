"""The public names: all there, all described, and the tree of errors as it is drawn."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import simulator
from simulator import errors
from simulator.backends import base


def test_every_public_name_can_be_imported_and_is_described() -> None:
    for name in simulator.__all__:
        value = getattr(simulator, name)
        if name != "__version__":
            assert value.__doc__, name
            assert value.__doc__.strip()[0].isupper(), name
            assert value.__name__ == name


def test_the_public_names_are_listed() -> None:
    assert dir(simulator) == sorted(simulator.__all__)
    assert len(set(simulator.__all__)) == len(simulator.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'simulator' has no attribute 'Cloud'"):
        _ = simulator.Cloud


def test_the_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", simulator.__version__)


def _imported_by(code: str) -> set[str]:
    """What a fresh interpreter has loaded after this code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_importing_the_package_costs_nothing() -> None:
    loaded = _imported_by("import simulator")
    assert not {"pydantic", "yaml", "requests", "ray", "docker"} & loaded


def test_the_orchestrator_imports_no_ray() -> None:
    loaded = _imported_by("import simulator.runner, simulator.rayapi, simulator.backends.fake")
    assert "simulator.runner" in loaded
    assert not {"ray", "torch", "docker", "python_on_whales"} & loaded


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    drawn: list[tuple[str, str, int]] = []
    stack: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([ │]*)((?:[├└]── )?)(\w+) +exit (\d)", line)
        if found:
            depth = (len(found[1]) - 4) // 4 + bool(found[2])
            del stack[depth:]
            drawn.append((found[3], stack[-1] if stack else "Exception", int(found[4])))
            stack.append(found[3])
    real = [
        (value.__name__, value.__bases__[0].__name__, value.exit_code)
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.SimulatorError)
    ]
    assert sorted(drawn) == sorted(real)


def test_an_error_says_what_why_and_what_to_do_next() -> None:
    error = errors.CannotRun("it broke", why="no disk", remedy="buy one", details=["line 1"])
    assert str(error) == "it broke: no disk. buy one\n    line 1"
    assert (error.what, error.why, error.remedy) == ("it broke", "no disk", "buy one")


def test_one_problem_is_a_sentence_and_several_are_a_list() -> None:
    one, two = errors.Problem("a", "is wrong", "fix it"), errors.Problem("b", "too")
    assert str(errors.BadInput(one)) == "a: is wrong; fix it"
    assert str(errors.BadInput([one, two])) == "2 problems:\n  - a: is wrong; fix it\n  - b: too"


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (["worker-1", "head"], "did you mean worker-1?"),
        (["alpha", "beta"], "there is alpha, beta"),
        ([], "there is no node at all"),
    ],
)
def test_a_name_that_is_not_found_comes_with_those_that_are(known: list[str], said: str) -> None:
    assert str(errors.NotFound("node", "worker-11", known)) == f"no node named 'worker-11': {said}"


def test_a_failed_start_counts_and_names() -> None:
    error = errors.NodeStartFailed(missing=["worker-3"], wanted=3, seconds=60.4, details=["bye"])
    assert str(error) == "2 of 3 nodes joined within 60 s; missing worker-3\n    bye"
    assert error.missing == ("worker-3",)


def test_the_guide_to_your_own_experiment_works_as_it_is_written(tmp_path: Path) -> None:
    guide = Path(__file__).parent.parent / "docs/guides/your-own-experiment.md"
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", guide.read_text(), re.DOTALL)
    assert [name for name, _ in blocks] == [
        "two_workers.py",
        "test_two_workers.py",
        "test_power_cut.py",
    ]
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "6 passed" in done.stdout, done.stdout


def test_the_guide_names_every_way_to_make_things_go_wrong() -> None:
    guide = (Path(__file__).parent.parent / "docs/guides/your-own-experiment.md").read_text()
    protocols = [p for p in vars(base).values() if getattr(p, "_is_protocol", False)]
    assert base.CanKill in protocols
    contract = {name for protocol in protocols for name in vars(protocol)}
    scripted = [
        name
        for name, value in vars(simulator.FakeBackend).items()
        if callable(value) and not name.startswith("_") and name not in contract | {"world"}
    ]
    assert len(scripted) > 10
    assert [name for name in scripted if f"{name}(" not in guide] == []


def test_the_guide_to_testcontainers_shows_the_files_that_are_tested() -> None:
    root = Path(__file__).parent
    guide = (root.parent / "docs/guides/testcontainers.md").read_text()
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", guide, re.DOTALL)
    assert [name for name, _ in blocks] == [
        "conftest.py",
        "count_primes.py",
        "test_job_survives_a_dead_worker.py",
    ]
    for name, code in blocks:
        shown = [line for line in code.splitlines() if line]
        tested = (root / "integration" / name).read_text().splitlines()
        assert [line for line in shown if line not in tested] == [], name
        if name != "conftest.py":  # which also has what only this project needs
            assert shown == [line for line in tested if line], name


def test_the_guide_to_testcontainers_names_all_that_a_cluster_can_do() -> None:
    from simulator.testcontainers import RayClusterContainer, RayJob

    guide = (Path(__file__).parent.parent / "docs/guides/testcontainers.md").read_text()
    for_strategies = {"get_container_host_ip", "get_exposed_port", "reload", "status", "name"}
    for of, skipped in ((RayClusterContainer, for_strategies), (RayJob, set[str]())):
        names = {name for name in vars(of) if not name.startswith("_")} - skipped
        assert [name for name in sorted(names) if f"`{name}" not in guide] == []
