"""One placed request between the client and its endpoint, in mitmproxy's terms."""

import logging
from dataclasses import replace

from mitmproxy import http

from addons.client_stream import BUFFERED
from addons.failover.timers import FirstByteTimeout, StreamWatch
from addons.headers import HEADER_PREFIX, drop_hop_by_hop, drop_own_headers, is_compressed, is_event_stream
from lb_core import record
from lb_core.balancer import Balancer
from lb_core.config import Timeouts
from lb_core.error_words import NOT_TAKEN, status_of
from lb_core.record import Record
from lb_core.retry import Cause, Failure, Retries
from lb_core.sse import SseMeter, usage_of_json
from lb_core.types import Ending, Outcome, Placement, Usage

logger = logging.getLogger(__name__)

METADATA = "ai_lb"
"""The key of the decision record in `flow.metadata`."""

_ENDINGS = {
    Cause.TIMED_OUT: Ending.TIMED_OUT,
    Cause.NO_SOCKET: Ending.ABANDONED,
    Cause.STALE: Ending.ABANDONED,
}
"""Of attempts that failed and whose endpoints are not to blame."""

_NOT_CONNECTED = "connect failed"


class Exchange:
    """What the addon keeps for a flow from `request` to its end."""

    def __init__(
        self,
        flow: http.HTTPFlow,
        placement: Placement,
        *,
        balancer: Balancer,
        retries: Retries,
        timeouts: Timeouts,
    ) -> None:
        self.flow = flow
        self.placement = placement
        self.retries = retries
        self.record: Record = record.opened(placement, host=asked_host(flow))
        self._balancer = balancer
        self._clock = balancer.clock
        self._meter: SseMeter | None = None
        self._bytes = 0
        """Of a body that is no stream of events."""
        self._status: int | None = None
        self._retry_after: str | None = None
        self._failure: Failure | None = None
        self._failed: list[Record] = []
        self._attempts = 1
        self.has_stream = False
        """The headers of a stream came, and may be held until its first event."""
        self._idle_s = timeouts.stream_idle_s
        self._watch: StreamWatch | None = None
        self._first_byte: FirstByteTimeout | None = None
        # mitmproxy sends replays through a layer of its own, which no timer reaches.
        if timeouts.ttft_timeout_s is not None and flow.is_replay is None:
            self._first_byte = FirstByteTimeout(flow, timeouts.ttft_timeout_s)

    @property
    def first_byte_fired(self) -> bool:
        """Whether the route's time-out for the first content has ended the attempt."""
        return self._first_byte is not None and self._first_byte.fired

    @property
    def events(self) -> int | None:
        """Events with data of the stream so far; None before its headers came."""
        if self._meter is None:
            return 0 if self.has_stream else None
        return self._meter.events

    def attempt_failed(self, failure: Failure, response: http.Response | None) -> None:
        """Note what became of an attempt before the client saw anything of it."""
        self._failure = failure
        self._retry_after = response.headers.get("retry-after") if response else None
        self._failed.append(
            {"endpoint": self.placement.endpoint.name, "cause": str(failure.cause), "status": failure.status}
        )
        self.record["attempts"] = self._failed

    def failed_outcome(self, failure: Failure) -> Outcome:
        """That attempt, for the health of its endpoint."""
        error_event = failure.cause is Cause.ERROR_EVENT
        return Outcome(
            _ENDINGS.get(failure.cause, Ending.UPSTREAM_FAILED),
            status=200 if error_event else failure.status,
            error=str(failure.cause),
            connected=failure.cause not in (Cause.CONNECT, Cause.CONNECT_TIMEOUT),
            error_code=failure.status if error_event else None,
            retry_after=self._retry_after,
        )

    def move(self, placement: Placement) -> None:
        """Go on at another endpoint."""
        self.placement = placement
        self._attempts += 1
        self.has_stream = False
        self._failure = None
        self.record["endpoint"] = placement.endpoint.name
        self.record["reason"] = placement.tier.reason
        self.direct()

    def direct(self) -> None:
        """Point the request at its endpoint. Only values of the configuration go into the destination."""
        flow, endpoint = self.flow, self.placement.endpoint
        request = flow.request
        # The setters of .host and .port would write the Host header twice more.
        request.data.host = endpoint.host
        request.data.port = endpoint.port
        request.scheme = endpoint.scheme
        request.authority = ""  # an absolute request line would be sent on as it came
        drop_hop_by_hop(request.headers)
        request.headers["host"] = endpoint.authority
        llm = self.placement.request.llm
        if llm is not None and llm.stream and "accept-encoding" in request.headers:
            # Compressed, a stream could not be read, and would come in lumps.
            request.headers["accept-encoding"] = "identity"
        if (header := self.placement.service_header) is not None:
            request.headers[header] = self.placement.cluster  # all that the client said of it is gone
        flow.metadata[METADATA] = self.record
        flow.comment = record.line(self.record)

    def response_started(self, *, expose: bool) -> None:
        """Response headers are here: let streams through as they come, and say where they come from."""
        response = self.flow.response
        if response is None:
            return
        self._status = response.status_code
        self._failure = None
        headers = response.headers
        is_stream = is_event_stream(headers)
        if not is_stream:
            self._stop_first_byte()
        if self._status in NOT_TAKEN:
            self._retry_after = headers.get("retry-after")
            headers["retry-after"] = str(self.retry_after_s())
        elif self._status < 400 and not is_stream:
            self._balancer.content(self.placement)
        if is_stream:
            self._meter = SseMeter()
            response.stream = self._feed
        elif not _is_short(headers.get("content-length")):
            upgraded = self._status == 101
            response.stream = True if upgraded or is_compressed(headers) else self._count
        if callable(response.stream) and self.flow.is_replay is None:
            self._watch = StreamWatch(
                self.flow, self._pieces, idle_s=self._idle_s, progressed=self._progressed
            )
        drop_own_headers(headers)
        drop_hop_by_hop(headers)
        if expose:
            headers[HEADER_PREFIX + "endpoint"] = self.placement.endpoint.name
            headers[HEADER_PREFIX + "policy"] = self.placement.decision.policy
            headers[HEADER_PREFIX + "reason"] = self.placement.tier.reason
            self.tell_attempts(headers)

    def tell_attempts(self, headers: http.Headers) -> None:
        """Say to how many endpoints the request was sent, if to more than one."""
        if self._attempts > 1:
            headers[HEADER_PREFIX + "attempts"] = str(self._attempts)

    def retry_after_s(self) -> int:
        """When its client may come back, if the endpoint of the last attempt has no room."""
        return self._balancer.retry_after_s(self.placement, self._retry_after)

    def ended(self, ending: Ending) -> Outcome:
        """Sum up, and write it into the flow."""
        self._stop_first_byte()
        if self._watch is not None:
            self._watch.stop()
        outcome = self._outcome(ending, self._clock() - self.placement.started)
        record.close(self.record, outcome)
        self.flow.comment = record.line(self.record)
        return outcome

    def _outcome(self, ending: Ending, duration_s: float) -> Outcome:
        meter = self._meter
        if self._failure is not None and ending is Ending.UPSTREAM_FAILED:
            return replace(self.failed_outcome(self._failure), duration_s=duration_s)
        if meter is None:
            error = _error(self.flow) if ending is Ending.UPSTREAM_FAILED else None
            return Outcome(
                ending=ending,
                status=self._status,
                duration_s=duration_s,
                usage=_usage(self.flow),
                error=error,
                connected=error != _NOT_CONNECTED,
                retry_after=self._retry_after,
            )
        began = meter.first_content_at
        error = _error(self.flow) if ending is Ending.UPSTREAM_FAILED else meter.error
        if began is None and self.first_byte_fired and ending is not Ending.CLIENT_LEFT:
            # Cut by us, after the headers had gone to the client.
            ending, error = Ending.TIMED_OUT, str(Cause.TIMED_OUT)
        said = meter.error if began is None else None
        return Outcome(
            ending=ending,
            status=self._status,
            ttft_s=None if began is None else began - self.placement.started,
            duration_s=duration_s,
            chunks=meter.chunks,
            usage=meter.usage,
            error=error,
            error_code=None if said is None else status_of(said),
        )

    def _progressed(self) -> None:
        self._balancer.progressed(self.placement)

    def _pieces(self) -> int | None:
        """What grows with each piece of content; None before the first, and where it cannot be told."""
        if (meter := self._meter) is None:
            return self._bytes or None
        begun = meter.first_content_at is not None or (meter.events and not self._is_understood)
        return meter.events if begun else None

    @property
    def _is_understood(self) -> bool:
        """Whether it can be told which event has content."""
        llm = self.placement.request.llm
        return llm is not None and llm.known

    def _count(self, chunk: bytes) -> bytes:
        self._bytes += len(chunk)
        return chunk

    def _feed(self, chunk: bytes) -> bytes:
        # mitmproxy would lose the chunk and may hang the client if this raised.
        meter = self._meter
        if meter is not None:
            try:
                if not chunk:
                    meter.close()
                elif meter.first_content_at is not None:
                    meter.feed(chunk, 0.0)
                else:
                    meter.feed(chunk, self._clock())
                    self._heard(meter)
            except Exception:
                logger.exception("ai-lb: the stream is passed on unread after a fault")
                self._meter = None
                self._stop_first_byte()
                self._balancer.content(self.placement)  # that it says nothing could not be told any more
        return chunk

    def _heard(self, meter: SseMeter) -> None:
        """Something came before, or with, the first content."""
        if meter.first_content_at is not None:
            self._stop_first_byte()
            self._balancer.content(self.placement)
        elif meter.events and not self._is_understood:
            self._stop_first_byte()  # of another API

    def _stop_first_byte(self) -> None:
        if self._first_byte is not None:
            self._first_byte.stop()


def asked_host(flow: http.HTTPFlow) -> str:
    """The host name that the client asked for, without the port; of a replayed flow, the recorded one."""
    if flow.is_replay == "request":
        recorded = flow.metadata.get(METADATA)
        if isinstance(recorded, dict) and isinstance(host := recorded.get("host"), str):
            return host
    return flow.request.pretty_host


def _is_short(content_length: str | None) -> bool:
    return content_length is not None and content_length.isdecimal() and int(content_length) <= BUFFERED


def _usage(flow: http.HTTPFlow) -> Usage:
    response = flow.response
    if response is None or not response.raw_content or response.status_code != 200:
        return Usage()
    return usage_of_json(response.raw_content)


def _error(flow: http.HTTPFlow) -> str:
    """What went wrong upstream, in words without addresses, where nobody was asked: after the first byte."""
    if flow.server_conn.timestamp_tcp_setup is None:
        return _NOT_CONNECTED
    return "cut" if flow.response else "closed before the response"
