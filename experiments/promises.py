"""A worker fails in the middle of work of which something was promised; was it kept?

Charges are to happen at most once, the deeds of posts exactly once; of each named actor only one incarnation may
live at any moment; a placement group is to be whole again; and in the end nothing may be left in use. All of that
is judged by what the work itself wrote where Ray has no say, and each promise can be seen broken. Mistakes can be
planted: ``violation=retried`` submits charges with retries, ``repeated`` does deeds without an idempotency key,
``leaked`` leaves a detached actor behind. ``comes_back=false`` leaves a bundle without a node. And with ``fault=pause``
or ``partition`` the node that Ray gave up is not dead: its actors live on beside those that took their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from simulator.errors import NotFound, Problem
from simulator.experiment import Experiment
from simulator.experiment import Params as BaseParams
from simulator.faults import Fault, Kill, Partition, Pause
from simulator.schedule import After, Named, Never, RandomWorker, Step, WhenDeclaredDead
from simulator.topology import Topology
from simulator.workload import Promises as Workload

FAULTS: dict[str, Fault] = {"kill": Kill(), "pause": Pause(), "partition": Partition()}


class Promises(Experiment):
    """See the module's text."""

    name = "promises"
    claim = (
        "A worker fails, and nothing happens twice that must not, no actor lives twice, its bundle of a "
        "placement group is placed again, and nothing stays in use."
    )
    checks = (
        "no_task_lost",
        "results_right",
        "executions_explained",
        "at_most_once",
        "effects_exactly_once",
        "one_incarnation",
        "groups_whole",
        "resources_free",
        "fault_hit_work",
        "recovers",
        "healed",
        "evidence",
    )

    class Params(BaseParams):
        tasks: int | None = Field(
            None,
            ge=1,
            le=100_000,
            description="number of posts planned; by default 80 s of work in all",
        )
        task_seconds: float | None = Field(
            None,
            ge=0.05,
            le=600,
            description="how long a post or a charge takes, seconds; by default 0.5, and 4 with a partition, "
            "which is seen only after more than a second",
        )
        fault: Literal["kill", "pause", "partition"] = Field(
            "kill", description="how the worker fails: kill, pause or partition"
        )
        victim: str = Field(
            "random", description="which worker fails: a name, or random (drawn with the seed)"
        )
        at: float = Field(
            8.0, ge=0, le=86_400, description="when it fails, seconds after the load began"
        )
        lasts: float = Field(
            15.0,
            gt=0,
            le=3_600,
            description="how long a pause or a partition lasts, seconds; a killed worker is started again "
            "once Ray has declared it dead",
        )
        comes_back: bool = Field(True, description="undo the fault; false leaves the worker away")
        violation: Literal["none", "retried", "repeated", "leaked"] = Field(
            "none",
            description="a mistake to plant: retried, repeated or leaked (see the experiment's text)",
        )
        recovery_timeout: float = Field(
            120.0,
            gt=0,
            le=86_400,
            description="the last phase must be over within this time, seconds",
        )

    def workload(self, params: Params) -> Workload:
        seconds = params.task_seconds or (4.0 if params.fault == "partition" else 0.5)
        return Workload(
            tasks=params.tasks or max(1, round(80 / seconds)),
            task_seconds=seconds,
            retried=params.violation == "retried",
            repeated=params.violation == "repeated",
            leaked=params.violation == "leaked",
        )

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        heal = WhenDeclaredDead() if params.fault == "kill" else After(params.lasts)
        return [
            Step(
                at=params.at,
                fault=FAULTS[params.fault],
                target=RandomWorker() if params.victim == "random" else Named(params.victim),
                heal=heal if params.comes_back else Never(),
                when_busy=True,
            )
        ]

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        # A task on a node that is silent is not retried while its owner's connection lasts.
        retry = ("first_retry",) if params.fault == "kill" else ()
        back = ("rejoined",) if params.comes_back else ()
        return ("effect", *retry, "actor_alive", "declared_dead", *back)

    def recovery_timeout(self, params: Params) -> float:
        return params.recovery_timeout

    def problems(self, params: Params, topology: Topology) -> Sequence[Problem]:
        where = f"topology {topology.name}"
        workers = [n.name for n in topology.workers()]
        problems = []
        if len(workers) < 2:
            text = f"has {len(workers)} workers; one fails and another must take over"
            problems.append(Problem(where, text, "--workers 2 or more"))
        if params.victim != "random" and params.victim not in workers:
            found = NotFound("worker", params.victim, workers)
            problems.append(Problem(f"--param victim={params.victim}", str(found)))
        nodes = [n for n in topology.nodes() if n.role != "driver"]
        small = [n.name for n in nodes if n.resources.get("CPU", 0.0) < 1]
        if small:
            text = f"has nodes with less than a CPU ({', '.join(small)}), which a post and a bundle need"
            problems.append(Problem(where, text, "use a topology whose nodes have a CPU each"))
        return problems
