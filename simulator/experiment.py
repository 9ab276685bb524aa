"""What an experiment is: a claim, a topology, a workload, faults, and checks that can fail.

An experiment is a class in a file of its own, found by name among those that come with the package
or by the path of a file of the user's. Its parameters are a pydantic model, so the command line lists
them with their types and units and refuses what does not fit, every problem at once.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.assets import asset_names
from simulator.checkers import anatomy, registry
from simulator.errors import BadInput, NotFound, Problem
from simulator.faults import rpc_faults
from simulator.schedule import Step, resolve
from simulator.topology import Topology
from simulator.workload import Demanding, Workload
from simulator.yamltext import NotYaml, read_yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

#: Names of the phases of recovery in their usual order; docs/reference/anatomy.md defines them.
PHASES = tuple(anatomy.PHASES)

#: Names of the checks that judge any workload, in the order in which they are shown: an experiment's
#: own, unless it names others.
DEFAULT_CHECKS = tuple(n for n in registry.BUILT_IN if n not in registry.OF_ONE_WORKLOAD)


class Params(BaseModel):
    """Base of an experiment's parameters: unknown names are refused, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


#: What most experiments ask for their workload.
Tasks = Annotated[int, Field(ge=1, le=1_000_000, description="number of tasks planned")]
MaxRetries = Annotated[
    int,
    Field(ge=-1, le=1_000_000, description="Ray's max_retries of each task; -1 without end"),
]


class Experiment(ABC):
    """One story: what is claimed, what runs, what breaks, how it is judged.

    Class attributes
    ----------------
    name, claim
        The claim is one sentence that a run can refute.
    topology
        Name of the topology that it runs on unless told otherwise.
    checks
        Names of the checks that judge it (`simulator.checkers`).
    rpc_faults
        Calls between Ray's own processes that fail or are late for the whole life of the cluster, such as
        ``"RequestWorkerLease fails 25%"`` (`simulator.faults.rpc`).
    """

    name: ClassVar[str]
    claim: str
    topology: ClassVar[str] = "default"
    checks: Sequence[str] = DEFAULT_CHECKS
    rpc_faults: ClassVar[Sequence[str]] = ()

    class Params(Params):
        """No parameters."""

    @abstractmethod
    def workload(self, params: Any) -> Workload:
        """What runs on the cluster."""

    @abstractmethod
    def schedule(self, params: Any, topology: Topology) -> Sequence[Step]:
        """Which faults hit whom, when (seconds after the load began), and when each is undone."""

    def mandatory_phases(self, params: Any) -> Sequence[str]:
        """The phases of recovery without which the verdict is unknown."""
        return PHASES

    def recovery_timeout(self, params: Any) -> float:
        """Within how many seconds of the injection the last phase must be over."""
        return 120.0

    def problems(self, params: Any, topology: Topology) -> Sequence[Problem]:
        """What is contradictory in these parameters on this topology: unless told, what the workload says."""
        workload = self.workload(params)
        return workload.problems(topology) if isinstance(workload, Demanding) else ()

    def parse_params(self, settings: Sequence[str]) -> Any:
        """Parameters from ``key=value`` settings such as ``tasks=500``; values are read as YAML.

        Raises
        ------
        BadInput
            Lists every problem: what is not ``key=value``, unknown names, values that do not fit.
        """
        values: dict[str, Any] = {}
        problems: list[Problem] = []
        known = self.Params.model_fields
        for setting in settings:
            key, equals, raw = setting.partition("=")
            where = f"--param {setting}"
            if not equals or not key:
                problems.append(Problem(where, "is not key=value", "for example tasks=500"))
            elif key not in known:
                problems.append(Problem(where, str(NotFound("parameter", key, known))))
            else:
                try:
                    values[key] = read_yaml(raw)
                except NotYaml:
                    values[key] = raw
        try:
            params = self.Params.model_validate(values)
        except ValidationError as error:
            for item in error.errors():
                key = ".".join(map(str, item["loc"])) or "parameters"
                problems.append(Problem(f"--param {key}", f"is {item['input']!r}: {item['msg']}"))
        if problems:
            raise BadInput(problems)
        return params


