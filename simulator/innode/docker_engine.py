"""The few calls to a Docker engine that the cloud makes, over the engine's socket and nothing else.

A group's machines are copies of its template: a container that Compose made from the same definition as any
worker's, and that nobody ever starts. So the engine itself knows what a machine of the group is.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from simulator.innode.cloud import EngineError, Machine

LABEL_CLUSTER, LABEL_ROLE, LABEL_GROUP = "ray-sim.cluster", "ray-sim.role", "ray-sim.group"
#: What a machine was made with, as JSON.
LABEL_MACHINE = "ray-sim.machine"
_SERVICE, _NUMBER = "com.docker.compose.service", "com.docker.compose.container-number"
#: Where our programs are in a node; copied from the template where they are not mounted.
_INNODE = "/opt/ray-sim"
_READY = "/tmp/ray-sim/ready"
_STATES = {"restarting": "running", "removing": "exited", "dead": "exited"}


class DockerError(EngineError):
    """With the HTTP status that the engine gave, or 0."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class DockerEngine:
    """The machines of one cluster; nothing without its label is looked at, let alone touched."""

    def __init__(self, cluster: str, path: str) -> None:
        self._cluster, self._path = cluster, path

    def machines(self) -> list[Machine]:
        found = []
        for row in self._rows():
            labels = row["Labels"]
            role = labels.get(LABEL_ROLE)
            if role != "head" and LABEL_MACHINE not in labels:
                continue
            group = "head" if role == "head" else labels[LABEL_GROUP]
            state = _STATES.get(row["State"], row["State"])
            found.append(
                Machine(
                    "head" if role == "head" else f"{group}-{labels[_NUMBER]}",
                    group,
                    state,
                    json.loads(labels.get(LABEL_MACHINE, "{}")),
                    self._exit_code(row["Id"]) if state == "exited" else None,
                )
            )
        return found

    def make(self, group: str, number: int, note: Mapping[str, Any]) -> str:
        template = self._call("GET", f"/containers/{self._template(group)}/json")
        config = template["Config"]
        name = f"{group}-{number}"
        body = {
            **config,
            "Hostname": "",
            "Env": [
                *config["Env"],
                f"RAY_CLOUD_INSTANCE_ID={note['id']}",
                f"RAY_NODE_TYPE_NAME={group}",
            ],
            "Labels": {
                **config["Labels"],
                LABEL_ROLE: "worker",
                LABEL_MACHINE: json.dumps(note, separators=(",", ":")),
                _SERVICE: group,
                _NUMBER: str(number),
            },
            "HostConfig": template["HostConfig"],
        }
        made = self._call("POST", f"/containers/create?name={self._cluster}-{name}", body)["Id"]
        if not any(m["Destination"].startswith(_INNODE) for m in template["Mounts"]):
            self._copy_programs(template["Id"], made)
        return name

    def start(self, name: str) -> None:
        self._call("POST", f"/containers/{self._id(name)}/start")

    def ready(self, name: str) -> bool:
        path = f"/containers/{self._id(name)}/archive?path={quote(_READY)}"
        try:
            self._call("HEAD", path)
        except DockerError as error:
            if error.status == 404:
                return False
            raise
        return True

    def stop(self, name: str, grace: float) -> None:
        self._call("POST", f"/containers/{self._id(name)}/stop?t={int(grace)}")

    def remove(self, name: str) -> None:
        try:
            self._call("DELETE", f"/containers/{self._id(name)}?force=1&v=1")
        except DockerError as error:
            if error.status not in (404, 409):  # gone, or going
                raise

    def _rows(self) -> list[dict[str, Any]]:
        filters = json.dumps({"label": [f"{LABEL_CLUSTER}={self._cluster}"]})
        rows: list[dict[str, Any]] = self._call(
            "GET", "/containers/json?" + urlencode({"all": 1, "filters": filters})
        )
        return rows

    def _id(self, name: str) -> str:
        group, _, number = name.rpartition("-")
        for row in self._rows():
            labels = row["Labels"]
            if LABEL_MACHINE in labels and (labels[LABEL_GROUP], labels[_NUMBER]) == (
                group,
                number,
            ):
                return str(row["Id"])
        raise DockerError(f"there is no machine {name}", 404)

    def _template(self, group: str) -> str:
        for row in self._rows():
            if row["Labels"].get(LABEL_ROLE) == "template" and row["Labels"][LABEL_GROUP] == group:
                return str(row["Id"])
        raise DockerError(f"group {group} has no template")

    def _exit_code(self, container: str) -> int | None:
        try:
            state = self._call("GET", f"/containers/{container}/json")["State"]
        except DockerError:
            return None
        return int(state["ExitCode"])

    def _copy_programs(self, template: str, made: str) -> None:
        path = f"/archive?path={quote(_INNODE)}"
        data = self._call("GET", f"/containers/{template}{path}", raw=True)
        self._call("PUT", f"/containers/{made}/archive?path=/opt", data, raw=True)

    def _call(self, method: str, path: str, body: Any = None, *, raw: bool = False) -> Any:
        connection = _Connection(self._path)
        try:
            headers = {}
            data = body
            if body is not None and not raw:
                data, headers = json.dumps(body), {"Content-Type": "application/json"}
            elif raw and body is not None:
                headers = {"Content-Type": "application/x-tar"}
            connection.request(method, path, body=data, headers=headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise DockerError(f"the engine does not answer: {error}") from error
        finally:
            connection.close()
        if response.status >= 400:
            try:
                text = json.loads(answer)["message"]
            except (ValueError, KeyError, TypeError):
                text = answer.decode(errors="replace")
            raise DockerError(f"{method} {path.partition('?')[0]}: {text}", response.status)
        return answer if raw else json.loads(answer) if answer else None
