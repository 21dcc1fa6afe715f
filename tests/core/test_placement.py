"""The rule by which a request is placed."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_core.drawing import weighted_pick
from lb_core.stores.placement import place
from lb_core.types import Choice, Decision, Endpoint, Tier
from tests.core.build import endpoint


def tier(*members: Endpoint, virtual: float = 0.0) -> Tier:
    return Tier(tuple(Choice(member, virtual_load=virtual) for member in members), "test")


def placed_name(decision: Decision, counts: dict[str, int], tie: float = 0.0) -> str | None:
    placed = place(decision, counts, tie)
    return placed[1].endpoint.name if placed else None


def test_the_fewest_requests_in_flight_wins() -> None:
    decision = Decision("p", (tier(endpoint("a"), endpoint("b"), endpoint("c")),))
    assert placed_name(decision, {"a": 2, "b": 1, "c": 3}) == "b"


def test_counts_are_divided_by_weights() -> None:
    decision = Decision("p", (tier(endpoint("a", weight=4), endpoint("b")),))
    assert placed_name(decision, {"a": 3, "b": 1}) == "a"


def test_virtual_load_counts_like_requests() -> None:
    ghost = Choice(endpoint("a"), virtual_load=2)
    decision = Decision("p", (Tier((ghost, Choice(endpoint("b"))), "test"),))
    assert placed_name(decision, {"b": 1}) == "b"


def test_a_worse_tier_is_used_only_when_the_better_one_is_full() -> None:
    decision = Decision("p", (tier(endpoint("a", max_in_flight=1)), tier(endpoint("b"))))
    assert placed_name(decision, {"b": 0}) == "a"
    assert placed_name(decision, {"a": 1, "b": 9}) == "b"


def test_the_tighter_of_both_limits_holds() -> None:
    decision = Decision("p", (tier(endpoint("a", max_in_flight=5)),), max_in_flight=2)
    assert placed_name(decision, {"a": 1}) == "a"
    assert placed_name(decision, {"a": 2}) is None
    decision = Decision("p", (tier(endpoint("a", max_in_flight=1)),), max_in_flight=2)
    assert placed_name(decision, {"a": 1}) is None


def test_nothing_is_placed_when_all_are_full() -> None:
    decision = Decision("p", (tier(endpoint("a", max_in_flight=1), endpoint("b", max_in_flight=1)),))
    assert place(decision, {"a": 1, "b": 1}, 0.5) is None


def test_ties_are_even() -> None:
    members = [endpoint(name) for name in "abcde"]
    decision = Decision("p", (tier(*members),))
    counted = Counter(placed_name(decision, {}, number * 0.6180339887498949 % 1) for number in range(100_000))
    assert set(counted) == set("abcde")
    assert all(count == pytest.approx(20_000, rel=0.01) for count in counted.values())


@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20),
    point=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_by_weight_is_always_one_of_the_choices(weights: list[float], point: float) -> None:
    choices = [Choice(endpoint(str(number), weight=weight)) for number, weight in enumerate(weights)]
    assert weighted_pick(choices, point) in choices


@given(
    counts=st.lists(st.integers(0, 50), min_size=2, max_size=10),
    tie=st.floats(0, 1, exclude_max=True),
    order=st.randoms(),
)
def test_the_order_of_endpoints_does_not_change_who_may_be_taken(
    counts: list[int], tie: float, order: object
) -> None:
    members = [endpoint(f"e{number}") for number in range(len(counts))]
    loads = {member.name: count for member, count in zip(members, counts, strict=True)}
    shuffled = list(members)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    taken = placed_name(Decision("p", (tier(*shuffled),)), loads, tie)
    assert taken is not None
    assert loads[taken] == min(counts)
