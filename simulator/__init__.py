"""A laboratory for Ray clusters on one machine.

The public names are listed in ``__all__`` and loaded on first use: the in-node programs
(`simulator.innode`) share this package's name inside a node, where start-up time counts and
pydantic is not installed, so importing the package itself must cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Topology": "simulator.topology",
    "WorkerGroup": "simulator.topology",
    "load_topology": "simulator.topology",
    "Experiment": "simulator.experiment",
    "Params": "simulator.experiment",
    "load_experiment": "simulator.experiment",
    "Step": "simulator.schedule",
    "Named": "simulator.schedule",
    "RandomWorker": "simulator.schedule",
    "After": "simulator.schedule",
    "Never": "simulator.schedule",
    "WhenDeclaredDead": "simulator.schedule",
    "Fault": "simulator.faults",
    "Kill": "simulator.faults",
    "Stop": "simulator.faults",
    "Restart": "simulator.faults",
    "Pause": "simulator.faults",
    "TaskStream": "simulator.workload",
    "History": "simulator.history",
    "Op": "simulator.history",
    "Finding": "simulator.checkers.base",
    "Verdict": "simulator.checkers.base",
    "RunView": "simulator.checkers.base",
    "Runner": "simulator.runner",
    "RunRequest": "simulator.runner",
    "Store": "simulator.store",
    "Cluster": "simulator.cluster",
    "FakeBackend": "simulator.backends.fake",
    "SimulatorError": "simulator.errors",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'simulator' has no attribute {name!r}") from None
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
