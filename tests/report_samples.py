"""Run directories for the report's tests and its benchmark, made by a tiny simulation.

A cluster of nodes with CPU slots works through tasks of a nominal length; one worker is killed,
declared dead, restarted, and the work goes on. Everything is drawn from a seed and written in the
format of docs/reference/history.md and result.md, so a sample is what a real run would leave.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ORIGIN = 1_760_000_000.0
DEFAULT_CHECKS = {
    "no_task_lost": "every one of {tasks} tasks came back to its owner",
    "no_result_wrong": "{tasks} of {tasks} results are what they should be",
    "executions_explained": "{again} second executions, each explained by the kill",
    "recovers_in_time": "whole again {full:.1f} s after the injection; at most 60 s were allowed",
    "fault_hit_work": "{cut} executions were cut off on worker-2",
    "nothing_unhealed": "the one fault was undone",
}
TITLES = {
    "effect": "took effect",
    "first_failure": "first failed attempt seen by its owner",
    "first_retry": "first retry running elsewhere",
    "actor_alive": "actor alive again",
    "declared_dead": "declared DEAD by the GCS",
    "objects_rebuilt": "lost objects rebuilt",
    "throughput": "throughput back to 95 % of the surviving capacity",
    "rejoined": "node rejoined",
    "full_throughput": "full throughput",
}


@dataclass
class _Line:
    wall: float
    kind: str
    src: str
    node: str | None
    data: dict[str, Any]


@dataclass
class Sample:
    """What the simulation knows about the run that it wrote."""

    tasks: int
    inject: float
    lines: list[_Line] = field(default_factory=list)
    executions: int = 0
    cut: int = 0
    again: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)


def _simulate(
    *, tasks: int, nodes: int, slots: int, task_s: float, kill_at: float, seed: int
) -> Sample:
    rng = random.Random(seed)
    sample = Sample(tasks=tasks, inject=kill_at)
    names = ["head", *(f"worker-{i}" for i in range(1, nodes))]
    victim = "worker-2" if nodes > 2 else names[-1]
    dead_at, back_at = kill_at + 4.31, kill_at + 11.7

    def say(
        t: float, kind: str, src: str = "orchestrator", node: str | None = None, **d: Any
    ) -> None:
        sample.lines.append(_Line(t, kind, src, node, d))

    say(-21.0, "run.start", schema=1, run_id="r", experiment="node_failure")
    say(-20.9, "run.phase", phase="create")
    say(
        -20.8,
        "cluster.nodes",
        nodes=[
            {
                "name": n,
                "role": "head" if n == "head" else "worker",
                "group": n.split("-")[0],
                "hostname": n,
                "address": f"172.20.0.{i + 2}",
                "resources": {"CPU": slots, **({"GPU": 1} if n == "head" else {})},
            }
            for i, n in enumerate(names)
        ],
    )
    say(
        -20.7,
        "clock.offset",
        sources=["observer", "ledger", "driver", "ray", "engine"],
        offset=0.0005,
        uncertainty=0.004,
    )
    for i, n in enumerate(names):
        say(-20 + i * 0.7, "engine.start", "engine", n)
        alive = -15 + i * 1.1
        say(alive, "ray.node", "observer", n, ray_node_id=f"{i:04x}", hostname=n, state="ALIVE")
    say(-2.0, "steady", when="before", ok=True, problems=[])
    say(-1.9, "run.phase", phase="load")
    say(-1.8, "workload.submit", job_id="j1", workload="mixed")
    say(0.0, "driver.start", "driver", tasks=tasks, task_seconds=task_s, slots=nodes * slots)

    events: list[tuple[float, int, Callable[[float], None]]] = []
    counter = 0

    def later(t: float, then: Callable[[float], None]) -> None:
        nonlocal counter
        counter += 1
        heapq.heappush(events, (t, counter, then))

    queue = [f"t-{i}" for i in range(tasks)]
    queue.reverse()
    attempts: dict[str, int] = {}
    running: dict[str, set[str]] = {n: set() for n in names}
    cut: set[str] = set()
    up = dict.fromkeys(names, True)
    ledger_line = dict.fromkeys(names, 0)

    def fill(t: float, node: str) -> None:
        while up[node] and queue and len(running[node]) < slots:
            key = queue.pop()
            attempts[key] = attempts.get(key, 0) + 1
            execution = f"{key}.{attempts[key]}"
            sample.executions += 1
            running[node].add(execution)
            ledger_line[node] += 1
            begin = t + rng.uniform(0.001, 0.02)
            say(
                begin, "task.start", "ledger", node, key=key, exec=execution, fn="work",
                task_id=f"{sample.executions:016x}", pid=100 + len(running[node]),
                start_of_node=2 if node == victim and t > kill_at else 1, nominal_s=task_s,
                demand={"CPU": 1}, file=f"{node}.jsonl", line=ledger_line[node],
            )  # fmt: skip

            def done(t: float, execution: str = execution, key: str = key) -> None:
                if execution in cut:
                    return
                running[node].discard(execution)
                ledger_line[node] += 1
                say(
                    t, "task.end", "ledger", node, key=key, exec=execution, ok=True,
                    file=f"{node}.jsonl", line=ledger_line[node],
                )  # fmt: skip
                say(t + 0.004, "driver.result", "driver", key=key, value=1)
                fill(t, node)

            later(begin + task_s * rng.uniform(1.01, 1.12), done)

    def kill(t: float) -> None:
        up[victim] = False
        say(t - 0.02, "fault.plan", node=victim, id="f1", fault="kill", target=victim, undo="start")
        say(t, "fault.inject", node=victim, id="f1", fault="kill")
        say(t + 0.06, "engine.die", "engine", victim, exit_code=137)
        say(t + 0.07, "fault.done", node=victim, id="f1", fault="kill")
        say(
            t + 0.06, "fault.effect", "engine", victim, id="f1", fault="kill", verified=True,
            how="the engine's die event, exit code 137",
        )  # fmt: skip
        lost = sorted(running[victim])
        cut.update(lost)
        running[victim].clear()
        sample.cut = len(lost)
        for i, execution in enumerate(lost):
            key = execution.split(".")[0]
            failed = t + 0.4 + 0.03 * i
            say(
                failed, "attempt.failed", "ray", victim, key=key, task_id="x", attempt=0,
                error_type="NODE_DIED" if i else "WORKER_DIED </script><b>bold</b>",
            )  # fmt: skip
            queue.append(key)
            sample.again += 1
        for n in names:
            later(t + 0.5, lambda t, n=n: fill(t, n))  # type: ignore[misc]

    def rejoin(t: float) -> None:
        up[victim] = True
        say(
            t, "ray.node", "observer", victim, ray_node_id="00ff", hostname=victim, state="ALIVE"
        )  # fmt: skip
        say(t + 0.2, "node.joined", node=victim, seconds=6.9)
        say(
            t + 0.21, "fault.healed", node=victim, id="f1", fault="kill", verified=True, how="start"
        )
        fill(t + 0.1, victim)

    for n in names:
        fill(0.05, n)
    later(kill_at, kill)
    later(back_at, rejoin)
    end = kill_at + 25
    calls = 0
    actor_node = victim
    t = 0.3
    incarnation = 1
    say(0.2, "actor.start", "ledger", victim, actor="counter", exec="a1", pid=9, restored=0)
    while t < end:
        if kill_at <= t < kill_at + 1.6:
            t = kill_at + 1.6
            actor_node, incarnation = names[1], 2
            say(t, "ray.actor", "observer", actor_node, actor_id="a", name="counter", state="ALIVE")
            say(t, "actor.start", "ledger", actor_node, actor="counter", exec="a2", restored=calls)
        calls += 1
        who = {"actor": "counter", "key": f"counter/{calls}", "exec": f"c{calls}.{incarnation}"}
        say(t, "call.start", "ledger", actor_node, **who)
        if not (t < kill_at + 0.06 and t + 0.09 > kill_at):
            say(t + 0.09, "call.end", "ledger", actor_node, **who)
        t += 0.5
    say(
        dead_at, "ray.node", "observer", victim, ray_node_id="0002", hostname=victim,
        state="DEAD", reason="UNEXPECTED_TERMINATION", message="health check failed",
    )  # fmt: skip
    say(dead_at + 0.3, "fault.heal", node=victim, id="f1", fault="kill", how="start")
    say(dead_at + 0.5, "engine.start", "engine", victim)
    while events:
        t, _, then = heapq.heappop(events)
        then(t)
    say(max(t, end) + 0.3, "workload.end", status="SUCCEEDED", message="")
    say(max(t, end) + 0.5, "steady", when="after", ok=True, problems=[])
    say(max(t, end) + 0.6, "observer.end", "observer", files=ledger_line)
    say(max(t, end) + 0.9, "run.end", status="completed")
    return sample


def make_run(
    folder: Path,
    *,
    tasks: int = 120,
    nodes: int = 4,
    slots: int = 1,
    task_s: float = 1.0,
    kill_at: float = 12.3,
    seed: int = 7,
    verdict: str = "valid",
) -> Sample:
    """Write a completed run; `verdict` invalid or unknown changes its findings to match."""
    sample = _simulate(
        tasks=tasks, nodes=nodes, slots=slots, task_s=task_s, kill_at=kill_at, seed=seed
    )
    folder.mkdir(parents=True, exist_ok=True)
    sample.lines.sort(key=lambda line: line.wall)
    with (folder / "history.jsonl").open("w", encoding="utf-8") as out:
        for i, line in enumerate(sample.lines):
            sample.by_kind.setdefault(line.kind, i)
            wall = round(ORIGIN + line.wall, 6)
            raw = {
                "i": i, "kind": line.kind, "src": line.src, "wall": wall, "mono": None,
                "recv": round(wall + 0.01, 6), "node": line.node, "data": line.data,
            }  # fmt: skip
            out.write(json.dumps(raw, separators=(",", ":")) + "\n")
    names = ["head", *(f"worker-{i}" for i in range(1, nodes))]
    seconds: dict[str, float | None] = {
        "effect": 0.06, "first_failure": 0.4, "first_retry": 0.52, "actor_alive": 1.6,
        "declared_dead": 4.31, "objects_rebuilt": 5.9, "throughput": 6.4, "rejoined": 11.7,
        "full_throughput": 14.8,
    }  # fmt: skip
    if verdict == "unknown":
        seconds.update(objects_rebuilt=None, throughput=None)
    cite = sample.by_kind
    cites = {
        "effect": ["fault.inject", "fault.effect"],
        "first_failure": ["attempt.failed"],
        "declared_dead": ["fault.inject", "ray.node"],
        "rejoined": ["node.joined"],
    }
    phases = [
        {
            "name": name,
            "title": TITLES[name],
            "seconds": value,
            "uncertainty": None if value is None else 0.008 if name != "throughput" else 0.26,
            "cites": [cite[k] for k in cites.get(name, ["fault.inject"]) if k in cite],
            "mandatory": True,
            "note": "no second execution of a producer was seen" if value is None else "",
        }
        for name, value in seconds.items()
    ]
    words = {"tasks": tasks, "again": sample.again, "cut": sample.cut, "full": 14.8}
    findings: list[dict[str, Any]] = [
        {
            "check": check,
            "verdict": "valid",
            "summary": text.format(**words),
            "cites": [cite["fault.inject"]],
            "details": [],
            "metrics": {},
        }
        for check, text in DEFAULT_CHECKS.items()
    ]
    if verdict == "invalid":
        findings[0].update(
            verdict="invalid",
            summary="2 of 120 tasks are lost: t-41, t-43",
            details=[
                "t-41: started on worker-2, cut off by the kill, no retry was left",
                "t-43: ray.exceptions.WorkerCrashedError: </script><script>alert(1)</script>",
            ],
        )
    if verdict == "unknown":
        findings[3].update(
            verdict="unknown",
            summary="a mandatory phase was not seen: lost objects rebuilt, throughput",
        )
    result = {
        "schema": 1, "run_id": "r", "experiment": "node_failure", "backend": "docker",
        "status": "completed", "verdict": verdict, "seed": seed, "run_dir": str(folder),
        "report": "report.html", "topology": "default", "ray_version": "2.60.0",
        "health": "fast", "gpu": "simulated", "findings": findings, "phases": phases,
        "recovery": {f"{k}_s": v for k, v in seconds.items()},
        "metrics": {
            "tasks": tasks, "executions": sample.executions, "tasks_reexecuted": sample.again,
            "work_seconds_lost": round(0.6 * sample.cut, 2),
        },
        "params": {"tasks": tasks, "task_seconds": task_s, "max_retries": 3, "victim": "auto"},
        "error": None, "started": ORIGIN - 21, "ended": ORIGIN + 40, "truncated": None,
    }  # fmt: skip
    spec = {
        "schema": 1, "run_id": "r", "experiment": "node_failure", "source": "node_failure",
        "claim": "When a busy worker is killed, no task is lost and the cluster is whole again "
        "within 60 seconds.",
        "backend": "docker", "cluster": "demo", "seed": seed, "params": result["params"],
        "topology": {
            "name": "default", "description": "a head with 1 CPU and 1 GPU, three workers",
            "head": {"resources": {"CPU": slots, "GPU": 1}, "gpus": "auto"},
            "worker_groups": [
                {
                    "group_name": "worker", "replicas": len(names) - 1,
                    "min_replicas": 0, "max_replicas": 64, "resources": {"CPU": slots},
                }
            ],
        },
        "health": "fast", "gpu": "simulated", "mandatory_phases": list(TITLES),
        "recovery_timeout_s": 60, "checks": list(DEFAULT_CHECKS),
        "schedule": [{"id": "f1", "fault": "kill", "target": "busiest", "when": "after 12 s"}],
        "command": f"python -m simulator run node_failure --backend docker --seed {seed}",
        "versions": {
            "simulator": "0.1.0", "python": "3.11.7", "ray": "2.60.0",
            "engine": "Docker 28.1", "platform": "Linux x86_64",
        },
        "host": {
            "cores": 2, "memory_bytes": 24 * 1024**3, "slots": nodes * slots,
            "oversubscription": nodes * slots / 2,
        },
        "started": ORIGIN - 21,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    return sample


def cut_short(folder: Path, *, keep: float = 0.55, with_result: bool = False) -> None:
    """Turn a run into what a SIGKILL of the orchestrator leaves: a line cut off, no result."""
    path = folder / "history.jsonl"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)].rstrip(b"\n")[:-7])
    if not with_result:
        (folder / "result.json").unlink()


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
