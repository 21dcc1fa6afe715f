"""What the balancer reads from requests, and that nothing a client sends makes it raise."""

import asyncio
import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable, Mapping

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lb_core.bodies import DECODED_LIMIT
from lb_core.request import OTHER, LLMRequest, Part, Segment, api_of, parse, plain_path, session_of

CHAT = "/v1/chat/completions"


def read(body: object, *, path: str = CHAT, headers: Mapping[str, str] | None = None) -> LLMRequest | None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(parse(path, headers or {}, raw))


def request(body: object, *, path: str = CHAT, headers: Mapping[str, str] | None = None) -> LLMRequest:
    found = read(body, path=path, headers=headers)
    assert found is not None
    return found


def segments(**members: object) -> tuple[Segment, ...]:
    return tuple(request(members).segments())


def text(role: str, *texts: str) -> Segment:
    return Segment(role, tuple(Part("text", piece.encode()) for piece in texts))


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/chat/completions?x=1", "chat"),
        ("/openai/v1/chat/completions/", "chat"),
        ("/v1/completions", "completions"),
        ("/v1/responses", "responses"),
        ("/v1/embeddings", "embeddings"),
        ("/anthropic/v1/messages?beta=true", "messages"),
        ("/v1/messages/count_tokens", None),
        ("/v1/messages/v1/messages", "messages"),
        ("/v1/responses/resp_1", None),
        ("/v1/models", None),
        ("/x?then=/v1/messages", None),
        ("", None),
    ],
)
def test_the_api_follows_from_the_end_of_the_path(path: str, api: str | None) -> None:
    assert api_of(path) == api
    found = read({"model": "m"}, path=path)
    assert (found and found.api) == api


JSON = {"content-type": "application/json; charset=utf-8"}
FORM = {"content-type": 'multipart/form-data; charset=x; boundary="a-b"'}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/rerank",
        "/v1/score",
        "/v1/moderations",
        "/v1/audio/speech",
        "/v1/images/generations",
        "/tokenize",
        "/pooling",
        "/generate",
        "/anything",
    ],
)
def test_the_model_and_the_session_are_read_of_any_json_body(path: str) -> None:
    body = {"model": "m", "stream": True, "store": True, "session_id": "s", "messages": [{"content": "hi"}]}
    found = read(body, path=path, headers=JSON)
    assert found == LLMRequest(OTHER, "m", session="s")
    assert not found.known
    assert not tuple(found.segments()), "there is no prompt to be remembered"


def test_of_a_path_that_is_not_known_other_bodies_are_left_alone() -> None:
    for headers in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        assert read({"model": "m"}, path="/rerank", headers=headers) is None
    assert read(b'["model"]', path="/rerank", headers=JSON) is None
    assert read(b"", path="/rerank", headers=JSON) is None
    zipped = gzip.compress(b'{"model": "m"}')
    found = read(zipped, path="/rerank", headers=JSON | {"content-encoding": "gzip"})
    assert found is not None
    assert found.model == "m"


def form(*fields: tuple[str, bytes], boundary: str = "a-b") -> bytes:
    parts = [
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (boundary.encode(), head.encode(), data)
        for head, data in fields
    ]
    return b"".join(parts) + b"--%s--\r\n" % boundary.encode()


FILE = ('name="file"; filename="x.wav"\r\nContent-Type: audio/wav', b"\0" * 100_000)


@pytest.mark.parametrize(
    "body",
    [
        form(('name="model"', b"whisper"), FILE),
        form(FILE, ('name="model"', b"whisper")),
        form(('name="language"', b"en"), ('name="model"\r\nContent-Type: text/plain', b"whisper"), FILE),
    ],
    ids=["first", "last", "with a type"],
)
def test_the_model_of_a_form_is_read_near_its_ends(body: bytes) -> None:
    assert read(body, path="/v1/audio/transcriptions", headers=FORM) == LLMRequest(OTHER, "whisper")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--a-b",
        form(("name=other", b"x")),
        form(FILE, ('name="model"', b"whisper"), FILE),
        form(('name="model"', b"w" * 2000)),
        form(('name="model"', b"")),
        form(('name="model"', b"whisper"), boundary="other"),
        form(('name="model"; filename="x"', b"whisper")),
    ],
)
def test_a_form_without_a_plain_model_has_none(body: bytes) -> None:
    assert read(body, path="/v1/audio/transcriptions", headers=FORM) is None


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/v1/%63hat/completion%73?x=%63", "/v1/chat/completions"),
        ("/%41%5A%61%7a%30%39%2D%2e%5f%7E", "/AZaz09-._~"),
        ("/v1%2Fchat", "/v1%2Fchat"),
        ("/%40%5B%60%7B%2F%3A%7F%20%25%zz%4", "/%40%5B%60%7B%2F%3A%7F%20%25%zz%4"),
        ("/%2563", "/%2563"),
    ],
)
def test_a_path_is_matched_without_needless_encoding(path: str, plain: str) -> None:
    assert plain_path(path) == plain


