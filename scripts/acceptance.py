"""The long repeats: what must hold before a release, on this machine, with figures to keep.

Interrupted, it goes on where it was: finished parts are skipped, and of a repeat only the runs that
are missing are made. Results are for one commit; they are written to
``benchmarks/results/acceptance-<commit>.json`` with the machine and the versions after every part.

    make acceptance                     # all parts
    make acceptance ARGS="--only up16"  # one of them
    make acceptance ARGS=--fresh        # all anew
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
# The checkout, whatever else is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from figures import RESULTS, commit, machine  # noqa: E402

from simulator.backends.base import LABEL_CLUSTER  # noqa: E402
from simulator.errors import SimulatorError  # noqa: E402
from simulator.history import read_history  # noqa: E402
from simulator.report import load_run, summarise  # noqa: E402
from simulator.store import Store  # noqa: E402
from simulator.topology import load_topology  # noqa: E402
from simulator.waiting import wait_until  # noqa: E402

REPEATS = 10
FIRST_SEED = 1000


class Failed(Exception):
    """A part did not hold; the text says what was seen."""


def say(text: str) -> None:
    sys.stderr.write(f"acceptance: {text}\n")
    sys.stderr.flush()


def simulator(*arguments: str, runs: Path | None = None) -> tuple[int, str]:
    """One command line; its exit code and what it printed on standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "simulator", *arguments],
        cwd=ROOT,
        env=_env(runs),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def _env(runs: Path | None) -> dict[str, str]:
    return {**os.environ, **({} if runs is None else {"RAY_SIM_RUNS": str(runs)})}


