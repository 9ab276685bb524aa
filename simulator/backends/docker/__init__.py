"""The Docker backend: each node a container with its own address, filesystem and limits."""

from __future__ import annotations

from simulator.backends.docker.backend import DockerBackend
from simulator.backends.docker.engine import engine_answers, engine_silence

__all__ = ["DockerBackend", "engine_answers", "engine_silence"]