def known_experiments() -> dict[str, Path]:
    """The experiments that come with the package, by name."""
    return asset_names("experiments", ".py")


def load_experiment(name_or_path: str) -> Experiment:
    """An experiment by name, or by the path of a Python file that defines one.

    Raises
    ------
    NotFound
        There is neither such a name nor such a file.
    BadInput
        The file cannot be imported, or does not define exactly one experiment.
    """
    known = known_experiments()
    path = known.get(name_or_path, Path(name_or_path))
    if path.is_dir():
        raise BadInput(Problem(str(path), "is a directory", "name a Python file in it"))
    if not path.is_file():
        if path.suffix == ".py" or len(path.parts) > 1:
            raise BadInput(
                Problem(str(path), "there is no such file", "python -m simulator init writes one")
            )
        raise NotFound("experiment", name_or_path, known)
    module_name = f"_ray_sim_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise BadInput(Problem(str(path), "is not a Python file"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # its exit code must not become ours
        raise BadInput(Problem(str(path), f"cannot be imported: {_said(error, path)}")) from error
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Experiment)
        and value.__module__ == module_name
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        raise BadInput(
            Problem(
                str(path),
                f"defines {len(found)} experiments",
                "define exactly one subclass of simulator.Experiment",
            )
        )
    try:
        experiment: Experiment = found[0]()
    except (Exception, SystemExit) as error:
        made = f"{found[0].__name__}() cannot be made: {_said(error, path)}"
        raise BadInput(Problem(str(path), made)) from error
    missing = [a for a in ("name", "claim") if not getattr(experiment, a, "")]
    if missing:
        raise BadInput(
            [Problem(str(path), f"{found[0].__name__} has no {a}", "set it") for a in missing]
        )
    if not (isinstance(experiment.name, str) and _NAME.fullmatch(experiment.name)):
        raise BadInput(
            Problem(
                str(path),
                f"{found[0].__name__}.name is {experiment.name!r}, and its runs' folder is named so",
                "use up to 64 letters, digits, - and _",
            )
        )
    return experiment


def plan_problems(
    experiment: Experiment, params: Any, topology: Topology, *, own_faults: bool = True
) -> list[Problem]:
    """Everything that keeps this experiment from running with these parameters on this topology.

    What the experiment's own code raises is said as a problem of its file, before anything starts.

    Parameters
    ----------
    own_faults
        False where it gets others: whom its own would hit is nobody's concern then.
    """
    path = Path(inspect.getsourcefile(type(experiment)) or type(experiment).__name__)
    problems: list[Problem] = []
    parts: Mapping[str, Callable[[], object]] = {
        "rpc_faults": lambda: rpc_faults(experiment.rpc_faults, f"{path.name}: rpc_faults"),
        "workload": lambda: experiment.workload(params),
        "problems": lambda: problems.extend(experiment.problems(params, topology)),
        # The seed changes which target is drawn, not whether there is one.
        "schedule": lambda: resolve(experiment.schedule(params, topology), topology, Random(0)),
        "mandatory_phases": lambda: list(experiment.mandatory_phases(params)),
        "recovery_timeout": lambda: float(experiment.recovery_timeout(params)),
    }
    for name, part in parts.items():
        if name == "schedule" and not own_faults:
            continue
        try:
            part()
        except BadInput as error:
            problems.extend(error.problems)
        except NotFound as error:
            problems.append(Problem(f"{path.name}: {name}", str(error)))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code, not ours
            problems.append(Problem(f"{path.name}: {name}", f"raises {_said(error, path)}"))
        if problems:
            break  # what follows would fail for the same reason
    return problems


def _said(error: BaseException, path: Path) -> str:
    """An error in a user's file, with the line of that file in which it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).resolve() == path.resolve()]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def params_data(params: BaseModel) -> Mapping[str, Any]:
    """Parameters as plain data, for the spec and for JSON."""
    return params.model_dump(mode="json")
