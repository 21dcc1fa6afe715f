"""The nouns: what crosses from one module to another. All values are frozen.

Units: seconds end in `_s`; loads are numbers of requests; weights are relative, 1.0 is the usual one.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lb_core.engines.model import Observation
from lb_core.request import LLMRequest


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that serves models. `name` identifies it over reloads and in all output."""

    name: str
    scheme: str
    """`http` or `https`."""
    host: str
    port: int
    weight: float = 1.0
    max_in_flight: int | None = None
    """The most requests it may have in flight over all balancers; None is no limit."""
    models: tuple[str, ...] = ()
    """Globs of the model names it serves; empty serves all."""
    server_name: str | None = None
    """What Host and TLS say in place of `host`, where that is an address of a name."""
    draining: bool = False
    """Its configuration says that it finishes what it has and gets nothing new."""

    @property
    def authority(self) -> str:
        """What a Host header to it says: the port is left out where the scheme implies it."""
        name = self.server_name or self.host
        host = f"[{name}]" if ":" in name else name
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Request:
    """One client request as the core sees it."""

    id: str
    tie: float
    """In [0, 1): breaks ties between equals, so that a recorded decision replays to the same choice."""
    host: str
    path: str
    """Without the query."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Read with `get` and lower-case names; they hold keys, so they are never shown."""
    session: str | None = None
    """What requests of one conversation or user have in common, where the client said so."""
    llm: LLMRequest | None = None

    @property
    def model(self) -> str | None:
        """The model (or LoRA adapter) asked for, where the body names one."""
        return self.llm.model if self.llm else None


@dataclass(frozen=True, slots=True)
class Choice:
    """One endpoint eligible for a request, and what a policy makes of it."""

    endpoint: Endpoint
    score: float | None = None
    """Lower is better within a decision; None where the policy does not score."""
    virtual_load: float = 0.0
    """Load added to its in-flight count for reasons other than requests placed."""


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest known prefix of a prompt: `matched` of its `cuts` were seen at endpoint `owner` before."""

    owner: str
    matched: int
    cuts: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a policy decides on: the endpoints of one cluster that may serve one request, as of now."""

    cluster: str
    candidates: tuple[Choice, ...]
    """Unscored. The same object as long as members and their health stay as they are and none has virtual
    load, which who comes back has for a while; then it is made anew each time."""
    in_flight: Mapping[str, int]
    """Requests in flight over all balancers by endpoint name, as last heard; absent is 0."""
    sequence: int
    """How many decisions the route has made before among the endpoints that serve the model; what rotates a
    round robin."""
    prefix: PrefixMatch | None = None
    """For the policy `prefix_cache`; None where nothing of the prompt is known."""
    metrics: Mapping[str, Observation] = field(default_factory=dict)
    """For policies that declare the signal `metrics`, by endpoint name, however old; absent is unknown."""
    recent: Mapping[str, int] = field(default_factory=dict)
    """How often each endpoint was taken in the route's last 100 choices; absent is never."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Choices that the policy holds for equals, and why (`reason` is one of a policy's fixed words)."""

    choices: tuple[Choice, ...]
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy prefers: tiers of equals, best first. The store places the request by it."""

    policy: str
    tiers: tuple[Tier, ...]
    max_in_flight: int | None = None
    """The policy's own limit per endpoint, beside the endpoint's."""


@dataclass(frozen=True, slots=True)
class ServiceChoice:
    """One service and what a policy makes of it; `reason` is one of the policy's fixed words."""

    name: str
    reason: str
    detail: str = ""
    score: float | None = None
    """What it was ranked by, lower is better; None where that is not known."""


@dataclass(frozen=True, slots=True)
class ServiceDecision:
    """What a policy prefers: every service once, best first."""

    policy: str
    choices: tuple[ServiceChoice, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """One in-flight slot held for one request. Given back by `Store.release`, which is idempotent."""

    id: str
    cluster: str
    endpoint: Endpoint
    tier: int
    """Which tier of the decision the endpoint came from."""
    in_flight: int
    """Requests in flight at the endpoint, this one included."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One placed request: what `Balancer.route` returns and `Balancer.finish` takes back."""

    request: Request
    route: str
    cluster: str
    decision: Decision
    lease: Lease
    in_flight: Mapping[str, int]
    """What was in flight at each candidate, by endpoint name, when the decision was made."""
    started: float
    """When the request came, on the balancer's clock."""
    metrics: Mapping[str, Observation] = field(default_factory=dict)
    """What the engines had reported, where the policy asked for it."""
    prefix: PrefixMatch | None = None
    """What was known of the prompt, where the policy asked for it."""
    out: Mapping[str, str] = field(default_factory=dict)
    """The endpoints that were no candidates for their health, and how they were."""
    panic: bool = False
    """So few endpoints are well that those that are not were candidates too."""
    services: ServiceDecision | None = None
    """How the cluster was chosen, where the route chooses among several."""
    service_header: str | None = None
    """The request header that tells the upstream which was chosen."""
    note: Callable[[str], None] | None = field(default=None, repr=False, compare=False)
    """Tells whoever remembers prompts at which endpoint this one is."""

    @property
    def endpoint(self) -> Endpoint:
        """Where the request goes."""
        return self.lease.endpoint

    @property
    def tier(self) -> Tier:
        """The tier that the endpoint was taken from."""
        return self.decision.tiers[self.lease.tier]


class Ending(enum.StrEnum):
    """How an exchange ended."""

    COMPLETE = "complete"
    """The response came to its end, whatever its status."""
    CLIENT_LEFT = "client_left"
    UPSTREAM_FAILED = "upstream_failed"
    """Refused, reset, cut, or not HTTP."""
    TIMED_OUT = "timed_out"
    """Given up: nothing came within the route's own time-out."""
    ABANDONED = "abandoned"
    """Given up by the proxy for no fault of endpoint or client: its own fault, no socket left, the end of a
    drain; or what the backstop found after the client was gone."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine counted them; None where it did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a placed request."""

    ending: Ending
    status: int | None = None
    """The upstream's status; None when no response headers came."""
    ttft_s: float | None = None
    """From the request's arrival to the first event with content; streams only."""
    duration_s: float | None = None
    chunks: int = 0
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    """A short text about what went wrong, without addresses."""
    connected: bool = True
    """False when no connection to the endpoint came about."""
    error_code: int | None = None
    """What an error event that came in place of content counts as, as a status."""
    retry_after: str | None = None
    """The upstream's Retry-After, as it came."""
