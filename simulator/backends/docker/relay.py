"""Reaches a port in a container of an engine whose loopback is not this machine's.

Nodes publish their dashboard on 127.0.0.1 only. Where the engine is on another machine (or beside
this one, as in many CI systems) that is the other machine's, and opening the port to the network
instead would be wrong. What can always be done is to execute something in the container, so each
connection to a local port is carried by a ``docker exec`` of its own.
"""

from __future__ import annotations

import socket
import socketserver
import subprocess
import threading
from contextlib import suppress
from typing import IO

#: Runs in the container: standard input to the port, what the port answers to standard output.
_CARRY = """
import os, socket, sys, threading
port = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def up():
    while data := os.read(0, 65536):
        port.sendall(data)
    port.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := port.recv(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
"""


class Relay:
    """A local port that leads to one port in one container, until this process ends."""

    def __init__(self, container: str, port: int) -> None:
        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                _carry(self.request, container, port)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="relay", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _carry(connection: socket.socket, container: str, port: int) -> None:
    with subprocess.Popen(
        ["docker", "exec", "--interactive", container, "python", "-c", _CARRY, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sender = threading.Thread(target=_send, args=(connection, process.stdin), daemon=True)
        sender.start()
        with suppress(OSError):
            while data := process.stdout.read1(65536):  # type: ignore[attr-defined]
                connection.sendall(data)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        sender.join()


def _send(connection: socket.socket, pipe: IO[bytes]) -> None:
    with suppress(OSError):
        while data := connection.recv(65536):
            pipe.write(data)
            pipe.flush()
    with suppress(OSError):
        pipe.close()
