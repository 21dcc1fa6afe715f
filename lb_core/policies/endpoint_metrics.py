"""The endpoints whose own metrics speak for them."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lb_core.engines.dialects import COUNTS_OF_REQUESTS
from lb_core.engines.model import Observation
from lb_core.engines.shares import WINDOW
from lb_core.policies.headers import HeaderRead
from lb_core.policies.sieve import Seen, Sieve
from lb_core.types import Choice, Decision, Request, Snapshot, Tier

_SHEDDABLE = frozenset({"false", "0", "no", "off", "sheddable", "standard", "low"})
_MOST_TIERS = 4


@dataclass(frozen=True, slots=True)
class EndpointMetrics:
    """Chooses by queue length, LoRA adapters and KV cache usage, or by any one metric.

    `metric_policy: default` is the decision tree of the Gateway API inference extension 0.1:

    1. Endpoints whose `waiting` is below `waiting_threshold`. If there are some: of these those that have
       the adapter that the request names as its model, else those with room for one more; of these the
       lowest 1/n of the range of `waiting`, then of `kv_usage`.
    2. If there are none: the lowest range of `waiting`, of these those that have the adapter or room for it,
       then the lowest range of `kv_usage`.
    3. A request that may be dropped, which the header named by `criticality_header` says with `false`,
       `sheddable`, `standard` or `low`: only endpoints with `waiting` at most `sheddable_waiting` and
       `kv_usage` at most `sheddable_kv_usage`, of these as in 2. If there are none the decision has no tiers,
       and the client gets 429.

    n is the number of endpoints that came to the two ranges, and the range is theirs; so, where
    all say how long their queues are, an endpoint that gets better never loses by it, as it could if the
    second range were taken of what the first left.
    A filter that would leave nothing does nothing. Of the survivors the least loaded is taken; those that a
    filter dropped follow, the last dropped first.

    `least`, `most`: the endpoints whose `target_metric` lies in the lowest (highest) 1/n of its range. A
    gauge is taken as it is, a counter as its rate per second and a histogram as its mean, both since the
    last page; all are summed over their series.

    To `waiting` are added the requests placed since the page was asked for; and it is taken for no less than
    the requests in flight that the engine does not run, since an engine that hangs reports none. The same
    goes for a `target_metric` that counts requests.

    A model that a page names as its engine's own is no adapter. Where an engine says that it serves
    adapters, those of its kind that do not say so are offered no request for one, under any
    `metric_policy`: they would answer 404. An endpoint whose `models` name it is offered it all the same,
    which also serves for further names of an engine's own model: a page has the first one alone.

    A missing signal is not 0. An endpoint without it passes the filters of that signal when others do, and
    alone makes none succeed; that it has an adapter is taken from what it says alone. Endpoints whose page
    is older than the cluster's `metrics.stale_after`, or that have none, are never preferred; where all are
    such, the requests in flight decide. `rate_limit`: an endpoint that had this share of the last 100
    choices comes last.
    """

    name: ClassVar[str] = "endpoint_metrics"
    lb_type: ClassVar[str] = "endpoint"
    signals: ClassVar[frozenset[str]] = frozenset({"metrics"})

    metric_policy: Literal["default", "least", "most"] = "default"
    target_metric: str = ""
    rate_limit: Annotated[float, Field(gt=0, le=1)] = 1.0
    waiting_threshold: Annotated[float, Field(gt=0)] = 50
    sheddable_waiting: Annotated[float, Field(ge=0)] = 5
    sheddable_kv_usage: Annotated[float, Field(ge=0, le=1)] = 0.8
    criticality_header: HeaderRead = ""

    def __post_init__(self) -> None:
        """Raises ValueError where the target metric is missing, or nothing would read it."""
        if self.metric_policy != "default" and not self.target_metric.strip():
            raise ValueError(
                f"metric_policy '{self.metric_policy}' needs target_metric, the name of a metric"
            )
        if self.metric_policy == "default" and self.target_metric.strip():
            raise ValueError(
                "target_metric is read with metric_policy 'least' or 'most' only; set one of them"
            )

    def decide(self, request: Request, snapshot: Snapshot) -> Decision:
        """The survivors, those dropped, those without metrics, those over their share."""
        adapter = _adapter(request.model, snapshot)
        candidates = snapshot.candidates if adapter is None else _with_lora(snapshot)
        known: list[Seen] = []
        stale: list[Choice] = []
        unknown: list[Choice] = []
        for choice in candidates:
            observation = snapshot.metrics.get(choice.endpoint.name)
            if observation is None:
                unknown.append(choice)
            elif observation.age_s > observation.stale_after_s:
                stale.append(choice)
            elif (seen := self._seen(choice, observation, snapshot)) is None:
                unknown.append(choice)
            else:
                known.append(seen)
        if not known:
            reason = "all_stale" if stale else "no_metrics"
            return self._decision([Tier(candidates, reason)], snapshot)
        sheddable = self._may_be_dropped(request)
        if sheddable and not (known := [seen for seen in known if self._has_room(seen)]):
            return Decision(self.name, ())
        if self.metric_policy == "default":
            tiers = self._tree(known, adapter, sheddable=sheddable)
        else:
            tiers = self._by_target(known)
        if not sheddable:
            if stale:
                tiers.append(Tier(tuple(stale), "stale", "too old"))
            if unknown:
                tiers.append(Tier(tuple(unknown), "no_metrics"))
        return self._decision(tiers, snapshot)

    def _seen(self, choice: Choice, observation: Observation, snapshot: Snapshot) -> Seen | None:
        """What the filters see of an endpoint; None where its page says nothing of use."""
        metrics = observation.metrics
        in_flight = snapshot.in_flight.get(choice.endpoint.name, 0)
        waiting, running = metrics.waiting, metrics.running
        if self.metric_policy == "default":
            if waiting is None and metrics.kv_usage is None:
                return None
            if waiting is not None:
                waiting += observation.placed_since
                if running is not None:
                    waiting = max(waiting, in_flight - running)
            score = None if waiting is None else waiting + (metrics.kv_usage or 0)
            return Seen(_scored(choice, score), metrics, waiting, metrics.kv_usage)
        value = metrics.raw.get(self.target_metric)
        if value is not None and self.target_metric in COUNTS_OF_REQUESTS:
            others = 0.0 if waiting is None or running is None else waiting + running - value
            hidden = in_flight - others if waiting is not None and running is not None else 0.0
            value = max(value + observation.placed_since, hidden)
        if value is not None and self.metric_policy == "most":
            value = -value
        return Seen(_scored(choice, value), metrics, value, None)

    def _may_be_dropped(self, request: Request) -> bool:
        if not self.criticality_header or self.metric_policy != "default":
            return False
        value = request.headers.get(self.criticality_header.lower())
        return value is not None and value.strip().lower() in _SHEDDABLE

    def _has_room(self, seen: Seen) -> bool:
        return (seen.waiting is None or seen.waiting <= self.sheddable_waiting) and (
            seen.kv_usage is None or seen.kv_usage <= self.sheddable_kv_usage
        )

    def _tree(self, known: list[Seen], adapter: str | None, *, sheddable: bool) -> list[Tier]:
        sieve = Sieve(known)
        limit = self.waiting_threshold
        if not sheddable and any(seen.waiting is not None and seen.waiting < limit for seen in known):
            sieve.keep(
                lambda seen: None if seen.waiting is None else seen.waiting < limit,
                "queue",
                f"waiting < {limit:g}",
            )
            if not sieve.keep(lambda seen: seen.has(adapter), "lora", "has the adapter"):
                sieve.keep(lambda seen: seen.has_room_for(adapter), "lora", "has room for the adapter")
            pool = sieve.first
            sieve.keep_lowest(_waiting, pool, "queue", "waiting")
        else:
            pool = known
            sieve.keep_lowest(_waiting, pool, "queue", "waiting")
            sieve.keep(
                lambda seen: seen.has(adapter) or seen.has_room_for(adapter),
                "lora",
                "has or takes the adapter",
            )
        sieve.keep_lowest(_kv_usage, pool, "kv_usage", "kv_usage")
        missing = [
            f"{signal} missing at {', '.join(names)}"
            for signal, value in (("waiting", _waiting), ("kv_usage", _kv_usage))
            if (names := [seen.choice.endpoint.name for seen in known if value(seen) is None])
        ]
        return sieve.tiers(missing)

    def _by_target(self, known: list[Seen]) -> list[Tier]:
        """The lowest range, of the rest again the lowest range, and so on; `most` has negative values."""
        if all(seen.waiting is None for seen in known):
            detail = f"{self.target_metric} is missing everywhere"
            return [Tier(tuple(seen.choice for seen in known), "no_metrics", detail)]
        tiers: list[Tier] = []
        left = known
        while left:
            sieve = Sieve(left)
            if len(tiers) < _MOST_TIERS - 1:
                sieve.keep_lowest(_waiting, left, "target_metric", "value")
            reason = "next_range" if tiers else "target_metric"
            tiers.append(Tier(tuple(seen.choice for seen in sieve.first), reason, sieve.detail()))
            left = sieve.dropped[0][0] if sieve.dropped else []
        return tiers

    def _decision(self, tiers: list[Tier], snapshot: Snapshot) -> Decision:
        """Put those that had their share of the latest choices last, unless all have."""
        if self.rate_limit < 1:
            made = min(sum(snapshot.recent.values()), WINDOW - 1) + 1
            most = self.rate_limit * made
            over = {name for name, count in snapshot.recent.items() if count >= most}
            limited = [choice for tier in tiers for choice in tier.choices if choice.endpoint.name in over]
            if limited and len(limited) < sum(len(tier.choices) for tier in tiers):
                rest = [
                    Tier(kept, tier.reason, tier.detail)
                    for tier in tiers
                    if (kept := tuple(c for c in tier.choices if c.endpoint.name not in over))
                ]
                detail = f"{self.rate_limit:g} of the last {WINDOW} choices"
                return Decision(self.name, (*rest, Tier(tuple(limited), "rate_limited", detail)))
        return Decision(self.name, tuple(tiers))


def _scored(choice: Choice, score: float | None) -> Choice:
    return Choice(choice.endpoint, score, choice.virtual_load)


def _waiting(seen: Seen) -> float | None:
    return seen.waiting


def _kv_usage(seen: Seen) -> float | None:
    return seen.kv_usage


def _adapter(model: str | None, snapshot: Snapshot) -> str | None:
    """The model if it can be an adapter: no engine says that it is its own."""
    own = any(model in seen.metrics.models for seen in snapshot.metrics.values())
    return None if own else model


def _with_lora(snapshot: Snapshot) -> tuple[Choice, ...]:
    """The candidates without those that cannot serve an adapter, as far as an engine of their kind tells."""
    kinds = {seen.metrics.dialect for seen in snapshot.metrics.values() if seen.metrics.lora}
    if not kinds:
        return snapshot.candidates
    return tuple(
        choice
        for choice in snapshot.candidates
        if choice.endpoint.models
        or (seen := snapshot.metrics.get(choice.endpoint.name)) is None
        or seen.metrics.lora
        or seen.metrics.dialect not in kinds
    )
