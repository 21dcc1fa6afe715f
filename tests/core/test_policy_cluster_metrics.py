"""Which service comes first, and what is said about it. No clock, no state: services in, order out."""

from collections import Counter
from dataclasses import fields, is_dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_core.policies import CLUSTER_POLICIES, POLICIES
from lb_core.policies.cluster_metrics import ClusterMetrics
from lb_core.services import Service, ServiceChoice
from tests.core.build import request

type Mode = Literal["LeastBusy", "LeastTotalLatency", "LeastFirstTokenLatency"]
MODES: tuple[Mode, ...] = ("LeastBusy", "LeastTotalLatency", "LeastFirstTokenLatency")
LATENCY_MODES = MODES[1:]
REASONS = {
    "least_busy",
    "least_total_latency",
    "least_first_token_latency",
    "probe",
    "no_samples",
    "failing",
    "rate_limited",
}
GOLDEN = 0.6180339887498949


def known(name: str, total_s: float, first_s: float = 0.1, *, samples: int = 1, punished: int = 0) -> Service:
    return Service(name, samples=samples, punished=punished, mean_total_s=total_s, mean_first_s=first_s)


def choices(
    mode: Mode, *services: Service, rate_limit: float = 1.0, tie: float = 0.0
) -> tuple[ServiceChoice, ...]:
    policy = ClusterMetrics(mode, tuple(service.name for service in services), rate_limit)
    return policy.choose(request(tie=tie), services).choices


def order(mode: Mode, *services: Service, rate_limit: float = 1.0, tie: float = 0.0) -> str:
    return "".join(choice.name for choice in choices(mode, *services, rate_limit=rate_limit, tie=tie))


def firsts(mode: Mode, *services: Service, rate_limit: float = 1.0, number: int = 6000) -> Counter[str]:
    ties = (turn * GOLDEN % 1 for turn in range(number))
    return Counter(order(mode, *services, rate_limit=rate_limit, tie=tie)[0] for tie in ties)


def test_it_is_registered_apart_from_the_policies_that_choose_endpoints() -> None:
    assert CLUSTER_POLICIES["cluster_metrics"] is ClusterMetrics
    assert "cluster_metrics" not in POLICIES
    assert is_dataclass(ClusterMetrics)
    assert ClusterMetrics.lb_type == "cluster"
    assert {field.name for field in fields(ClusterMetrics)} == {
        "mode",
        "service_list",
        "rate_limit",
        "cluster_header",
        "queue_size",
        "sample_ttl",
    }


def test_each_mode_ranks_by_its_own_number_and_says_it() -> None:
    a = Service("a", 3, samples=5, mean_total_s=2.0, mean_first_s=0.5)
    b = Service("b", 2, samples=7, mean_total_s=3.0, mean_first_s=0.9)
    c = Service("c", 9, samples=1, mean_total_s=1.0, mean_first_s=0.7)
    assert order("LeastBusy", a, b, c) == "bac"
    assert order("LeastTotalLatency", a, b, c) == "cab"
    assert order("LeastFirstTokenLatency", a, b, c) == "acb"
    assert choices("LeastBusy", a, b, c)[0] == ServiceChoice("b", "least_busy", "2 in flight", 2)
    assert choices("LeastTotalLatency", a, b, c)[1] == ServiceChoice(
        "a", "least_total_latency", "2.000 s over 5, 0 failed", 2.0
    )
    assert choices("LeastFirstTokenLatency", a, b, c)[0] == ServiceChoice(
        "a", "least_first_token_latency", "0.500 s over 5, 0 failed", 0.5
    )


def test_least_busy_needs_no_samples() -> None:
    assert order("LeastBusy", Service("a", 1, probe_due=True), known("b", 9.0)) == "ba"


@pytest.mark.parametrize("mode", LATENCY_MODES)
def test_h15_one_request_finds_out_and_the_others_use_what_is_known(mode: Mode) -> None:
    due, asked = Service("u", probe_due=True), Service("u")
    assert order(mode, known("k", 5.0), due) == "uk"
    assert choices(mode, known("k", 5.0), due)[0] == ServiceChoice("u", "probe", "no samples")
    assert order(mode, known("k", 5.0), asked) == "ku"


@pytest.mark.parametrize("mode", LATENCY_MODES)
def test_where_nothing_is_known_the_least_busy_comes_first(mode: Mode) -> None:
    services = Service("a", 4), Service("b", 2), Service("c", 3)
    assert order(mode, *services) == "bca"
    assert choices(mode, *services)[0] == ServiceChoice("b", "no_samples", "2 in flight, one finds out")


def test_a_failure_counts_as_twice_the_largest_mean() -> None:
    slow, half = known("s", 4.0, samples=2), known("h", 1.0, samples=1, punished=1)
    ranked = {choice.name: choice for choice in choices("LeastTotalLatency", slow, half)}
    assert ranked["h"].score == (1.0 + 2 * 4.0) / 2
    assert ranked["h"].detail == "4.500 s over 2, 1 failed"
    assert order("LeastTotalLatency", slow, half) == "sh"


def test_a_failure_of_one_is_measured_by_the_means_of_the_others_too() -> None:
    fast = known("f", 1.0, samples=9, punished=1)  # nine of 1 s and one of 20 s
    slow = known("s", 10.0)
    assert choices("LeastTotalLatency", fast, slow)[0].score == pytest.approx(2.9)


