"""A driver for tests of faults: a task and a named actor on the node that offers ``there``, for ever.

Both come back elsewhere, or on the same node, as often as they are lost; what became of them is Ray's to say.
"""

from __future__ import annotations

import os
import time
from typing import Any

import ray

remote: Any = ray.remote
THERE = {"num_cpus": 0, "resources": {"there": 0.1}}


def hold(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


class Keeper:
    def pid(self) -> int:
        return os.getpid()


if __name__ == "__main__":
    ray.init()
    task = remote(max_retries=-1, **THERE)(hold).options(name="holding")
    actor = remote(max_restarts=-1, max_task_retries=-1, **THERE)(Keeper).options(name="keeper")
    keeper = actor.remote()
    ray.get([task.remote(3600.0), keeper.pid.remote()])
