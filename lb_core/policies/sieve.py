"""What `endpoint_metrics` sees of an endpoint, and how endpoints go through its filters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lb_core.engines.model import EngineMetrics
from lb_core.types import Choice, Tier


@dataclass(slots=True)
class Seen:
    """One endpoint as the filters see it."""

    choice: Choice
    metrics: EngineMetrics
    waiting: float | None
    """The queue with what the page does not know; for `least` and `most` the target's value."""
    kv_usage: float | None

    def has(self, model: str | None) -> bool:
        """Whether it says that it has the adapter."""
        return model is not None and model in (self.metrics.adapters or ())

    def has_room_for(self, model: str | None) -> bool | None:
        """Whether one more adapter fits in; None where it does not say."""
        adapters, most = self.metrics.adapters, self.metrics.max_loras
        if model is None or adapters is None:
            return None
        if most is None:  # that LoRA is on was all the page said: no adapter was asked for yet
            return None if adapters else self.metrics.lora or None
        return len(adapters) < most


@dataclass(slots=True)
class Sieve:
    """Endpoints that came through all filters so far, and those that each filter held back."""

    first: list[Seen]
    dropped: list[tuple[list[Seen], str, str]] = field(default_factory=list)
    """The last dropped first, with the reason and detail of the filter."""

    def keep(self, test: Callable[[Seen], bool | None], reason: str, detail: str) -> bool:
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
        self, value: Callable[[Seen], float | None], pool: Sequence[Seen], reason: str, what: str
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
