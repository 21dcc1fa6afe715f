"""What can be made to go wrong with a simulated engine, and the switch for it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FaultKind(StrEnum):
    """All but the last two befall single requests; those two are states of the whole engine."""

    NONE = "none"
    ERROR_500 = "error_500"
    """Answers `status` after `delay_s`."""
    QUEUE_FULL_503 = "queue_full_503"
    """Answers as if max_queue were reached."""
    SSE_ERROR = "sse_error"
    """A stream gets 200 and an error as its first event; others get the error as their status."""
    RESET_BEFORE_HEADERS = "reset_before_headers"
    """Reads the request, then TCP RST."""
    RESET_MID_STREAM = "reset_mid_stream"
    """TCP RST after `chunks` tokens. Answers that are not streamed break off in the middle of their body."""
    CLOSE_MID_STREAM = "close_mid_stream"
    """The same with FIN, without the chunk that ends the body."""
    HANG = "hang"
    """Reads the request, never answers."""
    HANG_MID_STREAM = "hang_mid_stream"
    """Nothing more after `chunks` tokens; the connection stays."""
    SLOW_DRIP = "slow_drip"
    """`interval_s` between tokens."""
    REFUSE = "refuse"
    """Connections are refused. Idle ones are closed, requests in work go on, unless `cut`."""
    FREEZE = "freeze"
    """vLLM with a stopped worker: streams get only their headers, /health is 200, the metrics read 0."""


PER_ENGINE = frozenset({FaultKind.REFUSE, FaultKind.FREEZE})


class PageFault(StrEnum):
    """What /metrics or /health does instead of answering."""

    NONE = "none"
    HANG = "hang"
    ERROR_500 = "500"
    GARBAGE = "garbage"


class FaultOrder(BaseModel):
    """The body of `POST /admin/fault`. A part that is not given stays as it was.

    Raises pydantic.ValidationError (a ValueError) with the path of every wrong key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str | None = None
    """None means the engine that was asked."""
    fault: FaultKind | None = None
    metrics: PageFault | None = None
    health: PageFault | None = None
    status: int | None = Field(default=None, ge=400, le=599)
    """None is 500, or 503 for sse_error."""
    delay_s: float = Field(default=0.0, ge=0)
    chunks: int = Field(default=1, ge=0)
    interval_s: float = Field(default=1.0, ge=0)
    cut: bool = False
    times: int | None = Field(default=None, ge=1)
    """Only the next n generation requests."""
    seconds: float | None = Field(default=None, gt=0)
    """The fault, not those of the pages, ends by itself."""

    @model_validator(mode="after")
    def _fits(self) -> FaultOrder:
        if self.fault in PER_ENGINE and self.times is not None:
            raise ValueError(f"{self.fault} befalls the whole engine: use seconds instead of times")
        return self


NO_FAULT = FaultOrder(fault=FaultKind.NONE)


class FaultSwitch:
    """The faults that are on at one engine."""

    def __init__(self) -> None:
        self.current = NO_FAULT
        self.metrics = PageFault.NONE
        self.health = PageFault.NONE
        self._left: int | None = None

    def set(self, order: FaultOrder) -> None:
        if order.fault is not None:
            self.current = order
            self._left = order.times
        if order.metrics is not None:
            self.metrics = order.metrics
        if order.health is not None:
            self.health = order.health

    def take(self) -> FaultOrder:
        """What befalls the next generation request; uses up one of `times`."""
        order = self.current
        if order.fault in PER_ENGINE:
            return NO_FAULT
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self.current, self._left = NO_FAULT, None
        return order
