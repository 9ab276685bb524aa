"""Finds the Docker engine, and turns whatever goes wrong with it into an error that helps.

The engine is the one that ``docker`` on the command line would talk to: DOCKER_HOST, else the
current context (Docker Desktop, Colima and rootless engines are contexts), else the usual socket.
The SDK knows nothing of contexts by itself, so they are looked up here.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import docker
import requests
from docker.context import ContextAPI
from docker.errors import APIError, DockerException, ImageNotFound
from docker.tls import TLSConfig
from docker.utils import kwargs_from_env
from python_on_whales import ClientNotFoundError
from python_on_whales.exceptions import DockerException as CommandFailed

from simulator.assets import engine_help
from simulator.errors import CannotRun

_TIMEOUT_S = 60.0
_TAIL = 15  # lines of a failed command that an error shows


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the engine is.

    Attributes
    ----------
    host
        Its URL; "" for the platform's usual socket.
    tls
        Certificates, if the connection wants them.
    via
        Who named it: DOCKER_HOST, a context, or the default.
    """

    host: str
    tls: TLSConfig | bool
    via: str

    @property
    def shares_files(self) -> bool:
        """Whether a path of this machine means the same to the engine, so that it can mount it."""
        return urlsplit(self.host).scheme in ("", "unix", "npipe", "http+unix")

    @property
    def shares_loopback(self) -> bool:
        """Whether a port that the engine publishes on 127.0.0.1 is one of this machine."""
        return self.shares_files or urlsplit(self.host).hostname in (
            "localhost",
            "127.0.0.1",
            "::1",
        )

    @property
    def is_this_kernel(self) -> bool:
        """Whether nodes run on this machine's own kernel, not in a virtual machine."""
        return self.shares_files and platform.system() == "Linux" and "desktop" not in self.host


def find_connection() -> Connection:
    """The engine that ``docker`` on the command line would talk to.

    Raises
    ------
    CannotRun
        The environment or the current context cannot be read, or the address in it.
    """
    connection = _named_connection()
    try:
        _ = urlsplit(connection.host).port
    except ValueError as error:
        raise CannotRun(
            "the Docker engine's address cannot be read",
            why=f"{connection.via} says {connection.host}: {error}",
            remedy="Write it as in tcp://192.0.2.1:2376, tcp://[2001:db8::1]:2376 or ssh://user@machine",
        ) from error
    return connection


def _named_connection() -> Connection:
    try:
        if os.environ.get("DOCKER_HOST"):
            found = kwargs_from_env()
            return Connection(
                str(found.get("base_url") or ""), found.get("tls") or False, "DOCKER_HOST"
            )
        name = os.environ.get("DOCKER_CONTEXT") or None
        if name == "default":
            return Connection("", False, "the default context")
        context = ContextAPI.get_context(name)
    except (DockerException, OSError, ValueError) as error:
        raise CannotRun(
            "the Docker engine's address cannot be read",
            why=_last_line(str(error)),
            remedy="See: docker context ls",
        ) from error
    if context is None:
        raise CannotRun(
            f"there is no Docker context {name or ''!r}", remedy="See: docker context ls"
        )
    if context.Name == "default":
        return Connection("", False, "the default context")
    return Connection(
        str(context.Host or ""), context.TLSConfig or False, f"context {context.Name}"
    )


def connect(connection: Connection, timeout: float = _TIMEOUT_S) -> docker.APIClient:
    """A client of the engine; asks it for its version, so it fails if the engine is silent."""
    by_ssh = connection.host.startswith("ssh://")
    try:
        with asking("the Docker engine was asked for its version"):
            return docker.APIClient(
                base_url=connection.host or None,
                tls=connection.tls,
                version="auto",
                timeout=math.ceil(timeout),
                use_ssh_client=by_ssh,  # the system's ssh knows the user's keys and configuration
            )
    except CannotRun as error:
        cause = error.__cause__
        # What the SDK could not import has no name in it; it wants paramiko even for the system's ssh.
        if by_ssh and cause is not None and isinstance(cause.__cause__, NameError):
            raise CannotRun(
                "no Docker engine answers",
                why=f"{connection.host} needs the Docker SDK's SSH support; pip install 'docker[ssh]'",
            ) from cause
        raise


