"""Takes a cluster down without losing what was recorded on it.

An orchestrator that was killed leaves a cluster behind whose ledger and logs hold more than the
run's history does. Before anything is removed they are copied into the run's directory, which the
cluster's label names, and the run is judged as interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from simulator.backends.base import Backend, ClusterRecord
from simulator.cluster import salvage
from simulator.errors import SimulatorError
from simulator.history import is_being_written, read_history
from simulator.runner import judge_run
from simulator.store import HISTORY, RESULT, RunDir, Store


def unfinished_runs(record: ClusterRecord, *, store: Store | None = None) -> list[RunDir]:
    """Runs on this cluster that have neither an end in their history nor a result, oldest first.

    They are looked for where the cluster's label points (several runs may have shared it) and, for
    a cluster by hand that a run borrowed, in the store.
    """
    roots = {(store or Store()).root}
    if record.run_dir is not None:
        roots.add(record.run_dir.parent.parent)
    found = [run for root in sorted(roots) for run in _unfinished(Store(root), record)]
    return sorted(found, key=lambda run: run.path.name)


def _unfinished(store: Store, record: ClusterRecord) -> Iterator[RunDir]:
    for run in store.list():
        if (run.path / RESULT).exists() or not (run.path / HISTORY).exists():
            continue
        try:
            spec = run.spec()
            if spec.get("cluster") != record.name or spec.get("backend") != record.backend:
                continue
            if read_history(run.history_path).last("run.end") is None:
                yield run
        except (SimulatorError, OSError):
            continue  # what cannot be read cannot be saved either


def take_down(
    backend: Backend,
    record: ClusterRecord,
    say: Callable[[str], None] = lambda text: None,
    *,
    store: Store | None = None,
) -> list[Path]:
    """Save what an unfinished run left on the cluster, then remove the cluster.

    Whatever cannot be saved is said and does not keep the cluster from being removed.

    Returns
    -------
    list of Path
        The directories of the runs that were saved and judged.
    """
    unfinished = unfinished_runs(record, store=store)
    for run in unfinished:
        if is_being_written(run.history_path):
            say(f"run {run.path.name} still goes on; it loses its cluster now")
    saved: list[Path] = []
    if unfinished:
        labelled = next((r for r in unfinished if r.path == record.run_dir), unfinished[-1])
        say(f"run {labelled.path.name} has no end; saving its ledger and logs")
        for problem in _guarded(lambda: salvage(backend, record.name, labelled.path)):
            say(f"not saved: {problem}")
        for run in unfinished:
            for problem in _guarded(lambda run=run: _judge(run)):  # type: ignore[misc]
                say(f"not judged: {problem}")
            saved.append(run.path)
    backend.remove(record.name)
    return saved


def conclude(run: RunDir) -> bool:
    """Judge a run that has no result and that nobody goes on with; whether it was one.

    Its orchestrator may have ended before it had a cluster, so that nothing leads to the run but its folder.
    """
    if run.result() is not None or is_being_written(run.history_path):
        return False
    _judge(run)
    return True


def _judge(run: RunDir) -> list[str]:
    judge_run(run, status="interrupted", error="the orchestrator ended before the run did")
    return []


def _guarded(action: Callable[[], list[str]]) -> list[str]:
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - taking down must go on
        return [f"{type(error).__name__}: {error}"]
