"""Finds clusters by name on whatever backend they live, so that nobody has to repeat --backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.backends import select
from simulator.backends.base import Backend, ClusterRecord
from simulator.cli.options import DEFAULT_NAME
from simulator.cluster import Cluster
from simulator.errors import BadInput, NotFound, Problem


@dataclass(frozen=True, slots=True)
class Found:
    """A cluster and the backend that it lives on."""

    backend: Backend
    record: ClusterRecord

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.backend, self.record.name)


@dataclass(frozen=True, slots=True)
class Search:
    """Every cluster that was found, and why was not looked elsewhere."""

    found: Sequence[Found]
    not_looked: Sequence[str]


def search(backend: str = "auto") -> Search:
    """All clusters on the backends that answer.

    Raises
    ------
    CannotRun
        One backend was asked for and it does not answer.
    """
    usable = select.usable(backend)
    found = [Found(b, record) for b in usable.backends for record in b.clusters()]
    return Search(sorted(found, key=lambda f: f.name), usable.silent)


def find(name: str | None, backend: str = "auto") -> Found:
    """The cluster of this name, or the only one there is.

    Without a name, what has no nodes (what is left of a cluster, a doctor's container) counts only
    where nothing else is, and what belongs to a run only where nobody made one by hand; of several, the
    one that `up` makes unless told otherwise.

    Raises
    ------
    NotFound, BadInput
        There is none, or it is not clear which is meant.
    """
    looked = search(backend)
    matching = [f for f in looked.found if name is None or f.name == name]
    if name is None:
        matching = [f for f in matching if f.record.nodes] or matching
        matching = [f for f in matching if f.record.run_dir is None] or matching
        usual = [f for f in matching if f.name == DEFAULT_NAME]
        matching = usual if len(usual) == 1 else matching
    if len(matching) == 1:
        return matching[0]
    if name is None and matching:
        names = ", ".join(f"{f.name} ({f.record.backend})" for f in matching)
        raise BadInput(
            Problem(
                "--name",
                f"is missing, and there are {len(matching)} clusters: {names}",
                f"say which: --name {matching[0].name}",
            )
        )
    if matching:
        where = " and ".join(f.record.backend for f in matching)
        raise BadInput(
            Problem(f"--name {name}", f"is a cluster on {where}", "say which with --backend")
        )
    note = f" (not looked: {'; '.join(looked.not_looked)})" if looked.not_looked else ""
    if name is None:
        raise BadInput(
            Problem("cluster", f"there is none{note}", "start one with: python -m simulator up")
        )
    raise NotFound(
        "cluster",
        name,
        [f.name for f in looked.found],
        hint=f"there is no cluster{note}; start one with: python -m simulator up --name {name}",
    )


def refuse_taken(name: str, *, but_on: str | None = None) -> None:
    """Raise `BadInput` if a cluster of this name exists (on another backend than `but_on`)."""
    for found in search().found:
        if found.name == name and found.record.backend != but_on:
            raise BadInput(
                Problem(
                    f"--name {name}",
                    f"is taken by a cluster on the {found.record.backend} backend",
                    "use another name, take that one down "
                    f"(python -m simulator down --name {name}), or run on it (run --reuse {name})",
                )
            )
