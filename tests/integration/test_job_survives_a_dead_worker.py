"""A job whose worker dies in the middle of its work still gives the right result."""

from pathlib import Path

from simulator.testcontainers import NodesAliveWaitStrategy, RayClusterContainer, RayJob

PROGRAM = Path(__file__).with_name("count_primes.py")


def pieces(ray: RayClusterContainer, job: RayJob, what: str, node: str) -> set[int]:
    """The thousands that were begun, or done, on a node."""
    files = ray.exec(["ls", job.folder]).output.decode().split()
    return {int(f.split("-")[0]) for f in files if f.endswith(f"-{what}-{node}")}


def test_a_job_survives_a_dead_worker(ray: RayClusterContainer) -> None:
    victim = ray.cluster.node("worker-1").hostname
    job = ray.submit(PROGRAM, "12")
    ray.cluster.wait_until(
        lambda: pieces(ray, job, "begun", victim), name="work on worker-1", timeout=60
    )

    ray.kill("worker-1")
    ray.exec(["touch", f"{job.folder}/go"])
    assert "1438" in job.wait(timeout=120).splitlines()  # primes below 12,000

    # The kill hit work: what was begun there was never done there, but elsewhere.
    lost = pieces(ray, job, "begun", victim)
    assert lost
    assert not pieces(ray, job, "done", victim)
    survivors = [ray.cluster.node(name).hostname for name in ("head", "worker-2")]
    assert lost <= set().union(*(pieces(ray, job, "done", node) for node in survivors))

    ray.restart("worker-1")
    NodesAliveWaitStrategy().wait_until_ready(ray)
