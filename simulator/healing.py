"""Restores a cluster whose orchestrator is gone: every fault undone, every node back.

What was injected stands in the run's history with all that it takes to undo it, so faults of the user's own
are undone too. Without a history, or beyond it, each kind of fault is swept from each node: what it
leaves in the machine is found by its name. Doing it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from simulator.cluster import Cluster
from simulator.errors import BadInput, CannotRun, Problem, SimulatorError
from simulator.experiment import load_experiment
from simulator.faults import FAULTS, Fault, Site, fault_from_data, revive
from simulator.faults.base import goes_down, state_of
from simulator.history import History, is_being_written
from simulator.store import EXPERIMENT, RunDir


@dataclass
class Healing:
    """What was done, and what could not be; each a sentence."""

    done: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def heal(
    cluster: Cluster,
    runs: Sequence[RunDir] = (),
    *,
    timeout: float = 120.0,
    say: Callable[[str], None] = lambda text: None,
) -> Healing:
    """Undo every fault that holds on a cluster, and have every node of it alive.

    What cannot be undone keeps nothing else from being undone.

    Parameters
    ----------
    runs
        Unfinished runs on this cluster, oldest first.
    timeout
        For one attempt of a node to join, seconds.
    say
        Told what is done, as it is done.

    Raises
    ------
    BadInput
        The orchestrator of one of the runs is alive: it heals by itself.
    """
    for run in runs:
        if is_being_written(run.history_path):
            raise BadInput(
                Problem(
                    f"run {run.path.name}",
                    "still goes on, and heals by itself",
                    "wait for it, or stop it with Ctrl-C where it was started",
                )
            )
    healing = Healing()

    def done(text: str) -> None:
        healing.done.append(text)
        say(text)

    # First what needs no answer of Ray's: with the head frozen or cut off, nothing else would work.
    for node in cluster.record().breakable:
        for kind in FAULTS.values():
            with _noting(healing, f"{kind.name} of {node.name}"):
                if how := _swept(kind, cluster, node.name):
                    done(f"{node.name}: {how}")
    for run in reversed(runs):
        with _noting(healing, f"run {run.path.name}"):
            for fault, site in reversed(list(open_faults(run))):
                with _noting(healing, f"{fault.name} of {site.node}"):
                    done(
                        f"{site.node}: {fault.name} healed; {_undone(fault, cluster, site, timeout)}"
                    )
    for status in cluster.status().nodes:
        if status.state == "dead":
            # It runs, and will end by itself once it hears that Ray has given it up.
            with _noting(healing, status.name):
                cluster.backend.stop(cluster.name, status.name, 1.0)
    with _noting(healing, "starting what is down"):
        started = cluster.start(timeout=timeout)
        for name in (*started.started, *started.renewed):
            joined = "" if cluster.node(name).role == "store" else "; it joined as a new node"
            done(f"{name}: started again{joined}")
    for node in cluster.record().nodes:
        with _noting(healing, node.name):
            if state_of(cluster, node.name) != "alive":
                done(f"{node.name}: {revive(cluster, node.name, timeout)}")
    return healing


def _swept(kind: type[Fault], cluster: Cluster, node: str) -> str:
    """What was undone of a kind in a node; what was in a node that goes down ends with it."""
    try:
        return kind.sweep(cluster, node)
    except CannotRun:
        if goes_down(cluster, node):
            return ""
        raise


def _undone(fault: Fault, cluster: Cluster, site: Site, timeout: float) -> str:
    """How a fault was undone; once more, where its node went down in the meantime."""
    try:
        return fault.heal(cluster, site, timeout)
    except CannotRun:
        if goes_down(cluster, site.node):
            return fault.heal(cluster, site, timeout)
        raise


def open_faults(run: RunDir) -> Iterator[tuple[Fault, Site]]:
    """The faults of a run that were to be injected and not shown to be healed, in that order.

    Raises
    ------
    SimulatorError
        What was recorded cannot be read, or names a fault that nobody knows.
    """
    if (run.path / EXPERIMENT).is_file():
        load_experiment(str(run.path / EXPERIMENT))  # it may bring faults of its own
    history = run.history()
    over = _over(history)
    for op in history.of("fault.plan"):
        if "site" in op.data and op.data["id"] not in over:
            yield fault_from_data(op.data["parameters"]), Site.from_data(op.data["site"])


def _over(history: History) -> set[str]:
    return {
        op.data["id"]
        for op in history.of("fault.skipped", "fault.healed")
        if op.kind == "fault.skipped" or op.data.get("verified")
    }


@contextmanager
def _noting(healing: Healing, what: str) -> Iterator[None]:
    try:
        yield
    except (SimulatorError, OSError) as error:
        text = str(error) if isinstance(error, CannotRun) else f"{type(error).__name__}: {error}"
        healing.problems.append(f"{what}: {text}")
