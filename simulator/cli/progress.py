"""What a run looks like while it goes on, as a value: fed with events, asked for lines.

Two things are shown, on a terminal and in a log file alike: lines that stay (a phase began, a node joined, a
fault was injected), and, on a terminal only, a block below them that is drawn again and again.
Nothing here prints, so all of it can be tested without a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from simulator.cluster import StartEvent
from simulator.history import History, Op

#: How many nodes get a line of their own while they start; of more, only those in the making do.
MAX_NODE_LINES = 17

_STATES = {
    "alive": ("alive", "green"),
    "starting": ("starting", "yellow"),
    "gone": ("gone, Ray has not noticed", "red"),
    "paused": ("paused", "magenta"),
    "dead": ("dead", "red"),
    "failed": ("failed", "red"),
}

PHASES = {
    "create": "starting the cluster",
    "gate": "gate: is the cluster at rest?",
    "load": "load: starting the work",
    "faults": "warm-up, then the faults",
    "recover": "recovery: until the last phase was seen",
    "work": "work: until all of it is done",
    "heal": "healing: is the cluster at rest again?",
    "collect": "collecting ledger and logs",
    "down": "taking the cluster down",
}


@dataclass
class NodeStart:
    """One node being started."""

    verb: str
    since: float
    seconds: float = 0.0
    attempt: int = 1


class Starting:
    """Nodes that are being started."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeStart] = {}

    def feed(self, event: StartEvent, now: float) -> str:
        """Take one event; returns the line that stays, or ""."""
        self.nodes[event.node] = NodeStart(event.verb, now, event.seconds, event.attempt)
        if event.verb == "joined":
            again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
            return f"{event.node} joined after {event.seconds:.1f} s{again}"
        if event.verb == "failed":
            last = "\n".join(f"    {line}" for line in event.details[1:])
            why = event.details[0] if event.details else f"{event.node} failed"
            return f"{why} (attempt {event.attempt})" + (f"\n{last}" if last else "")
        return ""

    @property
    def joined(self) -> int:
        return sum(n.verb == "joined" for n in self.nodes.values())

    @property
    def busy(self) -> bool:
        return any(n.verb != "joined" for n in self.nodes.values())

    def render(self, now: float) -> RenderableType:
        """A line for each node that is still on its way."""
        table = Table.grid(padding=(0, 2))
        shown = [(name, n) for name, n in self.nodes.items() if n.verb != "joined"]
        for name, node in shown[:MAX_NODE_LINES]:
            word, style = _STATES["starting" if node.verb == "starting" else "failed"]
            again = f"attempt {node.attempt}" if node.attempt > 1 else ""
            table.add_row(
                Text(f"  {name}"), Text(word, style), Text(f"{now - node.since:.0f} s"), Text(again)
            )
        if len(shown) > MAX_NODE_LINES:
            table.add_row(Text("  ..."), Text(f"{len(shown) - MAX_NODE_LINES} more"), "", "")
        return table


@dataclass
class FaultView:
    """One fault as it stands."""

    fault: str
    node: str
    injected: float
    state: str = "injected"