def test_an_encoded_path_is_of_the_same_api() -> None:
    assert api_of("/v1/%63hat/completions?x") == "chat"


def test_the_facts_of_a_request_are_read() -> None:
    body = {"model": "m", "stream": True, "user": "u", "cache_salt": "s", "store": True, "background": True}
    assert request(body) == LLMRequest(
        api="chat",
        model="m",
        stream=True,
        session="u",
        user="u",
        cache_salt="s",
        stored=True,
        background=True,
    )


@pytest.mark.parametrize("model", [None, 1, "", " ", [], {"id": "m"}, "m" * 2000, "\ud800"])
def test_a_model_that_can_be_none_is_none(model: object) -> None:
    assert request({"model": model}).model is None


@pytest.mark.parametrize("value", [1, "true", None, [True]])
def test_only_true_is_true(value: object) -> None:
    found = request({"stream": value, "store": value, "background": value})
    assert (found.stream, found.stored, found.background) == (False, False, False)


@pytest.mark.parametrize(
    ("body", "session"),
    [
        ({"prompt_cache_key": "k", "session_id": "s", "user": "u"}, "k"),
        ({"prompt_cache_key": "", "session_id": "s"}, "s"),
        ({"conversation": "c", "previous_response_id": "r"}, "c"),
        ({"conversation": {"id": "c"}, "user": "u"}, "c"),
        ({"conversation": {"id": 3}, "previous_response_id": "r"}, "r"),
        ({"metadata": {"user_id": "a"}}, "a"),
        ({"metadata": "a", "user": ["u"]}, None),
    ],
)
def test_the_session_is_the_first_hint_in_the_body(body: dict[str, object], session: str | None) -> None:
    assert request(body).session == session


def test_headers_name_the_session_before_the_body_does() -> None:
    headers = {"x-conversation-id": "c", "x-session-id": "s"}
    assert session_of(headers) == "s"
    assert request({"prompt_cache_key": "k"}, headers=headers).session == "s"
    assert session_of({"x-session-id": "", "session-id": "t"}) == "t"
    assert session_of({"x-session-id": "\udcff"}) is None
    assert session_of({}) is None


def test_tools_come_first_then_the_system_prompt_then_the_messages() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert segments(messages=[{"role": "user", "content": "hi"}], system="be kind", tools=[tool]) == (
        Segment("tools", (Part("tool", b'{"function":{"name":"f"},"type":"function"}'),)),
        text("system", "be kind"),
        text("user", "hi"),
    )


def test_a_lone_text_part_is_the_same_as_a_string() -> None:
    as_part = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    assert (
        segments(messages=as_part)
        == segments(messages=[{"role": "user", "content": "x"}])
        == (text("user", "x"),)
    )
    assert segments(system=[{"type": "text", "text": "x"}]) == segments(system="x")


def test_content_of_every_kind_has_its_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}
    found = segments(
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, image, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "refusal": None, "name": "n"},
            {"role": "tool", "tool_call_id": "1", "content": "42"},
            {"role": "user", "content": 7},
            "odd",
            7,
        ]
    )
    assert found == (
        Segment(
            "user",
            (
                Part("text", b"a"),
                Part("image_url", b'{"image_url":{"detail":"low","url":"u"},"type":"image_url"}'),
                Part("text", b"b"),
            ),
        ),
        Segment("assistant", (Part(".name", b'"n"'), Part(".tool_calls", b'[{"id":"1"}]'))),
        Segment("tool", (Part("text", b"42"), Part(".tool_call_id", b'"1"'))),
        Segment("user", (Part(".content", b"7"),)),
        text("messages", "odd"),
        Segment("messages", (Part("json", b"7"),)),
    )


