"""What the tests of the command line share: one command line run here, on the fake backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from simulator.backends import select
from simulator.backends.base import Backend
from simulator.backends.fake import FakeBackend
from simulator.cli import main

#: A run of the fake backend that is over soon.
SHORT = ("--param", "at=4", "--param", "tasks=60")


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Outcome]


def use_backends(monkeypatch: pytest.MonkeyPatch, *backends: Backend) -> None:
    """Let the command line see these backends and no others; auto takes the first."""

    def choose(name: str = "auto") -> select.Choice:
        backend = backends[0] if name == "auto" else make(name)
        return select.Choice(backend, f"{backend.name}, for this test")

    def make(name: str) -> Backend:
        return next(b for b in backends if name in (b.name, "auto"))

    monkeypatch.setattr(select, "NAMES", ("auto", *(b.name for b in backends)))
    monkeypatch.setattr(select, "choose", choose)
    monkeypatch.setattr(select, "make", make)
    monkeypatch.setattr(
        select,
        "usable",
        lambda name="auto": select.Usable(backends if name == "auto" else [make(name)]),
    )


def runner_of(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs one command line in this process."""

    def command(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return command


def another(name: str, backend: FakeBackend) -> FakeBackend:
    """The same backend under another name."""
    backend.name = name
    return backend
