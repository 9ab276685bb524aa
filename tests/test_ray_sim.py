"""What a program may tell its run: two calls that do nothing outside one, and never raise."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from simulator.assets import importable_path, innode_path

FILE = importable_path() / "ray_sim.py"


@pytest.fixture
def ray_sim() -> types.ModuleType:
    """The module as a program imports it, fresh for each test."""
    spec = importlib.util.spec_from_file_location("ray_sim", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node in the middle of a run; its ledger's folder."""
    monkeypatch.setenv("RAY_SIM_RUN", "run-1")
    monkeypatch.setenv("RAY_SIM_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setenv("RAY_SIM_HOME", str(tmp_path))
    monkeypatch.setenv("RAY_SIM_NODE", "worker-7")
    return tmp_path / "ledger" / "run-1"


def lines(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_outside_a_run_nothing_happens(
    ray_sim: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_SIM_RUN", raising=False)
    monkeypatch.setenv("RAY_SIM_LEDGER", str(tmp_path / "ledger"))
    ray_sim.mark("epoch", object())
    ray_sim.effect("order-1")
    assert not (tmp_path / "ledger").exists()


def test_marks_and_effects_are_lines_of_the_ledger(ray_sim: types.ModuleType, node: Path) -> None:
    ray_sim.mark("epoch", 3)
    ray_sim.mark("begun")
    ray_sim.effect(17)
    first, second, third = lines(node)
    assert (first["kind"], first["host"]) == ("program.mark", "worker-7")
    assert (first["data"]["name"], first["data"]["value"]) == ("epoch", 3)
    assert second["data"]["value"] is None
    assert (third["kind"], third["data"]["key"]) == ("program.effect", "17")
    assert third["data"]["task_id"] is None


class Scalar:
    """As numpy and torch have them."""

    def item(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (Scalar(), 0.5),
        ([1, "a", None], [1, "a", None]),
        (float("nan"), "nan"),
        ({1}, "{1}"),
        (ValueError("x"), "x"),
    ],
)
def test_a_value_that_json_cannot_hold_is_kept_as_text(
    ray_sim: types.ModuleType, node: Path, value: object, kept: object
) -> None:
    ray_sim.mark("m", value)
    assert lines(node)[0]["data"]["value"] == kept


def test_a_program_is_not_broken_by_what_cannot_be_recorded(
    ray_sim: types.ModuleType, node: Path
) -> None:
    node.parent.mkdir(parents=True)
    node.write_text("a file, where the run's folder should be")
    with pytest.warns(RuntimeWarning, match=r"ray_sim could not record program\.effect"):
        ray_sim.effect("order-1")


def test_the_task_is_named_where_ray_knows_one(
    ray_sim: types.ModuleType, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = types.SimpleNamespace(mode=1)
    context = types.SimpleNamespace(worker=worker, get_task_id=lambda: "ab12")
    ray = types.SimpleNamespace(
        is_initialized=lambda: True, get_runtime_context=lambda: context, WORKER_MODE=1
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    ray_sim.effect("a")
    worker.mode = 0
    ray_sim.effect("b")
    assert [line["data"]["task_id"] for line in lines(node)] == ["ab12", None]


def test_a_program_with_a_package_named_as_ours_reports_all_the_same(
    tmp_path: Path, node: Path
) -> None:
    """As in a node: our folder is on Python's path behind the program's own, and a copy serves too."""
    project = tmp_path / "project"
    (project / "simulator").mkdir(parents=True)
    (project / "simulator" / "__init__.py").write_text("raise ImportError('not this one')")
    (project / "ray_sim.py").write_text(FILE.read_text())
    (project / "main.py").write_text("from ray_sim import mark\nmark('here')\n")
    root = tmp_path / "opt"
    (root / "simulator").mkdir(parents=True)
    (root / "simulator" / "innode").symlink_to(innode_path())
    done = subprocess.run(
        [sys.executable, "-W", "error", str(project / "main.py")],
        env={
            "PYTHONPATH": f"{root}:{root / 'simulator' / 'innode' / 'importable'}",
            "RAY_SIM_RUN": "run-1",
            "RAY_SIM_LEDGER": str(node.parent),
            "RAY_SIM_NODE": "worker-7",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert lines(node)[0]["data"]["name"] == "here"


def test_it_needs_nothing_but_the_standard_library() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", f"import runpy; runpy.run_path({str(FILE)!r})"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