@pytest.mark.parametrize("mode", LATENCY_MODES)
def test_a_service_that_only_failed_comes_after_one_that_nothing_is_known_of(mode: Mode) -> None:
    failing, asked, good = Service("f", punished=3), Service("u", 50), known("k", 2.0, 2.0)
    assert order(mode, failing, asked, good) == "kuf"
    assert choices(mode, failing, good)[1] == ServiceChoice("f", "failing", "3 of 3 failed", 4.0)
    assert choices(mode, failing)[0].score is None


@pytest.mark.parametrize("mode", MODES)
def test_a_service_at_its_limit_is_passed_over_and_not_left_out(mode: Mode) -> None:
    best, other = (
        Service("a", 0, 0.6, 1, mean_total_s=1.0, mean_first_s=1.0),
        Service("b", 9, 0.4, 1, mean_total_s=9.0, mean_first_s=9.0),
    )
    assert order(mode, best, other, rate_limit=0.6) == "ba"
    assert order(mode, best, other, rate_limit=0.61) == "ab"
    limited = choices(mode, best, other, rate_limit=0.6)[1]
    assert (limited.reason, limited.detail) == ("rate_limited", "0.60 of the last choices")
    assert limited.score is not None


@pytest.mark.parametrize("mode", MODES)
def test_a_service_alone_is_never_refused_and_a_limit_of_one_is_none(mode: Mode) -> None:
    assert order(mode, Service("a", share=1.0), rate_limit=0.1) == "a"
    everything = Service("a", 1, 1.0, 1, mean_total_s=1.0, mean_first_s=1.0)
    assert order(mode, everything, Service("b", 9), rate_limit=1.0) == "ab"


@pytest.mark.parametrize("mode", MODES)
def test_when_all_are_at_their_limit_the_least_share_comes_first(mode: Mode) -> None:
    services = [Service("a", share=0.4), Service("b", share=0.3), Service("c", share=0.35)]
    assert order(mode, *services, rate_limit=0.2) == "bca"


def test_among_services_at_the_same_share_the_mode_decides() -> None:
    services = [Service(name, busy, 0.5) for name, busy in (("a", 2), ("b", 1))]
    assert order("LeastBusy", *services, rate_limit=0.5) == "ba"


@pytest.mark.parametrize("mode", MODES)
def test_ties_are_broken_uniformly_also_among_some_of_all(mode: Mode) -> None:
    tied = [Service(name, 1, 0, 1, 0, 1.0, 1.0) for name in "acd"]
    worse = Service("b", 2, 0, 1, 0, 2.0, 2.0)
    counted = firsts(mode, tied[0], worse, *tied[1:])
    assert set(counted) == set("acd")
    assert all(count == pytest.approx(2000, rel=0.02) for count in counted.values())


def test_a_tie_among_services_leaves_the_tie_among_their_endpoints_even() -> None:
    pair = Counter[tuple[str, int]]()
    for turn in range(4000):
        tie = turn * GOLDEN % 1
        pair[order("LeastBusy", Service("a"), Service("b"), tie=tie)[0], int(tie * 2)] += 1
    assert all(count == pytest.approx(1000, rel=0.05) for count in pair.values())
    assert len(pair) == 4


seconds = st.floats(0, 1e9)
service = st.builds(
    Service,
    name=st.text(max_size=5),
    in_flight=st.integers(0, 10**6),
    share=st.floats(0, 1),
    samples=st.just(0),
    punished=st.integers(0, 100),
    probe_due=st.booleans(),
) | st.builds(
    Service,
    name=st.text(max_size=5),
    in_flight=st.integers(0, 10**6),
    share=st.floats(0, 1),
    samples=st.integers(1, 100),
    punished=st.integers(0, 100),
    mean_total_s=seconds,
    mean_first_s=seconds,
)


@given(
    services=st.lists(service, max_size=8, unique_by=lambda service: service.name),
    mode=st.sampled_from(MODES),
    rate_limit=st.floats(0, 1),
    tie=st.floats(0, 1, exclude_max=True),
    random=st.randoms(use_true_random=False),
)
def test_every_service_is_ranked_once_with_a_fixed_reason_in_whatever_order(
    services: list[Service], mode: Mode, rate_limit: float, tie: float, random: object
) -> None:
    policy = ClusterMetrics(mode, ("unused",), rate_limit)
    decision = policy.choose(request(tie=tie), tuple(services))
    assert Counter(choice.name for choice in decision.choices) == Counter(item.name for item in services)
    assert {choice.reason for choice in decision.choices} <= REASONS
    assert decision == policy.choose(request(tie=tie), tuple(services))
    random.shuffle(services)  # type: ignore[attr-defined]
    again = policy.choose(request(tie=tie), tuple(services))
    assert [choice.reason for choice in again.choices] == [choice.reason for choice in decision.choices]
    assert [choice.score for choice in again.choices] == [choice.score for choice in decision.choices]


@given(
    services=st.lists(service, min_size=2, max_size=6, unique_by=lambda service: service.name),
    mode=st.sampled_from(LATENCY_MODES),
    tie=st.floats(0, 1, exclude_max=True),
)
def test_the_first_is_never_worse_than_another_known_one_below_its_limit(
    services: list[Service], mode: Mode, tie: float
) -> None:
    ranked = ClusterMetrics(mode, ("unused",)).choose(request(tie=tie), tuple(services)).choices
    scores = [choice.score for choice in ranked if choice.reason.startswith("least")]
    assert scores == sorted(score for score in scores if score is not None)
