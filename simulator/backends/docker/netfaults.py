"""Faults on a node's network, from a container that joins it for a moment: the node itself knows nothing.

Every call makes one container in the network namespace of the node's, has it read what is there, change
it, and removes it again, in a third of a second. It has NET_ADMIN over that namespace and no other right, and
no network, volume or port of its own; the node gets no right and no tool. It carries the cluster's label,
ends by itself after a minute and then removes itself, so that one whose orchestrator was killed leaves nothing.

What it leaves are the rules (`simulator.netrules`). They live in the namespace, so they go with the node's
container when that ends, and with everything else when the cluster is removed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import docker

from simulator import netrules
from simulator.backends.base import LABEL_CLUSTER, LABEL_ROLE, Answer, NodeState
from simulator.backends.docker.engine import asking, is_gone, is_refused, is_taken
from simulator.backends.docker.image import NETFAULT_IMAGE, ensure_image, image_present
from simulator.backends.docker.programs import LABEL_PROGRAM
from simulator.compose import NETWORK
from simulator.errors import CannotRun
from simulator.netrules import Ability, Feature, Found, NetRule

_LIVES_S = 60
#: How often a network is read: on a crowded machine the engine was seen to lose what a process wrote that had ended
#: well at once. Reading changes nothing.
_READS = 3
_COMPOSE_SERVICE = "com.docker.compose.service"
#: Where the container of what has a fixed address says which.
_FIXED: Mapping[str, str] = {"head": "RAY_SIM_HEAD_ADDRESS", "store": "RAY_SIM_ADDRESS"}

#: Runs a shell script in the namespace; raises `CannotRun` with its last line if it fails.
Run = Callable[[str], str]
#: A node's container and its state, by cluster and name.
Find = Callable[[str, str], tuple[str, NodeState]]

_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])).close()
    print("accepted")
except ConnectionRefusedError:
    print("refused")
except TimeoutError:
    print("silence")
except OSError:
    print("no route")
"""


