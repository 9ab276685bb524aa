"""Who ran where, as a matrix of nodes and kinds of tasks: the same for the HTML report and the terminal's.

The check judges (`simulator.checkers.placement`); this only puts what it found into rows. A meaning never
rests on colour alone: what is wrong is said in words in its cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.checkers.placement import Kind, Offer, Peak, Placed, placed_of
from simulator.report.run import Run, clean
from simulator.report.timeline import nodes_of

#: Nodes that a person may still look through.
MAX_NODES = 200


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of task on one node.

    `may` is whether the node offers what the kind needs, `wrong` how many of `count` should not have
    been there, `share` the part of all of the kind's executions that was there.
    """

    count: int
    may: bool
    wrong: int
    share: float


@dataclass(frozen=True, slots=True)
class Use:
    """The most of one resource that was in use on a node at one moment."""

    resource: str
    peak: Peak

    @property
    def part(self) -> float:
        """Of the capacity, 0 to 1."""
        return min(1.0, self.peak.amount / self.peak.capacity)

    @property
    def text(self) -> str:
        return f"{self.peak.amount:g} of {self.peak.capacity:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One node; `labels` are those of its labels that any kind asks for."""

    node: str
    labels: Sequence[str]
    cells: Sequence[Cell]
    uses: Sequence[Use]


@dataclass(frozen=True, slots=True)
class Column:
    """One kind of task, with what each of it needs in words."""

    name: str
    needs: Sequence[str]
    ran: int
    planned: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """The whole picture; `more` nodes are left out of it."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    more: int = 0

    @property
    def wrong(self) -> bool:
        """Is anything in it marked as wrong?"""
        return any(c.wrong for r in self.rows for c in r.cells) or any(
            u.peak.above for r in self.rows for u in r.uses
        )


def matrix(run: Run) -> Matrix | None:
    """The picture of a run; None if its workload says nothing of places, or it cannot be drawn."""
    placed = placed_in(run)
    if placed is None or not placed.nodes:
        return None
    columns = [_column(placed, kind) for kind in placed.kinds]
    asked = {key for kind in placed.kinds for key in kind.labels}
    order = [name for name, _ in nodes_of(run.history)]
    shown = sorted(placed.nodes, key=lambda offer: order.index(offer.node))[:MAX_NODES]
    return Matrix(
        columns,
        [_row(placed, offer, columns, asked) for offer in shown],
        len(placed.nodes) - len(shown),
    )


def placed_in(run: Run) -> Placed | None:
    """Who ran where; None also where a damaged spec does not let it be told."""
    return run.figured(placed_of)


def told(run: Run) -> str:
    """The picture in one sentence; empty without one."""
    placed = placed_in(run)
    if placed is None or not placed.ran:
        return ""
    executions = sum(map(len, placed.ran.values()))
    nodes = len({node for _, node in placed.ran})
    text = f"{executions:,} tasks of {len(placed.kinds)} kinds ran on {nodes} nodes"
    astray = len({w.ops[0].index for w in placed.wrong if w.kind is not None})
    crowded = sorted({w.node for w in placed.wrong if w.kind is None})
    if not placed.wrong:
        return f"{text}, each on one that offers what it needs."
    parts = []
    if astray:
        parts.append(f"{astray:,} of them without what they need")
    if crowded:
        parts.append(f"{', '.join(crowded)} held more at once than there is")
    return f"{text}; {', and '.join(parts)}."


def _column(placed: Placed, kind: Kind) -> Column:
    ran = sum(placed.count(kind.name, offer.node) for offer in placed.nodes)
    return Column(clean(kind.name), [clean(n) for n in _needs(kind)], ran, kind.count)


def _needs(kind: Kind) -> list[str]:
    amounts = [f"{amount:g} {name}" for name, amount in kind.needs.items()]
    return [*amounts, *(f"{key.rpartition('/')[2]}={value}" for key, value in kind.labels.items())]


def _row(placed: Placed, offer: Offer, columns: Sequence[Column], asked: set[str]) -> Row:
    labels: Mapping[str, str] = offer.labels or {}
    return Row(
        node=clean(offer.node),
        labels=[
            clean(f"{k.rpartition('/')[2]}={v}") for k, v in sorted(labels.items()) if k in asked
        ],
        cells=[
            Cell(
                count=(count := placed.count(kind.name, offer.node)),
                may=not offer.lacks(kind),
                wrong=placed.misplaced(kind.name, offer.node),
                share=count / column.ran if column.ran else 0.0,
            )
            for kind, column in zip(placed.kinds, columns, strict=True)
        ],
        uses=[
            Use(clean(resource), peak)
            for resource in placed.resources
            if (peak := placed.peaks.get((offer.node, resource))) is not None
        ],
    )
