"""What this machine's NVIDIA driver says of its GPUs: the one place that asks it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from simulator.backends.base import Check, GpuKind
from simulator.topology import Gpus, Topology

#: Where no process keeps the driver awake, it wakes every GPU up to answer: a second or more for each.
_ANSWER_S = 60.0

#: What each kind of GPU means, in words.
MEANING: dict[GpuKind, str] = {
    "real": "the head gets this machine's GPU",
    "simulated": "GPUs are simulated: declared to Ray, no device",
    "none": "no GPU is asked for",
}


@dataclass(frozen=True, slots=True)
class Driver:
    """What the driver says: the names of its devices; `error` if it is there and does not work."""

    devices: tuple[str, ...] = ()
    error: str = ""


def device_files() -> bool:
    """Whether the driver has made its files below /dev (dxg is that of a Linux in Windows)."""
    return any(Path("/dev", name).exists() for name in ("nvidiactl", "nvidia0", "dxg"))


def look_at_driver() -> Driver:
    """Ask nvidia-smi, if there is one or there are device files."""
    command = shutil.which("nvidia-smi")
    if command is None:
        files = device_files()
        return Driver(error="there are device files, but no nvidia-smi" if files else "")
    try:
        done = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=_ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(error=f"nvidia-smi gives no answer ({type(error).__name__})")
    devices = tuple(
        re.sub(r"\s*\(UUID.*", "", line.partition(": ")[2])
        for line in done.stdout.splitlines()
        if line.startswith("GPU ")
    )
    if devices or not done.returncode:
        return Driver(devices)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return Driver(error=f"nvidia-smi: {lines[0] if lines else f'exit code {done.returncode}'}")


def visible(driver: Driver, given: str | None) -> list[str]:
    """The devices that CUDA shows to a program, as ``CUDA_VISIBLE_DEVICES`` names them.

    Parameters
    ----------
    given
        That variable; None where it is not set. CUDA ignores everything in it from the first device on
        that does not exist. A name (``GPU-...``, ``MIG-...``) is taken for one that does.

    Examples
    --------
    >>> two = Driver(("NVIDIA L4", "NVIDIA L4"))
    >>> visible(two, None), visible(two, "1"), visible(two, "1,2,0"), visible(two, "")
    (['0', '1'], ['1'], ['1'], [])
    """
    there = [str(number) for number in range(len(driver.devices))]
    if given is None or not there:
        return there
    found: list[str] = []
    for name in (part.strip() for part in given.split(",")):
        if name not in there and not re.match(r"(GPU|MIG)-", name):
            break
        found.append(name)
    return found


def visible_here(driver: Driver) -> list[str]:
    """Those that CUDA shows to the programs of the user's shell."""
    return visible(driver, os.environ.get("CUDA_VISIBLE_DEVICES"))


def driver_check(driver: Driver, there: int, topology: Topology) -> Check:
    """The doctor's line about the driver; `there` is how many of its devices a head could get."""
    wanted = topology.head.gpus_declared
    if driver.error:
        return Check("warning", "GPU driver", driver.error, "Install the NVIDIA driver anew")
    if not driver.devices:
        return Check("ok", "GPU driver", "none: this machine shows no NVIDIA GPU")
    text = f"{len(driver.devices)}: {', '.join(driver.devices)}"
    if there < len(driver.devices):
        text += f"; CUDA_VISIBLE_DEVICES leaves {there or 'none'} of them"
    if there >= wanted or topology.head.gpus is Gpus.SIMULATED:
        return Check("ok", "GPU driver", text)
    remedy = "Set head.resources.GPU to what there is, or head.gpus=simulated"
    return Check("warning", "GPU driver", f"{text}, fewer than the head's {wanted}", remedy)
