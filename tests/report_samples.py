"""Run directories for the report's tests and its benchmark.

A built history (history_builder) is judged by the real checks and written as a run would leave it, so
that a sample looks like the real thing in everything that a report reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from history_builder import MANDATORY, T0, Plan, build

from simulator.checkers.base import RunView, worst
from simulator.checkers.judge import judge
from simulator.history import History, Op

#: What a task may write into its own error message.
HOSTILE = "</script><script>document.title='broken'</script><b>&amp;\"' \u2028 \x00 日本"

#: Plans whose verdict is the name.
PLANS: dict[str, dict[str, Any]] = {
    "valid": {},
    "invalid": {"retries": False},
    "unknown": {"comes_back": False},
}

#: About 100,000 tasks on 17 nodes of 4 slots, over 12 minutes.
BIG: dict[str, Any] = {
    "workers": 16,
    "slots_per_node": 4,
    "task_seconds": 0.5,
    "inject_at": 300.0,
    "after_s": 445.0,
}

THOUSAND: dict[str, Any] = {"inject_at": 120.0, "after_s": 125.0}


def make_run(folder: Path, verdict: str = "valid", **plan: Any) -> dict[str, Any]:
    """Write a completed run whose verdict is `verdict`, and return its result.

    `plan` changes attributes of `history_builder.Plan`.
    """
    chosen = Plan(**{**PLANS[verdict], **plan})
    history, spec = build(chosen)
    history = History([_with_hostile_error(op) for op in history])
    spec = {
        **spec_of(chosen),
        **spec,
        "params": {"tasks": 100, "task_seconds": chosen.task_seconds},
    }
    judgement = judge(RunView(history, spec))
    result = {
        "schema": 1, "run_id": "built", "experiment": "node_failure", "backend": "docker",
        "status": "completed", "verdict": judgement.verdict.value, "seed": chosen.seed,
        "run_dir": str(folder), "report": str(folder / "report.html"), "topology": "default",
        "ray_version": "2.60.0", "health": "fast", "gpu": "simulated",
        "findings": [f.to_data() for f in judgement.findings],
        "phases": [p.to_data() for p in judgement.phases],
        "recovery": dict(judgement.recovery), "metrics": dict(judgement.metrics),
        "params": spec["params"], "error": None, "started": T0,
        "ended": history.ops[-1].received, "truncated": None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "history.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(op.to_json() + "\n" for op in history)
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert worst([judgement.verdict]).value == verdict, [f.summary for f in judgement.findings]
    return result


def _with_hostile_error(op: Op) -> Op:
    if op.kind != "attempt.failed":
        return op
    data = {**op.data, "error_type": f"{op.data.get('error_type')}: {HOSTILE}"}
    return Op(op.index, op.kind, op.source, op.wall, op.mono, op.received, op.node, data)


def spec_of(plan: Plan) -> dict[str, Any]:
    """What `history_builder` leaves out of the spec because no check reads it."""
    resources = {"CPU": plan.slots_per_node}
    group = {"group_name": "worker", "replicas": plan.workers, "resources": resources}
    return {
        "source": "node_failure",
        "claim": "When a busy worker is killed, no task is lost and the cluster is whole again within 60 seconds.",
        "backend": "docker", "cluster": "demo", "health": "fast", "gpu": "simulated",
        "mandatory_phases": list(MANDATORY),
        "topology": {
            "name": "default", "description": "a head with a GPU and workers without",
            "head": {"resources": {**resources, "GPU": 1}, "gpus": "auto"}, "worker_groups": [group],
        },
        "command": f"python -m simulator run node_failure --backend docker --seed {plan.seed}",
        "versions": {"simulator": "0.1.0", "python": "3.11.7", "ray": "2.60.0", "platform": "Linux x86_64"},
        "host": {"cores": 2, "memory_bytes": 24 * 1024**3, "slots": plan.slots, "oversubscription": plan.slots / 2},
        "started": T0,
    }  # fmt: skip


def cut_short(folder: Path, *, keep: float = 0.55, with_result: bool = False) -> None:
    """Turn a run into what a SIGKILL of the orchestrator leaves: a line cut off, no result."""
    path = folder / "history.jsonl"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)].rstrip(b"\n")[:-7])
    if not with_result:
        (folder / "result.json").unlink()


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a JSON file in place."""
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