@dataclass
class RunProgress:
    """A run as far as its history goes."""

    planned: int = 0
    submitted: int = 0
    results: int = 0
    failures: int = 0
    nodes: dict[str, str] = field(default_factory=dict)
    faults: dict[str, FaultView] = field(default_factory=dict)
    load_began: float | None = None
    script: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    mark: str = ""
    _seen: int = 0

    def feed(self, history: History) -> list[str]:
        """Take what is new in a snapshot; returns the lines that stay."""
        lines = [line for op in history.ops[self._seen :] if (line := self._take(op))]
        self._seen = len(history.ops)
        return lines

    def _take(self, op: Op) -> str:
        handler = getattr(self, "_on_" + op.kind.replace(".", "_"), None)
        return (handler(op) if handler else "") or ""

    # -- one method for each kind of operation that is shown ---------------------------------------

    def _on_cluster_nodes(self, op: Op) -> None:
        for node in op.data["nodes"]:
            self.nodes.setdefault(node["name"], "alive")

    def _on_ray_node(self, op: Op) -> str:
        if op.node is None:
            return ""
        before = self.nodes.get(op.node)
        if op.data["state"] == "ALIVE":
            self.nodes[op.node] = "alive"
            return f"{op.node} is back as a new node" if before in ("dead", "starting") else ""
        if before != "starting":
            self.nodes[op.node] = "dead"
        return f"Ray declared {op.node} dead"

    def _on_engine_die(self, op: Op) -> None:
        if op.node in self.nodes:
            self.nodes[op.node] = "gone"

    def _on_engine_start(self, op: Op) -> None:
        if op.node in self.nodes:
            self.nodes[op.node] = "starting"

    def _on_engine_pause(self, op: Op) -> None:
        if op.node in self.nodes:
            self.nodes[op.node] = "paused"

    def _on_engine_unpause(self, op: Op) -> None:
        if op.node in self.nodes:
            self.nodes[op.node] = "alive"

    def _on_driver_start(self, op: Op) -> str:
        self.planned = int(op.data.get("tasks") or 0)
        self.load_began = op.received
        return f"the work began: {self.planned} tasks on {op.data.get('slots', 0):g} slots"

    def _on_driver_submit(self, op: Op) -> None:  # noqa: ARG002
        self.submitted += 1

    def _on_driver_result(self, op: Op) -> None:  # noqa: ARG002
        self.results += 1

    def _on_driver_failure(self, op: Op) -> str:
        self.failures += 1
        return f"{op.data['key']} failed for good: {op.data.get('error', '')}"

    def _on_program_submit(self, op: Op) -> None:
        self.script = str(op.data["script"])

    def _on_program_start(self, op: Op) -> str:
        self.load_began = op.received
        return f"{self.script} runs on {op.node}"

    def _on_program_tasks(self, op: Op) -> None:
        self.counts = {k: int(op.data[k]) for k in ("finished", "running", "pending", "failed")}

    def _on_program_mark(self, op: Op) -> None:
        value = op.data.get("value")
        self.mark = str(op.data["name"]) + ("" if value is None else f" {value}")

    def _on_program_end(self, op: Op) -> str:
        code, took = op.data["exit_code"], op.data["seconds"]
        how = f"{self.script}: {op.data['status']}"
        how += "" if code is None else f", exit code {code}"
        return how + ("" if took is None else f", after {took:.1f} s")

    def _on_fault_inject(self, op: Op) -> str:
        fault = FaultView(op.data["fault"], op.node or "cluster", op.received)
        self.faults[op.data["id"]] = fault
        return f"fault: {fault.fault} {fault.node}"

    def _on_fault_skipped(self, op: Op) -> str:
        return f"fault skipped: {op.data['fault']} {op.node}, because {op.data['why']}"

    def _on_fault_effect(self, op: Op) -> str:
        verified = bool(op.data["verified"])
        self._set(op, "in effect" if verified else "NOT shown to have taken effect")
        word = "took effect" if verified else "could NOT be shown to have taken effect"
        return f"fault: {op.data['fault']} {op.node} {word}"

    def _on_fault_heal(self, op: Op) -> str:
        self._set(op, "being healed")
        return f"healing {op.node}: {op.data['how']}"

    def _on_fault_healed(self, op: Op) -> str:
        self._set(op, "healed")
        return f"healed {op.node}: {op.data['how']}"

    def _on_run_error(self, op: Op) -> str:
        return f"{op.data['where']}: {op.data['error']}"

    def _set(self, op: Op, state: str) -> None:
        if op.data["id"] in self.faults:
            self.faults[op.data["id"]].state = state

    # -- the block ---------------------------------------------------------------------------------

    def render(self, width: int, wall: float) -> RenderableType:
        """The state of things in a few rows that fit in `width` columns."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        if self.submitted or self.planned:
            table.add_row("  tasks", self._tasks(width))
        elif self.script:
            table.add_row("  tasks", Text(self.done_words))
        if self.mark:
            table.add_row("  mark", Text(self.mark[:200]))
        if self.nodes:
            table.add_row("  nodes", self._nodes())
        for fault in self.faults.values():
            ago = f"{max(0.0, wall - fault.injected):.0f} s ago"
            table.add_row("  fault", Text(f"{fault.fault} {fault.node}, {ago}, {fault.state}"))
        return table

    @property
    def done_words(self) -> str:
        """How far the work is; it goes on beyond its plan while the cluster recovers."""
        if self.script:
            return ", ".join(f"{n} {state}" for state, n in self.counts.items()) or "none yet"
        if self.results <= self.planned:
            return f"{self.results} done of {self.planned} planned"
        return f"{self.results} done, beyond the {self.planned} planned"

    def _tasks(self, width: int) -> Text:
        done = self.results + self.failures
        text = Text()
        cells = max(10, min(30, width - 60))
        share = min(1.0, done / self.planned) if self.planned else 0.0
        text.append("━" * round(share * cells), "cyan")
        text.append("─" * (cells - round(share * cells)), "bright_black")
        text.append(f"  {self.done_words}")
        running = self.submitted - done
        if running > 0:
            text.append(f", {running} in flight", "dim")
        if self.failures:
            text.append(f", {self.failures} failed for good", "red")
        return text

    def _nodes(self) -> Text:
        if len(self.nodes) > 6 and all(s == "alive" for s in self.nodes.values()):
            return Text(f"{len(self.nodes)} alive", "green")
        text = Text()
        names: Sequence[str] = list(self.nodes)
        if len(names) > 6:
            odd = [n for n in names if self.nodes[n] != "alive"]
            text.append(f"{len(names) - len(odd)} alive", "green")
            names = odd
        for name in names:
            word, style = _STATES[self.nodes[name]]
            if text:
                text.append("   ")
            text.append(f"{name} ")
            text.append(word, style)
        return text