def docker(*arguments: str) -> str:
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    except OSError as error:
        raise Failed(f"docker cannot be called: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        raise Failed(f"docker {arguments[0]}: {error.stderr.strip()[-300:]}") from None
    return done.stdout


def labelled(cluster: str) -> list[str]:
    """Every container, network and volume that carries a cluster's label."""
    only = ("--filter", f"label={LABEL_CLUSTER}={cluster}", "--quiet")
    found = [docker("ps", "--all", *only), docker("network", "ls", *only)]
    return [line for text in [*found, docker("volume", "ls", *only)] for line in text.split()]


# ---- the parts


def ten_runs(work: Path, backend: str) -> dict[str, Any]:
    """Ten runs of the main job, all valid, every phase of the recovery seen in each."""
    results = valid_runs(work, "node_failure", backend, (), REPEATS, together=True)
    bad = [
        f"seed {r['seed']}: {phase} not seen"
        for r in results
        for phase, seconds in r["recovery"].items()
        if seconds is None
    ]
    if bad:
        raise Failed("; ".join(bad))
    return told(results)


def five_runs(work: Path, asked: Sequence[str]) -> dict[str, Any]:
    """Five runs of an experiment on Docker, all valid; what is asked for begins with its name."""
    name, *options = asked
    return told(valid_runs(work, name, "docker", options, 5, together=False))


def valid_runs(
    work: Path, experiment: str, backend: str, asked: Sequence[str], times: int, *, together: bool
) -> Sequence[dict[str, Any]]:
    """The results of so many runs, each with a seed of its own; those that are there already are not made again.

    Together they are made on one cluster, else each on a fresh one.
    """
    runs = work / "-".join(["runs", experiment, backend, *asked]).replace("=", "-")
    finished = {r["seed"]: r for r in _finished(runs)}
    wanted = range(FIRST_SEED, FIRST_SEED + times)
    # A repeat uses seed, seed + 1, ...: what is missing is made in blocks without a gap.
    lacking = [seed for seed in wanted if seed not in finished]
    for block in _blocks(lacking) if together else [[seed] for seed in lacking]:
        say(f"{len(finished)} of {times} runs are there; making {len(block)}")
        simulator(
            "run", experiment, "--backend", backend, "--seed", str(block[0]),
            "--repeat", str(len(block)), "--json", *asked, runs=runs,
        )  # fmt: skip
        finished = {r["seed"]: r for r in _finished(runs)}
    missing = [seed for seed in wanted if seed not in finished]
    if missing:
        raise Failed(f"no completed run for seeds {missing}")
    results = [finished[seed] for seed in wanted]
    bad = [
        f"seed {r['seed']}: {r['verdict']}: {_why(r)}" for r in results if r["verdict"] != "valid"
    ]
    if bad:
        raise Failed("; ".join(bad))
    return results


def _why(result: Mapping[str, Any]) -> str:
    found = (f"{f['check']}: {f['summary']}" for f in result["findings"] if f["verdict"] != "valid")
    return next(found, "")


def told(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What of the runs is kept."""
    summary = summarise(results)
    kept = {name: summary[name] for name in ("seeds", "verdicts", "phases")}
    return {"ray": sorted({r["ray_version"] for r in results}), **kept}


def _finished(runs: Path) -> Iterator[dict[str, Any]]:
    for run in Store(runs).list():
        result = run.result()
        if result is not None and result["status"] == "completed":
            yield result


def _blocks(seeds: Sequence[int]) -> Iterator[list[int]]:
    block: list[int] = []
    for seed in seeds:
        if block and seed != block[-1] + 1:
            yield block
            block = []
        block.append(seed)
    if block:
        yield block


def up16(work: Path) -> dict[str, Any]:  # noqa: ARG001 - parts are called alike
    """Sixteen workers come up on this machine, and nothing is left of them afterwards."""
    return comes_up("acceptance-16", 16)


def up64_lean(work: Path) -> dict[str, Any]:  # noqa: ARG001
    """Sixty-four lean workers come up on this machine: how long, and how much memory each takes."""
    try:
        load_topology("lean")
    except SimulatorError as error:
        raise Failed(f"not measured: {error}") from None
    before = psutil.virtual_memory().available
    return comes_up("acceptance-64", 64, "--topology", "lean", free_before=before)


def comes_up(
    name: str, workers: int, *arguments: str, free_before: int | None = None
) -> dict[str, Any]:
    """Bring a cluster up, count who is alive, look at its memory, take it down, look what is left."""
    began = time.monotonic()
    memory: dict[str, Any] = {}
    try:
        code, out = simulator(
            "up", "--backend", "docker", "--name", name, "--workers", str(workers), *arguments,
            "--json",
        )  # fmt: skip
        seconds = time.monotonic() - began
        if code:
            raise Failed(f"up ended with {code}")
        count = json.loads(out)["count"]
        if free_before is not None:
            taken = free_before - psutil.virtual_memory().available
            memory = {
                "memory_gb": round(taken / 1e9, 2),
                "memory_mb_per_node": round(taken / 1e6 / (workers + 1)),
            }
    finally:
        simulator("down", "--name", name)
    left = labelled(name)
    if count["alive"] != workers + 1 or left:
        raise Failed(f"{count}; left behind: {left}")
    return {"count": count, "seconds": round(seconds, 1), **memory}


def kill9(work: Path) -> dict[str, Any]:
    """The orchestrator is killed in mid-run; ``down`` saves what was written and leaves nothing."""
    name, runs = "acceptance-kill9", work / "runs-kill9"
    before = {r.path for r in Store(runs).list()}
    words = [sys.executable, "-m", "simulator", "run", "node_failure", "--backend", "docker"]
    process = subprocess.Popen(
        [*words, "--name", name], cwd=ROOT, env=_env(runs), start_new_session=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip

    def in_effect() -> Path | None:
        if process.poll() is not None:
            raise Failed(f"the run ended with {process.returncode} before its fault")
        for run in Store(runs).list():
            if run.path not in before and read_history(run.history_path).first("fault.effect"):
                return run.path
        return None

    try:
        run = wait_until(in_effect, name="the fault", timeout=300, interval=0.5)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        others = json.loads(simulator("clusters", "--json")[1])
        alone = all(c["cluster"] == name for c in others)
        # `down --all` is meant; another cluster of this machine's user is not ours to remove.
        simulator("down", *(["--all"] if alone else ["--name", name]), runs=runs)
    left = labelled(name)
    result = json.loads((run / "result.json").read_text())
    written = {
        json.loads(line)["data"]["exec"]
        for path in (run / "ledger").glob("*.jsonl")
        for line in path.read_text().splitlines()
        if '"task.start"' in line
    }
    told = {op.data["exec"] for op in load_run(run).history.of("task.start")}
    if left or result["status"] != "interrupted" or not written or told != written:
        raise Failed(
            f"left behind: {left}; status {result['status']}; {len(written)} STARTs were written, "
            f"{len(told)} are told"
        )
    return {"command": "down --all" if alone else "down --name", "starts": len(written)}


#: Of these eight faults the value is lost by the second and the seventh together, and by nothing less.
EIGHT = """
pause worker-2 @3s for 500ms
kill node_of(actor:a) @5s until dead
pause worker-1 @12s for 300ms
pause worker-2 @13s for 300ms
pause right-1 @14s for 300ms
stop(grace=1s) worker-2 @15s until dead
kill node_of(actor:b) @23s until dead
pause worker-1 @31s for 300ms
"""
#: Where the replicas are is said, so that a pinned node hosts the same one in every run.
TWO_PLACES = """
head: {resources: {CPU: 0}}
worker_groups:
  - {group_name: worker, replicas: 2, resources: {CPU: 1}}
  - {group_name: left, resources: {CPU: 1, left: 1}}
  - {group_name: right, resources: {CPU: 1, right: 1}}
"""


def shrink(work: Path) -> dict[str, Any]:
    """Of eight faults, two of which matter, shrinking leaves these two; on real processes."""
    runs = work / "runs-shrink"
    script = str(ROOT / "tests" / "apps" / "replicas.py")
    file = work / "eight.txt"
    file.write_text(EIGHT, encoding="utf-8")
    topology = work / "two_places.yaml"
    topology.write_text(TWO_PLACES, encoding="utf-8")
    code, out = simulator(
        "chaos", script, "--backend", "process", "--topology", str(topology), "--file", str(file),
        "--seed", "5", "--json", "--", "--seconds", "32", "--places", "left", "right", runs=runs,
    )  # fmt: skip
    if code != 1:
        raise Failed(f"the whole schedule ended with {code}, not invalid")
    code, out = simulator("shrink", json.loads(out)["run_dir"], "--json", runs=runs)
    if code:
        raise Failed(f"shrink ended with {code}")
    shrunk = json.loads(out)
    found = [fault["id"] for fault in shrunk["faults"]]
    if found != ["f2", "f7"]:
        raise Failed(f"{found} are left, not f2 and f7")
    code, out = simulator("replay", shrunk["run_dir"], "--json", runs=runs)
    if code != 1:
        raise Failed(f"the replay of the two ended with {code}, not invalid")
    return {"left": found, "runs": shrunk["runs"]}


def crash(work: Path) -> dict[str, Any]:
    """The orchestrator is killed at every moment of a run, five times; heal and down leave nothing."""
    rounds = 5
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}")
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--acceptance",
                f"--basetemp={work / f'crash-{number}'}",  # no other pytest tidies it up meanwhile
                "tests/test_crash_safety_real.py",
            ],
            cwd=ROOT,
            env={**os.environ, "SIMULATOR_REQUIRE_DOCKER": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Failed(f"round {number}: {done.stdout[-2000:]}")
    return {"rounds": rounds, "last": done.stdout.strip().splitlines()[-1]}


def long_tests(work: Path) -> dict[str, Any]:  # noqa: ARG001
    """The long tests of faults, programs and promises that CI leaves out."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--acceptance", "-m", "acceptance",
         "--deselect", "tests/test_crash_safety_real.py"],
        cwd=ROOT, env={**os.environ, "SIMULATOR_REQUIRE_DOCKER": "1"}, stdout=subprocess.PIPE,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Failed(done.stdout[-3000:])
    return {"last": done.stdout.strip().splitlines()[-1]}


#: Experiments that must be valid five times in a row, and what each is asked for besides.
FIVE_TIMES: Mapping[str, Sequence[str]] = {
    "autoscale_up": ("autoscale_up",),
    "autoscale_down": ("autoscale_down",),
    "autoscale_flapping": ("autoscale_flapping",),
    "autoscale_heterogeneous": ("autoscale_heterogeneous",),
    "capacity_failure": ("capacity_failure",),
    "node_loss_replaced": ("node_loss_replaced",),
    "spot_preemption": ("spot_preemption",),
    "hybrid_spot": ("hybrid_spot",),
    "head_failure-memory": ("head_failure", "--set", "gcs=memory"),
    "head_failure-rocksdb": ("head_failure",),
    "head_failure-redis": ("head_failure", "--set", "gcs=redis"),
    "redis_blip": ("redis_blip",),
}

PARTS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "node_failure-docker": partial(ten_runs, backend="docker"),
    "node_failure-process": partial(ten_runs, backend="process"),
    "up16": up16,
    "up64-lean": up64_lean,
    "kill9": kill9,
    "shrink": shrink,
    "crash": crash,
    **{name: partial(five_runs, asked=asked) for name, asked in FIVE_TIMES.items()},
    "long-tests": long_tests,
}


