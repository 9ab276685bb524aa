"""What burdens a node: started, found and ended by its mark; refused where it would burden the machine."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from simulator.innode import burden, cgroup, processes
from simulator.waiting import wait_until

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulator.innode.burden", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark of this test's alone; nothing of it is left afterwards."""
    mark = f"test-{os.getpid()}-{secrets.token_hex(4)}/f1"
    yield mark
    burden.end(mark)


def test_busy_processes_are_found_by_their_mark_and_ended_alone(mark: str) -> None:
    other = f"{mark}.2"
    try:
        assert json.loads(run("start", mark, "cpu", "2").stdout) == {"started": 2}
        run("start", other, "cpu", "1")

        def busy() -> bool:
            found = burden.processes(mark)
            return len(found) == 2 and all(p["ticks"] for p in found)

        wait_until(busy, name="two busy processes", timeout=60)
        mine = [p["pid"] for p in burden.processes(mark)]
        assert all(psutil.Process(pid).terminal() is None for pid in mine)
        assert json.loads(run("end", mark).stdout) == {"ended": 2, "removed": 0}
        assert burden.processes(mark) == []
        assert len(burden.processes(other)) == 1
        assert json.loads(run("end", mark).stdout) == {"ended": 0, "removed": 0}
    finally:
        assert burden.end(other) == 1


def test_who_starts_looks_or_ends_is_no_burden(mark: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from simulator.innode import burden; print(burden.processes(sys.argv[-1]))",
            "simulator.innode.burden",
            "look",
            mark,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("kind", [("memory", "0.5"), ("oom",)])
def test_memory_without_a_limit_of_its_own_is_not_filled(
    mark: str,
    kind: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cgroup, "read", lambda: cgroup.parse([]))
    assert burden.main(["start", mark, *kind]) == burden.REFUSED
    assert "no memory limit" in json.loads(capsys.readouterr().out)["refused"]
    assert burden.processes(mark) == []


def test_a_folder_that_is_no_disk_of_its_own_size_is_not_filled(mark: str, tmp_path: Path) -> None:
    done = run("fill", mark, str(tmp_path), "1.0")
    assert done.returncode == burden.REFUSED
    assert "no disk of its own size" in json.loads(done.stdout)["refused"]
    assert list(tmp_path.iterdir()) == []


def test_only_its_own_file_is_removed(mark: str, tmp_path: Path) -> None:
    for name in (mark, f"{mark}.2"):
        Path(burden._file_of(name, str(tmp_path))).write_bytes(b"x" * 10)
    (tmp_path / "spilled").write_bytes(b"Ray's")
    assert burden.look_at_disk(mark, str(tmp_path))["filler"] == 10
    assert burden.unfill(mark, str(tmp_path)) == 1
    assert burden.unfill(mark, str(tmp_path)) == 0
    assert len(list(tmp_path.iterdir())) == 2
    assert burden.unfill(burden.ANY, str(tmp_path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["spilled"]
    assert burden.unfill(mark, str(tmp_path / "gone")) == 0


@pytest.mark.parametrize("argv", [[], ["start"], ["start", "m", "gpu", "1"], ["fill", "m", "/x"]])
def test_wrong_usage_is_told(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert burden.main(argv) == burden.USAGE
    assert "start MARK cpu N" in capsys.readouterr().err


# ---- processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_listed_with_when_it_began(sleeper: subprocess.Popen[bytes]) -> None:
    row = next(row for row in processes.table() if row["pid"] == sleeper.pid)
    assert (row["name"], row["title"]) == ("sleep", "sleep 600")
    assert row["started"] > 0
    assert all(row["pid"] != os.getpid() for row in processes.table())


def test_a_signal_reaches_that_process_and_no_later_one(sleeper: subprocess.Popen[bytes]) -> None:
    row = processes.look(sleeper.pid)
    assert row is not None

    def state() -> str:
        now = processes.look(sleeper.pid)
        return now["state"] if now is not None else "gone"

    assert not processes.send(sleeper.pid, row["started"] - 1, 19)
    assert processes.send(sleeper.pid, row["started"], 19)
    wait_until(lambda: state() == "T", name="it is stopped", timeout=10)
    assert processes.main(["signal", str(sleeper.pid), str(row["started"]), "18"]) == 0
    wait_until(lambda: state() == "S", name="it goes on", timeout=10)
    assert processes.send(sleeper.pid, row["started"], 9)
    sleeper.wait()
    assert processes.main(["signal", str(sleeper.pid), str(row["started"]), "9"]) == processes.GONE
