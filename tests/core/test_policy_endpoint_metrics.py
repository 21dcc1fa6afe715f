"""The decision tree against situations worked out by hand, and what must hold in all of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_core.config import loads
from lb_core.engines.board import Board
from lb_core.engines.model import EngineMetrics, Observation, Scrape
from lb_core.engines.shares import RecentChoices
from lb_core.errors import ConfigError, Saturated
from lb_core.policies.endpoint_metrics import EndpointMetrics
from lb_core.request import LLMRequest
from lb_core.stores.memory import MemoryStore
from lb_core.stores.placement import place
from lb_core.types import Choice, Decision, Request, Snapshot
from tests.core.build import endpoint, endpoints

X_LEAST: dict[str, Any] = {"metric_policy": "least", "target_metric": "x"}
X_MOST: dict[str, Any] = {"metric_policy": "most", "target_metric": "x"}
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
HEADER: dict[str, Any] = {"criticality_header": "X-Critical"}


@dataclass(frozen=True)
class Engine:
    """What is known of one endpoint. `loras` are its adapters, of at most two."""

    waiting: float | None = 0
    kv_usage: float | None = 0.5
    loras: str | None = None
    age: float = 0
    stale_after: float = 5
    since: int = 0
    running: float | None = 0
    in_flight: int = 0
    raw: Mapping[str, float] = field(default_factory=dict)
    own: str = ""
    dialect: str = "vllm"

    @property
    def observation(self) -> Observation:
        adapters = None if self.loras is None else frozenset(self.loras.split())
        metrics = EngineMetrics(
            at=0,
            dialect=self.dialect,
            models=frozenset(self.own.split()),
            lora=adapters is not None,
            waiting=self.waiting,
            running=self.running,
            kv_usage=self.kv_usage,
            max_loras=None if adapters is None else 2,
            running_adapters=adapters,
            raw=self.raw,
        )
        return Observation(metrics, self.age, self.since, self.stale_after)


E = Engine
NOTHING = E(None, None)
OTHER = E(dialect="sglang")


def x(value: float, **values: Any) -> Engine:
    return E(raw={"x": value}, **values)


@dataclass(frozen=True)
class Case:
    """Engines a, b, c, …; who is in the first tier, and why."""

    name: str
    engines: tuple[Engine | None, ...]
    first: str
    reason: str
    model: str | None = "ad"
    policy: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    recent: Mapping[str, int] = field(default_factory=dict)


def case(name: str, *engines: Engine | None, first: str, reason: str, **more: Any) -> Case:
    return Case(name, engines, first, reason, **more)


SHED: dict[str, Any] = {"policy": HEADER, "headers": {"x-critical": "false"}}

CASES = [
    # Queue: below 50, then the lowest 1/n of the range.
    case("one endpoint", E(), first="a", reason="alike"),
    case("equals", E(), E(), first="ab", reason="alike"),
    case("0 of 0..10, limit 5", E(0), E(10), first="a", reason="queue"),
    case("0 of 0..10, limit 3.3", E(0), E(5), E(10), first="a", reason="queue"),
    case("3 is within 3.3", E(0), E(3), E(10), first="ab", reason="queue"),
    case("the limit itself is in", E(0), E(5), E(10), E(20), first="ab", reason="queue"),
    case("49 is low, 50 is not", E(49), E(50), first="a", reason="queue"),
    case("both low, limit 24.5", E(49), E(0), first="b", reason="queue"),
    case("another threshold", E(3), E(4), first="a", reason="queue", policy={"waiting_threshold": 4}),
    # KV usage after that.
    case("0.1 and 0.2 of 0.1..0.9", E(0, 0.1), E(0, 0.2), E(0, 0.9), first="ab", reason="kv_usage"),
    case("queue goes first", E(0, 0.9), E(10, 0.1), first="a", reason="queue"),
    case("then usage", E(0, 0.9), E(3, 0.1), E(10, 0.5), first="b", reason="kv_usage"),
    # Nobody below 50.
    case("all at 50", E(50), E(50), first="ab", reason="alike"),
    case("60 of 60..200", E(60), E(200), first="a", reason="queue"),
    case("long queues, then usage", E(100, 0.9), E(110, 0.1), E(400), first="b", reason="kv_usage"),
    # Adapters.
    case("has the adapter", E(loras="ad"), E(loras=""), first="a", reason="lora"),
    case("adapter before queue", E(40, loras="ad"), E(0, loras=""), first="a", reason="lora"),
    case("but not above the threshold", E(50, loras="ad"), E(0, loras=""), first="b", reason="queue"),
    case("room for it", E(loras="x y"), E(loras="x"), first="b", reason="lora"),
    case("no room anywhere", E(loras="x y"), E(loras="z y"), first="ab", reason="alike"),
    case("of those with it", E(0, loras="ad"), E(10, loras="ad"), E(loras=""), first="a", reason="queue"),
    case("no model, no adapter", E(loras="x y"), E(loras=""), first="ab", reason="alike", model=None),
    case("long queues: has it", E(60, loras="ad"), E(60, loras="x y"), first="a", reason="lora"),
    case("long queues: queue first", E(60, loras="x y"), E(500, loras="ad"), first="a", reason="queue"),
    case("long queues: has or room", E(60, loras="ad"), E(60, loras="x"), first="ab", reason="alike"),
    # What is missing neither helps nor harms.
    case("no usage", E(0, None), E(0, 0.9), E(0, 0.1), first="ac", reason="kv_usage"),
    case("no queue", E(None), E(0), E(30), first="ab", reason="queue"),
    case("no queue is not below 50", E(None), E(60), first="ab", reason="alike"),
    case("no queue anywhere", E(None, 0.1), E(None, 0.9), first="a", reason="kv_usage"),
    case("no usage anywhere", E(0, None), E(10, None), first="a", reason="queue"),
    case(
        "no adapters known",
        E(),
        E(loras="x y", dialect="y"),
        E(loras="x", dialect="y"),
        first="ac",
        reason="lora",
    ),
    case("unknown is not has", E(), E(loras="ad", dialect="y"), first="b", reason="lora"),
    # Without LoRA.
    case("no LoRA", E(), E(40, loras="x"), first="b", reason="alike"),
    case("no LoRA, and the other full", E(), E(loras="x y"), first="b", reason="alike"),
    case("no LoRA, and the other's queue too long", E(), E(60, loras="x"), first="b", reason="alike"),
    case("no LoRA, and the other stale", E(), E(loras="x", age=9), first="b", reason="all_stale"),
    case("no LoRA and stale", E(age=9), E(40, loras="x"), first="b", reason="alike"),
    case("nobody has LoRA", E(), E(), first="ab", reason="alike"),
    case("no LoRA of another kind", E(), E(loras="x", dialect="y"), first="ab", reason="alike"),
    case("no LoRA, no page", None, E(60, loras="x"), first="b", reason="alike"),
    case("no LoRA, least", x(0), x(9, loras="x"), first="b", reason="target_metric", policy=X_LEAST),
    case(
        "no LoRA, share",
        E(0),
        E(9, loras="x"),
        first="b",
        reason="alike",
        policy={"rate_limit": 0.6},
        recent={"b": 99},
    ),
    case("a base model needs none", E(own="ad"), E(loras="x y", own="ad"), first="ab", reason="alike"),
    case("a base model is no adapter", E(loras="x y"), E(loras="x", own="ad"), first="ab", reason="alike"),
    case("base model, queue", E(30, own="ad"), E(loras="x y"), first="b", reason="queue"),
    case("LoRA without a model", E(), E(40, loras="x"), first="a", reason="queue", model=None),
    case("nothing known of one", NOTHING, E(40), first="b", reason="alike"),
    case("no page of one", None, E(40), first="b", reason="alike"),
    case("nothing known of any", NOTHING, NOTHING, first="ab", reason="no_metrics"),
    case("no page of any", None, None, first="ab", reason="no_metrics"),
    # Age.
    case("stale", E(0, age=5.1), E(40), first="b", reason="alike"),
    case("not yet stale", E(0, age=5), E(40), first="a", reason="queue"),
    case("all stale", E(0, age=6), E(40, age=9), first="ab", reason="all_stale"),
    case("stale or no page", E(0, age=6), None, first="ab", reason="all_stale"),
    case("another age", E(0, age=2, stale_after=1), E(40), first="b", reason="alike"),
    # Own requests.
    case("8 since", E(0, since=8), E(5), first="b", reason="queue"),
    case("50 since is not below 50", E(0, since=50), E(49), first="b", reason="queue"),
    case("hung, reports none", E(in_flight=9), E(4, running=4, in_flight=8), first="b", reason="queue"),
    case("all are running", E(running=9, in_flight=9), E(), first="ab", reason="alike"),
    case("running unknown", E(running=None, in_flight=9), E(), first="ab", reason="alike"),
    # May be dropped.
    case("at its limits", E(5, 0.8), first="a", reason="alike", **SHED),
    case("queue too long", E(6, 0), first="", reason="", **SHED),
    case("cache too full", E(0, 0.81), first="", reason="", **SHED),
    case("one with room", E(0, 0.9), E(5, 0.1), first="b", reason="alike", **SHED),
    case("the shorter of them", E(0), E(4), first="a", reason="queue", **SHED),
    case("adapter of them", E(loras="ad"), E(loras="x y"), first="a", reason="lora", **SHED),
    case("no usage known", E(0, None), first="a", reason="alike", **SHED),
    case("own requests fill it", E(0, since=6), first="", reason="", **SHED),
    case("full, others stale", E(6), E(0, age=9), first="", reason="", **SHED),
    case("all stale, no ground to drop", E(9, age=9), first="a", reason="all_stale", **SHED),
    case("critical", E(9), first="a", reason="alike", policy=HEADER, headers={"x-critical": "true"}),
    case("says nothing", E(9), first="a", reason="alike", policy=HEADER),
    case("no such header set", E(9), first="a", reason="alike", headers={"x-critical": "false"}),
    # Any metric.
    case("least", x(1), x(2), x(9), first="ab", reason="target_metric", policy=X_LEAST),
    case("most", x(1), x(2), x(9), first="c", reason="target_metric", policy=X_MOST),
    case("least, unknown", E(), x(1), x(9), first="ab", reason="target_metric", policy=X_LEAST),
    case("least, known nowhere", E(), E(), first="ab", reason="no_metrics", policy=X_LEAST),
    case("least, stale", x(1, age=9), x(9), first="b", reason="target_metric", policy=X_LEAST),
    case("least, own", x(0, since=4), x(1), first="a", reason="target_metric", policy=X_LEAST),
    case(
        "least waiting, own",
        E(0, since=4, raw={WAITING: 0}),
        E(1, raw={WAITING: 1}),
        first="b",
        reason="target_metric",
        policy={"metric_policy": "least", "target_metric": WAITING},
    ),
    case(
        "least running, hung",
        E(in_flight=6, raw={RUNNING: 0}),
        E(running=4, in_flight=4, raw={RUNNING: 4}),
        first="b",
        reason="target_metric",
        policy={"metric_policy": "least", "target_metric": RUNNING},
    ),
    # Shares.
    case(
        "had its share",
        E(0),
        E(9),
        first="b",
        reason="not_queue",
        policy={"rate_limit": 0.6},
        recent={"a": 60, "b": 40},
    ),
    case(
        "nearly",
        E(0),
        E(9),
        first="a",
        reason="queue",
        policy={"rate_limit": 0.6},
        recent={"a": 59, "b": 41},
    ),
    case("alone", E(), first="a", reason="alike", policy={"rate_limit": 0.6}, recent={"a": 100}),
    case(
        "all over",
        E(0),
        E(9),
        first="a",
        reason="queue",
        policy={"rate_limit": 0.1},
        recent={"a": 50, "b": 50},
    ),
]


def asked(model: str | None = "ad", headers: Mapping[str, str] | None = None, number: int = 0) -> Request:
    llm = LLMRequest("chat", model) if model else None
    return Request(f"r-{number}", number * 0.618 % 1, "h", "/", headers or {}, llm=llm)


def shot(engines: tuple[Engine | None, ...], recent: Mapping[str, int] | None = None) -> Snapshot:
    members = dict(zip("abcdefgh", engines, strict=False))
    return Snapshot(
        "c",
        tuple(Choice(endpoint(name)) for name in members),
        {name: engine.in_flight for name, engine in members.items() if engine},
        0,
        metrics={name: engine.observation for name, engine in members.items() if engine},
        recent=recent or {},
    )


def names(decision: Decision, tier: int = 0) -> str:
    return "".join(sorted(choice.endpoint.name for choice in decision.tiers[tier].choices))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_tree_decides_as_worked_out_by_hand(case: Case) -> None:
    policy = EndpointMetrics(**case.policy)
    decision = policy.decide(asked(case.model, case.headers), shot(case.engines, case.recent))
    if not case.first:
        assert decision.tiers == ()
        return
    assert (names(decision), decision.tiers[0].reason) == (case.first, case.reason), decision.tiers


def test_there_are_situations_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


# The order of the others, and what is told.


def test_the_others_follow_the_last_dropped_first_and_the_unknown_at_the_end() -> None:
    engines = (E(0, 0.9), E(3, 0.1), E(20, 0.1), E(60, 0), E(0, 0, age=9), None)
    decision = EndpointMetrics().decide(asked(), shot(engines))
    assert [(names(decision, n), tier.reason) for n, tier in enumerate(decision.tiers)] == [
        ("b", "kv_usage"),
        ("a", "not_kv_usage"),
        ("c", "not_queue"),
        ("d", "not_queue"),
        ("e", "stale"),
        ("f", "no_metrics"),
    ]


def test_the_detail_has_the_numbers_and_what_is_missing() -> None:
    decision = EndpointMetrics().decide(asked(), shot((E(0, 0.25), E(1, None), E(9, 0.5))))
    assert decision.tiers[0].detail == "waiting <= 3; kv_usage missing at b"
    assert [choice.score for choice in decision.tiers[0].choices] == [0.25, 1]


def test_by_one_metric_the_ranges_follow_each_other() -> None:
    decision = EndpointMetrics(**X_LEAST).decide(asked(), shot((x(9), x(1), x(5), x(8))))
    assert [names(decision, tier) for tier in range(len(decision.tiers))] == list("bcda")


def test_an_endpoint_without_lora_is_in_no_tier_unless_its_models_name_the_model() -> None:
    seen = shot((E(), E(9, loras="x"), E(loras="x y"), None))
    decision = EndpointMetrics().decide(asked(), seen)
    assert [names(decision, tier) for tier in range(len(decision.tiers))] == ["b", "c", "d"]
    named = replace(seen, candidates=(Choice(endpoint("a", models=("a*",))), *seen.candidates[1:]))
    assert names(EndpointMetrics().decide(asked(), named)) == "a"


def test_an_engine_that_was_asked_for_no_adapter_yet_has_room_for_one() -> None:
    """Its page announces the metric and has no series."""
    fresh = Observation(EngineMetrics(0, "vllm", waiting=3, running_adapters=frozenset(), lora=True), 0, 0)
    seen = shot((None, E(0, loras="x y")))
    seen = replace(seen, metrics={**seen.metrics, "a": fresh})
    assert names(EndpointMetrics().decide(asked(), seen)) == "a"


def test_a_request_that_may_be_dropped_is_offered_only_endpoints_with_room() -> None:
    policy = EndpointMetrics(**HEADER)
    engines = (E(0), E(5), E(6), E(0, age=9), None)
    decision = policy.decide(asked(headers={"x-critical": "sheddable"}), shot(engines))
    assert [names(decision, tier) for tier in range(len(decision.tiers))] == ["a", "b"]


async def test_a_decision_without_tiers_is_saturated() -> None:
    decision = EndpointMetrics(**HEADER).decide(asked(headers={"x-critical": "false"}), shot((E(9),)))
    with pytest.raises(Saturated):
        await MemoryStore("c").acquire("1", decision, 0.5)


# Properties.

ENGINES = st.builds(
    Engine,
    waiting=st.none() | st.integers(0, 80),
    kv_usage=st.none() | st.integers(0, 16).map(lambda n: n / 16),
    loras=st.sampled_from([None, "", "ad", "x", "x y", "ad x"]),
    age=st.sampled_from([0, 0, 0, 0, 6]),
    since=st.integers(0, 3),
    running=st.integers(0, 10),
    in_flight=st.integers(0, 12),
    raw=st.none().map(lambda _: {}) | st.integers(0, 20).map(lambda n: {"x": n}),
)
MANY = st.lists(ENGINES | st.none(), min_size=1, max_size=7).map(tuple)
POLICIES = st.sampled_from([EndpointMetrics(), EndpointMetrics(**X_LEAST), EndpointMetrics(**X_MOST)])


@given(policy=POLICIES, engines=MANY, order=st.randoms(use_true_random=False))
def test_the_order_of_the_endpoints_does_not_matter(
    policy: EndpointMetrics, engines: Any, order: Any
) -> None:
    straight = shot(engines)
    mixed = list(straight.candidates)
    order.shuffle(mixed)
    first, second = (
        policy.decide(asked(), s) for s in (straight, replace(straight, candidates=tuple(mixed)))
    )
    assert [(names(first, n), tier.reason) for n, tier in enumerate(first.tiers)] == [
        (names(second, n), tier.reason) for n, tier in enumerate(second.tiers)
    ]


@given(policy=POLICIES, engines=MANY)
def test_every_endpoint_that_can_serve_it_has_one_place(policy: EndpointMetrics, engines: Any) -> None:
    decision = policy.decide(asked(), shot(engines))
    lora = any(engine is not None and engine.loras is not None for engine in engines)
    placed = [
        name
        for name, engine in zip("abcdefgh", engines, strict=False)
        if engine is None or engine.loras is not None or not lora
    ]
    assert sorted("".join(names(decision, n) for n in range(len(decision.tiers)))) == placed
    assert all(tier.choices for tier in decision.tiers)


@settings(max_examples=500)
@given(engines=MANY, data=st.data())
def test_an_endpoint_that_gets_better_does_not_lose_by_it(engines: Any, data: st.DataObject) -> None:
    """As long as all say how long their queues are."""
    policy = EndpointMetrics()
    engines = tuple(engine and replace(engine, waiting=engine.waiting or 0) for engine in engines)
    first = names(policy.decide(asked(), shot(engines)))
    index = data.draw(st.sampled_from(["abcdefgh".index(name) for name in first]))
    engine = engines[index]
    if engine is None or engine.age:
        return
    better = replace(
        engine,
        waiting=None if engine.waiting is None else data.draw(st.integers(0, engine.waiting)),
        kv_usage=None
        if engine.kv_usage is None
        else data.draw(st.integers(0, int(engine.kv_usage * 16))) / 16,
        since=data.draw(st.integers(0, engine.since)),
        in_flight=data.draw(st.integers(0, engine.in_flight)),
        loras=data.draw(st.sampled_from([engine.loras, "ad"])),
    )
    improved = (*engines[:index], better, *engines[index + 1 :])
    assert "abcdefgh"[index] in names(policy.decide(asked(), shot(improved)))


def test_the_range_of_usage_is_that_of_all_who_came_to_the_queues() -> None:
    """Of a and b alone, once b's shorter queue drops c, b would be in the upper half and lose."""
    others = (E(10, 0.1), E(14, 0.9), E(40, 0.1))
    for waiting in (12, 2):
        first = names(EndpointMetrics().decide(asked(), shot((others[0], E(waiting, 0.28), *others[1:]))))
        assert first == "ab"