# ---- keeping the results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(PARTS),
        metavar="PART",
        help=f"these parts only: {', '.join(PARTS)}",
    )
    parser.add_argument("--fresh", action="store_true", help="do finished parts again")
    chosen = parser.parse_args()
    name = commit()
    path = RESULTS / f"acceptance-{name}.json"
    work = (
        ROOT
        / "build"
        / "acceptance"
        / name
        / (time.strftime("%Y%m%d-%H%M%S") if chosen.fresh else "first")
    )
    if path.is_file() and not chosen.fresh:
        data = json.loads(path.read_text())
        work = ROOT / data["work"]
    else:
        data = {"commit": name, "work": str(work.relative_to(ROOT)), "parts": {}}
    data["machine"] = machine()
    work.mkdir(parents=True, exist_ok=True)
    for part in chosen.only or PARTS:
        if data["parts"].get(part, {}).get("holds"):
            say(f"{part} holds already")
            continue
        say(part)
        began = time.monotonic()
        try:
            entry = {"holds": True, **PARTS[part](work)}
        except Failed as error:
            entry = {"holds": False, "why": str(error)}
        entry.update(
            part_seconds=round(time.monotonic() - began, 1),
            ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            load=round(os.getloadavg()[1], 1),
        )
        data["parts"][part] = entry
        RESULTS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        say(f"{part}: {'holds' if entry['holds'] else 'DOES NOT HOLD: ' + str(entry['why'])}")
    say(f"results: {path.relative_to(ROOT)}")
    return 0 if all(entry["holds"] for entry in data["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
