"""What a client asks of an LLM, read from the path, the headers and the body of its request.

The body goes to the engine as it came; here it is only read. Whatever the client sends, nothing raises: wrong
types give unusual segments, and what is no request to an LLM gives None.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import orjson

from lb_core.bodies import decompressed, form_field
from lb_core.skim import Opaque, Undecodable, decodable, decode, skim

OTHER = "other"
"""The API of a request whose path is of none that is known."""

_API = re.compile(r"/v1/(chat/completions|completions|responses|embeddings|messages)/?\Z")
_UNRESERVED = re.compile("%(4[1-9a-f]|5[0-9af]|6[1-9a-f]|7[0-9ae]|3[0-9]|2[de])", re.IGNORECASE)
_ID_LIMIT = 1024  # characters of a model name or session; longer ones are no names
# Sent by the common clients and gateways; the first two on purpose for load balancers.
_SESSION_HEADERS = (
    "x-session-id",
    "x-session-affinity",
    "x-conversation-id",
    "session-id",
    "session_id",
    "conversation_id",
    "x-claude-code-session-id",
    "helicone-session-id",
)
# Parts that are text, and the keys beside it that the engine's prompt does not depend on.
_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
_TEXT_KEYS = frozenset({"type", "text", "annotations", "logprobs", "cache_control"})
_OWN_KINDS = frozenset({"text", "json", "token_ids", "opaque", "tool"})


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a segment.

    `kind` is "text" (UTF-8), "token_ids", "tool" or "json" (canonical JSON), "opaque" (a digest of what was
    too large to read), the type of a content part such as "image_url" (canonical JSON), or a message's
    further key with a dot before it such as ".tool_calls" (canonical JSON of its value).
    """

    kind: str
    data: bytes | str


@dataclass(frozen=True, slots=True)
class Segment:
    """One message, or what stands in its place: the role, and the parts in order."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class LLMRequest:
    """One request to an LLM. Its repr holds no prompt."""

    api: str
    """chat, completions, responses, embeddings, messages (Anthropic's) or `OTHER`."""
    model: str | None = None
    """The model or LoRA adapter; None where the body names none that could be one."""
    stream: bool = False
    session: str | None = field(default=None, repr=False)
    """What the requests of one conversation, or failing that of one user, have in common."""
    user: str | None = field(default=None, repr=False)
    cache_salt: str | None = field(default=None, repr=False)
    """Requests share a prefix in vLLM's cache only if their salts are equal."""
    stored: bool = False
    """The answer is to be kept for a later `previous_response_id` (responses API)."""
    background: bool = False
    """The answer is made after the response to this request (responses API)."""
    _body: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)

    @property
    def known(self) -> bool:
        """Whether it is inference of an API that is known; of others the model and the session are read."""
        return self.api != OTHER

    def segments(self) -> Iterator[Segment]:
        """The prompt in the order in which engines lay it out; different prompts give different segments.

        They come one by one: of a hostile body there are tens of thousands, and 50 ms of work.
        """
        for key in ("tools", "functions"):
            tools = self._body.get(key)
            if isinstance(tools, list):
                yield Segment(key, tuple(_json_part("tool", tool) for tool in tools))
            elif tools is not None:
                yield Segment(key, (_json_part("json", tools),))
        for key in ("system", "instructions"):
            content = self._body.get(key)
            if content is not None:
                yield Segment(key, tuple(_content(content)))
        for key in ("messages", "prompt", "input"):
            yield from _turns(key, self._body.get(key))


def plain_path(path: str) -> str:
    """The path without its query, in which no unreserved character is percent-encoded (RFC 3986, 6.2.2.2)."""
    path = path.partition("?")[0]
    return _UNRESERVED.sub(lambda found: chr(int(found[1], 16)), path) if "%" in path else path


def api_of(path: str) -> str | None:
    """The API that a path (with or without query, with any prefix) belongs to, as in `LLMRequest.api`."""
    found = _API.search(plain_path(path))
    if found is None:
        return None
    return "chat" if found[1] == "chat/completions" else found[1]


def session_of(headers: Mapping[str, str]) -> str | None:
    """The session that the headers name. `headers.get` takes lower-case names."""
    # One pass over the headers: mitmproxy's `get` walks all of them each time.
    present = {name.lower() for name in headers}
    for name in _SESSION_HEADERS:
        if name in present and (session := _id(headers.get(name))):
            return session
    return None


