"""Copies files to and from containers by the engine's archives, so that none need run or have tools.

``docker cp`` itself is not used: it gives what it copies to root, and a node's user, who is not root,
could not read a file of mode 0600 or write beside it.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import docker

from simulator.backends.docker.archive import extract, only_file, save_file, tar_for
from simulator.backends.docker.engine import asking, is_gone
from simulator.backends.paths import Kind, destination, kind_of, means_content
from simulator.errors import CannotRun

# Bits of a file's mode as the engine, which is written in Go, gives it.
_FOLDER, _LINK = 1 << 31, 1 << 27


def copy_in(client: docker.APIClient, container: str, source: str, target: str) -> list[str]:
    """Copy to a container, owned by its user; returns what was left out."""
    model = _model(client, container)
    there = _absolute(model, target)

    def kind(path: str) -> Kind:
        return _kind(client, container, path)[0]

    here = Path(source)
    into = destination(source, kind_of(here), there, kind)
    if kind(str(into)) != "none":
        into = PurePosixPath(_kind(client, container, str(into))[1])
    # A folder that exists keeps its owner and mode: it may be /tmp.
    inside = means_content(source) and kind(str(into)) == "folder"
    owner = _owner(client, model)
    with tempfile.TemporaryFile() as file, asking(f"{source} was copied to {target}"):
        left_out = tar_for(file, here.resolve(), None if inside else into.name, owner)
        file.seek(0)
        client.put_archive(container, str(into if inside else into.parent), file)
    return left_out


def copy_out(client: docker.APIClient, container: str, source: str, target: str) -> list[str]:
    """Copy from a container; returns what was left out."""
    there = _absolute(_model(client, container), source)
    kind, path = _kind(client, container, there)
    into = Path(destination(there, kind, target, lambda here: kind_of(Path(here))))
    with asking(f"{source} was copied to {target}"):
        chunks, _ = client.get_archive(container, path)
        if kind == "file":
            save_file(chunks, into)
            return []
        return extract(chunks, into)


def _model(client: docker.APIClient, container: str) -> Mapping[str, Any]:
    with asking("a node was asked where it works and as whom"):
        model: Mapping[str, Any] = client.inspect_container(container)
    return model


def _absolute(model: Mapping[str, Any], path: str) -> str:
    """The path from the root on, beginning where a command that is executed begins."""
    return path if path.startswith("/") else f"{model['Config']['WorkingDir'] or ''}/{path}"


def _kind(client: docker.APIClient, container: str, path: str) -> tuple[Kind, str]:
    """What there is at a path, and the path that it is when links have been followed."""
    path = str(PurePosixPath(path))
    # The SDK's own method for this begins to fetch the content.
    url = f"{client.base_url}/v{client.api_version}/containers/{container}/archive"
    for _ in range(2):
        with asking(f"a node was asked for {path}"):
            answer = client.head(url, params={"path": path}, timeout=client.timeout)
            if answer.status_code == 404:
                return "none", path
            answer.raise_for_status()
        stat = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
        if not (stat["mode"] & _LINK and stat["linkTarget"]):
            break
        path = stat["linkTarget"]
    return "folder" if stat["mode"] & _FOLDER else "file", path


def _owner(client: docker.APIClient, model: Mapping[str, Any]) -> tuple[int, int]:
    """User and group, as numbers, of whoever works in the container."""
    user, _, group = (model["Config"]["User"] or "0:0").partition(":")
    if user.isdigit():
        return int(user), int(group) if group.isdigit() else int(user)
    try:
        with asking("a node was asked for its users"):
            chunks, _ = client.get_archive(model["Id"], "/etc/passwd")
            lines = only_file(chunks).decode(errors="replace").splitlines()
    except CannotRun as error:
        if not is_gone(error):
            raise
        lines = []
    for name, _, uid, gid, *_ in (line.split(":") for line in lines if line.count(":") > 3):
        if name == user:
            return int(uid), int(gid)
    raise CannotRun(f"the node's user {user} has no number", why="/etc/passwd does not list it")
