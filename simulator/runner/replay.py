"""Does a run again, from its directory.

A replay has the same faults on the same targets at the same times or conditions: what depended on the
seed is drawn again and held against what was recorded, and what depended on the running cluster (the
node of an actor, the busiest) is taken from the history. The interleaving of what runs on the cluster is
not promised: that is Ray's, the kernel's and the machine's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from pydantic import ValidationError

from simulator.chaos import Chaos
from simulator.errors import BadInput, Problem
from simulator.experiment import Experiment, load_experiment
from simulator.runner.request import RunRequest
from simulator.schedule import PlannedFault, parse_schedule, resolve
from simulator.store import EXPERIMENT, RunDir
from simulator.topology import Topology
from simulator.workload import Script


def replay_request(run: RunDir) -> RunRequest:
    """What has to be run so that a run is done again.

    Raises
    ------
    BadInput
        It cannot be: its experiment is gone, or no longer plans what was run. Lists every difference.
    """
    spec = run.whole_spec()
    own = run.path / EXPERIMENT
    source = str(own) if own.is_file() else str(spec["source"])
    of_program = spec.get("workload", {}).get("name") == Script.name
    try:
        experiment: Experiment = (
            Chaos.again(Chaos.Params.model_validate(spec["params"]))
            if of_program
            else load_experiment(source)
        )
        params = experiment.Params.model_validate(spec["params"])
        topology = Topology.model_validate(spec["topology"])
    except ValidationError as error:
        raise BadInput(
            [
                Problem(
                    f"{run.path.name}: {'.'.join(map(str, item['loc']))}",
                    f"is {item['input']!r}: {item['msg']}",
                    "another version of the experiment recorded it",
                )
                for item in error.errors()
            ]
        ) from None
    steps = spec.get("steps")
    request = RunRequest(
        experiment=experiment,
        params=params,
        topology=topology,
        source=source,
        seed=spec["seed"],
        health=spec["health"],
        image=spec.get("image"),
        rpc_faults=spec.get("rpc_faults", ()),
        command=f"python -m simulator replay {run.path}",
        replays=str(run.path),
        baseline=spec.get("baseline"),
        steps=parse_schedule("\n".join(steps), f"{run.path.name}: steps") if steps else None,
    )
    planned = _as_recorded(run, spec, resolve(request.schedule, topology, Random(spec["seed"])))
    return replace(request, plan=pinned(planned, run))


def _as_recorded(
    run: RunDir, spec: Mapping[str, Any], planned: Sequence[PlannedFault]
) -> list[PlannedFault]:
    """Those of the planned faults that the run had: a part of them, if it came from shrinking.

    Raises
    ------
    BadInput
        It had others.
    """

    def said(step: Mapping[str, Any]) -> str:
        return f"{step['fault']} of {step['target']} {step['when']}, healed {step['heal']}"

    def facts(step: Mapping[str, Any], *, settled: bool) -> str:
        # What the running cluster tells was not settled by the plan; of a replay it was, by the run before.
        keys = ("fault", "parameters", "asked", "when", "heal", *(("nodes",) if settled else ()))
        return json.dumps(
            [step.get(key) for key in keys]
        )  # as it was written, so that they compare

    now = {p.id: p for p in planned}
    problems = []
    for step in spec.get("schedule", ()):
        same = now.get(step["id"])
        settled = same is not None and bool(same.nodes)
        if same is None or facts(same.to_data(), settled=settled) != facts(step, settled=settled):
            problems.append(
                Problem(
                    f"{run.path.name}: {step['id']}",
                    f"was {said(step)}, and would now be "
                    f"{said(same.to_data()) if same else 'not there'}",
                    "the experiment or the simulator has changed; run the experiment itself",
                )
            )
    if problems:
        raise BadInput(problems)
    return [now[step["id"]] for step in spec.get("schedule", ())]


def pinned(planned: Sequence[PlannedFault], run: RunDir) -> list[PlannedFault]:
    """The same faults, each on what it hit in that run."""
    sites: dict[str, list[Mapping[str, Any]]] = {}
    for op in run.history().of("fault.plan"):
        if "site" in op.data:
            sites.setdefault(op.data["id"].partition(".")[0], []).append(op.data["site"])
    return [
        replace(
            fault,
            nodes=tuple(site["node"] for site in sites[fault.id]),
            peers=tuple(sites[fault.id][0]["peers"]),
        )
        if fault.id in sites and not fault.nodes
        else fault
        for fault in planned
    ]
