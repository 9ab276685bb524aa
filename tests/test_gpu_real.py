"""A real NVIDIA GPU: that the head has it, that its tasks compute on it, and that nobody else sees it.

Skipped where there is none, and on a backend that cannot pass it. What was seen, and where, stands in
docs/reference/topology.md.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fakes import finding
from real import running

from simulator.backends.docker import engine_answers
from simulator.backends.nvidia import look_at_driver, visible_here
from simulator.backends.select import choose
from simulator.cluster import Cluster
from simulator.errors import CannotRun
from simulator.experiment import load_experiment
from simulator.faults import Kill, Site
from simulator.history import read_history
from simulator.rayapi import RayNode
from simulator.runner import Runner, RunRequest, exit_code
from simulator.store import Store
from simulator.topology import Topology, load_topology, override

pytestmark = pytest.mark.real_gpu

SMALL = override(
    load_topology("default"),
    [
        "worker_groups.worker.replicas=2",
        "worker_groups.worker.resources.CPU=2",
        "worker_groups.worker.resources.ssd=1",
        "head.resources.CPU=2",
        "head.labels={where: gpu}",
    ],
)
REAL = override(SMALL, ["head.gpus=real"])
#: All GPUs of a cluster are real or none is, so the machine's is hidden from every node of this one.
SIMULATED = override(SMALL, ["worker_groups.worker.resources.GPU=1"])
TYPE = "ray.io/accelerator-type"

#: What a node sees of the GPU, and what it computes there if it sees any; printed as JSON.
LOOK = """
import json, os, time, ray, torch
ray.init(address="auto", log_to_driver=False)

@ray.remote(max_retries=0)
def look(seconds=0.0):
    context = ray.get_runtime_context()
    seen = {"node": context.get_node_id(), "ids": context.get_accelerator_ids()["GPU"],
            "env": os.environ.get("CUDA_VISIBLE_DEVICES"), "files": os.path.exists("/dev/nvidia0"),
            "cuda": torch.cuda.is_available(), "devices": torch.cuda.device_count(),
            "begin": time.time()}
    if seen["cuda"]:
        seen["name"] = torch.cuda.get_device_name(0)
        # Whole numbers, so that both products are exact.
        a, b = (torch.randint(-8, 8, (512, 512), generator=torch.Generator().manual_seed(n)).float()
                for n in (1, 2))
        seen["right"] = bool(((a.cuda() @ b.cuda()).cpu() == a @ b).all())
        torch.cuda.synchronize()
    time.sleep(seconds)
    return {**seen, "end": time.time()}

print(json.dumps(ray.get(TASKS)))
"""


@pytest.fixture(scope="module", params=["process", "docker"])
def backend_name(request: pytest.FixtureRequest) -> str:
    """Where a GPU can be had at all by other words than the backend's own: from there on, its refusal is a failure."""
    if request.param == "docker" and (why := _engine_passes_none()):
        pytest.skip(why)
    if request.param == "process" and not _torch_has_cuda():
        pytest.skip("torch is missing here, or was not built for CUDA")
    assert choose(request.param).backend.gpu_kind(REAL) == "real"
    return str(request.param)