@given(engines=MANY)
def test_the_best_in_everything_is_among_the_first(engines: Any) -> None:
    best = E(0, 0, loras="ad", raw={"x": 0})
    for policy in (EndpointMetrics(), EndpointMetrics(**X_LEAST)):
        assert "a" in names(policy.decide(asked(), shot((best, *engines))))


# Shares and bursts.


@pytest.mark.parametrize("count", [2, 4])
def test_no_endpoint_gets_more_than_its_share_of_any_hundred(count: int) -> None:
    policy, recent, taken = EndpointMetrics(rate_limit=0.6), RecentChoices(), []
    for number in range(10_000):
        # The favourite changes every 300 choices; it is always the same one for long.
        engines = tuple(E(0 if index == number // 300 % count else 20 + index) for index in range(count))
        decision = policy.decide(asked(number=number), shot(engines, recent.counts))
        placed = place(decision, {}, 0.5)
        assert placed is not None
        taken.append(placed[1].endpoint.name)
        recent.note(taken[-1])
    most = max(max(Counter(taken[start : start + 100]).values()) for start in range(len(taken) - 100))
    assert 55 <= most <= 61


@pytest.mark.parametrize("policy", [EndpointMetrics(), EndpointMetrics(**X_LEAST)])
async def test_h13_fifty_at_once_between_two_pages_are_spread_over_equals(policy: EndpointMetrics) -> None:
    members = endpoints(4)
    store, board = MemoryStore("c"), Board(clock=lambda: 1.0)
    for member in members:
        metrics = EngineMetrics(0.5, "vllm", waiting=2, running=4, kv_usage=0.5, raw={"x": 1})
        board.take(Scrape(member.name, 0.5, 0.0, metrics))
    choices, members_names = tuple(map(Choice, members)), [member.name for member in members]
    for number in range(50):
        snapshot = Snapshot("c", choices, store.in_flight, 0, metrics=board.observations(members_names))
        lease = await store.acquire(
            str(number), policy.decide(asked(number=number), snapshot), number * 0.618 % 1
        )
        board.placed(lease.endpoint.name, lease.id)
    counts = store.in_flight.values()
    assert max(counts) / min(counts) <= 1.5


async def test_a_burst_fills_the_shorter_queue_first_and_then_both() -> None:
    """With in-flight counts alone all would go by turns; with the page alone all to one."""
    members = endpoints(2)
    store, board, policy = MemoryStore("c"), Board(clock=lambda: 1.0), EndpointMetrics()
    for member, waiting in zip(members, (0, 20), strict=True):
        board.take(Scrape(member.name, 0.5, 0.0, EngineMetrics(0.5, "vllm", waiting=waiting, running=0)))
    for number in range(40):
        snapshot = Snapshot(
            "c", tuple(map(Choice, members)), store.in_flight, 0, metrics=board.observations(["e0", "e1"])
        )
        lease = await store.acquire(str(number), policy.decide(asked(), snapshot), 0.5)
        board.placed(lease.endpoint.name, lease.id)
    assert 24 <= store.in_flight["e0"] <= 34


# Configuration.

YAML = """
clusters: {c: {endpoints: ["http://127.0.0.1:1"]}}
lb_policy: metrics_based
lb_config: {%s}
"""


def configured(parameters: str) -> Any:
    default = loads(YAML % parameters).default_policy
    assert default is not None
    return default.policy


def test_the_examples_of_higress_load_unchanged() -> None:
    assert configured("metric_policy: default, rate_limit: 0.6") == EndpointMetrics(rate_limit=0.6)
    least = configured("metric_policy: least, target_metric: vllm:num_requests_waiting, rate_limit: '0.6'")
    assert least == EndpointMetrics("least", "vllm:num_requests_waiting", 0.6)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("metric_policy: least", "lb_config: metric_policy 'least' needs target_metric"),
        ("metric_policy: most, target_metric: ' '", "needs target_metric"),
        ("metric_policy: best", "lb_config.metric_policy: 'best' is not one of 'default', 'least', 'most'"),
        ("rate_limit: 1.5", "lb_config.rate_limit: 1.5 is not more than 0 and at most 1"),
        ("waiting_threshold: 0", "lb_config.waiting_threshold: 0 is not more than 0"),
        ("waiting_treshold: 3", "lb_config.waiting_treshold: unknown key"),
    ],
)
def test_wrong_parameters_are_told_with_their_place(parameters: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(parameters)
    assert said in str(caught.value)
