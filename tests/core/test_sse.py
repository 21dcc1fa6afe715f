"""What the meter sees in streams as engines send them, however the network cuts them."""

import json
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_core.sse import EVENT_LIMIT, SseMeter, usage_of_json
from lb_core.types import Usage


def events(*data: object) -> bytes:
    return b"".join(
        b"data: " + (d.encode() if isinstance(d, str) else json.dumps(d).encode()) + b"\n\n" for d in data
    )


def named(*data: Mapping[str, object]) -> bytes:
    return b"".join(
        f"event: {d['type']}\ndata: {json.dumps(d, separators=(',', ':'))}\n\n".encode() for d in data
    )


def chat(**delta: object) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [choice],
        "usage": None,
    }


CHAT_USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 3,
    "total_tokens": 23,
    "prompt_tokens_details": {"cached_tokens": 16},
}
VLLM_CHAT = events(
    chat(role="assistant", content=""),
    chat(content='She said "usage": {"error"} '),
    chat(content="[DONE]"),
    chat(content="!"),
    {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": CHAT_USAGE},
    "[DONE]",
)
VLLM_BUSY = events(
    {"error": {"message": "secret prompt", "type": "Service Unavailable", "code": 503}}, "[DONE]"
)
LLAMA = b":\n\n: still here\n\n" + events(chat(role="assistant", content=None), chat(content="a")) + b":\n\n"
RESPONSES = named(
    {"type": "response.created", "response": {"id": "r", "usage": None, "error": None}},
    {"type": "response.output_item.added", "item": {"type": "message"}},
    {"type": "response.output_text.delta", "delta": "Hel"},
    {"type": "response.output_text.delta", "delta": "lo"},
    {
        "type": "response.completed",
        "response": {
            "error": None,
            "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 2},
        },
    },
)
ANTHROPIC = named(
    {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 7, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "!"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 12}},
    {"type": "message_stop"},
)
OVERLOADED = named({"type": "error", "error": {"type": "overloaded_error", "message": "secret"}})
LARGE = events("x" * (EVENT_LIMIT + 10), chat(content="a"), "y" * (2 * EVENT_LIMIT), "[DONE]")
STREAMS = [
    VLLM_CHAT,
    VLLM_BUSY,
    LLAMA,
    RESPONSES,
    ANTHROPIC,
    OVERLOADED,
    b"data: [DONE]",
    b"\n\n\ndata:{}\n\n\n\n\n",
]

Facts = tuple[int, float | None, Usage, str | None, bool]


def facts(meter: SseMeter) -> Facts:
    return meter.events, meter.first_content_at, meter.usage, meter.error, meter.done


def metered(*chunks: bytes) -> SseMeter:
    """A meter that was given the chunks, the first at 1.0, the second at 2.0 and so on."""
    meter = SseMeter()
    for number, chunk in enumerate(chunks, 1):
        meter.feed(chunk, float(number))
    meter.close()
    return meter


def one_by_one(stream: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in stream.split(b"\n\n")[:-1]]


def test_a_vllm_chat_is_understood() -> None:
    meter = metered(*one_by_one(VLLM_CHAT))
    assert facts(meter) == (6, 2.0, Usage(20, 3, 16), None, True)
    assert meter.chunks == 6


def test_an_error_in_the_first_event_is_seen_and_is_no_content() -> None:
    assert facts(metered(VLLM_BUSY)) == (2, None, Usage(), "503", True)


def test_comments_are_neither_events_nor_content() -> None:
    assert facts(metered(*one_by_one(LLAMA))) == (2, 4.0, Usage(), None, False)


def test_the_responses_api_is_understood() -> None:
    assert facts(metered(*one_by_one(RESPONSES))) == (5, 3.0, Usage(9, 2, 4), None, True)


def test_anthropics_messages_are_understood() -> None:
    assert facts(metered(*one_by_one(ANTHROPIC))) == (7, 4.0, Usage(12, 12, 7), None, True)


@pytest.mark.parametrize(
    ("stream", "word"),
    [
        (OVERLOADED, "overloaded_error"),
        (events({"error": "the whole prompt was: secret"}), "error"),
        (events({"error": {"code": None, "type": "invalid_request"}}), "invalid_request"),
        (events({"error": {"code": "has spaces in it"}}), "error"),
        (events({"error": {"type": "Service Unavailable", "code": None}}), "Service_Unavailable"),
        (events({"object": "error", "message": "secret", "type": "Too Many Requests", "code": 429}), "429"),
        (events({"object": "error", "message": "secret", "type": "BadRequestError"}), "BadRequestError"),
        (events({"object": "chat.completion.chunk", "type": "error"}), "error"),
        (b"event: error\ndata: not json\n\n", "error"),
        (named({"type": "error", "code": "rate_limit", "message": "m"}), "rate_limit"),
        (events({"error": {"code": "max_tokens", "type": "invalid_request_error"}}), "invalid_request_error"),
        (events({"error": {"code": 1001, "type": "server_error"}}), "1001"),
        (events({"error": "the prompt was: secret", "error_type": "validation"}), "validation"),
        (events({"error": {"message": "secret", "http_status_code": 422}}), "422"),
        (named({"type": "response.failed", "response": {"error": {"code": "server_error"}}}), "server_error"),
        (events(chat(content="a"), {"error": {"code": 500}}, {"error": {"code": 501}}), "500"),
        (events({"error": None}), None),
    ],
)
def test_of_an_error_one_word_is_kept(stream: bytes, word: str | None) -> None:
    assert metered(stream).error == word


