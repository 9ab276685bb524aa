"""When a cluster is ready: when named nodes are alive, not when so many of them are.

Any wait strategy of testcontainers can be used instead or besides; it then looks at the head.
"""

from __future__ import annotations

from typing import Any

from testcontainers.core.waiting_utils import WaitStrategy

from simulator.cluster import wait_alive


class NodesAliveWaitStrategy(WaitStrategy):
    """Ready when these nodes are alive in the GCS; without names, all nodes of the cluster.

    Raises `simulator.errors.NodeStartFailed` after ``with_startup_timeout(seconds)``, and says of each
    missing node what it is instead.

    Examples
    --------
    After a fault, for those that should have survived it::

        ray.kill("worker-1")
        NodesAliveWaitStrategy("head", "worker-2").wait_until_ready(ray)
    """

    def __init__(self, *nodes: str) -> None:
        super().__init__()
        self._nodes = nodes

    def wait_until_ready(self, container: Any) -> None:
        """Wait for the nodes of a `RayClusterContainer`."""
        cluster = getattr(container, "cluster", None)
        if cluster is None:
            raise TypeError(f"{container!r} is no RayClusterContainer, so it has no nodes")
        nodes = self._nodes or [n.name for n in cluster.record().nodes]
        wait_alive(cluster, nodes, self._startup_timeout)
