"""The node image as the engine has it: who it runs as, what it holds, and what it does not."""

from __future__ import annotations

import json
import subprocess

import pytest

from simulator.assets import asset_path
from simulator.backends.docker import image

pytestmark = pytest.mark.real_docker


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def in_node(tag: str, command: str) -> str:
    return docker(
        "run", "--rm", "--network", "none", "--shm-size", "256m", tag, "sh", "-c", command
    )


@pytest.fixture(scope="module")
def node() -> str:
    return image.ensure_image(image.DEFAULT_IMAGE, say=print)


@pytest.fixture(scope="module")
def lean() -> str:
    return image.ensure_image(image.LEAN_IMAGE, say=print)


@pytest.fixture(scope="module")
def stock_layout(node: str) -> str:
    tag = "ray-cluster-simulator/stock-layout:test"
    builder = docker("context", "show")
    docker(
        "buildx", "build", "--builder", builder, "--load", "--provenance=false",
        "--build-arg", f"NODE_IMAGE={node}", "--tag", tag,
        str(asset_path("docker") / "stock-layout"),
    )  # fmt: skip
    return tag


def test_a_second_build_comes_from_the_cache(node: str) -> None:
    said: list[str] = []
    assert image.build_image(say=said.append) == node
    assert sum("CACHED" in line for line in said) >= 3
    assert image.image_is_current(node)


def test_it_has_the_pinned_ray_and_torch(node: str) -> None:
    assert in_node(node, "ray --version") == f"ray, version {image.RAY_VERSION}"
    assert in_node(node, "python -c 'import torch; print(torch.__version__)'").startswith(
        image.TORCH_VERSION
    )
    assert "No broken requirements" in in_node(node, "pip check")


def test_it_runs_as_an_ordinary_user_at_home(node: str) -> None:
    assert in_node(node, "id -u; id -un; pwd; echo $HOME; touch ~/mine && echo writable") == (
        "1000\nray\n/home/ray\n/home/ray\nwritable"
    )


def test_it_holds_no_fault_tools(node: str) -> None:
    tools = "iptables nft tc ip curl sudo docker"
    assert in_node(node, f"for tool in {tools}; do command -v $tool; done; true") == ""


@pytest.mark.parametrize("kind", ["node", "lean"])
def test_what_nodes_import_is_compiled(kind: str, request: pytest.FixtureRequest) -> None:
    program = (
        f"import {'torch, ' if kind == 'node' else ''}ray._private.workers.default_worker;"
        "import ray.scripts.scripts, ray.dashboard.agent, sys, os;"
        "from importlib.util import cache_from_source as compiled;"
        "m = [m for m in sys.modules.values() if (getattr(m, '__file__', None) or '').endswith('.py')];"
        # torch has modules without files.
        "print([m.__name__ for m in m if os.path.exists(m.__file__) and not os.path.exists(compiled(m.__file__))])"
    )
    assert in_node(request.getfixturevalue(kind), f'python -c "{program}"') == "[]"


def test_a_lean_node_is_the_same_ray_and_python_and_nothing_more(node: str, lean: str) -> None:
    for command in ("ray --version", "python --version", "id -u; pwd; echo $HOME"):
        assert in_node(lean, command) == in_node(node, command)
    wanted = "torch aiohttp grpc opentelemetry starlette fastapi pandas virtualenv numpy ray"
    program = (
        f"import importlib.util as u; print([n for n in '{wanted}'.split() if u.find_spec(n)])"
    )
    assert in_node(lean, f'python -c "{program}"') == "['numpy', 'ray']"
    assert "No broken requirements" in in_node(lean, "pip check")
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", lean))
    assert (labels["ray-sim.image"], labels["ray-sim.image-kind"]) == ("node", "lean")


def test_a_lean_node_can_do_what_the_in_node_programs_ask_of_it(lean: str) -> None:
    program = (
        "from ray._raylet import GcsClient; from ray.core.generated import autoscaler_pb2;"
        "print(autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION)"
    )
    assert in_node(lean, f'python -c "{program}"') == "2"


def test_nothing_of_the_machine_stays_in_it(node: str) -> None:
    left = in_node(
        node, "ls -d /run/secrets/* /wheels /root/.cache/pip /etc/pip.conf 2>/dev/null; true"
    )
    assert left == ""
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", node)
    settings = image.pip_settings()
    known = [
        value for line in settings.conf.splitlines()[1:] for value in line.split(" = ")[1].split()
    ]
    for secret in [*known, *map(str, settings.wheels), str(settings.ca_bundle or "no bundle")]:
        if len(secret) > 4:  # a timeout of 180 is no secret, and is anywhere
            assert secret not in history


def test_its_labels_say_what_it_is(node: str) -> None:
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", node))
    assert labels["ray-sim.image"] == "node"
    assert labels["org.opencontainers.image.version"] == image.RAY_VERSION
    assert "ray-sim.cluster" not in labels  # containers inherit labels; this one marks ours


def test_the_stock_layout_is_that_of_rayproject_ray(stock_layout: str) -> None:
    assert in_node(stock_layout, "id -u; id -g; command -v python; command -v ray; ls /opt") == (
        "1000\n100\n/home/ray/anaconda3/bin/python\n/home/ray/anaconda3/bin/ray"
    )
    assert in_node(stock_layout, "ray --version") == f"ray, version {image.RAY_VERSION}"
