"""The owner of the longest prefix first, and when not."""

from collections.abc import Mapping

from lb_core.policies import POLICIES
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.stores.placement import place
from lb_core.types import Choice, Decision, PrefixMatch, Snapshot
from tests.core.build import endpoint, endpoints, request


def decided(
    policy: PrefixCache,
    owner: str | None,
    in_flight: Mapping[str, int] | None = None,
    *,
    count: int = 3,
    candidates: tuple[Choice, ...] = (),
) -> Decision:
    match = PrefixMatch(owner, 3, 5) if owner else None
    candidates = candidates or tuple(Choice(member) for member in endpoints(count))
    return policy.decide(request(), Snapshot("c", candidates, in_flight or {}, 0, match))


def names(decision: Decision) -> list[list[str]]:
    return [[choice.endpoint.name for choice in tier.choices] for tier in decision.tiers]


def test_it_is_registered() -> None:
    assert POLICIES["prefix_cache"] is PrefixCache


def test_the_owner_comes_first_and_the_others_after_it() -> None:
    decision = decided(PrefixCache(), "e1", {"e1": 40})
    assert names(decision) == [["e1"], ["e0", "e2"]]
    assert [tier.reason for tier in decision.tiers] == ["prefix", "owner_full"]
    assert decision.tiers[0].detail == "3 of 5 cuts"


def test_a_prompt_without_known_prefix_goes_by_load() -> None:
    decision = decided(PrefixCache(), None)
    assert names(decision) == [["e0", "e1", "e2"]]
    assert decision.tiers[0].reason == "no_prefix"


def test_h7_an_owner_that_is_gone_is_nobody() -> None:
    decision = decided(PrefixCache(), "left")
    assert names(decision) == [["e0", "e1", "e2"]]
    assert decision.tiers[0].reason == "owner_gone"


def test_a_single_endpoint_is_one_tier() -> None:
    assert names(decided(PrefixCache(), "e0", count=1)) == [["e0"]]


def test_h8_a_hot_prefix_yields_when_its_owner_is_full() -> None:
    members = tuple(Choice(endpoint(f"e{number}", max_in_flight=10)) for number in range(5))
    counts: dict[str, int] = {}
    for _ in range(50):
        decision = decided(PrefixCache(), "e0", counts, candidates=members)
        placed = place(decision, counts, 0.3)
        assert placed is not None
        counts[placed[1].endpoint.name] = counts.get(placed[1].endpoint.name, 0) + 1
    assert counts == {f"e{number}": 10 for number in range(5)}


def test_h8_a_hot_prefix_yields_to_imbalance_where_that_is_asked_for() -> None:
    policy = PrefixCache(max_imbalance=4)
    assert names(decided(policy, "e1", {"e1": 4}))[0] == ["e1"]
    decision = decided(policy, "e1", {"e1": 5})
    assert names(decision) == [["e0", "e1", "e2"]]
    assert decision.tiers[0].reason == "imbalance"
    assert decision.tiers[0].detail == "e1 has 5 more in flight"


def test_imbalance_is_above_the_least_loaded_and_not_above_zero() -> None:
    policy = PrefixCache(max_imbalance=0)
    assert names(decided(policy, "e1", {"e0": 9, "e1": 9, "e2": 9}))[0] == ["e1"]
    assert names(decided(policy, "e1", {"e0": 9, "e1": 10, "e2": 9})) == [["e0", "e1", "e2"]]


def test_imbalance_goes_by_weight() -> None:
    members = (Choice(endpoint("heavy", weight=4)), Choice(endpoint("light")))
    policy = PrefixCache(max_imbalance=2)
    assert names(decided(policy, "heavy", {"heavy": 10, "light": 2}, candidates=members))[0] == ["heavy"]
    assert len(names(decided(policy, "heavy", {"heavy": 11, "light": 2}, candidates=members))) == 1


def test_without_the_option_no_imbalance_is_too_much() -> None:
    assert names(decided(PrefixCache(), "e1", {"e1": 1000}))[0] == ["e1"]


def test_the_secret_is_not_shown() -> None:
    assert "swordfish" not in repr(PrefixCache(secret="swordfish"))
