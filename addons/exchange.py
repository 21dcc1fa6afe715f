"""One placed request between the client and its endpoint, in mitmproxy's terms."""

import logging
from collections.abc import Callable

from mitmproxy import http

from lb_core import record
from lb_core.record import Record
from lb_core.sse import SseMeter, usage_of_json
from lb_core.types import Ending, Outcome, Placement, Usage

logger = logging.getLogger(__name__)

METADATA = "ai_lb"
"""The key of the decision record in `flow.metadata`."""

HEADER_PREFIX = "x-ai-lb-"

_BUFFERED = 1 << 20
"""Bytes up to which a response of known length is kept whole, so that mitmweb can show it."""


class Exchange:
    """What the addon keeps for a flow from `request` to its end."""

    def __init__(self, flow: http.HTTPFlow, placement: Placement, *, clock: Callable[[], float]) -> None:
        self.flow = flow
        self.placement = placement
        self.record: Record = record.opened(placement, host=asked_host(flow))
        self._clock = clock
        self._meter: SseMeter | None = None
        self._status: int | None = None

    def direct(self) -> None:
        """Point the request at its endpoint. Only values of the configuration go into the destination."""
        flow, endpoint = self.flow, self.placement.endpoint
        request = flow.request
        # The setters of .host and .port would write the Host header twice more.
        request.data.host = endpoint.host
        request.data.port = endpoint.port
        request.scheme = endpoint.scheme
        request.authority = ""  # an absolute request line would be sent on as it came
        request.headers["host"] = endpoint.authority
        flow.metadata[METADATA] = self.record
        flow.comment = record.line(self.record)

    def response_started(self, *, expose: bool) -> None:
        """Response headers are here: let streams through as they come, and say where they come from."""
        response = self.flow.response
        if response is None:
            return
        self._status = response.status_code
        headers = response.headers
        if headers.get("content-type", "").startswith("text/event-stream"):
            self._meter = SseMeter()
            response.stream = self._feed
        elif not _is_short(headers.get("content-length")):
            response.stream = True
        drop_own_headers(headers)
        if expose:
            headers[HEADER_PREFIX + "endpoint"] = self.placement.endpoint.name
            headers[HEADER_PREFIX + "policy"] = self.placement.decision.policy
            headers[HEADER_PREFIX + "reason"] = self.placement.tier.reason

    def ended(self, ending: Ending) -> Outcome:
        """Sum up, and write it into the flow."""
        now = self._clock()
        flow, meter = self.flow, self._meter
        started = self.placement.started
        ttft_s = None
        if meter is not None and meter.first_content_at is not None:
            ttft_s = meter.first_content_at - started
        outcome = Outcome(
            ending=ending,
            status=self._status,
            ttft_s=ttft_s,
            duration_s=now - started,
            chunks=meter.chunks if meter else 0,
            usage=meter.usage if meter else _usage(flow),
            error=_error(flow) if ending is Ending.UPSTREAM_FAILED else meter.error if meter else None,
        )
        record.close(self.record, outcome)
        flow.comment = record.line(self.record)
        return outcome

    def _feed(self, chunk: bytes) -> bytes:
        # mitmproxy would lose the chunk and may hang the client if this raised.
        meter = self._meter
        if meter is not None:
            try:
                if chunk:
                    meter.feed(chunk, self._clock())
                else:
                    meter.close()
            except Exception:
                logger.exception("ai-lb: the stream is passed on unread after a fault")
                self._meter = None
        return chunk


def asked_host(flow: http.HTTPFlow) -> str:
    """The host name that the client asked for, without the port; of a replayed flow, the recorded one."""
    if flow.is_replay == "request":
        recorded = flow.metadata.get(METADATA)
        if isinstance(recorded, dict) and isinstance(host := recorded.get("host"), str):
            return host
    return flow.request.pretty_host


def drop_own_headers(headers: http.Headers) -> None:
    """Remove `x-ai-lb-*`: nobody but the balancer speaks for the balancer."""
    for name in {name.lower() for name in headers}:
        if name.startswith(HEADER_PREFIX):
            del headers[name]


def _is_short(content_length: str | None) -> bool:
    return content_length is not None and content_length.isdecimal() and int(content_length) <= _BUFFERED


def _usage(flow: http.HTTPFlow) -> Usage:
    response = flow.response
    if response is None or not response.raw_content or response.status_code != 200:
        return Usage()
    return usage_of_json(response.raw_content)


def _error(flow: http.HTTPFlow) -> str:
    """What went wrong upstream, in words without addresses."""
    if flow.server_conn.timestamp_tcp_setup is None:
        return "connect failed"
    return "cut" if flow.response else "closed before the response"
