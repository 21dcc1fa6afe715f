"""What every registered policy promises, and what each one does."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import is_dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lb_core.policies import POLICIES, Policy
from lb_core.policies.consistent_hash import ConsistentHash
from lb_core.policies.least_request import GlobalLeastRequest
from lb_core.policies.random import Random
from lb_core.policies.round_robin import RoundRobin
from lb_core.stores.placement import place
from lb_core.types import Endpoint
from tests.core.build import endpoint, endpoints, request, snapshot

NAMES = sorted(POLICIES)
WEIGHTS = st.lists(st.floats(0.01, 1000), min_size=1, max_size=12)


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_a_frozen_dataclass_with_defaults_under_its_own_name(name: str) -> None:
    policy = POLICIES[name]()
    assert policy.name == name
    assert is_dataclass(policy)
    assert policy.__dataclass_params__.frozen


@pytest.mark.parametrize("name", NAMES)
@given(
    weights=WEIGHTS,
    sequence=st.integers(0, 10**9),
    tie=st.floats(0, 1, exclude_max=True),
    session=st.none() | st.text(),
)
def test_a_decision_names_every_candidate_and_nothing_else(
    name: str, weights: list[float], sequence: int, tie: float, session: str | None
) -> None:
    members = [endpoint(f"e{number}", weight=weight) for number, weight in enumerate(weights)]
    shot = snapshot(*members, sequence=sequence)
    decision = POLICIES[name]().decide(request(tie=tie, session=session), shot)
    assert {choice.endpoint for tier in decision.tiers for choice in tier.choices} == set(members)
    assert all(tier.choices and tier.reason for tier in decision.tiers)
    assert place(decision, {}, tie) is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_and_snapshot_give_the_same_decision(name: str) -> None:
    shot = snapshot(*endpoints(7), sequence=5)
    asked = request(number=3, tie=0.25, session="s")
    policy = POLICIES[name]()
    assert policy.decide(asked, shot) == policy.decide(asked, shot)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_favourite_gives_way_to_one_with_room(name: str) -> None:
    members = [endpoint(f"e{number}", max_in_flight=2) for number in range(4)]
    counts = {member.name: 2 for member in members[1:]}
    for number in range(40):
        shot = snapshot(*members, in_flight=counts, sequence=number)
        decision = POLICIES[name]().decide(request(number=number, session=str(number)), shot)
        placed = place(decision, counts, 0.5)
        assert placed is not None
        assert placed[1].endpoint is members[0]


def favourites(policy: Policy, members: Sequence[Endpoint], number: int) -> Counter[str]:
    """How often each member comes first in `number` decisions with nothing in flight."""
    counted: Counter[str] = Counter()
    for turn in range(number):
        asked = request(number=turn, tie=turn * 0.6180339887 % 1, session=f"user-{turn}")
        decision = policy.decide(asked, snapshot(*members, sequence=turn))
        placed = place(decision, {}, asked.tie)
        assert placed is not None
        counted[placed[1].endpoint.name] += 1
    return counted


def turns(members: Sequence[Endpoint], number: int) -> list[str]:
    """Whose turn it is in so many decisions of round robin."""
    return [
        RoundRobin().decide(request(), snapshot(*members, sequence=turn)).tiers[0].choices[0].endpoint.name
        for turn in range(number)
    ]


def test_round_robin_takes_equal_endpoints_in_turn() -> None:
    assert turns(endpoints(3), 6) == ["e0", "e1", "e2", "e0", "e1", "e2"]


def test_round_robin_spreads_a_heavy_endpoint_over_the_turn() -> None:
    members = (endpoint("a", weight=5), endpoint("b"), endpoint("c"))
    assert "".join(turns(members, 14)) == "abaaaca" * 2


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12))
@example([1] * 9 + [300] + [1] * 9)
def test_round_robin_is_exact_over_a_cycle_and_never_far_from_it(hundredths: list[int]) -> None:
    members = [endpoint(f"e{number}", weight=weight / 100) for number, weight in enumerate(hundredths)]
    cycle = sum(hundredths)
    counted: Counter[str] = Counter()
    for turn, name in enumerate(turns(members, cycle), 1):
        counted[name] += 1
        due = turn * hundredths[int(name[1:])] / cycle
        assert abs(counted[name] - due) < 2.5
    assert [counted[member.name] for member in members] == hundredths


def test_round_robin_takes_any_weight_above_0() -> None:
    assert Counter(turns([endpoint("a", weight=5e-324), endpoint("b", weight=1000.0)], 100)) == {"b": 100}
    assert turns([endpoint("a", weight=2e-9), endpoint("b", weight=1e-9)], 3) == ["a", "b", "a"]


def test_round_robin_needs_no_long_preparation_for_a_thousand_weights() -> None:
    members = [endpoint(f"e{number}", weight=0.5 + number / 700) for number in range(1000)]
    shot = snapshot(*members)
    begun = time.process_time()
    RoundRobin().decide(request(), shot)
    assert time.process_time() - begun < 0.2, "a table of turns takes seconds"


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_shares(name: str) -> None:
    members = [endpoint("a", weight=1), endpoint("b", weight=2), endpoint("c", weight=5)]
    counted = favourites(POLICIES[name](), members, 8000)
    for member in members:
        assert counted[member.name] == pytest.approx(1000 * member.weight, rel=0.08)


def test_consistent_hash_moves_only_the_sessions_of_the_endpoint_that_left() -> None:
    members = endpoints(6)
    before, after = snapshot(*members), snapshot(*members[:-1])
    for number in range(500):
        asked = request(session=f"session-{number}")
        was = ConsistentHash().decide(asked, before).tiers[0].choices[0].endpoint
        now = ConsistentHash().decide(asked, after).tiers[0].choices[0].endpoint
        assert was is now or was is members[-1]


def test_consistent_hash_without_a_session_is_least_request() -> None:
    decision = ConsistentHash().decide(request(session=None), snapshot(*endpoints(3)))
    assert [tier.reason for tier in decision.tiers] == ["no_session"]


def test_random_depends_on_the_request_alone() -> None:
    shots = [snapshot(*endpoints(5), sequence=turn) for turn in range(3)]
    firsts = {Random().decide(request(number=7), shot).tiers[0].choices[0].endpoint.name for shot in shots}
    assert len(firsts) == 1


def test_global_least_request_carries_its_limit_and_zero_is_none() -> None:
    shot = snapshot(*endpoints(2))
    assert GlobalLeastRequest(max_request_count=4).decide(request(), shot).max_in_flight == 4
    assert GlobalLeastRequest().decide(request(), shot).max_in_flight is None
