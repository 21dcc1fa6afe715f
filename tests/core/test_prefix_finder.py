"""Whole conversations through finder, policy and index: where do they land?"""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from lb_core.policies.prefix_cache import PrefixCache
from lb_core.prefix.finder import Found, PrefixFinder
from lb_core.prefix.memory import MemoryPrefixIndex
from lb_core.request import LLMRequest
from lb_core.stores.placement import place
from lb_core.types import Choice, Endpoint, PrefixMatch, Request, Snapshot
from tests.core.build import endpoint, endpoints, request

type Message = dict[str, str]


def asking(messages: list[Message], *, headers: Mapping[str, str] | None = None, **more: Any) -> Request:
    llm = LLMRequest(
        "chat", model=more.get("model", "m"), cache_salt=more.get("salt"), _body={"messages": messages}
    )
    return Request("r", 0.5, "api.test", "/v1/chat/completions", headers or {}, None, llm)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def reply(text: str) -> Message:
    return {"role": "assistant", "content": text}


class Lane:
    """One balancer's way from a request to an endpoint."""

    def __init__(self, finder: PrefixFinder, members: tuple[Endpoint, ...]) -> None:
        self.finder = finder
        self.members = members
        self.policy = PrefixCache()
        self._draw = random.Random(5)

    async def land(self, asked: Request) -> tuple[str, str]:
        """The endpoint's name and the reason."""
        found = await self.finder.find(asked)
        candidates = tuple(Choice(member) for member in self.members)
        decision = self.policy.decide(asked, Snapshot("c", candidates, {}, 0, found.among(candidates)))
        placed = place(decision, {}, self._draw.random())
        assert placed is not None
        self.finder.record(found, placed[1].endpoint.name)
        await self.finder.close()
        return placed[1].endpoint.name, decision.tiers[placed[0]].reason


def memory_lane(count: int = 5, **more: Any) -> Lane:
    return Lane(PrefixFinder("c", MemoryPrefixIndex(), **more), endpoints(count))


def generated(number: int, draw: random.Random) -> list[list[Message]]:
    """The turns of one conversation, each with everything before it. Many begin alike."""
    messages: list[Message] = [{"role": "system", "content": "be brief"}] if draw.random() < 0.5 else []
    turns = []
    for turn in range(draw.randrange(2, 9)):
        messages = [*messages, user(f"{'hello' if turn else number} {turn}")]
        turns.append(messages)
        messages = [*messages, reply(draw.choice(["", "yes", "no"]))]
    return turns


async def test_later_turns_of_1000_conversations_land_where_the_first_one_did() -> None:
    lane, draw = memory_lane(), random.Random(7)
    landed = set()
    for number in range(1000):
        first, *later = generated(number, draw)
        home, reason = await lane.land(asking(first))
        assert reason == "no_prefix"
        landed.add(home)
        for turn in later:
            assert await lane.land(asking(turn)) == (home, "prefix")
    assert len(landed) == 5


async def test_h7_an_owner_that_left_is_replaced_once_and_never_asked_again() -> None:
    lane, draw = memory_lane(), random.Random(9)
    everyone = lane.members
    for number in range(100):
        lane.members = everyone
        turns = generated(number, draw)
        old, _ = await lane.land(asking(turns[0]))
        lane.members = tuple(member for member in everyone if member.name != old)
        new, reason = await lane.land(asking(turns[1]))
        assert reason == "owner_gone"
        assert new != old
        lane.members = everyone  # even though it is back
        for turn in (*turns[1:], turns[0]):
            assert await lane.land(asking(turn)) == (new, "prefix")


async def test_the_longest_prefix_whose_owner_is_there_wins() -> None:
    found = Found((b"",), (PrefixMatch("gone", 3, 3), PrefixMatch("e1", 2, 3), PrefixMatch("e0", 1, 3)))
    candidates = tuple(Choice(member) for member in endpoints(2))
    assert found.among(candidates) == PrefixMatch("e1", 2, 3)
    assert found.among((Choice(endpoint("other")),)) == PrefixMatch("gone", 3, 3)
    assert Found().among(candidates) is None


async def test_h6_another_model_tenant_salt_or_cluster_is_never_a_hit() -> None:
    messages = [user("hello")]
    index = MemoryPrefixIndex()
    lane = Lane(PrefixFinder("c", index, secret="s"), endpoints(3))
    await lane.land(asking(messages, headers={"authorization": "one"}))
    assert (await lane.land(asking(messages, headers={"authorization": "one"})))[1] == "prefix"
    for other in (
        asking(messages, headers={"authorization": "two"}),
        asking(messages, headers={"x-api-key": "three"}),
        asking(messages),
        asking(messages, headers={"authorization": "one"}, model="lora"),
        asking(messages, headers={"authorization": "one"}, salt="salt"),
    ):
        assert (await lane.land(other))[1] == "no_prefix"
    elsewhere = Lane(PrefixFinder("d", index, secret="s"), endpoints(3))
    assert (await elsewhere.land(asking(messages, headers={"authorization": "one"})))[1] == "no_prefix"


@pytest.mark.parametrize(
    ("header", "first", "second", "same"),
    [
        ("authorization", {"x-api-key": "1"}, {"x-api-key": "2"}, False),
        (
            "authorization",
            {"authorization": "a", "x-api-key": "1"},
            {"authorization": "a", "x-api-key": "2"},
            True,
        ),
        ("X-Team", {"x-team": "a"}, {"x-team": "b"}, False),
        ("X-Team", {"x-team": "a", "authorization": "1"}, {"x-team": "a", "authorization": "2"}, True),
        ("x-team", {"x-api-key": "1"}, {"x-api-key": "2"}, True),
        ("", {"authorization": "1"}, {"authorization": "2"}, True),
    ],
)
async def test_the_tenant_is_what_the_header_says(
    header: str, first: dict[str, str], second: dict[str, str], same: bool
) -> None:
    lane = memory_lane(tenant_header=header)
    await lane.land(asking([user("hi")], headers=first))
    reason = (await lane.land(asking([user("hi")], headers=second)))[1]
    assert reason == ("prefix" if same else "no_prefix")


async def test_a_request_without_a_prompt_is_not_looked_up() -> None:
    finder = PrefixFinder("c", MemoryPrefixIndex())
    assert await finder.find(request()) == Found()
    assert await finder.find(asking([])) == Found()
    other = LLMRequest("other", "m", _body={"messages": [user("hi")]})
    assert await finder.find(replace(asking([user("hi")]), llm=other)) == Found()
    finder.record(Found(), "e0")


async def test_the_secret_comes_from_the_parameter_then_the_environment_then_the_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, asked = MemoryPrefixIndex(), asking([user("hi")])
    monkeypatch.delenv("AI_LB_PREFIX_SECRET", raising=False)
    own = (await PrefixFinder("c", index).find(asked)).keys
    assert own == (await PrefixFinder("c", index).find(asked)).keys
    given = (await PrefixFinder("c", index, secret="a").find(asked)).keys
    monkeypatch.setenv("AI_LB_PREFIX_SECRET", "a")
    assert (await PrefixFinder("c", index).find(asked)).keys == given != own
    assert (await PrefixFinder("c", index, secret="b").find(asked)).keys != given


async def test_a_restarted_engine_is_not_preferred_for_what_it_had() -> None:
    lane = memory_lane()
    home, _ = await lane.land(asking([user("hi")]))
    lane.finder.forget(home)
    assert (await lane.land(asking([user("hi")])))[1] == "no_prefix"
    assert (await lane.land(asking([user("hi")])))[1] == "prefix"
