"""Simulated vLLM engines on loopback, for the quick start, tests and benchmarks."""

from addons.sim.config import SimConfig
from addons.sim.fleet import SimFleet
from addons.sim.server import SimServer

__all__ = ["SimConfig", "SimFleet", "SimServer"]