def _engine_passes_none() -> str | None:
    """Why no container can have a GPU here: there is no engine, or nothing of NVIDIA's was installed for it."""
    if silent := engine_answers(timeout=5.0):
        return f"no Docker engine answers: {silent}"
    runtimes = subprocess.run(
        ["docker", "info", "--format", "{{json .Runtimes}}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if "nvidia" in runtimes or any(
        any(Path(f).glob("*nvidia*")) for f in ("/etc/cdi", "/var/run/cdi")
    ):
        return None
    return "the engine has neither NVIDIA's runtime nor a CDI specification of its devices"


def _torch_has_cuda() -> bool:
    if find_spec("torch") is None:
        return False
    from torch.version import cuda

    return cuda is not None


@pytest.fixture(scope="module")
def cluster(backend_name: str) -> Iterator[Cluster]:
    with running(backend_name, REAL, "gpu") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def simulated(backend_name: str) -> Iterator[Cluster]:
    with running(backend_name, SIMULATED, "nogpu") as cluster:
        yield cluster


def its_name(cluster: Cluster) -> str:
    """What CUDA calls the head's GPU: a container has no others beside it."""
    return "0" if cluster.backend.name == "docker" else visible_here(look_at_driver())[0]


def look(cluster: Cluster, tasks: str) -> list[dict[str, Any]]:
    """What tasks of `tasks`, an expression, saw."""
    program = LOOK.replace("TASKS", tasks)
    done = cluster.backend.execute(cluster.name, "head", ["python", "-c", program])
    assert done.code == 0, done.output
    seen: list[dict[str, Any]] = json.loads(done.output.splitlines()[-1])
    names = {node.ray_node_id: name for name, node in ray_nodes(cluster).items()}
    return [{**each, "node": names[each["node"]]} for each in seen]


def on(node: str) -> str:
    return "label_selector={'ray.io/node-id': NODE}".replace("NODE", repr(node))


def ray_nodes(cluster: Cluster) -> dict[str, RayNode]:
    """What Ray has of each living node, by the node's name."""
    hostnames = {node.hostname: node.name for node in cluster.record().nodes}
    return {hostnames[node.hostname]: node for node in cluster.ray.nodes() if node.alive}


def types_offered(node: RayNode) -> list[str]:
    return [name for name in node.resources if name.startswith("accelerator_type:")]


def run(cluster: Cluster, topology: Topology, folder: Path, name: str, *params: str) -> Any:
    experiment = load_experiment(name)
    request = RunRequest(
        experiment=experiment,
        params=experiment.parse_params(list(params)),
        topology=topology,
        source=name,
        seed=1,
        reuse=cluster.name,
    )
    result = Runner(cluster.backend, Store(folder)).run(request)
    assert result["status"] == "completed", result["error"]
    assert {f["verdict"] for f in result["findings"]} == {"valid"}, result["findings"]
    assert exit_code(result) == 0
    return result


# ---- a head that has it


def test_the_head_says_that_its_gpu_is_real(cluster: Cluster) -> None:
    data = cluster.status().to_data()
    assert data["gpu"] == "real"
    assert {n["name"]: n["gpu"] for n in data["nodes"]} == {
        "head": "real",
        "worker-1": "none",
        "worker-2": "none",
    }


def test_ray_knows_what_it_is_and_offers_it_on_the_head_alone(cluster: Cluster) -> None:
    nodes = ray_nodes(cluster)
    kind = nodes["head"].labels[TYPE]
    assert types_offered(nodes["head"]) == [f"accelerator_type:{kind}"]
    for name in ("worker-1", "worker-2"):
        assert TYPE not in nodes[name].labels
        assert types_offered(nodes[name]) == []
    (seen,) = look(cluster, f"[look.options(num_gpus=1, accelerator_type={kind!r}).remote()]")
    assert seen["right"]
    assert kind.split("-")[0] in seen["name"]


def test_tasks_compute_on_the_gpu_that_they_were_given(cluster: Cluster) -> None:
    (whole,) = look(cluster, "[look.options(num_gpus=1).remote()]")
    name = its_name(cluster)
    assert (whole["node"], whole["env"], whole["ids"]) == ("head", name, [name])
    assert (whole["cuda"], whole["devices"], whole["right"]) == (True, 1, True)


def test_a_task_that_asks_for_none_sees_what_its_node_sees(cluster: Cluster) -> None:
    """Ray's own rule, which docs/reference/topology.md tells of."""
    node = ray_nodes(cluster)["head"].ray_node_id
    (seen,) = look(cluster, f"[look.options({on(node)}).remote()]")
    assert (seen["node"], seen["ids"], seen["cuda"]) == ("head", [], True)


def test_two_halves_share_it_and_a_whole_one_waits_for_both(cluster: Cluster) -> None:
    halves = "[look.options(num_cpus=0.5, num_gpus=0.5).remote(4) for _ in range(2)]"
    one, two, whole = look(cluster, f"{halves} + [look.options(num_gpus=1).remote()]")
    assert [seen["right"] for seen in (one, two, whole)] == [True] * 3
    assert [seen["env"] for seen in (one, two, whole)] == [its_name(cluster)] * 3
    spans = sorted((seen["begin"], seen["end"]) for seen in (one, two, whole))
    together = [(a, b) for a in (one, two) for b in (whole,) if _overlap(a, b)]
    assert _overlap(one, two), spans
    assert not together, spans


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return bool(a["begin"] < b["end"] and b["begin"] < a["end"])


@pytest.mark.parametrize("worker", ["worker-1", "worker-2"])
def test_a_worker_sees_none(cluster: Cluster, worker: str) -> None:
    node = ray_nodes(cluster)[worker].ray_node_id
    (seen,) = look(cluster, f"[look.options({on(node)}).remote()]")
    assert (seen["node"], seen["ids"]) == (worker, [])
    assert (seen["cuda"], seen["devices"]) == (False, 0)
    assert seen["files"] == (cluster.backend.name == "process")


def test_tasks_are_placed_right(cluster: Cluster, tmp_path: Path) -> None:
    params = ("tasks=12", "label=where=gpu")
    result = run(cluster, REAL, tmp_path, "task_placement", *params)
    ran = finding(result, "placed_right")["metrics"]["ran"]
    assert set(ran["whole_gpu"]) == set(ran["half_gpu"]) == {"head"}
    starts = read_history(Path(result["run_dir"]) / "history.jsonl").of("task.start")
    given = {op.data["key"].rpartition("-")[0]: op.data["gpu_ids"] for op in starts}
    assert given["whole_gpu"] == given["half_gpu"] == [its_name(cluster)]
    assert given["cpu_only"] == []


def test_a_worker_dies_beside_it(cluster: Cluster, tmp_path: Path) -> None:
    params = ("tasks=240", "at=5")
    result = run(cluster, REAL, tmp_path, "node_failure", *params)
    spec = json.loads((Path(result["run_dir"]) / "spec.json").read_text())
    assert spec["gpu"] == "real"


def test_a_head_that_was_killed_comes_back_with_it(cluster: Cluster) -> None:
    Kill().inject(cluster, Site("head"))
    assert Kill().holds(cluster, Site("head"))
    Kill().heal(cluster, Site("head"), 180)
    (whole,) = look(cluster, "[look.options(num_gpus=1).remote()]")
    assert (whole["node"], whole["env"], whole["right"]) == ("head", its_name(cluster), True)
    assert TYPE in ray_nodes(cluster)["head"].labels


# ---- nodes that only declare one, on a machine that has it


def test_more_than_there_are_is_not_called_real(backend_name: str) -> None:
    backend = choose(backend_name).backend
    topology = override(load_topology("default"), ["head.resources.GPU=64"])
    assert backend.gpu_kind(topology) == "simulated"
    with pytest.raises(CannotRun, match="wants 64 real GPUs"):
        backend.gpu_kind(override(topology, ["head.gpus=real"]))


def test_a_simulated_gpu_is_none_and_is_not_called_what_the_real_one_is(simulated: Cluster) -> None:
    assert simulated.status().gpu == "simulated"
    nodes = ray_nodes(simulated)
    assert {name: node.resources["GPU"] for name, node in nodes.items()} == {
        "head": 1,
        "worker-1": 1,
        "worker-2": 1,
    }
    for name, node in nodes.items():
        assert TYPE not in node.labels, name
        assert types_offered(node) == [], name
        (seen,) = look(simulated, f"[look.options(num_gpus=1, {on(node.ray_node_id)}).remote()]")
        assert (seen["node"], seen["cuda"], seen["devices"]) == (name, False, 0)
