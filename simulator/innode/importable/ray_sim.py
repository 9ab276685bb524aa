"""What a program may tell a run of the simulator about itself: two calls that do nothing anywhere else.

    from ray_sim import effect, mark

    mark("epoch", 3)             # something happened; a schedule may wait for it, the report shows it
    effect(f"order-{number}")    # done to the outside world, and to be done exactly once

They need no package, may be called in the driver, in tasks and in actors, and never raise: what they are told
is written, flushed, to the run's ledger, which outlives the node. Outside a run (in production, in a notebook)
both return at once. Every node of a simulated cluster can import this module; elsewhere it comes with
``pip install ray-cluster-simulator``, and this one file may also be copied.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["effect", "mark"]

#: The environment variable that names the run; the simulator sets it for the job of a program.
RUN = "RAY_SIM_RUN"

_ledger: ModuleType | None = None


def mark(name: str, value: Any = None) -> None:
    """Say that the program has come to a point.

    Parameters
    ----------
    name
        What it is, such as ``"epoch"``.
    value
        Anything that JSON can hold; what it cannot is written as text.
    """
    if os.environ.get(RUN):
        _write("program.mark", name=str(name), value=_plain(value))


def effect(key: Any) -> None:
    """Say that something was done to the outside world that is to be done exactly once.

    Call it right after the deed. A key that is reported twice, because Ray ran the work again, is named
    in the verdict; so is one that is missing, where the run knows how many there are to be
    (``mark("effects", 40)``, or an undisturbed run before it).

    Parameters
    ----------
    key
        Names the deed, such as ``"order-17"``.
    """
    if os.environ.get(RUN):
        _write("program.effect", key=str(key))


def _write(kind: str, **data: Any) -> None:
    try:
        _book().ledger(os.environ[RUN]).write(kind, **data, pid=os.getpid(), task_id=_task())
    except Exception as error:  # noqa: BLE001 - what is only observed must not be broken by it
        warnings.warn(f"ray_sim could not record {kind}: {error}", RuntimeWarning, stacklevel=3)


def _book() -> ModuleType:
    """The ledger's module. A program may have a package named ``simulator`` too, so it is found by its file."""
    global _ledger
    if _ledger is None:
        places = (Path(folder) / "simulator" / "innode" / "ledger.py" for folder in sys.path)
        path = next((place for place in places if place.is_file()), None)
        spec = spec_from_file_location("_ray_sim_ledger", path) if path is not None else None
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError("simulator/innode/ledger.py is not on Python's path")
        found = module_from_spec(spec)
        sys.modules[spec.name] = found
        spec.loader.exec_module(found)
        _ledger = found
    return _ledger


def _task() -> str | None:
    """Ray's id of the task that calls, where there is one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return None  # a driver has none, and Ray warns whoever asks it
    found: str | None = context.get_task_id()
    return found


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: numbers of numpy and torch as numbers, anything else as text."""
    try:
        value = value.item() if hasattr(value, "item") else value
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RuntimeError, RecursionError):
        return str(value)[:500]
    return value
