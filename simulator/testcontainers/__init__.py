"""A Ray cluster for a test of your own, in the way of testcontainers.

::

    from simulator.testcontainers import RayClusterContainer

    with RayClusterContainer(workers=2) as ray:
        job = ray.submit("train.py")
        ray.kill("worker-1")
        assert "done" in job.wait(timeout=120)

It needs the extra: ``pip install 'ray-cluster-simulator[testcontainers]'``. The clusters are those of the
Docker backend, so ``python -m simulator status`` and every other command understand them.
"""

from __future__ import annotations

try:
    import testcontainers.core  # noqa: F401 - to say what is missing
except ImportError as error:
    raise ImportError(
        "simulator.testcontainers needs testcontainers: "
        "pip install 'ray-cluster-simulator[testcontainers]'"
    ) from error

from simulator.testcontainers.container import ExecResult, RayClusterContainer, RayJob
from simulator.testcontainers.waits import NodesAliveWaitStrategy

__all__ = ["ExecResult", "NodesAliveWaitStrategy", "RayClusterContainer", "RayJob"]