def test_prompts_and_inputs_of_every_shape_have_segments() -> None:
    assert segments(prompt="a") == (text("prompt", "a"),)
    assert segments(prompt=["a", "b"]) == (text("prompt", "a"), text("prompt", "b"))
    assert segments(prompt=[1, 22]) == (Segment("prompt", (Part("token_ids", b"[1,22]"),)),)
    assert segments(prompt=[[1], [22]]) == tuple(
        Segment("prompt", (Part("token_ids", ids),)) for ids in (b"[1]", b"[22]")
    )
    assert segments(instructions="i", input="a") == (text("instructions", "i"), text("input", "a"))
    call = {"type": "function_call", "call_id": "1", "arguments": "{}"}
    assert segments(input=[{"role": "user", "content": [{"type": "input_text", "text": "a"}]}, call]) == (
        text("user", "a"),
        Segment(
            "", (Part(".arguments", b'"{}"'), Part(".call_id", b'"1"'), Part(".type", b'"function_call"'))
        ),
    )
    assert segments(messages=[], prompt=[], input=None) == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            [{"role": "user", "content": "ab"}],
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        ),
        ([{"role": "user", "content": "a"}], [{"role": "system", "content": "a"}]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "ab"}]}],
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        ),
        ([{"role": "user", "content": '{"type":"x"}'}], [{"role": "user", "content": [{"type": "x"}]}]),
        ([{"role": "user", "content": {"type": "json"}}], [{"role": "user", "content": [{"type": "json"}]}]),
        ([{"role": "user", "content": "a", "text": "b"}], [{"role": "user", "content": ["a", "b"]}]),
        ([{"role": "user", "content": "a", ".x": 1}], [{"role": "user", "content": [{"type": ".x"}]}]),
        ([{"content": "a"}], [{"role": "", "content": "a", "x": 1}]),
    ],
)
def test_different_prompts_have_different_segments(one: object, other: object) -> None:
    assert segments(messages=one) != segments(messages=other)


def test_the_mark_that_anthropics_clients_move_along_is_no_part_of_the_prompt() -> None:
    part = {"type": "text", "text": "a"}
    image = {"type": "image", "source": {"data": "x"}}
    marked = {"cache_control": {"type": "ephemeral"}}
    assert segments(
        messages=[{"role": "user", "content": [part | marked, image | marked]}], tools=[image | marked]
    ) == (segments(messages=[{"role": "user", "content": [part, image]}], tools=[image]))


def test_a_large_image_is_one_opaque_part_and_different_images_differ() -> None:
    def messages(image: str) -> list[object]:
        picture = {"type": "image_url", "image_url": {"url": image * 5_000_000}}
        return [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [picture, {"type": "text", "text": "b"}]},
        ]

    one, other = segments(messages=messages("A")), segments(messages=messages("B"))
    assert one[0] == other[0] == text("user", "a")
    assert one[1].parts[0] != other[1].parts[0]
    assert one[1].parts[0].kind == "image_url"
    assert len(one[1].parts[0].data) < 200
    assert one[1].parts[1] == Part("text", b"b")
    (prompt,) = segments(prompt="a" * 5_000_000)
    assert prompt.parts[0].kind == "opaque"


def test_lone_surrogates_are_read_and_can_be_hashed() -> None:
    found = request(
        b'{"model":"m","messages":[{"role":"\\ud800","content":"\\ud800","\\ud801":["\\ud802"]}]}'
    )
    assert found.model == "m"
    (segment,) = found.segments()
    segment.role.encode()
    assert [part.data for part in segment.parts] == [b"\xed\xa0\x80", b'["\\ud802"]']
    assert all(part.kind.encode() for part in segment.parts)


def test_a_lone_surrogate_in_a_long_prompt_does_not_hide_the_model() -> None:
    assert request(b'{"prompt":"\\ud800' + b"a" * 300_000 + b'","model":"m"}').model == "m"