@pytest.mark.parametrize(
    ("event", "content"),
    [
        (chat(content="a"), True),
        (chat(reasoning_content="a"), True),
        (chat(tool_calls=[{"index": 0}]), True),
        (chat(role="assistant"), False),
        (chat(content=None, tool_calls=[]), False),
        ({"choices": [{"text": "a"}]}, True),
        ({"choices": [{"text": ""}]}, False),
        ({"choices": []}, False),
        ({"choices": 3}, False),
        ({"type": "response.function_call_arguments.delta", "delta": "{"}, True),
        ({"type": "response.output_text.delta", "delta": ""}, False),
        ({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "a"}}, True),
        ({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": ""}}, False),
        ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, False),
        ("[]", False),
        ("{", False),
    ],
)
def test_content_is_what_the_model_says(event: object, content: bool) -> None:
    assert (metered(events(event)).first_content_at is not None) == content


def test_a_last_event_without_its_empty_line_counts_if_it_is_whole() -> None:
    assert facts(metered(VLLM_CHAT.strip())) == facts(metered(VLLM_CHAT))
    assert facts(metered(b"data: [DO")) == (0, None, Usage(), None, False)


def test_closing_twice_or_without_a_byte_is_harmless() -> None:
    meter = metered(b"data: {}")
    meter.close()
    assert meter.events == 1
    assert facts(metered()) == (0, None, Usage(), None, False)


def test_usage_that_comes_with_every_event_is_the_last() -> None:
    counts = [
        events(chat(content="a") | {"usage": {"prompt_tokens": 5, "completion_tokens": n}}) for n in range(4)
    ]
    assert metered(*counts).usage == Usage(5, 3)


@pytest.mark.parametrize("size", [1, 3, 1000, EVENT_LIMIT - 1, EVENT_LIMIT + 5])
def test_a_large_event_is_counted_and_the_stream_goes_on(size: int) -> None:
    whole = metered(LARGE)
    cut = metered(*(LARGE[at : at + size] for at in range(0, len(LARGE), size)))
    assert (whole.events, whole.done) == (cut.events, cut.done) == (4, True)


def test_no_more_than_one_large_event_is_kept_in_memory() -> None:
    meter = SseMeter()
    for _ in range(1000):
        meter.feed(b"x" * 10_000, 0.0)
    assert len(meter._carry) < EVENT_LIMIT + 10


def test_the_end_of_a_response_is_seen_even_when_it_repeats_the_whole_answer() -> None:
    end = {"type": "response.completed", "response": {"output": "x" * 100_000, "usage": {"input_tokens": 1}}}
    assert metered(RESPONSES[: RESPONSES.index(b"event: response.completed")] + named(end)).done


def test_a_line_end_that_is_cut_in_two_is_one() -> None:
    assert metered(b"event: error\r", b"\ndata: not json\r", b"\n\r\n").error == "error"


@pytest.mark.parametrize("size", range(EVENT_LIMIT - 3, EVENT_LIMIT + 4))
def test_a_line_end_where_a_large_event_is_cut_is_not_the_end_of_it(size: int) -> None:
    first_line = b"data: ".ljust(size, b"x") + b"\n"
    assert metered(first_line + b"data: " + b"y" * 100, b"\n", b"data: z\n\n").events == 1


@given(
    st.sampled_from(STREAMS),
    st.lists(st.integers(0, 2000), max_size=40),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
@settings(max_examples=1500, deadline=None)
def test_how_a_stream_is_cut_makes_no_difference(stream: bytes, cuts: list[int], line_end: bytes) -> None:
    sent = stream.replace(b"\n", line_end)
    at = [0, *sorted(cut % (len(sent) + 1) for cut in cuts), len(sent)]
    meter = SseMeter()
    for start, end in pairwise(at):
        meter.feed(sent[start:end], 1.0)
    meter.close()
    assert facts(meter) == facts(metered(stream))


PIECES = [
    b"data: ",
    b"data:",
    b"\n",
    b"\n\n",
    b"\r",
    b"event: error",
    b":",
    b'{"error":1}',
    b'"usage":',
    b"null",
    b"[DONE]",
]
PIECES += [
    b'{"usage":{"input_tokens":-1,"prompt_tokens":true}}',
    b'{"choices":[{"delta":{"content":"a"}}]}',
    b"\xff",
    b"[]",
]
PIECES += [
    b'{"type":[]}',
    b'{"choices":[[]],"delta":1}',
    b'{"type":"x.delta","delta":3}',
    b'{"response":1,"message":[]}',
]


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=5), max_size=30), st.integers(1, 7))
@settings(max_examples=2000, deadline=None)
def test_any_bytes_give_the_same_whole_and_cut_and_raise_nothing(pieces: list[bytes], size: int) -> None:
    stream = b"".join(pieces)
    meter = SseMeter()
    for start in range(0, len(stream), size):
        meter.feed(stream[start : start + size], 1.0)
    meter.close()
    assert facts(meter) == facts(metered(stream))


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        ({"usage": CHAT_USAGE}, Usage(20, 3, 16)),
        ({"usage": {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 3}}, Usage(8, 2, 3)),
        (
            {"usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 4}},
            Usage(12, None, 3),
        ),
        ({"usage": {"prompt_tokens": "5", "completion_tokens": -1}}, Usage()),
        ({"usage": []}, Usage()),
        ([], Usage()),
        ({"x": "x" * 1_100_000, "usage": CHAT_USAGE}, Usage()),
    ],
)
def test_the_usage_of_a_whole_answer_is_read(body: object, usage: Usage) -> None:
    assert usage_of_json(json.dumps(body).encode()) == usage


def test_an_answer_that_is_no_json_has_no_usage() -> None:
    assert usage_of_json(b"<html>") == Usage()
