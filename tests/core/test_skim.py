"""Large bodies are read without holding the event loop."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_core import skim as skim_module
from lb_core.request import parse
from lb_core.skim import Opaque, decodable, decode, skim

MB = 1_000_000

texts = st.text(max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
members = st.lists(
    st.tuples(st.sampled_from(["model", "messages", "a", 'q"\\', "é"]) | texts, values), max_size=6
)


def dump(pairs: list[tuple[str, object]], *, ascii_only: bool = True, indent: int | None = None) -> bytes:
    """An object with these members in this order, equal keys included."""

    def text(value: object) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent)

    body = ",".join(f"{text(key)} : {text(value)}" for key, value in pairs)
    return f" {{ {body} }}\n".encode()


def run(body: bytes) -> dict[str, object] | None:
    return asyncio.run(skim(body))


@given(members, st.booleans(), st.sampled_from([None, 2]))
@settings(max_examples=300, deadline=None)
def test_small_values_come_out_as_python_reads_them(
    pairs: list[tuple[str, object]], ascii_only: bool, indent: int | None
) -> None:
    body = dump(pairs, ascii_only=ascii_only, indent=indent)
    assert run(body) == json.loads(body)


@given(members, st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_windows_that_cut_anything_anywhere_change_nothing(
    pairs: list[tuple[str, object]], window: int
) -> None:
    body = dump(pairs)
    usual = skim_module._WINDOW
    skim_module._WINDOW = window + 30  # a number must fit
    try:
        assert run(body) == json.loads(body)
    finally:
        skim_module._WINDOW = usual


@given(members, st.data())
@settings(max_examples=200, deadline=None)
def test_a_body_that_is_cut_short_is_none(pairs: list[tuple[str, object]], data: st.DataObject) -> None:
    body = dump(pairs).strip()
    assert run(body[: data.draw(st.integers(0, len(body) - 1))]) is None


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b" ",
            b"[]",
            b"1",
            b"{",
            b"{}x",
            b"{}{}",
            b"{1:2}",
            b"\xff\xfe{\x00}\x00",
            b'{"a"}',
            b'{"a":}',
        ),
        *(
            b'{"a":1,}',
            b'{"a" 1}',
            b'{"a":[1}',
            b'{"a":"b}',
            b'{"a":"\\',
            b'{"a":tru}',
            b'{"a":1 2}',
            b'{"a":01}',
        ),
    ],
)
def test_what_is_no_json_object_is_none(body: bytes) -> None:
    assert run(body) is None


def test_a_large_value_is_a_digest_of_its_bytes_and_the_rest_is_readable() -> None:
    image = "data:image/png;base64," + "A" * (5 * MB)
    question = {"role": "user", "content": "what is this?"}
    picture = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "x"}],
    }
    body = json.dumps({"model": "m", "messages": [question, picture, question], "stream": True}).encode()

    raw = json.dumps(image).encode()
    opaque = Opaque(hashlib.blake2b(raw, digest_size=16).hexdigest(), len(raw))
    assert run(body) == {
        "model": "m",
        "messages": [
            question,
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": opaque}},
                    {"type": "text", "text": "x"},
                ],
            },
            question,
        ],
        "stream": True,
    }


def test_a_string_of_two_megabytes_is_still_read() -> None:
    assert run(json.dumps({"prompt": "word \n" * 400_000}).encode()) == {"prompt": "word \n" * 400_000}


def test_the_model_is_read_however_much_stands_before_it() -> None:
    junk: object = [[{"a": []}] * 10] * 3000
    read = run(json.dumps({"w": junk, "x": junk, "y": junk, "z": [1] * MB, "model": "m"}).encode())
    assert read is not None
    assert read["model"] == "m"


def test_so_many_messages_that_none_could_be_meant_end_in_one_opaque_rest() -> None:
    messages = [{"role": "user", "content": f"message {n}, of which there are many"} for n in range(100_000)]
    read = run(json.dumps({"messages": messages}).encode())
    assert read is not None
    found = cast(list[object], read["messages"])
    assert found[:-1] == messages[: len(found) - 1]
    assert len(found) > 5000
    assert isinstance(found[-1], Opaque)


def test_arrays_that_would_become_many_times_their_size_stay_opaque() -> None:
    read = run(json.dumps({"a": [[[]] * 60_000], "model": "m"}).encode())
    assert read is not None
    (element,) = cast(list[object], read["a"])
    assert isinstance(cast(list[object], element)[-1], Opaque)


def test_nesting_deeper_than_any_parser_goes_does_not_hide_the_model() -> None:
    deep = b"[" * 20_000 + b"]" * 20_000
    read = run(b'{"deep":' + deep + b',"model":"m"}')
    assert read is not None
    assert read["model"] == "m"


def test_a_body_that_takes_too_many_steps_is_none() -> None:
    assert run(b'{"a":[' + b"[[[]]]," * 1_000_000 + b"1]}") is None


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'"\\ud800"', "\ud800"),
        (b"Infinity", float("inf")),
        ("[1]".encode("utf-16"), [1]),
        (b"\xef\xbb\xbf[]", []),
        (b"1" * 5000, float("inf")),
    ],
)
def test_what_python_reads_and_orjson_does_not_is_read(raw: bytes, value: object) -> None:
    assert decode(raw) == value


def test_a_megabyte_of_brackets_is_not_decoded_in_one_go() -> None:
    assert not decodable(b"[" + b"[]," * 300_000 + b"1]")
    assert decodable(json.dumps({"prompt": "word " * 190_000}).encode())


SIZE = 30 * MB
MESSAGE = b'{"role":"user","content":"hello there"},'
LONG_MESSAGE = b'{"role":"user","content":[{"type":"text","text":"' + b"words of prose\\n" * 60 + b'"}]},'
# What stands between `{"model":"m",` and the end.
HOSTILE: dict[str, Callable[[], bytes]] = {
    "base64": lambda: b'"messages":[{"role":"user","content":"' + b"iVBORw0K" * (SIZE // 8) + b'"}]}',
    "prose": lambda: b'"prompt":"' + b'Some words, a \\"quote\\" and\\n' * (SIZE // 28) + b'"}',
    "lists": lambda: b'"messages":[' + b"[]," * (SIZE // 3) + b"1]}",
    "ints": lambda: b'"prompt":[' + b"1," * (SIZE // 2) + b"1]}",
    "backslashes": lambda: b'"prompt":"' + b"\\" * SIZE + b'"}',
    "messages": lambda: b'"messages":[' + MESSAGE * (SIZE // len(MESSAGE)) + b"1]}",
    "long messages": lambda: b'"messages":[' + LONG_MESSAGE * (SIZE // len(LONG_MESSAGE)) + b"1]}",
    "spaces": lambda: b'"messages":' + b" " * SIZE + b"1}",
    "open brackets": lambda: b'"messages":' + b"[" * SIZE,
    "quotes": lambda: b'"messages":[' + b'"",' * (SIZE // 3) + b"1]}",
    "members": lambda: b'"a":1,' * (SIZE // 6) + b'"b":1}',
    "half-megabyte lists": lambda: b'"messages":[' + (b"[" + b"1," * 250_000 + b"1],") * 58 + b"1]}",
}


async def longest_hold(body: bytes) -> tuple[float, float, str | None]:
    """Seconds for which nothing else could run while the body was parsed, seconds in all, and the model."""
    loop = asyncio.get_running_loop()
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before - 0.001)

    ticker = loop.create_task(tick())
    await asyncio.sleep(0.005)
    longest = 0.0
    began = time.perf_counter()
    request = await parse("/v1/chat/completions", {}, body)
    total = time.perf_counter() - began
    await asyncio.sleep(0.005)
    ticker.cancel()
    return longest, total, request.model if request else None


@pytest.mark.parametrize("name", HOSTILE)
async def test_thirty_megabytes_of_anything_leave_the_event_loop_alone(name: str) -> None:
    body = b'{"model":"m",' + HOSTILE[name]()
    for last in (False, False, True):  # on a busy machine a ticker is late for other reasons, too
        hold, _, model = await longest_hold(body)
        if hold < 0.05 or last:
            break
    assert hold < 0.1
    assert model == (None if name in ("open brackets", "members") else "m")