@pytest.mark.parametrize("levels", [300, 1000, 5000, 30_000])
def test_deep_nesting_is_no_obstacle(levels: int) -> None:
    found = request(b'{"model":"m","tools":[' + b'{"a":[' * (levels // 2) + b"]}" * (levels // 2) + b"]}")
    assert found.model == "m"
    assert len(tuple(found.segments())) == 1


def test_the_repr_holds_no_prompt_and_no_names_of_people() -> None:
    body = {"model": "m", "user": "alice", "cache_salt": "salt", "prompt": "secret"}
    assert "alice" not in repr(request(body))
    assert "salt" not in repr(request(body)).replace("cache_salt", "")
    assert "secret" not in repr(request(body))


@pytest.mark.parametrize(
    "raw", [b"", b"\x00", b"{", b"[]", b'"x"', b"3", b"null", b"a=1&b=2", b"--x\r\n\r\n{}"]
)
def test_what_is_no_json_object_is_no_request(raw: bytes) -> None:
    assert read(raw) is None


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": lambda body: zstandard.ZstdCompressor().compress(body),
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", COMPRESSORS)
def test_a_compressed_body_is_read(encoding: str) -> None:
    compressed = COMPRESSORS[encoding](b'{"model":"m"}')
    assert request(compressed, headers={"content-encoding": encoding.upper()}).model == "m"
    assert read(compressed[:-1], headers={"content-encoding": encoding}) is None
    assert read(b"no such thing", headers={"content-encoding": encoding}) is None


def test_an_encoding_that_nobody_knows_is_not_read() -> None:
    assert read({"model": "m"}, headers={"content-encoding": "gzip, br"}) is None


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_bomb_takes_no_more_memory_than_the_limit(encoding: str) -> None:
    bomb = COMPRESSORS[encoding](b'{"model":"m"}' + b" " * 100_000_000)
    tracemalloc.start()
    try:
        assert read(bomb, headers={"content-encoding": encoding}) is None
        assert tracemalloc.get_traced_memory()[1] < 3 * DECODED_LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fault", [TypeError("no such argument"), MemoryError()])
def test_a_fault_in_a_decompressor_is_told_and_the_request_is_balanced_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    """As with brotli 1.1, which knows no limit of its output."""

    class Old:
        def process(self, body: bytes) -> bytes:
            return body

    def none() -> object:
        raise fault

    monkeypatch.setattr(brotli, "Decompressor", Old if isinstance(fault, TypeError) else none)
    assert read(brotli.compress(b'{"model":"m"}'), headers={"content-encoding": "br"}) is None
    assert [entry.levelname for entry in caplog.records] == ["ERROR"]


EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"


def gzip_after(empty_blocks: int, body: bytes) -> bytes:
    """As gzip, with so many bytes of blocks in front that hold nothing."""
    head, deflated = gzip.compress(body)[:10], gzip.compress(body)[10:]
    return head + EMPTY_BLOCK * (empty_blocks // len(EMPTY_BLOCK)) + deflated


def test_a_body_that_is_large_though_compressed_is_not_read() -> None:
    headers = {"content-encoding": "gzip"}
    body = b'{"model":"m"}'
    assert request(gzip_after(1 << 20, body), headers=headers).model == "m"
    assert read(gzip_after(DECODED_LIMIT, body), headers=headers) is None


@pytest.mark.parametrize("raw", [gzip_after(1 << 20, b"[]"), b"\x0c" + b"\x06" * (1 << 20)])
async def test_the_event_loop_goes_on_while_a_large_body_is_decompressed(raw: bytes) -> None:
    encoding = "gzip" if raw.startswith(b"\x1f") else "br"
    reading, turns = asyncio.create_task(parse(CHAT, {"content-encoding": encoding}, raw)), 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert await reading is None
    assert turns > 2


@pytest.mark.parametrize("encoding", ["identity", "Identity ", ""])
def test_what_is_not_compressed_is_read_at_any_size(encoding: str) -> None:
    body = {"model": "m", "prompt": "x" * (5 << 20)}
    assert request(body, headers={"content-encoding": encoding}).model == "m"


names = st.sampled_from(["model", "a", "mod\\u0065l", "stream"])
scalars = st.sampled_from(
    ['"m"', '"n"', '"\\u006d"', "null", "1", "NaN", '"\\ud800"', '{"model":"x"}', '["m"]', "-0"]
)


@given(st.lists(st.tuples(names, scalars), max_size=5), st.sampled_from(["", " ", "\n"]), st.booleans())
@settings(max_examples=500, deadline=None)
def test_the_model_is_the_one_that_pythons_json_reads(
    pairs: list[tuple[str, str]], space: str, large: bool
) -> None:
    members = [f'"{key}"{space}:{space}{value}' for key, value in pairs]
    if large:
        members.insert(len(members) // 2, f'"prompt":"{"x" * 1_100_000}"')
    body = f"{{{','.join(members)}}}".encode()
    expected = json.loads(body).get("model")
    usable = isinstance(expected, str) and expected != "\ud800"
    assert request(body).model == (expected if usable else None)


TOOL_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TEMPLATES: list[dict[str, object]] = [
    {
        "model": "m",
        "stream": True,
        "user": "u",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "messages": [
            {"role": "system", "content": "s"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": "u"}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "r", "name": "n"},
        ],
        "metadata": {"user_id": "x"},
        "system": [{"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}}],
    },
    {"model": "m", "prompt": ["a", "b"], "cache_salt": "c", "store": True, "prompt_cache_key": "k"},
    {"model": "m", "prompt": [[1, 2], [3]], "suffix": "s"},
    {
        "model": "m",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call"},
        ],
        "instructions": "i",
        "conversation": {"id": "c"},
        "previous_response_id": "p",
        "background": True,
    },
]
ODD: list[object] = [
    None,
    True,
    1,
    -1.5,
    "",
    "x",
    "\ud800",
    "é",
    [],
    {},
    [1, "a", None],
    [[]],
    {"type": 1},
    2**70,
]
ODD += [
    float("nan"),
    [1, True],
    {"type": "text"},
    {"type": "text", "text": 1},
    {"role": [], "\ud800": "\udfff"},
]
ODD += [
    {"type": "json"},
    {"cache_control": 1},
    [None],
    [{"type": "\ud800", "text": {}}],
    {"id": {}},
    "m" * 3000,
]
DIGITS, DEEP = "@digits@", "@deep@"
PATHS = [CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages"]


def mutated(value: object, dice: random.Random, rate: float) -> object:
    """The value, with odd ones in place of some of what is in it."""
    if dice.random() < rate:
        return dice.choice([*ODD, DIGITS, DEEP])
    if isinstance(value, dict):
        return {key: mutated(member, dice, rate) for key, member in value.items() if dice.random() > rate / 4}
    if isinstance(value, list):
        return [mutated(member, dice, rate) for member in value]
    return value


def broken_body(dice: random.Random) -> bytes:
    """A body as a broken or hostile client might send it."""
    body = json.dumps(mutated(dice.choice(TEMPLATES), dice, dice.choice([0, 0.05, 0.2]))).encode()
    body = body.replace(b'"@digits@"', b"7" * 5000)
    levels = dice.choice([10, 300, 1000, 3000] + [100_000] * (dice.random() < 0.02))
    body = body.replace(b'"@deep@"', b"[" * levels + b"]" * levels)
    match dice.randrange(12):
        case 0:
            body = body[: dice.randrange(len(body) + 1)]
        case 1:
            body = b"\xef\xbb\xbf" + body
        case 2:
            body = body.decode().encode(dice.choice(["utf-16", "utf-16-le", "utf-32", "utf-16-be"]))
        case 3:
            body = body[:-1] + b',"model":' + json.dumps(dice.choice(ODD)).encode() + b"}"
        case 4 | 5:
            cut = dice.randrange(len(body) + 1)
            body = body[:cut] + dice.randbytes(dice.randrange(4)) + body[cut + dice.randrange(4) :]
        case 6:
            body = dice.randbytes(dice.randrange(60))
    return body


LOOP = asyncio.new_event_loop()  # one for all examples: making one takes longer than an example


@given(st.integers(0, 2**64), st.booleans())
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_10000_generated_bodies_raise_nothing(seed: int, through_skim: bool) -> None:
    dice = random.Random(seed)
    body = broken_body(dice)
    if through_skim and dice.random() < 0.1:
        body = body.replace(b"{", b'{"pad":"' + b"x" * 1_050_000 + b'",', 1)
    found = LOOP.run_until_complete(parse(dice.choice(PATHS), {}, body))
    if found is not None:
        repr(found)
        for segment in found.segments():
            segment.role.encode()
            for part in segment.parts:
                part.kind.encode()
                assert isinstance(part.data, bytes)
