"""Clusters, runs and checks as tables for people; `--json` has the same facts for programs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from simulator.backends.base import Check, ClusterRecord
    from simulator.cluster import (
        AutoscalerStatus,
        ClusterStatus,
        NodeStatus,
        RayNodeRecord,
        Started,
    )
    from simulator.doctor import Diagnosis
    from simulator.rayapi import RayNode
    from simulator.scaling import Removal

STATE_STYLES = {
    "alive": "green",
    "running": "green",
    "starting": "yellow",
    "created": "yellow",
    "paused": "magenta",
    "exited": "red",
    "dead": "red",
}
#: Ray's autoscaler looks once a second: one that has not for so long does not answer, seconds.
STALE_S = 10.0
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
    for node in (n for n in status.nodes if not n.gone):
        rows.add_row(
            _name(node),
            _state(node),
            _used(node, "CPU"),
            _gpu(node, status.gpu),
            node.address or "-",
            Text((node.ray_node_id or "-")[:8], "dim"),
        )
    if status.store is not None:
        state = Text(status.store.state, STATE_STYLES.get(status.store.state, ""))
        if status.store.exit_code is not None:
            state.append(f" ({status.store.exit_code})", "dim")
        name = Text(status.store.name)
        name.append(" (the head's tables)", "dim")
        rows.add_row(name, state, "-", "-", status.store.address or "-", Text("-", "dim"))
    more = [] if status.autoscaler is None else autoscaler_view(status, status.autoscaler)
    return Group(head, _ray_line(status), rows, *more)


def autoscaler_view(status: ClusterStatus, auto: AutoscalerStatus) -> list[RenderableType]:
    """What Ray's autoscaler sees and wants: a row for each group, and what waits for a node."""
    groups = table(
        "group", "limits", "busy", "idle", "draining", "starting", "asked for", "gone",
        right=("busy", "idle", "draining", "starting", "asked for", "gone"),
    )  # fmt: skip
    for group in auto.topology.worker_groups:
        counts = auto.counts(group.group_name)
        gone = sum(n.gone for n in status.nodes if n.group == group.group_name)
        numbers = [counts[k] for k in ("busy", "idle", "draining", "starting", "launching")]
        limits = f"{group.least} to {group.most}"
        groups.add_row(group.group_name, limits, *(str(n or "-") for n in [*numbers, gone]))
    lines: list[RenderableType] = []
    if not auto.runs:
        lines.append(Text("Ray's autoscaler does not run; start it again with: start", "yellow"))
    elif auto.age_s is None:
        lines.append(Text("Ray's autoscaler has not looked yet", "yellow"))
    else:
        stale = auto.age_s > STALE_S
        lines.append(
            Text(f"Ray's autoscaler looked {auto.age_s:g} s ago", "yellow" if stale else "dim")
        )
    data = auto.to_data()
    lines += [Text(f"waiting: {item['count']} x {needs_words(item)}") for item in data["demand"]]
    lines += [
        Text(f"waiting: a placement group of {_bundles(item)}") for item in data["placement_groups"]
    ]
    for item in data["never"]:
        what = _bundles(item) if "bundles" in item else needs_words(item)
        lines.append(Text(f"no node of any group can ever give: {what}", "red"))
    for item in data["failed"]:
        why = f": {item['why']}" if item["why"] else ""
        lines.append(Text(f"came to nothing: {item['count']} of {item['group']}{why}", "yellow"))
    return [groups, *lines]


def needs_words(item: Mapping[str, Any]) -> str:
    """What work asks of a node, such as ``{CPU: 1}``."""
    labels = [f"{key}={'|'.join(values)}" for key, values in item.get("labels", {}).items()]
    return "{" + ", ".join([*(f"{k}: {v:g}" for k, v in item["needs"].items()), *labels]) + "}"


def _bundles(item: Mapping[str, Any]) -> str:
    counts = Counter(needs_words({"needs": bundle}) for bundle in item["bundles"])
    return " and ".join(f"{count} x {what}" for what, count in counts.items())


def _ray_line(status: ClusterStatus) -> Text:
    if status.nodes and all(n.state == "exited" for n in status.nodes):
        command = f"python -m simulator start --name {status.cluster}"
        return Text(f"stopped; start it again with: {command}", "yellow")
    if not status.ray["answers"]:
        remedy = f". {status.ray['remedy']}" if status.ray["remedy"] else ""
        return Text(f"Ray does not answer: {status.ray['why']}{remedy}", "yellow")
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


