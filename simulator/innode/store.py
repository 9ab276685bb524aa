"""Where the head's GCS keeps its tables: whether it can be used, asked before Ray is started.

Ray would try for a minute and then end with a stack trace. Here it is known in seconds, and said in one
sentence what is wrong and where.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

#: How long a Redis may take to answer, seconds: who starts the head has seen it answer a moment ago.
PATIENCE_S = 10.0
#: Of one question to it, seconds.
_ANSWER_S = 2.0
#: What Redis answers with while it reads its data back.
_NOT_YET = ("LOADING", "BUSY")


def problem(
    environ: Mapping[str, str],
    *,
    patience: float = PATIENCE_S,
    give_up: Callable[[], bool] = lambda: False,
) -> str:
    """Why the store that Ray is told to use cannot be used, and what to do; "" if it can, or is memory.

    Parameters
    ----------
    environ
        The head's.
    patience
        How long to wait for a Redis that does not answer, seconds.
    give_up
        Asked meanwhile.
    """
    if address := environ.get("RAY_REDIS_ADDRESS"):
        return _of_redis(address, _password(environ), patience, give_up)
    if environ.get("RAY_gcs_storage") == "rocksdb":
        return _of_folder(environ.get("RAY_gcs_storage_path", ""))
    return ""


def secret_arguments(environ: Mapping[str, str]) -> list[str]:
    """What ``ray start`` is to be told and nobody else: Ray takes it in no other way."""
    password = _password(environ)
    return [f"--redis-password={password}"] if password else []


def _password(environ: Mapping[str, str]) -> str:
    path = environ.get("RAY_SIM_REDIS_PASSWORD_FILE")
    if not path:
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def _of_folder(path: str) -> str:
    if not path:
        return "RAY_gcs_storage_path is not set; name a folder"
    import tempfile  # which other nodes, and other stores, do without

    try:
        with tempfile.TemporaryFile(dir=path):
            return ""
    except OSError as error:
        return (
            f"{path} cannot be written to: {error.strerror}; "
            f"make it a folder that user {os.getuid()} may write to"
        )


def _of_redis(address: str, password: str, patience: float, give_up: Callable[[], bool]) -> str:
    end = time.monotonic() + patience
    while True:
        try:
            said = _ask(address, password)
        except (OSError, ValueError) as error:
            said = f"does not answer: {getattr(error, 'strerror', None) or error}"
            wait = True
        else:
            wait = said.split(" ")[0] in _NOT_YET
        if not said:
            return ""
        if not wait or time.monotonic() > end or give_up():
            return f"Redis at {address} {said if wait else f'refuses: {said}'}; see: status, logs redis"
        time.sleep(0.2)


def _ask(address: str, password: str) -> str:
    """Its complaint, in its own words; "" if it has none."""
    host, _, port = address.rpartition(":")
    commands = [["PING"]]
    if password:
        commands.insert(0, ["AUTH", password])
    with socket.create_connection((host, int(port)), _ANSWER_S) as connection:
        connection.settimeout(_ANSWER_S)
        with connection.makefile("rwb") as stream:
            for command in commands:
                words = "".join(f"${len(word)}\r\n{word}\r\n" for word in command)
                stream.write(f"*{len(command)}\r\n{words}".encode())
                stream.flush()
                answer = stream.readline().decode(errors="replace").strip()
                if not answer:
                    raise OSError("it hung up")
                if answer.startswith("-"):
                    return answer[1:]
    return ""
