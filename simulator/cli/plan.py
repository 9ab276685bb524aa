"""What was asked on the command line, as values of the library; every problem with it at once."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from simulator.backends.base import Backend, name_problem
from simulator.cli import output
from simulator.cluster import HEALTH, Cluster
from simulator.errors import BadInput, NotFound, Problem
from simulator.faults import FAULTS
from simulator.faults.rpc import VARIABLE
from simulator.schedule import Step, random_schedule, read_schedule
from simulator.topology import Topology, load_topology, override

T = TypeVar("T")

#: What stands for faults that are drawn, and how many a second and in all unless told otherwise.
RANDOM, RATE, BUDGET = "random", 0.1, 5

#: The same, but the head may be hit too.
RANDOM_WITH_HEAD = "random with head"


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
    problems: Problems, name: str, workers: int | None, settings: Sequence[str]
) -> Topology | None:
    """A topology with ``--workers`` and ``--set`` applied, or None and what is wrong with it."""
    topology = problems.attempt(f"--topology {name}", lambda: load_topology(name))
    if topology is None:
        return None
    for option, apply in (
        ("--workers", lambda t: t if workers is None else t.with_workers(workers)),
        ("--set", lambda t: override(t, settings) if settings else t),
    ):
        topology = problems.attempt(option, partial(apply, topology)) or topology
    return topology


@dataclass(frozen=True)
class AskedFaults:
    """The faults of a command line: those that are said, and how others are to be drawn.

    Attributes
    ----------
    chance
        Rate (faults a second) and budget of those that are drawn; None if none are.
    head
        Whether those may hit the head.
    """

    steps: Sequence[Step]
    chance: tuple[float, int] | None = None
    head: bool = False

    @classmethod
    def read(
        cls,
        faults: Sequence[str],
        file: Path | None,
        rate: float | None,
        budget: int | None,
        *,
        where: str = "--fault",
    ) -> AskedFaults:
        """What the options say; raises `BadInput` with every problem."""
        problems = Problems()
        drawn = {text for text in map(_words, faults) if text in (RANDOM, RANDOM_WITH_HEAD)}
        said = [text for text in faults if _words(text) not in drawn]
        steps: Sequence[Step] = ()
        if said or file is not None:
            steps = problems.attempt(where, lambda: read_schedule(said, file, where=where)) or ()
        for option, given in (("--rate", rate), ("--budget", budget)):
            if given is not None and not drawn:
                what = f"belongs to {where} {RANDOM}"
                problems.found.append(Problem(option, what, f"leave it out, or say {RANDOM} too"))
        problems.raise_any()
        chance = (RATE if rate is None else rate, BUDGET if budget is None else budget)
        return cls(steps, chance if drawn else None, head=RANDOM_WITH_HEAD in drawn)

    def all_steps(self, backend: Backend, topology: Topology, seed: int) -> list[Step]:
        """Every step, the drawn ones last; raises as `random_schedule`."""
        if self.chance is None:
            return list(self.steps)
        rate, budget = self.chance
        for kind in FAULTS.values():
            kind().prepare(backend, output.say)
        drawn = random_schedule(backend, topology, rate, budget, seed, head=self.head)
        return [*self.steps, *drawn]


def _words(text: str) -> str:
    return " ".join(text.split())


def health_of(cluster: Cluster) -> str | None:
    """Which failure-detection settings a cluster was started with; None if neither of ours.

    A run on a borrowed cluster must report the settings that it has, not those of a default.
    """
    env = _environment(cluster)
    names = {name for settings in HEALTH.values() for name in settings}
    has = {name: env[name] for name in names if env.get(name)}
    return next((name for name, settings in HEALTH.items() if has == dict(settings)), None)


def rpc_faults_of(cluster: Cluster) -> list[str]:
    """The RPC faults that a cluster was started with, as sentences."""
    found: list[str] = json.loads(_environment(cluster).get(VARIABLE) or "[]")
    return found


def _environment(cluster: Cluster) -> dict[str, str]:
    lines = cluster.backend.execute(cluster.name, "head", ["env"]).output.splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


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