def ray_nodes_view(records: Sequence[RayNodeRecord]) -> RenderableType:
    """A row for each node that Ray remembers, and below them why the dead ones died."""
    rows = table("node", "Ray node", "state", "address", "offers", "since", "until")
    dead: list[RenderableType] = []
    for record in records:
        ray = record.ray
        name = Text(record.node or "-", "bold" if ray.is_head else "")
        state = "alive" if ray.alive else "dead"
        rows.add_row(
            name,
            Text(ray.ray_node_id[:8], "dim"),
            Text(state, STATE_STYLES[state]),
            ray.address,
            _offers(ray),
            _clock(ray.since),
            _clock(ray.until),
        )
        if not ray.alive:
            line = Text(f"{record.node or ray.hostname} {ray.ray_node_id[:8]} died: ", "dim")
            line.append(ray.message or "Ray does not say why", "default")
            dead.append(line)
    return Group(rows, *dead)


def _offers(ray: RayNode) -> str:
    """What a person declared; memory, which every node has, and Ray's own labels are left out."""
    hidden = ("memory", "object_store_memory")
    parts = [f"{n:g} {r}" for r, n in sorted(ray.resources.items()) if r not in hidden]
    labels = [f"{k}={v}" for k, v in sorted(ray.labels.items()) if not k.startswith("ray.io/")]
    return ", ".join([*parts, *labels]) or "-"


def _clock(wall: float | None) -> str:
    return "-" if wall is None else time.strftime("%H:%M:%S", time.localtime(wall))


def started_words(plan: Started) -> list[str]:
    """What there is to know of a start beside the nodes' joining."""
    lines = []
    if "head" in plan.started:
        lines.append(
            "the head has its tables of before: detached actors and placement groups are still known"
            if plan.remembers
            else "the head keeps Ray's state in memory: jobs, actors and placement groups of before are gone"
        )
    if plan.renewed:
        lines.append(f"started anew, since their head is gone: {', '.join(plan.renewed)}")
    if plan.paused:
        lines.append(f"left frozen: {', '.join(plan.paused)}")
    return lines


def removal_words(removal: Removal) -> str:
    """Which node goes, and what is cut off with it."""
    text = f"removing {removal.node}"
    if removal.unknown:
        return f"{text}; what runs there is not known: {removal.unknown}"
    if not removal.running:
        return f"{text}, on which nothing runs"
    kinds = [("task", removal.running.tasks), ("actor", removal.running.actors)]
    parts = [_counted(kind, names) for kind, names in kinds if names]
    return f"{text}, on which {' and '.join(parts)} {'run' if len(parts) > 1 else 'runs'}"


def _counted(kind: str, names: Sequence[str]) -> str:
    counts = Counter(names).most_common()
    shown = ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts[:4])
    more = f" and {len(counts) - 4} other names" if len(counts) > 4 else ""
    return f"{len(names)} {kind}{'s' if len(names) > 1 else ''} ({shown}{more})"


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
    from simulator.topology import DRIVER, LEAN_LACKS, Driver, Profile

    head = Text(row["name"], "bold")
    head.append(f"   {row['description']}" if row["description"] else "", "default")
    total = f"{row['nodes']} nodes, {_amounts(row['resources'])} in all"
    made = table("group", "nodes", "each offers", "labels", "memory", right=("nodes",))
    single = {"head": row["head"]}
    if row["driver_node"]:
        single[DRIVER] = Driver().model_dump(mode="json")
    groups = [
        *({"group_name": name, "replicas": 1, **node} for name, node in single.items()),
        *row["worker_groups"],
    ]
    for group in groups:
        labels = ", ".join(f"{key}={value}" for key, value in group["labels"].items())
        count = str(group["replicas"])
        if group.get("max_replicas") is not None:
            count += f" ({group['min_replicas'] or 0} to {group['max_replicas']})"
        name = Text(group["group_name"], "bold")
        if group.get("profile", Profile.DEFAULT.value) != Profile.DEFAULT.value:
            name.append(f" ({group['profile']})", "default")
        made.add_row(
            name,
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
    parts: list[RenderableType] = [head, Text(total, "dim"), made]
    if any(group.get("profile") == Profile.LEAN.value for group in groups):
        parts.append(Text(f"lean: {LEAN_LACKS}", "dim"))
    return Group(*parts)


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