class NetworkFaults:
    """What `simulator.backends.base.CanShapeNetwork` and `CanDisconnect` ask for, on one engine.

    Parameters
    ----------
    client
        Gives the engine's client; it connects when it is first needed.
    find
        Raises `NotFound` for a node that does not exist.
    """

    def __init__(self, client: Callable[[], docker.APIClient], find: Find) -> None:
        self._client, self._find = client, find
        self._ability: Ability | None = None

    def prepare(self, say: Callable[[str], None]) -> None:
        ensure_image(NETFAULT_IMAGE, say=say)

    def lacks(self) -> Mapping[Feature, str]:
        return self._able().lacks

    def add(self, cluster: str, node: str, site: str, rule: NetRule) -> None:
        container, state = self._find(cluster, node)
        if state not in ("running", "paused"):
            raise CannotRun(
                f"the network of {node} cannot be shaped",
                why=f"it is {state}, and has none",
                remedy=f"Start it first: restart {node}",
            )
        tool = self._tool()
        with self._joined(cluster, node, container) as run:
            run(netrules.add_script(tool, cluster, site, rule, _read(run, tool)))

    def remove(self, cluster: str, node: str, site: str) -> None:
        self._take_away(
            cluster, node, lambda tool, found: netrules.remove_script(tool, site, found)
        )

    def clear(self, cluster: str, node: str) -> Sequence[str]:
        if not image_present(NETFAULT_IMAGE):
            return ()
        return sorted(self._take_away(cluster, node, netrules.clear_script).sites)

    def rules(self, cluster: str, node: str) -> Mapping[str, NetRule]:
        container, state = self._find(cluster, node)
        if state not in ("running", "paused"):
            return {}
        tool = self._tool()
        with self._joined(cluster, node, container) as run:
            return _read(run, tool).rules

    def reach(self, cluster: str, node: str, address: str, port: int, timeout: float) -> Answer:
        container, _ = self._find(cluster, node)
        with self._joined(cluster, node, container, rights=()) as run:
            said = run(f"python3 -c '{_CONNECT}' {address} {port} {timeout}").strip()
        return cast(Answer, said)

    def unanswered(self, cluster: str, node: str, addresses: Sequence[str]) -> int:
        container, state = self._find(cluster, node)
        if state not in ("running", "paused"):
            return 0
        with self._joined(cluster, node, container, rights=()) as run:
            table = run("cat /proc/net/tcp; cat /proc/net/tcp6 2>/dev/null; true")
        return sum(netrules.unanswered(table, address) for address in addresses)

    def _take_away(self, cluster: str, node: str, script: Callable[[str, Found], str]) -> Found:
        """Returns what was there before."""
        container, state = self._find(cluster, node)
        if state not in ("running", "paused"):
            return Found()  # its rules went with it
        tool = self._tool()
        with self._joined(cluster, node, container) as run:
            found = _read(run, tool)
            if wanted := script(tool, found):
                run(wanted)
        return found

    # -- what the kernel can do --------------------------------------------------------------------

    def _able(self) -> Ability:
        if self._ability is None:
            name = f"netfault-{secrets.token_hex(4)}"
            with self._sidecar(name, name, "none", ("NET_ADMIN", "NET_RAW")) as run:
                self._ability = netrules.read_probe(run(netrules.probe_script()))
        return self._ability

    def _tool(self) -> str:
        ability = self._able()
        if not ability.tool:
            raise CannotRun(
                "no packet can be dropped on this machine", why=ability.lacks.get("drop", "")
            )
        return ability.tool

    # -- the container -----------------------------------------------------------------------------

    @contextmanager
    def _joined(
        self, cluster: str, node: str, container: str, rights: Sequence[str] = ("NET_ADMIN",)
    ) -> Iterator[Run]:
        if rights and self._tool() != netrules.TOOLS[0]:
            rights = (*rights, "NET_RAW")  # the older iptables asks through a raw socket
        name = f"{node}-netfault-{secrets.token_hex(3)}"
        with self._sidecar(cluster, name, f"container:{container}", rights) as run:
            yield run

    @contextmanager
    def _sidecar(
        self, cluster: str, name: str, network: str, rights: Sequence[str]
    ) -> Iterator[Run]:
        client = self._client()
        what = f"the network of {name.partition('-netfault-')[0]} was looked into"
        if network == "none":
            what = "it was tried what this machine can do to networks"
        with _image_there(), asking(what):
            container = cast(
                str,
                client.create_container(
                    image=NETFAULT_IMAGE,
                    name=f"{cluster}-{name}" if cluster != name else name,
                    entrypoint=["sleep", str(_LIVES_S)],
                    user="0:0",
                    labels={LABEL_CLUSTER: cluster, LABEL_ROLE: "program", LABEL_PROGRAM: name},
                    environment={"NVIDIA_VISIBLE_DEVICES": "void"},
                    host_config=client.create_host_config(
                        network_mode=network,
                        cap_drop=["ALL"],
                        cap_add=list(rights),
                        security_opt=["no-new-privileges:true"],
                        mem_limit="64m",
                        pids_limit=32,
                        auto_remove=True,
                    ),
                )["Id"],
            )
        try:
            with asking(what):
                client.start(container)
            yield lambda script: _execute(client, container, script, what)
        finally:
            try:
                with asking(f"container {name} was removed"):
                    client.remove_container(container, force=True, v=True)
            except CannotRun as error:
                if not (is_gone(error) or is_refused(error)):
                    raise

    # -- unplugging --------------------------------------------------------------------------------

    def disconnect(self, cluster: str, node: str) -> None:
        container, _ = self._find(cluster, node)
        if self.is_connected(cluster, node):
            with asking(f"{node} was unplugged from the network"):
                self._client().disconnect_container_from_network(
                    container, _network(cluster), force=True
                )

    def connect(self, cluster: str, node: str, address: str = "") -> str:
        container, _ = self._find(cluster, node)
        client = self._client()
        if not self.is_connected(cluster, node):
            with asking(f"{node} was asked for its names"):
                config = client.inspect_container(container)["Config"]
            labels = config["Labels"]
            aliases = [labels[_COMPOSE_SERVICE]] if _COMPOSE_SERVICE in labels else []
            if not address and (said := _FIXED.get(labels[LABEL_ROLE])):
                known = [e.partition("=") for e in config["Env"]]
                address = next((v for n, _, v in known if n == said), "").split(":")[0]
            try:
                self._plug_in(cluster, node, container, aliases, address)
            except CannotRun as error:
                if not (address and is_taken(error)):
                    raise
                self._plug_in(cluster, node, container, aliases, "")
        return self._address(cluster, container)

    def _plug_in(
        self, cluster: str, node: str, container: str, aliases: list[str], address: str
    ) -> None:
        with asking(f"{node} was plugged into the network again"):
            self._client().connect_container_to_network(
                container, _network(cluster), ipv4_address=address or None, aliases=aliases
            )

    def is_connected(self, cluster: str, node: str) -> bool:
        container, _ = self._find(cluster, node)
        with asking(f"{node} was asked for its networks"):
            model = self._client().inspect_container(container)
        return _network(cluster) in model["NetworkSettings"]["Networks"]

    def _address(self, cluster: str, container: str) -> str:
        with asking("a node was asked for its address"):
            networks = self._client().inspect_container(container)["NetworkSettings"]["Networks"]
        return str(networks[_network(cluster)]["IPAddress"])


def _network(cluster: str) -> str:
    return f"{cluster}_{NETWORK}"


@contextmanager
def _image_there() -> Iterator[None]:
    """Says what to do where the engine has no such image."""
    try:
        yield
    except CannotRun as error:
        if not is_gone(error):
            raise
        raise CannotRun(
            "faults on the network need the image " + NETFAULT_IMAGE,
            why="this engine does not have it",
            remedy="Build it: python -m simulator image build --target netfault",
        ) from error


def _read(run: Run, tool: str) -> Found:
    for left in reversed(range(_READS)):
        text = run(netrules.read_script(tool))
        try:
            return netrules.read(text)
        except ValueError as error:
            if not left:
                raise CannotRun("a node's network cannot be read", why=str(error)) from error
    raise AssertionError("one of the two happened")


def _execute(client: docker.APIClient, container: str, script: str, what: str) -> str:
    with asking(what):
        ident = client.exec_create(container, ["sh", "-c", script])["Id"]
        output, errors = client.exec_start(ident, demux=True)
        code = int(client.exec_inspect(ident)["ExitCode"])
    if code:
        lines = [line for line in (errors or b"").decode(errors="replace").splitlines() if line]
        raise CannotRun(what, why=lines[-1] if lines else f"it ended with {code}")
    return bytes(output or b"").decode(errors="replace")
