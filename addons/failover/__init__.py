"""Another endpoint within the same flow: an HTTP layer that asks before it gives up.

mitmproxy answers a failed endpoint with an HTML page that names the address. Here, as long as the client has
seen nothing of a response, the addons are asked first, by the hook `ai_lb_retry`: they point the flow
somewhere else, or the client gets an error in the form of its API. The client's connection, the flow and its
`request` hook stay one, no further connection or hop is added, and streams still pass through as they come.

What is held back, so that there is something to decide: a response whose status is one to try again after,
with up to 64 KiB of its body, or 250 ms; and a stream, headers included, until its first event with data,
since engines whose queue is full answer 200 and say so in the first event, and one that dies before it can
still be replaced.

Exactly one of `response` and `error` is called for a flow, as without this layer: `response` for what an
endpoint answered, whatever its status; `error` where the answer is ours because the endpoints gave none.
`responseheaders` is called for the one response that is passed on.

Where this layer is not: replays (`-C`), which mitmproxy sends through a layer of its own; requests that are
streamed to the endpoint, as the body is not kept; and, once it is sent, a request over HTTP/2 to
the endpoint, as that connection also belongs to others.
"""

from addons.failover.layer import FailoverLayer, next_layer
from addons.failover.question import Question, RetryHook

__all__ = ["FailoverLayer", "Question", "RetryHook", "next_layer"]
