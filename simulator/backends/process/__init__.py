"""Nodes as groups of processes; see `simulator.backends.process.backend`."""

from __future__ import annotations

from simulator.backends.process.backend import ProcessBackend, state_root

__all__ = ["ProcessBackend", "state_root"]
