"""The values of this package. Everything is frozen and may cross threads. None is what an engine did not say.

Times are readings of the balancer's clock, in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

STALE_AFTER_S = 5.0
"""The age from which a page is not to be used, where nothing else is configured."""


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """What one page said. Numbers are finite and not negative; counters count from the engine's start."""

    at: float
    """When the page was asked for: what happened later need not be in it."""
    dialect: str | None = None
    """A key of `dialects.DIALECTS`; None where only metrics asked for by name were found."""
    waiting: float | None = None
    """Requests that the engine holds and has not begun; summed over data-parallel engines."""
    running: float | None = None
    """Requests being worked on; summed over data-parallel engines."""
    kv_usage: float | None = None
    """The used share of the KV cache, 0 to 1; of data-parallel engines the fullest."""
    models: frozenset[str] = frozenset()
    """The engine's own models by the names that it gives them here, which need not be all of their names."""
    lora: bool = False
    """Whether it has a metric of adapters, which a vLLM has that serves some."""
    max_loras: int | None = None
    """LoRA adapters that fit in at once."""
    running_adapters: frozenset[str] | None = None
    waiting_adapters: frozenset[str] | None = None
    block_size: int | None = None
    """Tokens in one KV block."""
    kv_blocks: int | None = None
    """KV blocks in all; summed over data-parallel engines."""
    prefix_hits: float | None = None
    """Tokens of prompts that were found in the cache. A counter."""
    prefix_queries: float | None = None
    """Tokens of prompts that were looked for in the cache. A counter."""
    generated_tokens: float | None = None
    """A counter. Some engines add a request's tokens only at its end."""
    progress: float | None = None
    """A counter, of whatever unit, that grows with every step of work, prefill included."""
    sleeping: bool | None = None
    """Whether the weights are put away, so that requests would hang or fail."""
    raw: Mapping[str, float] = field(default_factory=dict)
    """Metrics asked for by name: a gauge's value, a counter's rate per second, a histogram's mean."""
    absent: tuple[str, ...] = ()
    """Metrics asked for by name of which the page has no sample."""

    @property
    def adapters(self) -> frozenset[str] | None:
        """Adapters that are loaded or about to be: those of running and of waiting requests."""
        if self.running_adapters is None:
            return self.waiting_adapters
        return self.running_adapters | (self.waiting_adapters or frozenset())


LATE = "no answer in time"
"""The error of a visit in which the page did not come, or not whole, though something accepts connections."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """How one visit of a page ended: with `metrics`, or with an `error` that names no address."""

    endpoint: str
    at: float
    took_s: float
    metrics: EngineMetrics | None = None
    error: str = ""
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """The newest metrics of an endpoint, and what this balancer knows that they do not."""

    metrics: EngineMetrics
    age_s: float
    """Since the page was asked for."""
    placed_since: int = 0
    """Own requests placed after that and still in flight: the page cannot count them."""
    stale_after_s: float = STALE_AFTER_S
    """The age from which it is not to be used."""
