"""What is asked of a run, and how that is written down before anything starts.

A run that was asked for is a value: `RunRequest` holds all that the runner was told, and `build_spec`
turns it into what ``spec.json`` holds, so that a verdict can be given again, and the run repeated,
from its directory alone. Who wants to hear how it goes (`Listener`) is no part of that value.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from simulator import __version__
from simulator.backends.base import GpuKind
from simulator.cluster import StartEvent
from simulator.experiment import Experiment, params_data
from simulator.faults import RpcFault, rpc_faults
from simulator.history import History
from simulator.schedule import AtEnd, Never, PlannedFault, Step, WhenDeclaredDead
from simulator.store import SCHEMA
from simulator.topology import Topology


@dataclass(frozen=True)
class RunRequest:
    """What is to be run.

    Attributes
    ----------
    seed
        Fixes every draw; None draws a fresh one, which the run records.
    reuse
        Name of a cluster that is up already and stays up.
    keep
        Leave the cluster up at the end.
    command
        The command line that replays it; ``{seed}`` in it stands for the run's own seed.
    baseline
        What an undisturbed run of the same gave (`simulator.checkers.program.baseline_of`), to compare with.
    plan
        The faults with all that was drawn for them, instead of a draw from the experiment's schedule.
    rpc_faults
        Of all calls of Ray's on the cluster, besides the experiment's own (`simulator.faults.rpc`); on a
        cluster that is up, those that it has.
    replays
        The directory of the run that is done again, if one is.
    steps
        Faults instead of the experiment's own; None leaves it those.
    """

    experiment: Experiment
    params: Any
    topology: Topology
    source: str
    seed: int | None = None
    health: str = "fast"
    name: str | None = None
    reuse: str | None = None
    keep: bool = False
    image: str | None = None
    command: str = ""
    start_parallelism: int | None = None
    baseline: Mapping[str, Any] | None = None
    plan: Sequence[PlannedFault] | None = None
    rpc_faults: Sequence[str] = ()
    replays: str | None = None
    steps: Sequence[Step] | None = None

    @property
    def schedule(self) -> Sequence[Step]:
        """The faults, before anything of them is drawn."""
        if self.steps is not None:
            return self.steps
        return self.experiment.schedule(self.params, self.topology)

    @property
    def mandatory_phases(self) -> Sequence[str]:
        """The phases of recovery that must be seen: the experiment's, as far as these faults have them.

        Of other faults than its own an experiment knows nothing. A node that comes back once Ray has
        declared it dead goes through all phases; one that stays down does not rejoin; of anything else
        only that it took effect is sure.
        """
        wanted = self.experiment.mandatory_phases(self.params)
        if self.steps is None or not wanted:
            return wanted
        steps = self.steps if self.plan is None else [planned.step for planned in self.plan]
        if any(step.fault.announced_s for step in steps):
            # Of a node that is drained it is not sure that anything is cut off.
            wanted = [phase for phase in wanted if phase not in ("first_failure", "first_retry")]
        store = self.topology.store
        # Ray declares no store dead, and takes none back.
        of_nodes = [s for s in steps if store is None or s.target.named != {store.name}]
        down = [step.heal for step in of_nodes if step.fault.downs_node]
        if any(isinstance(heal, WhenDeclaredDead) for heal in down):
            return wanted
        if any(isinstance(heal, (AtEnd, Never)) for heal in down):
            return [phase for phase in wanted if phase not in ("rejoined", "full_throughput")]
        return ["effect"]

    @property
    def recovery_timeout(self) -> float:
        """Within how many seconds of the injection the last phase must be over.

        What the experiment says, and how long a fault is announced: recovery begins after that.
        """
        steps = self.schedule if self.plan is None else [planned.step for planned in self.plan]
        notice = max((step.fault.announced_s for step in steps), default=0.0)
        return self.experiment.recovery_timeout(self.params) + notice

    def all_rpc_faults(self) -> list[RpcFault]:
        """The experiment's and the request's.

        Raises
        ------
        BadInput
            They are none, or contradict each other.
        """
        own = rpc_faults(self.experiment.rpc_faults, f"{self.experiment.name}: rpc_faults")
        more = [fault for fault in rpc_faults(self.rpc_faults) if fault not in own]
        return rpc_faults(map(str, [*own, *more]))


@dataclass
class Listener:
    """Who wants to know how a run goes; every method may be left as it is."""

    say: Callable[[str], None] = lambda text: None
    phase: Callable[[str], None] = lambda phase: None
    start: Callable[[StartEvent], None] = lambda event: None
    tick: Callable[[History], None] = lambda history: None
    result: Callable[[Mapping[str, Any]], None] = lambda result: None


def claim_of(request: RunRequest) -> str:
    """What the run can refute: with other faults than its own, an experiment's own claim is not it."""
    if request.steps is None:
        return request.experiment.claim
    faults = "; ".join(map(str, request.steps))
    return f"Under {faults}, all checks of {request.experiment.name} hold."


def build_spec(
    request: RunRequest,
    planned: Sequence[PlannedFault],
    *,
    run_id: str,
    cluster: str,
    backend: str,
    engine: str,
    gpu: GpuKind,
    started: float,
) -> dict[str, Any]:
    """What ``spec.json`` holds (docs/reference/result.md); Ray's version is not known yet.

    Parameters
    ----------
    planned
        The request's schedule, with its targets drawn.
    backend, engine
        The backend's name, and what its nodes run on.
    started
        Wall clock, seconds.
    """
    slots = request.topology.total("CPU")
    workload = request.experiment.workload(request.params)
    cores = os.cpu_count() or 1
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "experiment": request.experiment.name,
        "source": request.source,
        "claim": claim_of(request),
        "backend": backend,
        "cluster": cluster,
        "seed": request.seed,
        "params": dict(params_data(request.params)),
        "topology": request.topology.model_dump(mode="json"),
        # As its program reads it; where the nodes are is not known yet, and stands in the history.
        "workload": {"name": workload.name, **workload.spec({})},
        "health": request.health,
        "gpu": gpu,
        "mandatory_phases": list(request.mandatory_phases),
        "recovery_timeout_s": request.recovery_timeout,
        "checks": list(request.experiment.checks),
        # As they were asked for, where the experiment was given others than its own.
        "steps": None if request.steps is None else [str(step) for step in request.steps],
        "schedule": [p.to_data() for p in planned],
        **({} if request.baseline is None else {"baseline": dict(request.baseline)}),
        "image": request.image,
        "rpc_faults": [str(fault) for fault in request.all_rpc_faults()],
        "replays": request.replays,
        "command": request.command.replace("{seed}", str(request.seed)),
        "versions": {
            "simulator": __version__,
            "python": platform.python_version(),
            "ray": None,
            "engine": engine,
            "platform": platform.platform(),
        },
        "host": {
            "cores": cores,
            "memory_bytes": psutil.virtual_memory().total,
            "slots": slots,
            "oversubscription": round(slots / cores, 2),
        },
        "started": started,
    }
