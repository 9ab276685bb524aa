"""The cluster as testcontainers has its containers: a context manager with fluent settings.

Nothing about how nodes run is said here. It is a `simulator.cluster.Cluster` on the Docker backend, with
the names and habits that a user of testcontainers knows, and with an owner (`cleanup`) who removes it.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from testcontainers.core.exceptions import ContainerStartException, NoSuchPortExposed
from testcontainers.core.waiting_utils import WaitStrategy

from simulator.backends.base import ClusterSpec, name_problem
from simulator.backends.docker import DockerBackend
from simulator.cluster import HEALTH, Cluster, NodeStatus, refuse_unable, why_unable
from simulator.compose import DASHBOARD_PORT, LEDGER_TARGET
from simulator.errors import BadInput, CannotRun, NotFound, Problem, SimulatorError
from simulator.jobs import Submitted, follow, plan_program, submit
from simulator.testcontainers import cleanup
from simulator.testcontainers.waits import NodesAliveWaitStrategy
from simulator.topology import Topology, load_topology

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger(__name__)

#: In a job's environment, its driver's and its tasks': the path of `RayJob.folder`.
FOLDER_VARIABLE = "RAY_SIM_JOB_FOLDER"

_TAIL = 15  # lines of each node's log that a failed start shows


class ExecResult(NamedTuple):
    """A finished command, as testcontainers gives it: its exit code and what it printed."""

    exit_code: int
    output: bytes


@dataclass(frozen=True)
class RayJob:
    """A program that was submitted to the cluster.

    Attributes
    ----------
    folder
        The job's own, which every node has and can write to; the job finds its path in the variable
        RAY_SIM_JOB_FOLDER of its environment.
    """

    job_id: str
    folder: str
    _cluster: Cluster
    _submitted: Submitted

    def status(self) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        return self._cluster.ray.job(self.job_id).status

    def logs(self) -> str:
        """What its driver printed so far, and what Ray writes beside it."""
        return self._cluster.ray.job_logs(self.job_id)

    def wait(self, timeout: float = 300.0) -> str:
        """Wait until it is over, and return what its driver printed.

        Parameters
        ----------
        timeout
            Seconds. That Ray does not answer meanwhile, as when the head restarts, is waited out.

        Raises
        ------
        CannotRun
            It did not succeed, or Ray knows of it no more because the head was started anew; shows
            its message and its last lines.
        simulator.waiting.WaitTimeout
            It was not over in time; it goes on, and may be waited for again.
        """
        printed = bytearray()
        job = follow(
            self._cluster.ray,
            self._submitted,
            output=printed.extend,
            say=_LOG.warning,
            clock=self._cluster.clock,
            patience=timeout,
            timeout=timeout,
        )
        output = printed.decode("utf-8", errors="replace")
        if job.exit_code != 0:
            raise CannotRun(
                f"job {self.job_id} ended as {job.status}",
                why=job.message.strip(),
                details=output.splitlines()[-_TAIL:],
            )
        return output


class RayClusterContainer:
    """A head and workers, each a container of its own, for as long as a test needs them.

    A start returns when every node is alive in Ray, by name. Whatever keeps it from that, a node that
    does not join, a wait strategy or Ctrl-C, the error comes with the nodes' last lines, and nothing
    is left behind.

    Parameters
    ----------
    image
        Node image; by default the simulator's own, which is built when it is missing. A stock
        ``rayproject/ray`` image serves too.
    workers
        How many workers in the topology's first worker group; by default as the topology says.
    topology
        Which nodes: the name of a topology, the path of a file, or a `simulator.Topology`.
    health
        How Ray detects a lost node: ``fast`` (about 4 s) or ``ray`` (its own settings, half a
        minute and more).
    name
        Of the cluster; by default a new one each time, so that sessions run side by side.
    env
        Environment of every node.
    startup_timeout
        How long one node may take to join, seconds.

    Raises
    ------
    BadInput, NotFound
        The settings do not fit; names every problem.

    Examples
    --------
    ::

        with RayClusterContainer(workers=2) as ray:
            client = JobSubmissionClient(ray.get_dashboard_url(), headers=ray.auth_headers())
    """

    def __init__(
        self,
        image: str | None = None,
        *,
        workers: int | None = None,
        topology: str | Path | Topology = "default",
        health: str = "fast",
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        startup_timeout: float = 120.0,
    ) -> None:
        problems: list[Problem] = []
        if health not in HEALTH:
            problems.append(Problem("health", f"is {health!r}", "use " + " or ".join(HEALTH)))
        try:
            nodes = topology if isinstance(topology, Topology) else load_topology(str(topology))
            self.topology = nodes if workers is None else nodes.with_workers(workers)
        except BadInput as error:
            problems.extend(error.problems)
        except NotFound as error:
            problems.append(Problem("topology", str(error)))
        if name is not None and (problem := name_problem(name, "name")):
            problems.append(problem)
        if problems:
            raise BadInput(problems)
        self.image = image
        self.env: dict[str, str] = {**HEALTH[health], **(env or {})}
        self._name = name
        self._startup_timeout = startup_timeout
        self._strategy: WaitStrategy = NodesAliveWaitStrategy()
        self._backend = DockerBackend()
        self._cluster: Cluster | None = None

    # -- settings --------------------------------------------------------------------------------

    def with_env(self, key: str, value: str) -> Self:
        """Set a variable in the environment of every node."""
        self.env[key] = value
        return self

    def with_envs(self, **variables: str) -> Self:
        """Set variables in the environment of every node."""
        self.env.update(variables)
        return self

    def with_name(self, name: str) -> Self:
        """Name the cluster; without, each start takes a new name."""
        if problem := name_problem(name, "name"):
            raise BadInput(problem)
        self._name = name
        return self

    def with_workers(self, count: int) -> Self:
        """Take so many workers in the topology's first worker group."""
        self.topology = self.topology.with_workers(count)
        return self

    def waiting_for(self, strategy: WaitStrategy) -> Self:
        """Also wait for this, once all nodes are alive; the strategy looks at the head.

        Its only published port is 8265 (dashboard, jobs, state), where ``/api/gcs_healthz`` and
        little else answers without the token.
        """
        self._strategy = strategy
        return self

    # -- life ------------------------------------------------------------------------------------

    @staticmethod
    def why_unavailable() -> str | None:
        """None if a cluster can be started here, else why not; for ``pytest.skip``."""
        return why_unable(DockerBackend())

    def start(self) -> Self:
        """Start it, and wait until it is ready.

        Raises
        ------
        CannotRun
            There is no Docker engine, or this machine cannot run so many nodes.
        BadInput
            It is started already, or there is a cluster of that name.
        NodeStartFailed
            Some nodes did not join; names them and shows the last lines.
        Exception
            Whatever the wait strategy raises, TimeoutError above all.
        """
        if self._cluster is not None:
            raise BadInput(Problem(self.name, "is started already", "stop it first"))
        refuse_unable(
            self._backend,
            self.topology,
            what="a RayClusterContainer cannot be started on this machine",
            remedy="Its nodes are containers; without an engine there is "
            "`python -m simulator up --backend process`",
        )
        cleanup.start_reaper()
        cleanup.remove_orphans(self._backend)
        name = self._name or f"tc-{os.getpid()}-{secrets.token_hex(3)}"
        if any(c.name == name for c in self._backend.clusters()):
            raise BadInput(
                Problem(
                    f"name {name}",
                    "is in use by a cluster that exists already",
                    f"use another, or take it down: python -m simulator down --name {name}",
                )
            )
        session = cleanup.session()
        session.add(name, self._backend)
        self._cluster = Cluster(self._backend, name)
        try:
            spec = ClusterSpec(
                name=name,
                topology=self.topology,
                gpu=self._backend.gpu_kind(self.topology),
                image=self.image,
                env=self.env,
                labels=session.labels(),
            )
            spec = self._backend.prepare(spec, _LOG.info)
            self._cluster.up(spec, timeout=self._startup_timeout)
            self._strategy.wait_until_ready(self)
        except BaseException as error:
            self._undo(error)
            raise
        return self

    def stop(self) -> None:
        """Remove it with all that it is made of; nothing happens if it is stopped already."""
        if self._cluster is not None:
            cleanup.session().remove(self._cluster.name)
            self._cluster = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        except SimulatorError as trouble:
            if exc is None:
                raise
            self._give_up(trouble)

    def _undo(self, error: BaseException) -> None:
        """Remove what was started; the first error stays the one that is raised."""
        lines = [] if getattr(error, "details", ()) else self._last_lines()
        try:
            self.stop()
        except SimulatorError as trouble:
            self._give_up(trouble)
        if lines:
            # Python 3.10 has no notes; a test run shows what was logged.
            getattr(error, "add_note", _LOG.error)("\n".join(lines))

    def _give_up(self, trouble: SimulatorError) -> None:
        """Leave the removal to the end of the interpreter; another error is under way."""
        _LOG.error(
            "%s could not be removed: %s; that is tried again when the interpreter ends",
            self.name,
            trouble,
        )
        self._cluster = None

    def _last_lines(self) -> list[str]:
        lines: list[str] = []
        with suppress(SimulatorError):
            for node in self.cluster.record().nodes:
                if node.role == "head" or node.state == "exited":
                    text = self._backend.logs(self.name, node.name, tail=_TAIL)
                    lines += [f"last lines of {node.name} ({node.state}):", *text.splitlines()]
        return lines

    # -- the cluster -----------------------------------------------------------------------------

    @property
    def cluster(self) -> Cluster:
        """All that the simulator can do with it; raises ContainerStartException before a start."""
        if self._cluster is None:
            raise ContainerStartException("the cluster is not started")
        return self._cluster

    @property
    def name(self) -> str:
        """The cluster's name, as ``python -m simulator status --name`` wants it."""
        return self._cluster.name if self._cluster else self._name or "(not started)"

    def nodes(self) -> Sequence[NodeStatus]:
        """Every node: what the engine and what Ray says of it now."""
        return self.cluster.status().nodes

    def get_dashboard_url(self) -> str:
        """URL of the dashboard, the jobs API and the state API; asked anew, as ports change."""
        return self._backend.endpoint(self.cluster.name).url

    def get_token(self) -> str:
        """The token that Ray wants."""
        return self._backend.endpoint(self.cluster.name).token

    def auth_headers(self) -> dict[str, str]:
        """The token as an HTTP client, or Ray's ``JobSubmissionClient``, wants it."""
        return {"Authorization": f"Bearer {self.get_token()}"}

    def submit(self, program: str | Path, *arguments: str) -> RayJob:
        """Run a Python file of this machine as a Ray job, its driver on the head or on the driver node.

        Parameters
        ----------
        program
            Path of one file that needs nothing beside it.
        arguments
            Of its command line.

        Raises
        ------
        BadInput
            There is no such file.
        simulator.rayapi.RayUnreachable
            Ray does not answer.
        """
        planned = plan_program(str(program), arguments)
        job_id = planned.new_job_id()
        # The ledger is the one folder that every node has; a file in it makes its folders.
        there = f"jobs/{job_id}"
        self._backend.put_ledger_file(self.cluster.name, f"{there}/.folder", b"")
        folder = f"{LEDGER_TARGET}/{there}"
        planned = replace(planned, runtime_env={"env_vars": {FOLDER_VARIABLE: folder}})
        submitted = submit(
            self.cluster.ray, planned, job_id=job_id, resources=self.cluster.driver_needs()
        )
        return RayJob(job_id, folder, self.cluster, submitted)

    def exec(self, command: str | Sequence[str], node: str = "head") -> ExecResult:
        """Run a command in a node; a string is split as a shell would, but run without one."""
        argv = shlex.split(command) if isinstance(command, str) else list(command)
        done = self._backend.execute(self.cluster.name, node, argv)
        return ExecResult(done.code, done.output.encode())

    def get_logs(self, node: str = "head") -> tuple[bytes, bytes]:
        """What a node's container wrote, to standard output and to standard error."""
        container = self.get_wrapped_container(node)
        return container.logs(stderr=False), container.logs(stdout=False)

    # -- what breaks, and comes back -------------------------------------------------------------

    def kill(self, node: str) -> None:
        """SIGKILL to a whole node, as when a machine loses power."""
        self.cluster.kill(node)

    def pause(self, node: str) -> None:
        """Freeze a node."""
        self.cluster.pause(node)

    def resume(self, node: str) -> None:
        """Thaw a node; one that Ray gave up meanwhile then exits by itself."""
        self.cluster.resume(node)

    def restart(self, node: str) -> None:
        """Stop a node if it runs, start it, and wait until it has joined as a new Ray node.

        With the head, the workers that run are started anew too: no new head takes them back.
        """
        self.cluster.restart(node, timeout=self._startup_timeout)

    # -- what wait strategies ask of their target: the head ----------------------------------------

    def get_container_host_ip(self) -> str:
        """Where the head's published port is: always this machine's own loopback."""
        return "127.0.0.1"

    def get_exposed_port(self, port: int = DASHBOARD_PORT) -> int:
        """The port of this machine that leads to the head's; only the dashboard's is published."""
        if int(port) != DASHBOARD_PORT:
            raise NoSuchPortExposed(
                f"{self.name} publishes port {DASHBOARD_PORT} of its head only, not {port}"
            )
        return int(self.get_dashboard_url().rpartition(":")[2])

    def get_wrapped_container(self, node: str = "head") -> Any:
        """A node's container, as an object of the Docker SDK."""
        return self._backend.container(self.cluster.name, node)

    def reload(self) -> None:
        """Does nothing: everything is asked anew at each call."""

    @property
    def status(self) -> str:
        """What the engine says of the head's container; ``not_started`` before a start."""
        if self._cluster is None:
            return "not_started"
        return str(self.get_wrapped_container().status)
