"""Clusters, runs and checks as tables for people; `--json` has the same facts for programs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from simulator.backends.base import Check, ClusterRecord
    from simulator.cluster import ClusterStatus, NodeStatus
    from simulator.doctor import Diagnosis

STATE_STYLES = {
    "alive": "green",
    "running": "green",
    "starting": "yellow",
    "created": "yellow",
    "paused": "magenta",
    "exited": "red",
    "dead": "red",
}
VERDICT_STYLES = {"valid": "green", "invalid": "red", "unknown": "yellow"}
LEVEL_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """A plain table; nothing in it is ever cut off."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        made.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return made


def gpu_words(gpu: str) -> str:
    """What to say about a cluster's GPUs."""
    return {
        "real": "GPU real",
        "simulated": "GPU simulated, no device",
        "none": "no GPU",
    }.get(gpu, f"GPU {gpu}")


# -- clusters ----------------------------------------------------------------------------------------


def status_view(status: ClusterStatus) -> RenderableType:
    """One cluster: a line about it, a line about Ray, a row for each node."""
    count = status.to_data()["count"]
    head = Text(status.cluster, "bold")
    head.append(f"  on {status.backend}", "default")
    head.append(f"   {count['desired']} desired, {count['running']} running, ", "default")
    whole = count["alive"] == count["desired"]
    head.append(f"{count['alive']} alive", "green" if whole else "yellow")
    rows = table("node", "state", "CPU", "GPU", "address", "Ray node", right=("CPU",))
    for node in status.nodes:
        rows.add_row(
            _name(node),
            _state(node),
            _used(node, "CPU"),
            _gpu(node, status.gpu),
            node.address or "-",
            Text((node.ray_node_id or "-")[:8], "dim"),
        )
    return Group(head, _ray_line(status), rows)


def _ray_line(status: ClusterStatus) -> Text:
    if not status.ray["answers"]:
        return Text(f"Ray does not answer: {status.ray['why']}", "yellow")
    parts = [f"Ray {status.ray['version']}"]
    alive = [n for n in status.nodes if n.state == "alive"]
    for name in ("CPU", "GPU"):
        # Summed over the nodes: Ray's own total lags seconds behind a node that joined or died.
        used = sum(n.used.get(name, 0.0) for n in alive)
        total = sum(n.resources.get(name, 0.0) for n in alive)
        if total:
            parts.append(f"{used:g} of {total:g} {name} used")
    return Text("   ".join([*parts, gpu_words(status.gpu)]), "dim")


def _name(node: NodeStatus) -> Text:
    text = Text(node.name, "bold" if node.role == "head" else "")
    if node.profile.value != "default":
        text.append(f" ({node.profile.value})", "dim")
    return text


def _state(node: NodeStatus) -> Text:
    text = Text(node.state, STATE_STYLES.get(node.state, ""))
    if node.state == "exited" and node.exit_code is not None:
        text.append(f" ({node.exit_code})", "dim")
    if node.state == "dead":
        text.append(" to Ray", "dim")
    return text


def _used(node: NodeStatus, resource: str) -> str:
    total = node.resources.get(resource, 0.0)
    if node.state != "alive":
        return f"-/{total:g}"
    return f"{node.used.get(resource, 0.0):g}/{total:g}"


def _gpu(node: NodeStatus, kind: str) -> str:
    return f"{_used(node, 'GPU')} {kind}" if node.resources.get("GPU") else "-"


def clusters_view(records: Sequence[ClusterRecord]) -> RenderableType:
    rows = table("cluster", "backend", "nodes", "GPU", "run")
    for record in records:
        states = [n.state for n in record.nodes]
        counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
        run = f"{record.run_dir.parent.name}/{record.run_dir.name}" if record.run_dir else "by hand"
        rows.add_row(Text(record.name, "bold"), record.backend, counts or "none", record.gpu, run)
    return rows


