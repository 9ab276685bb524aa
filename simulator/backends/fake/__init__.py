"""A backend in memory for testing experiments, faults and checks. Never evidence that a fault works."""

from __future__ import annotations

from simulator.backends.fake.backend import Call, FakeBackend
from simulator.backends.fake.clock import FakeClock
from simulator.backends.fake.script import Behaviour

__all__ = ["Behaviour", "Call", "FakeBackend", "FakeClock"]
