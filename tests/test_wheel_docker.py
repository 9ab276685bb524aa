"""The wheel alone, as a stranger has it: a fresh environment without Ray, an empty directory, no checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from simulator import __version__
from simulator.backends.docker.image import DEFAULT_IMAGE, ensure_image

pytestmark = pytest.mark.real_docker

ROOT = Path(__file__).resolve().parent.parent

#: Of the environment of a developer, what a stranger does not have.
DEVELOPERS = re.compile(r"PYTHON|VIRTUAL_ENV$|RAY|SIMULATOR_|MAKE|VENV$|PYTEST")

Tool = Callable[..., str]


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 400,
) -> str:
    """A command's standard output; fails with all that it wrote if it does not succeed."""
    done = subprocess.run(
        command, cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--wheel-dir", folder, ROOT)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def tool(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """Runs a program of an environment that holds the wheel and what it needs, and nothing else."""
    home = tmp_path_factory.mktemp("stranger")
    bin_ = home / "env" / "bin"
    venv.create(home / "env", with_pip=True)
    run(bin_ / "python", "-m", "pip", "install", "--quiet", "--no-compile", wheel)
    empty = home / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if not DEVELOPERS.match(k)}
    environment["PATH"] = f"{bin_}{os.pathsep}{os.environ['PATH']}"

    def tool(program: str, *arguments: str) -> str:
        return run(bin_ / program, *arguments, cwd=empty, env=environment)

    return tool


def test_the_wheel_carries_what_it_needs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [n for n in names if n.endswith(".dist-info/METADATA")]
        about = archive.read(metadata).decode()
    carried = {n.removeprefix("simulator/_data/") for n in names if "/_data/" in n}
    in_checkout = {
        str(path.relative_to(ROOT))
        for part in ("compose.yaml", "docker", "topologies", "experiments", "starter")
        for path in (ROOT / part, *(ROOT / part).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert carried == in_checkout
    assert "simulator/py.typed" in names
    assert not [n for n in names if "__pycache__" in n or n.endswith(".pyc")]
    # The only test is the one that `init` gives to a user.
    assert [n for n in names if "test_" in n] == ["simulator/_data/starter/test_my_experiment.py"]
    assert {n.split("/")[0] for n in names} == {
        "simulator",
        "ray_sim.py",
        f"ray_cluster_simulator-{__version__}.dist-info",
    }
    assert [n for n in names if n.endswith(".dist-info/licenses/LICENSE")]
    assert "License-Expression: Apache-2.0" in about
    assert "Description-Content-Type: text/markdown" in about
    # What everybody gets is neither Ray nor what only tests need.
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", about, re.MULTILINE)
    assert not {"ray", "torch", "testcontainers", "pytest"} & set(needed)


def test_it_starts_under_both_names_and_not_from_the_checkout(tool: Tool) -> None:
    assert tool("ray-sim", "--version") == tool("python", "-m", "simulator", "--version")
    where = Path(tool("python", "-c", "import simulator; print(simulator.__file__)").strip())
    assert where.is_relative_to(Path(sys.prefix).anchor)
    assert not where.is_relative_to(ROOT / "simulator")
    assert "site-packages" in where.parts
    assert tool(
        "python", "-c", "from importlib.util import find_spec; print(find_spec('ray'))"
    ) == ("None\n")
    assert "node_failure" in tool("ray-sim", "experiments")
    said = tool("python", "-c", "from ray_sim import effect, mark; print(mark('a'), effect('b'))")
    assert said == "None None\n"


def test_everything_runs_from_an_empty_directory(tool: Tool, made_cluster: str) -> None:
    ensure_image(DEFAULT_IMAGE, say=lambda text: None)

    def simulator(*arguments: str) -> str:
        return tool("python", "-m", "simulator", *arguments)

    assert "my_experiment.py" in simulator("init")

    # The starter's own topology serves both experiments.
    where = ("--backend", "docker", "--name", made_cluster)
    simulator("up", *where, "--topology", "./my_topology.yaml", "--health", "fast")
    status = json.loads(simulator("status", "--name", made_cluster, "--json"))
    assert status["count"] == {"desired": 3, "running": 3, "alive": 3}

    # Tasks so long that a node is still at work when its kill takes effect, on a busy machine too.
    for experiment, *params in (
        ("node_failure", "tasks=30", "task_seconds=2"),
        ("./my_experiment.py", "tasks=80"),
    ):
        chosen = [word for param in params for word in ("--param", param)]
        wanted = ("--reuse", made_cluster, *chosen, "--json")
        result = json.loads(simulator("run", experiment, *wanted))
        assert (result["status"], result["verdict"]) == ("completed", "valid"), result["findings"]
        report = Path(result["report"])
        assert report.parts[-4] == "runs"  # below the empty directory
        assert report.stat().st_size > 10_000
        assert str(report) in simulator("report", "latest")

    simulator("down", "--name", made_cluster)
    left = simulator("clusters", "--json")
    assert made_cluster not in {c["cluster"] for c in json.loads(left)}
