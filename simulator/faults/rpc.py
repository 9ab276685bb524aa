"""Ray's own injection of failures and delays into its calls between processes, set for a cluster at its start.

Each of Ray's processes reads these settings once, when it begins, from its environment: such a fault is a
property of a cluster for all of its life, on every node, and no step of a schedule. It is written as a sentence:

    RequestWorkerLease fails 25%             of the calls, half of them lose the request, half the reply
    RequestWorkerLease request fails 25%     the callee never hears of the call
    RequestWorkerLease reply fails 25%       the callee did it, the caller never hears of that
    PushTask reply fails 100% 2 times        at most so often, in each process by itself
    RequestWorkerLease delays 10ms..50ms     the callee handles it that much later

The process that calls makes a call fail, the one that is called delays it. Ray takes a name that it does not know
for one that is never called, so names are checked here; they are those of the Ray of the node image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from simulator.errors import BadInput, Problem

#: Where the sentences stand in a node's environment, so that a cluster can be asked for them.
VARIABLE = "RAY_SIM_RPC_FAULTS"

#: Every call that can be meant, by service (Ray 2.60, its .proto files; a test holds them together). Those of the GCS
#: are named with their namespace when they are to fail.
SERVICES: dict[str, tuple[str, str]] = {
    "NodeManagerService": (
        "",
        "CancelLeasesWithResourceShapes CancelLocalTask CancelWorkerLease CommitBundleResources "
        "DrainRaylet FormatGlobalMemoryInfo FreeLocalObjects GetAgentPIDs GetNodeStats GetObjectsInfo "
        "GetResourceLoad GetSystemConfig GetWorkerFailureCause GetWorkerPIDs GlobalGC IsLocalWorkerDead "
        "KillLocalActor NotifyGCSRestart PinObjectIDs PrepareBundleResources PrestartWorkers "
        "PushMutableObject RegisterMutableObject ReleaseUnusedActorWorkers ReleaseUnusedBundles "
        "RemovePlacementGroupBundles ReportWorkerBacklog RequestWorkerLease "
        "ResizeLocalResourceInstances ReturnWorkerLease ShutdownRaylet",
    ),
    "CoreWorkerService": (
        "",
        "ActorCallArgWaitComplete CancelTask DeleteSpilledObjects Exit GetCoreWorkerStats "
        "GetObjectLocationsOwner GetObjectStatus KillActor LocalGC NumPendingTasks PlasmaObjectReady "
        "PubsubCommandBatch PubsubLongPolling PushTask RayletNotifyGCSRestart "
        "RegisterMutableObjectReader ReportGeneratorItemReturns RequestOwnerToCancelTask "
        "RestoreSpilledObjects SpillObjects UpdateGeneratorBackpressureConsumed "
        "UpdateObjectLocationBatch WaitForActorRefDeleted",
    ),
    "ObjectManagerService": ("", "Pull Push"),
    "ActorInfoGcsService": (
        "ray::rpc::",
        "CreateActor GetActorInfo GetAllActorInfo GetNamedActorInfo KillActorViaGcs ListNamedActors "
        "RegisterActor ReportActorOutOfScope RestartActorForLineageReconstruction",
    ),
    "ControlPlanePubSubGcsService": (
        "ray::rpc::",
        "GcsPublish GcsSubscriberCommandBatch GcsSubscriberPoll",
    ),
    "InternalKVGcsService": (
        "ray::rpc::",
        "GetInternalConfig InternalKVDel InternalKVExists InternalKVGet InternalKVKeys "
        "InternalKVMultiGet InternalKVPut",
    ),
    "JobInfoGcsService": ("ray::rpc::", "AddJob GetAllJobInfo GetNextJobID MarkJobFinished"),
    "NodeInfoGcsService": (
        "ray::rpc::",
        "CheckAlive DrainNode GetAllNodeAddressAndLiveness GetAllNodeInfo GetClusterId RegisterNode "
        "UnregisterNode",
    ),
    "NodeResourceInfoGcsService": (
        "ray::rpc::",
        "GetAllAvailableResources GetAllResourceUsage GetAllTotalResources GetDrainingNodes",
    ),
    "PlacementGroupInfoGcsService": (
        "ray::rpc::",
        "CreatePlacementGroup GetAllPlacementGroup GetNamedPlacementGroup GetPlacementGroup "
        "RemovePlacementGroup WaitPlacementGroupUntilReady",
    ),
    "TaskInfoGcsService": ("ray::rpc::", "AddTaskEventData GetTaskEvents"),
    "WorkerInfoGcsService": (
        "ray::rpc::",
        "AddWorkerInfo GetAllWorkerInfo GetWorkerInfo ReportWorkerFailure UpdateWorkerDebuggerPort "
        "UpdateWorkerNumPausedThreads",
    ),
}

Part = Literal["request", "reply", "both", "delay"]

_SENTENCE = re.compile(
    r"(?P<method>\S+) +(?:"
    r"(?:(?P<part>request|reply) +)?fails +(?P<percent>\d+) *%(?: +(?P<times>\d+) +times?)?"
    r"|delays +(?P<least>\d+) *(?P<unit>ms|us)(?: *\.\. *(?P<most>\d+) *(?P<unit2>ms|us))?)"
)
_FORMS = "METHOD [request|reply] fails 25% [3 times], or METHOD delays 10ms..50ms"
_MOST_US = 60_000_000


@dataclass(frozen=True, slots=True)
class RpcFault:
    """One sentence.

    Attributes
    ----------
    service, method
        Of the call.
    part
        What is lost, or that it is late.
    percent
        Of the calls.
    times
        At most so often in each process; None for ever.
    delay_us
        Shortest and longest, microseconds.
    """

    service: str
    method: str
    part: Part
    percent: int = 0
    times: int | None = None
    delay_us: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        name = f"{self.service}.{self.method}"
        if self.part == "delay":
            least, most = (
                f"{us // 1000}ms" if us % 1000 == 0 else f"{us}us" for us in self.delay_us
            )
            return f"{name} delays {least}..{most}"
        which = "" if self.part == "both" else f" {self.part}"
        often = "" if self.times is None else f" {self.times} times"
        return f"{name}{which} fails {self.percent}%{often}"


def parse_rpc_fault(text: str, option: str = "--rpc-fault") -> RpcFault:
    """What a sentence means.

    Raises
    ------
    BadInput
        It is none, or names a call that Ray does not have.

    Examples
    --------
    >>> str(parse_rpc_fault("RequestWorkerLease delays 10ms..50ms"))
    'NodeManagerService.RequestWorkerLease delays 10ms..50ms'
    """
    where = f"{option} {text!r}"
    match = _SENTENCE.fullmatch(text.strip())
    if match is None:
        raise BadInput(Problem(where, "is no fault of a call", _FORMS))
    service, method = _find(match["method"], where)
    if match["least"] is not None:
        least = int(match["least"]) * _microseconds(match["unit"])
        most = int(match["most"]) * _microseconds(match["unit2"]) if match["most"] else least
        if not 0 < least <= most <= _MOST_US:
            raise BadInput(
                Problem(where, "its delays are no range", "for example 10ms..50ms, up to 60000ms")
            )
        return RpcFault(service, method, "delay", delay_us=(least, most))
    percent = int(match["percent"])
    if not 1 <= percent <= 100:
        raise BadInput(Problem(where, f"{percent}% of its calls cannot fail", "use 1% to 100%"))
    part: Part = {"request": "request", "reply": "reply"}.get(match["part"], "both")  # type: ignore[assignment]
    times = None if match["times"] is None else int(match["times"])
    return RpcFault(service, method, part, percent, times)


def _microseconds(unit: str) -> int:
    return 1000 if unit == "ms" else 1


def _find(name: str, where: str) -> tuple[str, str]:
    service, dot, method = name.rpartition(".")
    having = [s for s, (_, methods) in SERVICES.items() if method in methods.split()]
    if dot:
        if service in having:
            return service, method
    elif len(having) == 1:
        return having[0], method
    elif having:
        both = " or ".join(f"{s}.{method}" for s in having)
        raise BadInput(Problem(where, f"several services have a {method}", f"say {both}"))
    known = [m for _, methods in SERVICES.values() for m in methods.split()]
    near = [s + "." + method for s in having] or get_close_matches(method, known, n=3)
    remedy = f"did you mean {' or '.join(near)}?" if near else "docs/reference/faults.md lists them"
    raise BadInput(Problem(where, f"Ray has no call {name}", remedy))


def rpc_faults(texts: Iterable[str], option: str = "--rpc-fault") -> list[RpcFault]:
    """All of them, read and held against each other.

    Raises
    ------
    BadInput
        Lists every problem.
    """
    found: list[RpcFault] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            fault = parse_rpc_fault(text, option)
        except BadInput as error:
            problems.extend(error.problems)
            continue
        same = [
            other
            for other in found
            if (other.service, other.method) == (fault.service, fault.method)
            and (other.part == "delay") == (fault.part == "delay")
        ]
        if same:
            problems.append(
                Problem(f"{option} {text!r}", f"and {same[0]} are about the same call", "use one")
            )
        found.append(fault)
    if problems:
        raise BadInput(problems)
    return found


def rpc_environment(faults: Sequence[RpcFault]) -> dict[str, str]:
    """What nodes need in their environment for it."""
    if not faults:
        return {}
    failures: dict[str, dict[str, int]] = {}
    delays: list[str] = []
    for fault in faults:
        if fault.part == "delay":
            least, most = fault.delay_us
            delays.append(f"{fault.service}.grpc_server.{fault.method}={least}:{most}")
            continue
        name = f"{SERVICES[fault.service][0]}{fault.service}.grpc_client.{fault.method}"
        request = {"request": fault.percent, "reply": 0}.get(fault.part, (fault.percent + 1) // 2)
        failures[name] = {
            "num_failures": -1 if fault.times is None else fault.times,
            "req_failure_prob": request,
            "resp_failure_prob": fault.percent - request,
            "in_flight_failure_prob": 0,
        }
    environment = {VARIABLE: json.dumps([str(fault) for fault in faults])}
    if failures:
        environment["RAY_testing_rpc_failure"] = json.dumps(failures)
    if delays:
        environment["RAY_testing_asio_delay_us"] = ",".join(delays)
    return environment