def engine_silence(timeout: float = 5.0) -> CannotRun | None:
    """None if a Docker engine answers, else the error that says why not, and what to do.

    Parameters
    ----------
    timeout
        How long to wait for an answer, seconds.
    """
    try:
        client = connect(find_connection(), timeout=timeout)
    except CannotRun as error:
        return error
    client.close()
    return None


def engine_answers(timeout: float = 5.0) -> str | None:
    """None if a Docker engine answers, else why not, in a few words; as `engine_silence`."""
    error = engine_silence(timeout)
    return None if error is None else error.why or error.what


@contextmanager
def asking(what: str, remedy: str = "") -> Iterator[None]:
    """Turns every error of the SDK and of the docker command into a `CannotRun`.

    The one place that knows how they fail: `what` was being done, the engine's own words say why.
    """
    try:
        yield
    except ImageNotFound as error:
        raise CannotRun(
            what,
            why=_explained(error),
            remedy=remedy or "Build the node image: python -m simulator image build",
        ) from error
    except APIError as error:
        raise CannotRun(what, why=_explained(error), remedy=remedy) from error
    except requests.exceptions.Timeout as error:
        raise CannotRun(
            what,
            why="the Docker engine did not answer in time",
            remedy=remedy or "Is the machine overloaded? See: docker info",
        ) from error
    except (DockerException, requests.exceptions.RequestException, OSError) as error:
        raise CannotRun(
            "no Docker engine answers",
            why=_silence(error),
            remedy=f"Start it, or install one; {engine_help()}",
        ) from error
    except ClientNotFoundError as error:
        raise CannotRun(
            what,
            why="there is no docker client on the PATH",
            remedy=f"Install Docker; {engine_help()}",
        ) from error
    except CommandFailed as error:
        lines = [line for line in (error.stderr or "").splitlines() if line.strip()]
        raise CannotRun(
            what,
            why=_last_line(error.stderr or "") or f"docker exited with {error.return_code}",
            remedy=remedy,
            details=lines[-_TAIL:-1],
        ) from error


def is_gone(error: CannotRun) -> bool:
    """Whether the engine said that what was asked about does not exist."""
    return isinstance(error.__cause__, APIError) and error.__cause__.status_code == 404


def is_refused(error: CannotRun) -> bool:
    """Whether the engine said that the thing is in a state in which it cannot do that."""
    return isinstance(error.__cause__, APIError) and error.__cause__.status_code in (304, 409)


def is_restless(error: CannotRun) -> bool:
    """Whether a node could not be frozen because processes were being started in it meanwhile."""
    return isinstance(error.__cause__, APIError) and "unable to freeze" in str(error.__cause__)


def is_address_clash(error: CannotRun) -> bool:
    """Whether a network could not be made because its addresses are taken."""
    cause = error.__cause__
    text = (cause.stderr or "") if isinstance(cause, CommandFailed) else str(error)
    return "overlaps with other one" in text or "conflicts with network" in text


def is_taken(error: CannotRun) -> bool:
    """Whether a container did not get an address because another one has it."""
    return isinstance(error.__cause__, APIError) and "already in use" in str(error.__cause__)


def is_unmountable(error: CannotRun) -> bool:
    """Whether the engine does not see a folder of this machine that it should mount."""
    cause = error.__cause__
    text = (cause.stderr or "") if isinstance(cause, CommandFailed) else str(error)
    return "bind source path does not exist" in text or "is not shared from the host" in text


def _explained(error: APIError) -> str:
    return _last_line(str(error.explanation or error))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""


def _silence(error: BaseException) -> str:
    """Why nobody answers: the operating system's reason is at the bottom of the chain."""
    seen: set[int] = set()
    reason: BaseException = error
    while id(reason) not in seen:
        seen.add(id(reason))
        nested = [a for a in reason.args if isinstance(a, BaseException)]
        deeper = reason.__cause__ or reason.__context__ or (nested[0] if nested else None)
        for arg in reason.args:
            if isinstance(arg, tuple):
                deeper = next((a for a in arg if isinstance(a, BaseException)), deeper)
        if deeper is None:
            break
        reason = deeper
    where = os.environ.get("DOCKER_HOST") or "the engine's socket"
    if isinstance(reason, FileNotFoundError):
        return f"{where} does not exist"
    if isinstance(reason, PermissionError):
        return f"no permission to use {where}; are you in the group docker?"
    if isinstance(reason, ConnectionRefusedError):
        return f"nothing listens at {where}"
    return _last_line(str(reason)) or type(reason).__name__
