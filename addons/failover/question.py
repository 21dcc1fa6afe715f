"""What the addons are asked when an endpoint failed."""

from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.proxy import commands

from lb_core.retry import Failure


@dataclass
class Question:
    """What the hook `ai_lb_retry` is called with. Without an answer there is no other attempt."""

    flow: http.HTTPFlow
    """Its `response` is None: what the endpoint answered has not been accepted."""
    failure: Failure
    """What happened. May be replaced, by one with the cause `TIMED_OUT`, to tell the client so."""
    response: http.Response | None = None
    """What the endpoint answered, without its body; goes to the client if there is no other attempt."""
    again: bool = False
    """Answer: the host, port and scheme of the flow's request now name the endpoint to try next."""
    retry_after_s: int | None = None
    """Answer: when the client is told to come back, if it is told that; None is the usual."""


@dataclass
class RetryHook(commands.StartHook):
    """An attempt failed before the client saw anything of a response. May be answered by an `async def`."""

    name = "ai_lb_retry"
    question: Question
