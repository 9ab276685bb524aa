"""Whether the head can keep its tables where it is told to, asked before Ray is started."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simulator.innode import store

PASSWORD = "secret"


class Redis(socketserver.ThreadingTCPServer):
    """Answers as Redis does to AUTH and PING, and says what it was asked."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, loading: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[list[str]] = []
        self.loading = loading

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Redis)
        known = False
        while header := self.rfile.readline():
            words = []
            for _ in range(int(header[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length).decode())
                self.rfile.readline()
            self.server.asked.append(words)
            if words[0] == "AUTH":
                known = words[1] == PASSWORD
                answer = "+OK" if known else "-WRONGPASS invalid username-password pair"
            elif not known:
                answer = "-NOAUTH Authentication required."
            elif self.server.loading:
                self.server.loading -= 1
                answer = "-LOADING Redis is loading the dataset in memory"
            else:
                answer = "+PONG"
            self.wfile.write(f"{answer}\r\n".encode())


@contextmanager
def redis(loading: int = 0) -> Iterator[Redis]:
    with Redis(loading) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def environment(tmp_path: Path, address: str, password: str = PASSWORD) -> dict[str, str]:
    file = tmp_path / "password"
    file.write_text(password)
    return {"RAY_REDIS_ADDRESS": address, "RAY_SIM_REDIS_PASSWORD_FILE": str(file)}


def test_a_head_that_keeps_its_tables_in_memory_needs_nothing() -> None:
    assert store.problem({}) == ""
    assert store.secret_arguments({}) == []


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    asked = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(tmp_path)}
    assert store.problem(asked) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "why"), [("missing", "No such file or directory"), ("file", "Not a directory")]
)
def test_a_folder_that_cannot_be_written_to_is_named_with_what_to_do(
    tmp_path: Path, name: str, why: str
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    said = store.problem({"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(path)})
    assert said.startswith(f"{path} cannot be written to: {why}; make it a folder that user ")


def test_a_redis_is_asked_with_its_password_and_may_take_its_time(tmp_path: Path) -> None:
    with redis(loading=2) as server:
        asked = environment(tmp_path, server.address)
        assert store.problem(asked, patience=30.0) == ""
        assert store.secret_arguments(asked) == [f"--redis-password={PASSWORD}"]
    assert server.asked == [["AUTH", PASSWORD], ["PING"]] * 3


def test_a_redis_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with redis() as server:
        address = server.address
    said = store.problem(environment(tmp_path, address), patience=0.0)
    assert (
        said == f"Redis at {address} does not answer: Connection refused; see: status, logs redis"
    )


def test_nobody_waits_for_a_redis_when_the_head_is_to_stop(tmp_path: Path) -> None:
    with redis() as server:
        address = server.address
    assert store.problem(environment(tmp_path, address), patience=600.0, give_up=lambda: True)


@pytest.mark.parametrize(("password", "why"), [("other", "WRONGPASS"), ("", "NOAUTH")])
def test_a_redis_that_wants_another_password_is_not_waited_for(
    tmp_path: Path, password: str, why: str
) -> None:
    with redis() as server:
        said = store.problem(environment(tmp_path, server.address, password), patience=600.0)
    assert said.startswith(f"Redis at {server.address} refuses: {why}")


def test_a_redis_that_goes_on_loading_is_said_to(tmp_path: Path) -> None:
    with redis(loading=1000) as server:
        said = store.problem(environment(tmp_path, server.address), patience=0.5)
    assert said.startswith(f"Redis at {server.address} LOADING")
