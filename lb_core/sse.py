"""Reading a streamed answer as it passes: first token, usage, errors, end.

This runs for each network chunk of each stream, so most events are only counted: until the first one with
content each event is parsed, afterwards those alone in which a word occurs that matters.
"""

import re

import orjson

from lb_core.error_words import known_status
from lb_core.types import Usage

EVENT_LIMIT = 64 << 10
"""Bytes of an event that is read; of a larger one only the beginning is looked at."""
JSON_LIMIT = 1 << 20
"""Bytes of a whole answer that is searched for its usage."""

_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ENDINGS = frozenset({"message_stop", "response.completed", "response.incomplete", "response.failed"})
_ERROR_KEYS = ("code", "http_status_code", "type", "error_type")  # the second and the last are TGI's
# What is in a chat delta or a completion's choice when the model has said something.
_SAID = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal", "audio")


class SseMeter:
    """Follows one event stream without changing it. How the bytes are cut into chunks makes no difference."""

    __slots__ = (
        "_after_cr",
        "_carry",
        "_now",
        "chunks",
        "done",
        "error",
        "events",
        "first_content_at",
        "usage",
    )

    def __init__(self) -> None:
        self.chunks = 0
        self.events = 0
        """Events with data: what a stream's progress is told by. Comments and pings are none."""
        self.first_content_at: float | None = None
        """The time of the first event in which the model says something; no role, ping, comment or error."""
        self.usage = Usage()
        self.error: str | None = None
        """The code or type of the first error event, one word, of which `error_words` tells more; never its
    message."""
        self.done = False
        """The stream said that it is complete (or failed); without this it was cut."""
        self._carry = bytearray()
        self._after_cr = False
        self._now = 0.0

    def feed(self, chunk: bytes, now: float) -> None:
        """The next bytes of the body and the time, in seconds on any clock, at which they came."""
        if not chunk:
            return
        self.chunks += 1
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_plain_newlines(chunk)
        if not self._carry and chunk[-2:] == b"\n\n":
            self._blocks(chunk, now)
            return
        carry = self._carry
        searched = max(len(carry) - 1, 0)
        carry += chunk
        end = carry.rfind(b"\n\n", searched)
        if end >= 0:
            whole = bytes(carry[:end])
            del carry[: end + 2]
            self._blocks(whole, now)
        if len(carry) > EVENT_LIMIT + 2:  # the event and a line end on either side
            # Too large, and still so when it ends: its beginning stays, and the last byte, to see the end.
            # The blank between them keeps two line ends apart that were not together.
            carry[EVENT_LIMIT + 2 : -1] = b" "
        self._now = now

    def close(self) -> None:
        """The body has ended. A last event without its empty line counts if it is whole."""
        rest = bytes(self._carry).strip(b"\n")
        self._carry.clear()
        name, data = _fields(rest)
        if len(rest) <= EVENT_LIMIT and (data == b"[DONE]" or _object(data) is not None):
            self.events += 1
            self._event(name, data, self._now)

    def _with_plain_newlines(self, chunk: bytes) -> bytes:
        if self._after_cr:  # its line feed, if one comes, is the second half of a line end that was cut
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _blocks(self, whole: bytes, now: float) -> None:
        """Any number of whole events."""
        if self.first_content_at is not None and len(whole) <= EVENT_LIMIT and not _matters(whole):
            for block in whole.split(b"\n\n"):
                if block.startswith(b"data:") or b"\ndata:" in block:
                    self.events += 1
            return
        for block in whole.split(b"\n\n"):
            self._block(block.strip(b"\n"), now)

    def _block(self, block: bytes, now: float) -> None:
        large = len(block) > EVENT_LIMIT
        if large:
            block = block[:EVENT_LIMIT]
        if not (block.startswith(b"data:") or b"\ndata:" in block) or _is_ping(block):
            return
        self.events += 1
        if large:
            name, _ = _fields(block)
            # Some engines repeat the whole prompt in `response.created` and the whole answer at the end.
            self.done = self.done or name in _ENDINGS
            if name == "error":
                self.error = self.error or name
            if self.first_content_at is None and (not name or name.endswith("delta")):
                self.first_content_at = now
        elif self.first_content_at is None or _matters(block):
            self._event(*_fields(block), now)

    def _event(self, name: str, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        value = _object(data)
        kind = value.get("type") if value else None
        error = _error_of(value, name) if value or name == "error" else None
        if error is not None:
            self.error = self.error or error
        elif self.first_content_at is None and value and _has_content(value):
            self.first_content_at = now
        if value:
            self.usage = _merged(self.usage, value)
            self.done = self.done or (isinstance(kind, str) and kind in _ENDINGS)


def usage_of_json(body: bytes) -> Usage:
    """The usage in an answer that is not streamed; unknown if it has none or is larger than 1 MiB."""
    value = _object(body) if len(body) <= JSON_LIMIT else None
    return _merged(Usage(), value) if value else Usage()


def _matters(text: bytes) -> bool:
    """Whether events after the first content need reading. Says yes too often rather than not at all."""
    return (
        b"error" in text
        or (
            b'"usage"' in text
            and text.count(b'"usage"') > text.count(b'"usage":null') + text.count(b'"usage": null')
        )
        or b'"ping"' in text
        or b"[DONE]" in text
        or b"message_stop" in text
        or (
            b'"response.' in text
            and (
                b"response.completed" in text or b"response.incomplete" in text or b"response.failed" in text
            )
        )
    )


def _is_ping(block: bytes) -> bool:
    """Tell if it is the event with which Anthropic's API keeps a connection open."""
    if b"ping" not in block:
        return False
    name, data = _fields(block)
    return name == "ping" or (_object(data) or {}).get("type") == "ping"


def _fields(block: bytes) -> tuple[str, bytes]:
    """The event's name, "" if it has none, and its data."""
    name, data = "", []
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = line[6:].strip().decode("utf-8", "replace")
    return name, b"\n".join(data)


def _object(data: bytes) -> dict[str, object] | None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _has_content(event: dict[str, object]) -> bool:
    choices = event.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            if isinstance(choice, dict):
                delta = choice.get("delta")
                if choice.get("text") or (isinstance(delta, dict) and any(delta.get(key) for key in _SAID)):
                    return True
        return False
    kind, delta = event.get("type"), event.get("delta")
    if kind != "content_block_delta" and not (isinstance(kind, str) and kind.endswith(".delta")):
        return False
    if isinstance(delta, dict):
        return any(value for key, value in delta.items() if key != "type")
    return bool(delta)


def _error_of(event: dict[str, object] | None, name: str) -> str | None:
    """A word for the error that the event reports, None if it reports none."""
    event = event or {}
    response = event.get("response")
    error = event.get("error") or (response.get("error") if isinstance(response, dict) else None)
    if not error and name != "error" and "error" not in (event.get("type"), event.get("object")):
        return None
    source = error if isinstance(error, dict) else event
    values = [str(value) for key in _ERROR_KEYS if isinstance(value := source.get(key), str | int)]
    known = (value.replace(" ", "_") for value in values if known_status(value))  # "Service Unavailable"
    words = (value for value in (*known, *values) if _WORD.fullmatch(value))
    return next(words, "error")


def _merged(known: Usage, event: dict[str, object]) -> Usage:
    """The usage with what this event, or whole answer, adds."""
    usage = event.get("usage")
    for wrapper in ("response", "message"):  # responses API; Anthropic's message_start
        inner = event.get(wrapper)
        if usage is None and isinstance(inner, dict):
            usage = inner.get("usage")
    if not isinstance(usage, dict):
        return known
    prompt = _first(usage, "prompt_tokens", "input_tokens")
    cached = _first(usage, "cache_read_input_tokens")
    if cached is not None and prompt is not None:
        # Anthropic counts the tokens read from the cache, or written to it, apart.
        prompt += cached + (_first(usage, "cache_creation_input_tokens") or 0)
    for key in ("prompt_tokens_details", "input_tokens_details"):
        details = usage.get(key)
        if cached is None and isinstance(details, dict):
            cached = _first(details, "cached_tokens")
    completion = _first(usage, "completion_tokens", "output_tokens")
    return Usage(
        prompt_tokens=known.prompt_tokens if prompt is None else prompt,
        completion_tokens=known.completion_tokens if completion is None else completion,
        cached_tokens=known.cached_tokens if cached is None else cached,
    )


def _first(counts: dict[str, object], *keys: str) -> int | None:
    for key in keys:
        count = counts.get(key)
        if type(count) is int and count >= 0:
            return count
    return None
