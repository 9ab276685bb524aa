"""What the main job costs: how long ``make demo`` takes on a warm machine, and what its orchestrator needs meanwhile.

    python benchmarks/orchestrator.py

Runs what ``make demo`` runs once its virtual environment and the image are there. CPU time and memory are those
of that process and of the programs that it called and waited for (Compose): they compete with the nodes for
this machine's cores.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

from figures import ROOT, Figure, finish, load, parser, say

NAME = "bench-orchestrator"

WALL_S, CPU_PER_10_S, MEMORY_MB = 90.0, 1.0, 150.0


def measure(backend: str) -> tuple[int, float, float, float]:
    """Exit code, seconds, CPU-seconds and MB of one run."""
    with tempfile.TemporaryDirectory(prefix="ray-sim-bench-") as runs:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "simulator", "run", "node_failure", "--backend", backend,
             "--name", NAME],
            cwd=ROOT,
            env={**os.environ, "RAY_SIM_RUNS": runs},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            # A first Ctrl-C makes it heal, judge and take its cluster down.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
            os.wait4(process.pid, 0)
            raise
        seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    # Linux says kilobytes, macOS bytes.
    memory = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return process.returncode, seconds, used.ru_utime + used.ru_stime, memory


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--backend", default="docker", choices=("docker", "process"))
    chosen = arguments.parse_args()
    began_load = load()
    say(f"one run of node_failure on {chosen.backend}")
    code, seconds, cpu, memory = measure(chosen.backend)
    why = "" if code == 0 else f"the run ended with exit code {code}"
    per_ten = None if why else round(cpu / seconds * 10, 2)
    made = [
        Figure("make demo, warm", None if why else round(seconds, 1), "s", WALL_S, why=why),
        Figure("orchestrator, CPU per 10 s of run", per_ten, "CPU-s", CPU_PER_10_S, why=why,
               details={"cpu_s": round(cpu, 2), "seconds": round(seconds, 1)}),
        Figure("orchestrator, peak memory", None if why else round(memory, 1), "MB", MEMORY_MB, why=why),
    ]  # fmt: skip
    options = {"backend": chosen.backend}
    return finish("orchestrator", made, began_load=began_load, options=options, save=chosen.save)


if __name__ == "__main__":
    sys.exit(main())
