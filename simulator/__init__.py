"""A laboratory for Ray clusters on one machine.

The public names are listed in ``__all__`` and loaded on first use: the in-node programs
(`simulator.innode`) share this package's name inside a node, where start-up time counts and
pydantic is not installed, so importing the package itself must cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what a type checker of a user's sees; a test holds it to `_HOMES`
    from simulator.backends.fake import FakeBackend as FakeBackend
    from simulator.checkers.base import Finding as Finding
    from simulator.checkers.base import RunView as RunView
    from simulator.checkers.base import Verdict as Verdict
    from simulator.checkers.registry import register_check as register_check
    from simulator.cluster import Cluster as Cluster
    from simulator.errors import SimulatorError as SimulatorError
    from simulator.experiment import Experiment as Experiment
    from simulator.experiment import Params as Params
    from simulator.experiment import load_experiment as load_experiment
    from simulator.faults import Bandwidth as Bandwidth
    from simulator.faults import CpuLimit as CpuLimit
    from simulator.faults import CpuStress as CpuStress
    from simulator.faults import CrashProcess as CrashProcess
    from simulator.faults import Delay as Delay
    from simulator.faults import Disconnect as Disconnect
    from simulator.faults import DiskFull as DiskFull
    from simulator.faults import Drain as Drain
    from simulator.faults import Duplicate as Duplicate
    from simulator.faults import Fault as Fault
    from simulator.faults import FreezeProcess as FreezeProcess
    from simulator.faults import Kill as Kill
    from simulator.faults import Loss as Loss
    from simulator.faults import MemoryHog as MemoryHog
    from simulator.faults import MemoryLimit as MemoryLimit
    from simulator.faults import Oom as Oom
    from simulator.faults import Partition as Partition
    from simulator.faults import Pause as Pause
    from simulator.faults import Preempt as Preempt
    from simulator.faults import Reorder as Reorder
    from simulator.faults import Restart as Restart
    from simulator.faults import Site as Site
    from simulator.faults import Stop as Stop
    from simulator.faults import register_fault as register_fault
    from simulator.history import History as History
    from simulator.history import Op as Op
    from simulator.runner import Runner as Runner
    from simulator.runner import RunRequest as RunRequest
    from simulator.schedule import After as After
    from simulator.schedule import AtEnd as AtEnd
    from simulator.schedule import Named as Named
    from simulator.schedule import Never as Never
    from simulator.schedule import RandomWorker as RandomWorker
    from simulator.schedule import Step as Step
    from simulator.schedule import WhenDeclaredDead as WhenDeclaredDead
    from simulator.schedule import parse_schedule as parse_schedule
    from simulator.store import Store as Store
    from simulator.topology import Topology as Topology
    from simulator.topology import WorkerGroup as WorkerGroup
    from simulator.topology import load_topology as load_topology
    from simulator.workload import Hoard as Hoard
    from simulator.workload import Placement as Placement
    from simulator.workload import Promises as Promises
    from simulator.workload import Survivors as Survivors
    from simulator.workload import TaskKind as TaskKind
    from simulator.workload import TaskStream as TaskStream
    from simulator.workload import Wave as Wave
    from simulator.workload import Waves as Waves

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
    "AtEnd": "simulator.schedule",
    "Never": "simulator.schedule",
    "WhenDeclaredDead": "simulator.schedule",
    "parse_schedule": "simulator.schedule",
    "Fault": "simulator.faults",
    "Kill": "simulator.faults",
    "Stop": "simulator.faults",
    "Restart": "simulator.faults",
    "Pause": "simulator.faults",
    "Partition": "simulator.faults",
    "Disconnect": "simulator.faults",
    "Loss": "simulator.faults",
    "Bandwidth": "simulator.faults",
    "Delay": "simulator.faults",
    "Preempt": "simulator.faults",
    "Reorder": "simulator.faults",
    "Duplicate": "simulator.faults",
    "Drain": "simulator.faults",
    "CrashProcess": "simulator.faults",
    "FreezeProcess": "simulator.faults",
    "CpuLimit": "simulator.faults",
    "CpuStress": "simulator.faults",
    "MemoryLimit": "simulator.faults",
    "MemoryHog": "simulator.faults",
    "Oom": "simulator.faults",
    "DiskFull": "simulator.faults",
    "Site": "simulator.faults",
    "register_fault": "simulator.faults",
    "TaskStream": "simulator.workload",
    "Hoard": "simulator.workload",
    "Placement": "simulator.workload",
    "TaskKind": "simulator.workload",
    "Wave": "simulator.workload",
    "Survivors": "simulator.workload",
    "Waves": "simulator.workload",
    "Promises": "simulator.workload",
    "History": "simulator.history",
    "Op": "simulator.history",
    "Finding": "simulator.checkers.base",
    "Verdict": "simulator.checkers.base",
    "RunView": "simulator.checkers.base",
    "register_check": "simulator.checkers.registry",
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
