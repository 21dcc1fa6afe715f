"""Prompts → keys: what is the same for a later turn, and what is never the same."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from lb_core.prefix.keys import MOST_BYTES, MOST_CUTS, TEXT_BLOCK, TOKEN_BLOCK, Scope, chain, hash_key
from lb_core.request import LLMRequest

SCOPE = Scope("c", "tenant", hash_key("secret"))
type Message = dict[str, Any]


def asked(api: str = "chat", *, model: str = "m", salt: str | None = None, **body: object) -> LLMRequest:
    return LLMRequest(api, model=model, cache_salt=salt, _body=body)


def user(content: object = "hi", **more: object) -> Message:
    return {"role": "user", "content": content, **more}


def says(content: object = "yes", **more: object) -> Message:
    return {"role": "assistant", "content": content, **more}


def keys(*messages: Message, **body: Any) -> tuple[bytes, ...]:
    return chain(asked(messages=list(messages), **body), SCOPE)


def prompt(text: object, **more: Any) -> tuple[bytes, ...]:
    return chain(asked("completions", prompt=text, **more), SCOPE)


def conversation(turns: int, *, size: int = 200) -> list[Message]:
    messages = []
    for turn in range(turns):
        messages += [user(f"question {turn} " + "q" * size), says(f"answer {turn} " + "a" * size)]
    return messages[:-1]


def test_there_is_a_cut_after_every_user_message_and_one_at_the_end() -> None:
    assert len(keys(user())) == 1
    assert len(keys(user(), says(), user("more"))) == 2
    assert len(keys(user(), says())) == 2
    assert (
        len(keys({"role": "system", "content": "s"}, user(), says(), {"role": "tool", "content": "t"})) == 2
    )
    assert keys() == ()


def test_every_key_has_128_bits() -> None:
    assert {len(key) for key in keys(*conversation(5))} == {16}


def test_a_later_turn_begins_with_the_cuts_of_the_earlier_one() -> None:
    messages = conversation(20)
    latest = keys(*messages)
    for turn in range(1, 20):
        assert keys(*messages[: 2 * turn - 1]) == latest[:turn]


def test_tools_and_system_are_part_of_the_first_block() -> None:
    plain = keys(user())
    assert len(keys(user(), tools=[{"name": "t"}], system="s")) == 1
    others = [
        keys(user(), tools=[{"name": "t"}]),
        keys(user(), tools=[{"name": "u"}]),
        keys(user(), system="s"),
        keys(user(), system="s2"),
    ]
    assert len({plain, *others}) == 5


def test_a_prompt_is_cut_in_blocks_so_that_a_longer_one_begins_with_them() -> None:
    text = "".join(f"{number} " for number in range(3000))
    longer = prompt(text + "and more")
    assert len(longer) == len(text) // TEXT_BLOCK + 1
    assert prompt(text)[:-1] == longer[:-1]
    assert prompt(text)[-1] != longer[-1]
    whole = text[: 2 * TEXT_BLOCK]
    assert prompt(whole) == longer[:2], "whole blocks need no further cut at the end"


def test_token_ids_are_cut_in_blocks_too() -> None:
    ids = [number * 7919 % 150_000 for number in range(5 * TOKEN_BLOCK)]
    longer = prompt([*ids, 1, 2])
    assert len(longer) == 6
    assert prompt(ids) == longer[:5]
    assert prompt(ids[:-1])[:4] == longer[:4]
    assert prompt(ids[:-1])[-1] not in longer


def test_h10_no_message_shape_and_no_api_is_left_without_keys() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert len(keys(user(), {"role": "assistant", "tool_calls": [call]}, user())) == 2
    assert len(keys({"role": "user"})) == 1
    assert len(keys(user([{"type": "image_url", "image_url": {"url": "data:x"}}]))) == 1
    assert len(keys({"content": 3}, {}, user(None))) == 1
    for api, body in (
        ("completions", {"prompt": "x"}),
        ("completions", {"prompt": ["x", "y"]}),
        ("completions", {"prompt": [1, 2]}),
        ("completions", {"prompt": [[1, 2], [3]]}),
        ("responses", {"input": "x"}),
        ("responses", {"input": [user()]}),
        ("embeddings", {"input": ["x", "y"]}),
    ):
        assert chain(LLMRequest(api, _body=body), SCOPE), body


def test_h5_order_and_repeats_count() -> None:
    a, b, c = user("A"), user("B"), user("C")
    ends = [
        keys(*m)[-1]
        for m in ((a,), (a, b), (b, a), (a, c, c), (a, a), (a, a, a), (a, c), (c, c, a), (a, b, b))
    ]
    assert len(set(ends)) == len(ends)


def test_h17_glued_texts_are_not_one_text() -> None:
    different = [
        [user("ab"), user("c")],
        [user("a"), user("bc")],
        [user("abc")],
        [user("a"), user("b"), user("c")],
        [user(["a", "bc"])],
        [user([{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}])],
        [user([{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}])],
        [user("a", name="bc")],
        [{"role": "userabc", "content": ""}],
        [{"role": "user", "content": "s4:userp4:text2:bc"}],
        [user("a"), says("bc")],
        [says("a"), user("bc")],
        [says("abc")],
        [user([{"type": "image_url", "text": "abc"}])],
        [user([{"type": "abc"}])],
        [{"role": "user", "tool_calls": ["abc"]}],
    ]
    ends = {keys(*messages)[-1] for messages in different}
    assert len(ends) == len(different)


@pytest.mark.parametrize("head", ["s4:user", "s4user", "s:user", "suser", ""])
@pytest.mark.parametrize("kind", ["p4:text", "p4text", "p:text", "ptext", "text", "p", ""])
@pytest.mark.parametrize("size", ["1:", "1", ":", ""])
def test_h17_a_text_cannot_pretend_to_be_framing(head: str, kind: str, size: str) -> None:
    part = kind + size
    two = keys(user("a"), user("b"))[-1]
    assert keys(user(f"a{head}{part}b"))[-1] != two
    parts = keys(user(["a", "b"]))[-1], keys(user([{"type": "text", "text": text} for text in "ab"]))[-1]
    assert keys(user(f"a{part}b"))[-1] not in parts
    assert keys({"role": f"user{part}a", "content": "b"})[-1] not in parts
    assert keys({"role": f"user{part}a{head}", "content": "b"})[-1] != two


def test_parts_of_a_prompt_are_not_one_part() -> None:
    block = "x" * TEXT_BLOCK
    ends = {
        prompt(p)[-1] for p in (block + "y", [block, "y"], block + block, [block, block], [block, ""], block)
    }
    assert len(ends) == 6
    as_parts = [{"type": "text", "text": text} for text in (block, "y")]
    glued = keys({"role": "input", "content": block + "y"})
    assert keys({"role": "input", "content": as_parts})[-1] != glued[-1]
    ids = {prompt(p)[-1] for p in ([1, 2], [12], [[1], [2]], "[1,2]", [1 << 70], [(1 << 70) + 1], [-1, 2])}
    assert len(ids) == 7


def test_h6_another_cluster_model_tenant_salt_api_or_secret_shares_no_key() -> None:
    messages = conversation(3)
    key = SCOPE.key
    chains = [
        chain(asked(messages=messages), SCOPE),
        chain(asked(messages=messages), Scope("other", "tenant", key)),
        chain(asked(messages=messages, model="lora"), SCOPE),
        chain(LLMRequest("chat", _body={"messages": messages}), SCOPE),
        chain(asked(messages=messages), Scope("c", "else", key)),
        chain(asked(messages=messages), Scope("c", "", key)),
        chain(asked(messages=messages), Scope("c", None, key)),
        chain(asked(messages=messages, salt="s"), SCOPE),
        chain(asked(messages=messages, salt=""), SCOPE),
        chain(asked("messages", messages=messages), SCOPE),
        chain(asked(messages=messages), Scope("c", "tenant", hash_key("guess"))),
        chain(asked(messages=messages), Scope("c", "tenant")),
    ]
    assert len({key for keys in chains for key in keys}) == 3 * len(chains)


def test_the_fields_of_the_root_are_not_glued() -> None:
    request = asked(messages=[user()], model="bc")
    assert chain(request, Scope("a", "d", SCOPE.key)) != chain(
        asked(messages=[user()], model="b"), Scope("a", "cd", SCOPE.key)
    )
    assert chain(asked(messages=[user()], model="m", salt="x"), Scope("c", None)) != chain(
        asked(messages=[user()], model="m"), Scope("c", "x")
    )


def test_the_work_is_bounded_and_later_turns_still_match() -> None:
    long = conversation(MOST_CUTS + 50, size=1)
    assert len(keys(*long)) == MOST_CUTS
    assert keys(*long[:-20]) == keys(*long)

    wide = conversation(60, size=20_000)
    latest = keys(*wide)
    assert 20 < len(latest) < 30, "a megabyte and no more"
    assert keys(*wide[:81]) == latest
    assert keys(*wide[:9]) == latest[:5]
    assert keys(*wide[:-1], says("another end")) == latest


def test_one_message_of_more_than_a_megabyte_has_a_cut_at_the_bound() -> None:
    huge = user("x" * (MOST_BYTES + 5))
    assert len(keys(huge)) == 1
    assert keys(huge, says(), user("next")) == keys(huge)
    assert keys(user("y" * (MOST_BYTES + 5))) != keys(huge)
    assert keys(user("x" * (MOST_BYTES + 4) + "y")) == keys(huge), "what is beyond is not read"


def test_odd_unicode_does_not_raise() -> None:
    request = asked(
        messages=[user("\ud800"), {"role": "\ud800", "content": "x"}], model="\udfff", salt="\udfff"
    )
    assert len(chain(request, Scope("\ud800", "\ud800", hash_key("\ud800")))) == 2


def test_a_scope_shows_neither_tenant_nor_key() -> None:
    assert "tenant'" not in repr(Scope("c", "tenant'", b"key'"))
    assert "key'" not in repr(Scope("c", "tenant'", b"key'"))


def best_ms(work: Callable[[], object], *, rounds: int = 20) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) * 1000


@pytest.mark.parametrize(
    ("request_", "limit_ms"),
    [
        pytest.param(asked("completions", prompt="word " * 100_000), 3, id="500 kB prompt"),
        pytest.param(asked(messages=[user("word " * 100_000)]), 3, id="500 kB message"),
        pytest.param(asked(messages=conversation(200)), 3, id="200 turns"),  # 1.3 ms on an idle core
    ],
)
def test_keys_are_made_in_time(request_: LLMRequest, limit_ms: float) -> None:
    assert best_ms(lambda: chain(request_, SCOPE)) < limit_ms
