"""The keys of a cluster's `health` block. The defaults are meant for few endpoints and long requests."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=86_400)]
NotNegative = Annotated[float, Field(ge=0, le=86_400)]
Times = Annotated[int, Field(ge=1, le=1_000)]


@dataclass(frozen=True, slots=True)
class ChecksConfig:
    """Active checks: GET `path` every `interval_s` ± 20 %; a status from 200 to 399 is good.

    `fall` bad ones in a row take an endpoint out, `rise` good ones bring it back (HAProxy: 2 s, 3, 2). An
    empty `path` only connects. vLLM's /health is good while the engine hangs (vllm #36451) or its queue is
    full, so checks add to what requests tell and never overrule it.
    """

    path: Annotated[str, Field(pattern=r"^(/[!-~]*)?$", max_length=1_000)] = "/health"
    interval_s: Annotated[float, Field(ge=0.1, le=86_400)] = 2.0
    timeout_s: Annotated[float, Field(ge=0.01, le=60)] = 1.0
    fall: Times = 3
    rise: Times = 2


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """What takes an endpoint out, for how long, and how it comes back."""

    connect_failures: Times = 2
    """So many failures to connect in a row, within `connect_window_s`, eject (Envoy 5, nginx 1). Each costs
    a client up to a second, and there are hardly any false ones."""
    connect_window_s: Positive = 10.0
    consecutive_failures: Times | None = None
    """So many other failures in a row eject; None is 5 (Envoy, Finagle), and 3 from four endpoints on:
    an endpoint sees only a few requests per second, so ten would take too long."""
    failure_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """This share of at least `failure_share_requests` within `failure_share_window_s` ejects (LiteLLM 50 %
    in a minute; Finagle 20 % of 5 in 30 s): few, long requests are small samples."""
    failure_share_requests: Times = 10
    failure_share_window_s: Positive = 60.0
    ejection_s: Positive = 10.0
    """The first ejection. Each further one is twice as long, ± 20 %, up to `max_ejection_s`; each minute in
    health takes one doubling back (Envoy: 30 s times n up to 300 s). GPUs are scarce: back soon."""
    max_ejection_s: Positive = 120.0
    probe_successes: Times = 2
    """Successes that end a half-open state. One probe is under way at a time (Finagle): a prefill of a long
    prompt is not a cheap probe."""
    max_ejected: Share = 0.5
    """The share of endpoints that failures may eject: at least one of several, never the only one; 0 ejects
    none (Envoy 10 %, 50 % in its FAQ). Failures to connect eject without limit."""
    panic_below: Share = 0.5
    """With a smaller share than this in health, ejections are ignored, save of endpoints that cannot be
    connected to (Envoy, Finagle 50 %)."""
    slow_start_s: NotNegative = 60.0
    """How long an endpoint that joined or returned takes to its full share, linearly; 0 is at once."""
    slow_start_floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The share that it begins with (Envoy's `min_weight_percent`, 10 %)."""
    max_ghost_s: NotNegative = 10.0
    """A failure goes on counting as a request in flight for the mean duration of requests, at most this
    long. Else least request prefers whoever fails fastest."""
    silent_s: Annotated[float, Field(ge=1, le=86_400)] | None = 125.0
    """An endpoint that sends no token for so long, though streams wait there for their first one, is ejected
    for `max_ejection_s`; a token of any stream brings it back. An honest first token may take 120 s. None
    never does."""
    checks: ChecksConfig | None = None
    """None makes no active checks."""