def cluster_data(record: ClusterRecord) -> dict[str, Any]:
    return {
        "cluster": record.name,
        "backend": record.backend,
        "gpu": record.gpu,
        "run_dir": str(record.run_dir) if record.run_dir else None,
        "nodes": [
            {
                "name": n.name,
                "role": n.role,
                "group": n.group,
                "state": n.state,
                "address": n.address,
                "hostname": n.hostname,
                "exit_code": n.exit_code,
            }
            for n in record.nodes
        ],
    }


# -- experiments and runs ----------------------------------------------------------------------------


def experiments_view(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    made = table("experiment", "claim")
    for row in rows:
        error = row.get("error")
        made.add_row(
            Text(row["name"], "bold"), Text(str(error), "red") if error else Text(row["claim"])
        )
    return made


def topologies_view(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    made = table("topology", "nodes", "offers", "what it is", right=("nodes",))
    for row in rows:
        made.add_row(
            Text(row["name"], "bold"),
            str(row["nodes"]),
            _amounts(row["resources"]),
            Text(row["description"]),
        )
    return made


def topology_view(row: Mapping[str, Any]) -> RenderableType:
    head = Text(row["name"], "bold")
    head.append(f"   {row['description']}" if row["description"] else "", "default")
    total = f"{row['nodes']} nodes, {_amounts(row['resources'])} in all"
    made = table("group", "nodes", "each offers", "labels", "memory", right=("nodes",))
    groups = [{"group_name": "head", "replicas": 1, **row["head"]}, *row["worker_groups"]]
    for group in groups:
        labels = ", ".join(f"{key}={value}" for key, value in group["labels"].items())
        count = str(group["replicas"])
        if group.get("max_replicas") is not None:
            count += f" ({group['min_replicas'] or 0} to {group['max_replicas']})"
        made.add_row(
            Text(group["group_name"], "bold"),
            count,
            _amounts(group["resources"])
            + (
                f" (GPUs {group['gpus']})"
                if group.get("gpus") and group["resources"].get("GPU")
                else ""
            ),
            Text(labels or "-"),
            group["memory"] or "-",
        )
    return Group(head, Text(total, "dim"), made)


def _amounts(resources: Mapping[str, float]) -> str:
    return (
        ", ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"
    )


def runs_view(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    made = table("run", "started", "backend", "status", "verdict")
    for row in rows:
        verdict = row["verdict"]
        made.add_row(
            f"{row['experiment']}/{row['run_id']}",
            _when(row["started"]),
            row["backend"] or "-",
            row["status"],
            Text(verdict or "not judged", VERDICT_STYLES.get(verdict or "", "dim")),
        )
    return made


def _when(wall: float | None) -> str:
    return "-" if wall is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(wall))


def params_view(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    made = table("parameter", "type", "default", "what it is")
    for row in rows:
        made.add_row(
            Text(row["name"], "bold cyan"),
            row["type"],
            Text(_shown(row["default"])),
            Text(row["description"]),
        )
    return made


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- the machine -------------------------------------------------------------------------------------


def doctor_view(diagnosis: Diagnosis) -> RenderableType:
    parts: list[RenderableType] = []
    for section in diagnosis.sections:
        word = " cannot be used" if section.backend and section.blocked else ""
        title = Text(section.title, "bold")
        title.append(word, "red")
        rows = Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True)
        rows.add_column(no_wrap=True)
        rows.add_column(overflow="fold")
        for check in section.checks:
            rows.add_row(
                Text(f"  {check.level}", LEVEL_STYLES[check.level]), check.name, _fact(check)
            )
        parts += [title, rows, Text()]
    parts.append(Text(f"--backend {diagnosis.asked} takes: {diagnosis.choice}", "bold"))
    return Group(*parts)


def _fact(check: Check) -> Text:
    text = Text(check.text)
    if check.level != "ok" and check.remedy:
        text.append(f"\n{check.remedy}", "bold")
    return text
