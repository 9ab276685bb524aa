"""Ray's own injection into its calls, on a real head: it is in force on every process, and Ray gets over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.backends.base import ClusterSpec
from simulator.backends.process import ProcessBackend
from simulator.cli.place import started_with
from simulator.cluster import HEALTH, Cluster
from simulator.faults import rpc_environment, rpc_faults
from simulator.topology import load_topology
from simulator.waiting import wait_until

pytestmark = pytest.mark.real_process

FAULTS = rpc_faults(
    [
        "RequestWorkerLease request fails 50% 5 times",
        "PushTask reply fails 20%",
        "RegisterActor delays 20ms..30ms",
    ]
)

DRIVER = """
import ray
ray.init()
remote = ray.remote(num_cpus=0.1, max_retries=-1)(lambda n: n * n)
assert ray.get([remote.remote(n) for n in range(40)]) == [n * n for n in range(40)]
class Keeper:
    def one(self):
        return 1
keeper = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Keeper).remote()
assert ray.get(keeper.one.remote()) == 1
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(ProcessBackend(), f"test-{os.getpid()}-rpc")
    lone = load_topology("cpu_only").with_workers(0)
    env = {**HEALTH["fast"], **rpc_environment(FAULTS)}
    try:
        cluster.up(ClusterSpec(cluster.name, lone, "none", env=env))
        yield cluster
    finally:
        cluster.down()


def test_calls_fail_and_are_late_and_the_work_is_done_all_the_same(
    cluster: Cluster, tmp_path: Path
) -> None:
    assert started_with(cluster)[1] == [str(fault) for fault in FAULTS]
    (tmp_path / "driver.py").write_text(DRIVER)
    cluster.ray.submit(f"python {tmp_path / 'driver.py'}", "rpc")
    job = wait_until(
        lambda: job if (job := cluster.ray.job("rpc")).over else None,
        name="the job's end",
        timeout=120,
        interval=0.3,
    )
    assert job.status == "SUCCEEDED", cluster.ray.job_logs("rpc")
    cluster.backend.node_logs(cluster.name, "head", tmp_path / "logs")
    said = "".join(
        path.read_text(errors="replace")
        for path in (tmp_path / "logs").rglob("*")
        if path.is_file()
    )
    for words in (
        "Inject RPC request failure for NodeManagerService.grpc_client.RequestWorkerLease",
        "Inject RPC response failure for CoreWorkerService.grpc_client.PushTask",
        "RAY_testing_asio_delay_us is set to ActorInfoGcsService.grpc_server.RegisterActor",
        "Delaying method ActorInfoGcsService.grpc_server.RegisterActor",
    ):
        assert words in said
