"""Answers of the balancer itself, in the form that the client's API gives its errors."""

from dataclasses import dataclass

import orjson

from lb_core.errors import RouteError

_OPENAI_TYPES = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes


def error_reply(error: RouteError, api: str | None) -> Reply:
    """Tell the client why it gets no answer. `api` is `messages` for Anthropic's form, else OpenAI's.

    Forms: platform.openai.com/docs/guides/error-codes and docs.anthropic.com/en/api/errors.
    """
    if api == "messages":
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
        body: dict[str, object] = {"type": "error", "error": {"type": kind, "message": error.message}}
    else:
        kind = _OPENAI_TYPES.get(error.status, "server_error")
        body = {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}
    headers = {"content-type": "application/json"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return Reply(error.status, headers, orjson.dumps(body))