async def parse(path: str, headers: Mapping[str, str], body: bytes) -> LLMRequest | None:
    """The request in an HTTP request of any kind; None where it is none, or cannot be read at bearable cost.

    Bodies of up to a megabyte are decoded in one go. For larger ones see `lb_core.skim`: the event loop gets
    its turn meanwhile. Where the path is of no API that is known, a JSON object or a form may still name a
    model, as in `/rerank` or `/v1/messages/count_tokens`.
    """
    api = api_of(path)
    if api is None:
        kind = headers.get("content-type", "").lower() if body else ""
        if kind.startswith("multipart/form-data"):
            model = _id(form_field(headers["content-type"], body, "model"))
            return LLMRequest(OTHER, model, session=session_of(headers)) if model else None
        if "json" not in kind:
            return None
    encoding = headers.get("content-encoding")
    if encoding:
        plain = await decompressed(body, encoding)
        if plain is None:
            return None
        body = plain
    members = await _members(body)
    if members is None:
        return None
    metadata = members.get("metadata")
    user = _id(members.get("user")) or (_id(metadata.get("user_id")) if isinstance(metadata, dict) else None)
    model, session = _id(members.get("model")), session_of(headers) or _session(members) or user
    if api is None:
        return LLMRequest(OTHER, model, session=session, user=user)
    salt = members.get("cache_salt")
    return LLMRequest(
        api=api,
        model=model,
        stream=members.get("stream") is True,
        session=session,
        user=user,
        cache_salt=_word(salt) if isinstance(salt, str) else None,
        stored=members.get("store") is True,
        background=members.get("background") is True,
        _body=members,
    )


async def _members(body: bytes) -> dict[str, object] | None:
    if not decodable(body):
        return await skim(body)
    try:
        value = decode(body)
    except Undecodable:
        return await skim(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _session(members: Mapping[str, object]) -> str | None:
    conversation = members.get("conversation")
    hints = (
        members.get("prompt_cache_key"),
        members.get("session_id"),
        conversation.get("id") if isinstance(conversation, dict) else conversation,
        members.get("previous_response_id"),
    )
    return next((hint for hint in map(_id, hints) if hint), None)


def _id(value: object) -> str | None:
    """The value if it can be a name: a string that is not empty, not a novel, and can be encoded."""
    if not isinstance(value, str) or not 0 < len(value) <= _ID_LIMIT or value.isspace():
        return None
    return value if value == _word(value) else None


def _word(text: str) -> str:
    """The text, lone surrogates written as escapes, so that no later encoding fails."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _turns(key: str, value: object) -> Iterator[Segment]:
    """The segments of `messages`, `prompt` or `input`, each of which comes in many shapes."""
    if value is None:
        return
    turns = value if isinstance(value, list) and set(map(type, value)) != {int} else [value]
    for turn in turns:
        if isinstance(turn, dict):
            yield _message(turn)
        elif isinstance(turn, list) and set(map(type, turn)) == {int}:
            yield Segment(key, (Part("token_ids", _canonical(turn)),))
        elif isinstance(turn, str | Opaque):
            yield Segment(key, tuple(_content(turn)))
        else:
            yield Segment(key, (_json_part("json", turn),))


def _message(message: dict[str, object]) -> Segment:
    role = message.get("role")
    known = {"role", "content"} if isinstance(role, str) else {"content"}
    parts = list(_content(message.get("content")))
    parts += [
        Part(f".{_word(key)}", _canonical(message[key]))
        for key in sorted(message.keys() - known)
        if message[key] is not None  # as good as absent: clients echo `"refusal": null`
    ]
    return Segment(_word(role) if isinstance(role, str) else "", tuple(parts))


def _content(content: object) -> Iterator[Part]:
    match content:
        case None:  # usual beside tool calls
            return
        case str():
            yield Part("text", content.encode("utf-8", "surrogatepass"))
        case Opaque():
            yield Part("opaque", content.digest.encode())
        case list():
            yield from map(_part, content)
        case _:
            yield Part(".content", _canonical(content))


def _part(part: object) -> Part:
    if not isinstance(part, dict):
        return _json_part("json", part)
    kind, text = part.get("type"), part.get("text")
    if not isinstance(kind, str) or kind.startswith("."):
        return _json_part("json", part)
    if kind in _TEXT_TYPES and isinstance(text, str | Opaque) and part.keys() <= _TEXT_KEYS:
        return next(_content(text))
    return _json_part("json" if kind in _OWN_KINDS else _word(kind), part)


def _json_part(kind: str, value: object) -> Part:
    if isinstance(value, Opaque):
        return Part("opaque", value.digest.encode())
    if isinstance(value, dict) and "cache_control" in value:
        # Anthropic's clients move this mark along with the conversation; the prompt is the same.
        value = {key: member for key, member in value.items() if key != "cache_control"}
    return Part(kind, _canonical(value))


def _canonical(value: object) -> bytes:
    """The value as JSON with sorted keys and no spaces, in which NaN is null."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # lone surrogates, integers beyond 64 bit, nesting beyond 254
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=asdict).encode()
