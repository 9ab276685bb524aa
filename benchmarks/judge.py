"""How long, and in how much memory, a long run is judged and reported.

    python benchmarks/judge.py --ops 1000000

Builds the history of a run of about N operations, writes it to a file, and judges it in a process of its own,
as every run is at its end: reading the file, all checks, the recovery anatomy, result.json and the HTML report.
The figure is CPU time of that process, which what else the machine does changes least; what a clock on the wall
said is kept with it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import ROOT, Figure, finish, load, parser, say

sys.path.append(str(ROOT / "tests"))

CPU_S, MEMORY_MB = 20.0, 1000.0


def write(path: Path, operations: int) -> int:
    """Build a run of about so many operations; how many it has."""
    from history_builder import Plan, build
    from report_samples import spec_of

    workers, slots, task_seconds = 15, 8, 0.5
    # A task is four operations: asked, started, ended, came back. Tasks take a little less than they should.
    per_second = 4 * (workers + 1) * slots / task_seconds * 1.09
    seconds = max(10.0, operations / per_second - 13.0)
    plan = Plan(workers, slots, task_seconds, inject_at=seconds * 0.8, after_s=seconds * 0.2)
    history, spec = build(plan)
    # What a run's own spec has beyond that.
    spec = {
        "run_id": "built",
        "experiment": "node_failure",
        "seed": 1,
        "params": {},
        **spec_of(plan),
        **spec,
    }
    with (path / "history.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(op.to_json() + "\n" for op in history)
    (path / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    return len(history)


def judge(path: Path) -> None:
    """Judge the run in a folder; prints what it cost this process as JSON."""
    from simulator.runner.judging import judge_run
    from simulator.store import RunDir

    before_cpu, before = time.process_time(), time.perf_counter()
    result = judge_run(RunDir(path), status="completed")
    after_cpu, after = time.process_time(), time.perf_counter()
    # Linux says kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(
        json.dumps(
            {
                "verdict": result["verdict"],
                "error": result["error"],
                "phases_seen": sum(p["seconds"] is not None for p in result["phases"]),
                "report_bytes": (path / "report.html").stat().st_size,
                "cpu_s": round(after_cpu - before_cpu, 2),
                "wall_s": round(after - before, 2),
                "peak_mb": round(peak / 1e6),
            }
        )
    )


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--ops", type=int, default=1_000_000, help="about how many operations")
    arguments.add_argument("--judge", type=Path, metavar="DIR", help="only judge the run in DIR")
    chosen = arguments.parse_args()
    if chosen.judge is not None:
        judge(chosen.judge)
        return 0
    began_load = load()
    with tempfile.TemporaryDirectory() as folder:
        say("building a history")
        count = write(Path(folder), chosen.ops)
        say(f"judging and reporting {count:,} operations")
        done = subprocess.run(
            [sys.executable, __file__, "--judge", folder],
            capture_output=True,
            text=True,
            check=False,
        )
    why, found = "", dict[str, Any]()
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no words"])[-1]
    else:
        found = json.loads(done.stdout.splitlines()[-1])
        why = found["error"] or (
            "" if found["verdict"] == "valid" else f"judged {found['verdict']}"
        )
    title = f"judging and reporting {count:,} operations"
    details = {"operations": count, **found}
    made = [
        Figure(f"{title}: CPU time", None if why else found["cpu_s"], "s", CPU_S, why=why, details=details),
        Figure(f"{title}: peak memory", None if why else found["peak_mb"], "MB", MEMORY_MB, why=why),
    ]  # fmt: skip
    options = {"ops": chosen.ops}
    return finish("judge", made, began_load=began_load, options=options, save=chosen.save)


if __name__ == "__main__":
    sys.exit(main())
