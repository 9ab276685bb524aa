"""Sentences about Ray's calls: read, refused, and turned into what Ray reads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from simulator.errors import BadInput
from simulator.faults.rpc import SERVICES, parse_rpc_fault, rpc_environment, rpc_faults


def environment(*texts: str) -> dict[str, str]:
    return rpc_environment(rpc_faults(texts))


@pytest.mark.parametrize(
    ("text", "request_", "reply", "times"),
    [
        ("RequestWorkerLease fails 25%", 13, 12, -1),
        ("RequestWorkerLease request fails 25%", 25, 0, -1),
        ("RequestWorkerLease reply fails 25 % 3 times", 0, 25, 3),
        ("NodeManagerService.RequestWorkerLease fails 100% 1 time", 50, 50, 1),
    ],
)
def test_a_failing_call_is_what_ray_reads(text: str, request_: int, reply: int, times: int) -> None:
    assert json.loads(environment(text)["RAY_testing_rpc_failure"]) == {
        "NodeManagerService.grpc_client.RequestWorkerLease": {
            "num_failures": times,
            "req_failure_prob": request_,
            "resp_failure_prob": reply,
            "in_flight_failure_prob": 0,
        }
    }


def test_calls_of_the_gcs_fail_under_their_full_names_and_are_late_under_short_ones() -> None:
    found = environment("RegisterActor fails 10%", "CreateActor delays 5ms", "Pull delays 1ms..2ms")
    assert list(json.loads(found["RAY_testing_rpc_failure"])) == [
        "ray::rpc::ActorInfoGcsService.grpc_client.RegisterActor"
    ]
    assert found["RAY_testing_asio_delay_us"] == (
        "ActorInfoGcsService.grpc_server.CreateActor=5000:5000,"
        "ObjectManagerService.grpc_server.Pull=1000:2000"
    )


@pytest.mark.parametrize(
    "text",
    [
        "RequestWorkerLease fails 25%",
        "PushTask request fails 1% 7 times",
        "Pull reply fails 100%",
        "PushTask delays 10ms..50ms",
        "PushTask delays 1500us..2ms",
    ],
)
def test_what_is_kept_with_a_cluster_means_the_same(text: str) -> None:
    fault = parse_rpc_fault(text)
    (kept,) = json.loads(environment(text)["RAY_SIM_RPC_FAULTS"])
    assert parse_rpc_fault(kept) == fault


def test_without_any_nothing_is_set() -> None:
    assert environment() == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RequestWorkerLease", "METHOD delays 10ms..50ms"),
        ("RequestWorkerLease fails", "METHOD .* fails 25%"),
        ("RequestWorkerLeese fails 5%", "did you mean RequestWorkerLease"),
        ("CoreWorkerService.RequestWorkerLease fails 5%", "NodeManagerService.RequestWorkerLease"),
        ("RequestWorkerLease fails 0%", "use 1% to 100%"),
        ("RequestWorkerLease fails 101%", "use 1% to 100%"),
        ("PushTask delays 50ms..10ms", "no range"),
        ("PushTask delays 0ms", "no range"),
        ("PushTask delays 10ms..5000000ms", "no range"),
        ("Nonsense fails 5%", "Ray has no call Nonsense"),
    ],
)
def test_what_ray_would_ignore_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_rpc_fault(text)


def test_every_problem_is_told_at_once_and_a_call_is_told_of_once() -> None:
    texts = ["PushTask fails 5%", "PushTask reply fails 5%", "PushTask delays 5ms", "Pull fels 1%"]
    with pytest.raises(BadInput) as caught:
        rpc_faults(texts)
    assert ["same call" in str(p) for p in caught.value.problems] == [True, False]


def test_the_calls_are_those_of_ray() -> None:
    """Held against the .proto files that came with the installed Ray, without importing it."""
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:
        pytest.skip("no Ray is installed here")
    generated = Path(found.origin).parent / "core" / "generated"
    stubs = "".join(path.read_text(encoding="utf-8") for path in generated.glob("*_pb2_grpc.py"))
    for service, (_, methods) in SERVICES.items():
        for method in methods.split():
            if service != "ObjectManagerService":  # Ray ships no Python of that one
                assert f"/ray.rpc.{service}/{method}'" in stubs, f"{service}.{method}"


def test_ray_reads_these_names() -> None:
    """A few of them, as its programs have them: the namespace is part of those of the GCS."""
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:
        pytest.skip("no Ray is installed here")
    raylet = (Path(found.origin).parent / "core/src/ray/raylet/raylet").read_bytes()
    for name in (
        b"NodeManagerService.grpc_client.ReturnWorkerLease\0",
        b"CoreWorkerService.grpc_client.PushTask\0",
        b"ObjectManagerService.grpc_client.Pull\0",
        b"ray::rpc::ActorInfoGcsService.grpc_client.RegisterActor\0",
        b"NodeManagerService.grpc_server.RequestWorkerLease\0",
        b"ObjectManagerService.grpc_server.Pull\0",
        b"testing_rpc_failure\0",
        b"testing_asio_delay_us\0",
    ):
        assert name in raylet, name


def test_the_page_lists_every_call() -> None:
    page = (Path(__file__).parents[1] / "docs/reference/faults.md").read_text(encoding="utf-8")
    for service, (_, methods) in SERVICES.items():
        assert f"| `{service}` | {', '.join(methods.split())} |" in page
