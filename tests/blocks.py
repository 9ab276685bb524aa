"""A driver for tests: keeps more blocks than the object store of a node holds, and reads them all again.

Prints how many could be read, and by what name the others failed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import ray

THERE: dict[str, Any] = {"num_cpus": 0, "resources": {"there": 0.1}, "max_retries": 0}
MB = 10


def block() -> bytes:
    return bytes(MB * 1024**2)


def size(made: bytes) -> int:
    return len(made)


if __name__ == "__main__":
    ray.init(log_to_driver=False)
    remote: Any = ray.remote
    make, measure = remote(**THERE)(block), remote(**THERE)(size)
    made = [make.remote() for _ in range(int(sys.argv[1]))]
    ray.wait(made, num_returns=len(made), timeout=60, fetch_local=False)
    outcomes: Counter[str] = Counter()
    for one in made:
        try:
            ray.get(measure.remote(one), timeout=60)
            outcomes["read"] += 1
        except Exception as error:  # noqa: BLE001 - by whatever name Ray fails it
            outcomes[type(error).__name__] += 1
    print("outcomes", json.dumps(outcomes), flush=True)  # noqa: T201
