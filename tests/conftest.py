"""Runs that can be repeated: each test draws the same numbers each time, whatever the machine's pace."""

import random

import pytest
from hypothesis import HealthCheck, Phase, settings

SAME = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", SAME)
settings.register_profile("new", SAME, derandomize=False)  # what nobody has tried yet
settings.register_profile("mutations", SAME, phases=(Phase.explicit, Phase.generate))  # none is made small
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(5)
