"""How long, and in how much memory, a long run is judged.

Builds the history of a run of about N operations, writes it to a file, and judges it in a process of its
own: reading the file, all checks, and the recovery anatomy.

    python benchmarks/judge.py --ops 1000000
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def write(path: Path, operations: int) -> int:
    """Build a run of about so many operations; how many it has."""
    from history_builder import Plan, build

    workers, slots, task_seconds = 15, 8, 0.5
    # A task is four operations: asked, started, ended, came back.
    per_second = 4 * (workers + 1) * slots / task_seconds
    seconds = max(10.0, operations / per_second - 15.0)
    plan = Plan(workers, slots, task_seconds, inject_at=seconds * 0.8, after_s=seconds * 0.2)
    history, spec = build(plan)
    with (path / "history.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(op.to_json() + "\n" for op in history)
    (path / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    return len(history)


def judge(path: Path) -> None:
    """Judge the run in a folder; prints seconds and this process's peak memory as JSON."""
    from simulator.checkers.base import RunView
    from simulator.checkers.judge import judge as judge_run
    from simulator.history import read_history

    before = time.perf_counter()
    history = read_history(path / "history.jsonl")
    between = time.perf_counter()
    judgement = judge_run(RunView(history, json.loads((path / "spec.json").read_text())))
    after = time.perf_counter()
    # Linux says kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(
        json.dumps(
            {
                "operations": len(history),
                "verdict": judgement.verdict.value,
                "phases_seen": sum(p.seen for p in judgement.phases),
                "read_s": round(between - before, 2),
                "judge_s": round(after - between, 2),
                "peak_mb": round(peak / 1e6),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", type=int, default=1_000_000, help="about how many operations")
    parser.add_argument("--judge", type=Path, metavar="DIR", help="only judge the run in DIR")
    chosen = parser.parse_args()
    if chosen.judge is not None:
        judge(chosen.judge)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), chosen.ops)
        subprocess.run([sys.executable, __file__, "--judge", folder], check=True)


if __name__ == "__main__":
    main()
