"""The endpoints whose own metrics speak for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lb_core.engines.dialects import COUNTS_OF_REQUESTS
from lb_core.engines.model import EngineMetrics, Observation
from lb_core.engines.shares import WINDOW
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

    A missing signal is not 0. An endpoint without it passes the filters of that signal when others do, and
    alone makes none succeed; that it has an adapter is taken from what it says alone. Endpoints whose page
    is older than `stale_after_s` (None: the cluster's `metrics.stale_after`), or that have none, are never
    preferred; where all are such, the requests in flight decide. `rate_limit`: an endpoint that had this
    share of the last 100 choices comes last.
    """

    name: ClassVar[str] = "endpoint_metrics"
    lb_type: ClassVar[str] = "endpoint"
    signals: ClassVar[frozenset[str]] = frozenset({"metrics"})

    metric_policy: Literal["default", "least", "most"] = "default"
    target_metric: str = ""
    rate_limit: Annotated[float, Field(ge=0, le=1)] = 1.0
    waiting_threshold: Annotated[float, Field(gt=0)] = 50
    sheddable_waiting: Annotated[float, Field(ge=0)] = 5
    sheddable_kv_usage: Annotated[float, Field(ge=0, le=1)] = 0.8
    criticality_header: str = ""
    stale_after_s: Annotated[float, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where the target metric is missing."""
        if self.metric_policy != "default" and not self.target_metric.strip():
            raise ValueError(
                f"metric_policy '{self.metric_policy}' needs target_metric, the name of a metric"
            )

    def decide(self, request: Request, snapshot: Snapshot) -> Decision:
        """The survivors, those dropped, those without metrics, those over their share."""
        known: list[_Seen] = []
        stale: list[Choice] = []
        unknown: list[Choice] = []
        for choice in snapshot.candidates:
            observation = snapshot.metrics.get(choice.endpoint.name)
            if observation is None:
                unknown.append(choice)
            elif observation.age_s > (self.stale_after_s or observation.stale_after_s):
                stale.append(choice)
            elif (seen := self._seen(choice, observation, snapshot)) is None:
                unknown.append(choice)
            else:
                known.append(seen)
        if not known:
            reason = "all_stale" if stale else "no_metrics"
            return self._decision([Tier(snapshot.candidates, reason)], snapshot)
        sheddable = self._may_be_dropped(request)
        if sheddable and not (known := [seen for seen in known if self._has_room(seen)]):
            return Decision(self.name, ())
        if self.metric_policy == "default":
            tiers = self._tree(known, request.model, sheddable=sheddable)
        else:
            tiers = self._by_target(known)
        if not sheddable:
            if stale:
                tiers.append(Tier(tuple(stale), "stale", "too old"))
            if unknown:
                tiers.append(Tier(tuple(unknown), "no_metrics"))
        return self._decision(tiers, snapshot)

    def _seen(self, choice: Choice, observation: Observation, snapshot: Snapshot) -> "_Seen | None":
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
            return _Seen(_scored(choice, score), metrics, waiting, metrics.kv_usage)
        value = metrics.raw.get(self.target_metric)
        if value is not None and self.target_metric in COUNTS_OF_REQUESTS:
            others = 0.0 if waiting is None or running is None else waiting + running - value
            hidden = in_flight - others if waiting is not None and running is not None else 0.0
            value = max(value + observation.placed_since, hidden)
        if value is not None and self.metric_policy == "most":
            value = -value
        return _Seen(_scored(choice, value), metrics, value, None)

    def _may_be_dropped(self, request: Request) -> bool:
        if not self.criticality_header or self.metric_policy != "default":
            return False
        value = request.headers.get(self.criticality_header.lower())
        return value is not None and value.strip().lower() in _SHEDDABLE

    def _has_room(self, seen: "_Seen") -> bool:
        return (seen.waiting is None or seen.waiting <= self.sheddable_waiting) and (
            seen.kv_usage is None or seen.kv_usage <= self.sheddable_kv_usage
        )

    def _tree(self, known: list["_Seen"], model: str | None, *, sheddable: bool) -> list[Tier]:
        sieve = _Sieve(known)
        limit = self.waiting_threshold
        if not sheddable and any(seen.waiting is not None and seen.waiting < limit for seen in known):
            sieve.keep(
                lambda seen: None if seen.waiting is None else seen.waiting < limit,
                "queue",
                f"waiting < {limit:g}",
            )
            if not sieve.keep(lambda seen: seen.has(model), "lora", "has the adapter"):
                sieve.keep(lambda seen: seen.has_room_for(model), "lora", "has room for the adapter")
            pool = sieve.first
            sieve.keep_lowest(_waiting, pool, "queue", "waiting")
        else:
            pool = known
            sieve.keep_lowest(_waiting, pool, "queue", "waiting")
            sieve.keep(
                lambda seen: seen.has(model) or seen.has_room_for(model), "lora", "has or takes the adapter"
            )
        sieve.keep_lowest(_kv_usage, pool, "kv_usage", "kv_usage")
        missing = [
            f"{signal} missing at {', '.join(names)}"
            for signal, value in (("waiting", _waiting), ("kv_usage", _kv_usage))
            if (names := [seen.choice.endpoint.name for seen in known if value(seen) is None])
        ]
        return sieve.tiers(missing)

    def _by_target(self, known: list["_Seen"]) -> list[Tier]:
        """The lowest range, of the rest again the lowest range, and so on; `most` has negative values."""
        if all(seen.waiting is None for seen in known):
            detail = f"{self.target_metric} is missing everywhere"
            return [Tier(tuple(seen.choice for seen in known), "no_metrics", detail)]
        tiers: list[Tier] = []
        left = known
        while left:
            sieve = _Sieve(left)
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


@dataclass(slots=True)
class _Seen:
    """One endpoint as the filters see it."""

    choice: Choice
    metrics: EngineMetrics
    waiting: float | None
    """The queue with what the page does not know; for `least` and `most` the target's value."""
    kv_usage: float | None

    def has(self, model: str | None) -> bool:
        return model is not None and model in (self.metrics.adapters or ())

    def has_room_for(self, model: str | None) -> bool | None:
        adapters, most = self.metrics.adapters, self.metrics.max_loras
        return None if model is None or adapters is None or most is None else len(adapters) < most


@dataclass(slots=True)
class _Sieve:
    """Endpoints that came through all filters so far, and those that each filter held back."""

    first: list[_Seen]
    dropped: list[tuple[list[_Seen], str, str]] = field(default_factory=list)
    """The last dropped first, with the reason and detail of the filter."""

    def keep(self, test: Callable[[_Seen], bool | None], reason: str, detail: str) -> bool:
        """Keep those that pass, and those of which the test does not know (None); False if none passes."""
        results = [test(seen) for seen in self.first]
        if True not in results:
            return False
        if False in results:
            held = [seen for seen, result in zip(self.first, results, strict=True) if result is False]
            self.first = [s for s, result in zip(self.first, results, strict=True) if result is not False]
            self.dropped.insert(0, (held, reason, detail))
        return True

    def keep_lowest(
        self, value: Callable[[_Seen], float | None], pool: Sequence[_Seen], reason: str, what: str
    ) -> None:
        """Keep those within 1/n of the range of the n of `pool` from the lowest."""
        numbers = [number for seen in pool if (number := value(seen)) is not None]
        left = [number for seen in self.first if (number := value(seen)) is not None]
        if left:
            limit = min(left) + (max(numbers) - min(numbers)) / len(numbers)
            self.keep(
                lambda seen: None if (number := value(seen)) is None else number <= limit,
                reason,
                f"{what} <= {limit:.4g}",
            )

    def detail(self) -> str:
        """The filters that held something back, in their order."""
        return ", ".join(detail for _, _, detail in reversed(self.dropped))

    def tiers(self, notes: list[str]) -> list[Tier]:
        """The survivors under the last filter's reason; the others under the one that held them back."""
        first = tuple(seen.choice for seen in self.first)
        reason = self.dropped[0][1] if self.dropped else "alike"
        detail = "; ".join(part for part in (self.detail(), *notes) if part)
        return [
            Tier(first, reason, detail),
            *(
                Tier(tuple(seen.choice for seen in held), f"not_{reason}", f"not {detail}")
                for held, reason, detail in self.dropped
            ),
        ]


def _scored(choice: Choice, score: float | None) -> Choice:
    return Choice(choice.endpoint, score, choice.virtual_load)


def _waiting(seen: _Seen) -> float | None:
    return seen.waiting


def _kv_usage(seen: _Seen) -> float | None:
    return seen.kv_usage
