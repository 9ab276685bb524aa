"""What was asked on the command line, as values of the library; every problem with it at once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from simulator.backends.base import name_problem
from simulator.errors import BadInput, NotFound, Problem
from simulator.topology import Topology, load_topology, override

T = TypeVar("T")


@dataclass
class Problems:
    """Gathers what is wrong, so that a user sees all of it and not just the first."""

    found: list[Problem] = field(default_factory=list)

    def attempt(self, where: str, action: Callable[[], T]) -> T | None:
        """The action's value, or None and its problems noted."""
        try:
            return action()
        except BadInput as error:
            self.found.extend(error.problems)
        except NotFound as error:
            self.found.append(Problem(where, str(error)))
        return None

    def one_of(self, option: str, value: str, known: Iterable[str]) -> None:
        """Note it if the value is none of these."""
        names = list(known)
        if value not in names:
            error = NotFound("value", value, names)
            self.found.append(Problem(f"{option} {value}", "is not known", error.why))

    def cluster_name(self, name: str) -> None:
        """Note it if no cluster can have this name."""
        problem = name_problem(name)
        if problem is not None:
            self.found.append(problem)

    def output_file(self, option: str, file: str | None) -> None:
        """Note it if this file could not be written: after a run is too late to say so."""
        if file is None:
            return
        path = Path(file)
        what, remedy = "", "name a file in a folder that exists"
        if path.is_dir():
            what = "is a folder"
        elif not path.absolute().parent.is_dir():
            what = f"there is no folder {path.absolute().parent}"
        elif not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            what, remedy = "cannot be written", "choose another place"
        if what:
            self.found.append(Problem(f"{option} {file}", what, remedy))

    def raise_any(self) -> None:
        if self.found:
            raise BadInput(self.found)


def load_nodes(
    problems: Problems,
    name: str,
    workers: int | None,
    settings: Sequence[str],
    *,
    autoscale: bool = False,
) -> Topology | None:
    """A topology with ``--workers`` and ``--set`` applied, or None and what is wrong with it.

    Parameters
    ----------
    autoscale
        Whether Ray's autoscaler is to decide how many workers there are, whatever the topology says.
    """
    topology = problems.attempt(f"--topology {name}", lambda: load_topology(name))
    if topology is None:
        return None
    for option, apply in (
        ("--workers", lambda t: t if workers is None else t.with_workers(workers)),
        ("--autoscale", lambda t: with_autoscaler(t) if autoscale else t),
        ("--set", lambda t: override(t, settings) if settings else t),
    ):
        topology = problems.attempt(option, partial(apply, topology)) or topology
    return topology


def with_autoscaler(topology: Topology) -> Topology:
    """The same, where Ray's autoscaler decides how many workers there are."""
    return topology if topology.autoscaling else override(topology, ["autoscaling={}"])


def replay_command(
    what: Sequence[str],
    backend: str,
    *,
    topology: str | None,
    workers: int | None,
    settings: Sequence[str],
    params: Sequence[str],
    health: str,
    image: str | None,
    reuse: str | None,
    faults: Sequence[str] = (),
    rpc_faults: Sequence[str] = (),
) -> str:
    """The command line that does it again; the runner puts the seed of each run for ``{seed}``.

    Parameters
    ----------
    what
        The command's name and what it is to do, such as ``["run", "node_failure"]``.
    """
    words = ["python", "-m", "simulator", *what, "--backend", backend]
    for option, value in (
        ("--topology", topology),
        ("--workers", workers),
        ("--image", image),
        ("--reuse", reuse),
    ):
        if value is not None:
            words += [option, str(value)]
    for option, values in (
        ("--set", settings),
        ("--param", params),
        ("--fault", faults),
        ("--rpc-fault", rpc_faults),
    ):
        for one in values:
            words += [option, one]
    return f"{shlex.join([*words, '--health', health])} --seed {{seed}}"
