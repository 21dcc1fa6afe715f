"""What every index of prefixes promises, held to by the one in memory; `tests/redis` has the other."""

import abc
import random

import pytest

from lb_core.prefix.base import PrefixIndex, kept
from lb_core.prefix.memory import MemoryPrefixIndex
from lb_core.types import PrefixMatch

TTL_S = 1800


def made(*cuts: int | str) -> tuple[bytes, ...]:
    """Keys with these names."""
    return tuple(f"{cut:>16}".encode() for cut in cuts)


class IndexContract(abc.ABC):
    """Subclasses give the fixture `index` and let time pass."""

    @abc.abstractmethod
    async def pass_time(self, seconds: float) -> None:
        """Make everything recorded so far older."""

    async def put(self, index: PrefixIndex, keys: tuple[bytes, ...], endpoint: str) -> None:
        index.record(keys, endpoint)
        await index.close()

    async def test_an_empty_index_knows_nothing(self, index: PrefixIndex) -> None:
        assert await index.match(made(1, 2)) == ()
        assert await index.match(()) == ()
        index.record((), "a")
        await index.close()

    async def test_the_longest_known_prefix_is_given(self, index: PrefixIndex) -> None:
        await self.put(index, made(1, 2, 3), "a")
        assert await index.match(made(1, 2, 3, 4, 5)) == (PrefixMatch("a", 3, 5),)
        assert await index.match(made(1, 2, 9)) == (PrefixMatch("a", 2, 3),)
        assert await index.match(made(7, 8)) == ()

    async def test_a_gap_does_not_end_the_match(self, index: PrefixIndex) -> None:
        await self.put(index, made(3), "a")
        assert await index.match(made(1, 2, 3, 4)) == (PrefixMatch("a", 3, 4),)

    async def test_every_owner_is_given_with_its_longest(self, index: PrefixIndex) -> None:
        await self.put(index, made(1, 2, 3, 4), "a")
        await self.put(index, made(1, 2, 9), "b")
        assert await index.match(made(1, 2, 3, 4)) == (PrefixMatch("a", 4, 4), PrefixMatch("b", 2, 4))

    async def test_h7_all_keys_of_a_prompt_move_to_the_endpoint_it_was_sent_to(
        self, index: PrefixIndex
    ) -> None:
        await self.put(index, made(1, 2, 3), "dead")
        await self.put(index, made(1, 2, 3, 4), "new")
        for cuts in range(1, 5):
            assert await index.match(made(*range(1, cuts + 1))) == (PrefixMatch("new", cuts, cuts),)

    async def test_an_entry_ends_with_its_ttl(self, index: PrefixIndex) -> None:
        await self.put(index, made(1, 2), "a")
        await self.pass_time(TTL_S - 1)
        assert await index.match(made(1))
        await self.pass_time(1)
        assert await index.match(made(1)) == ()
        assert await index.match(made(1, 2)) == ()

    async def test_use_starts_the_ttl_anew_for_every_cut(self, index: PrefixIndex) -> None:
        await self.put(index, made(1, 2), "a")
        await self.pass_time(TTL_S - 1)
        await self.put(index, made(1, 2, 3), "a")
        await self.pass_time(TTL_S - 1)
        assert await index.match(made(1)) == (PrefixMatch("a", 1, 1),)
        assert await index.match(made(1, 2, 3)) == (PrefixMatch("a", 3, 3),)

    async def test_what_a_forgotten_endpoint_had_counts_no_more(self, index: PrefixIndex) -> None:
        await self.put(index, made(1, 2), "a")
        await self.put(index, made(5), "b")
        index.forget("a")
        assert await index.match(made(1, 2)) == ()
        await index.close()
        assert await index.match(made(1, 2)) == ()
        assert await index.match(made(5)) == (PrefixMatch("b", 1, 1),)
        await self.put(index, made(1), "a")
        assert await index.match(made(1, 2)) == (PrefixMatch("a", 1, 2),), "recorded since then"

    async def test_several_endpoints_may_be_forgotten_at_once(self, index: PrefixIndex) -> None:
        await self.put(index, made(1), "a")
        await self.put(index, made(2), "b")
        index.forget("a")
        index.forget("b")
        await index.close()
        assert await index.match(made(1)) == ()
        assert await index.match(made(2)) == ()

    async def test_endpoint_names_of_any_kind_come_back(self, index: PrefixIndex) -> None:
        for number, name in enumerate(("a:b", "http://[::1]:80", "ü", " ", "0:1")):
            await self.put(index, made(number), name)
            assert await index.match(made(number)) == (PrefixMatch(name, 1, 1),)

    async def test_a_long_conversation_is_found_wherever_it_is_taken_up_again(
        self, index: PrefixIndex
    ) -> None:
        await self.put(index, made(*range(200)), "a")
        for cuts in (201, 210, 256):
            (match,) = await index.match(made(*range(200), *(f"new {n}" for n in range(200, cuts))))
            assert match.matched > 200 - 8
        for edited in (1, 7, 8, 15, 16, 100, 191, 199):
            (match,) = await index.match(made(*range(edited), "other"))
            assert edited - 8 < match.matched <= edited

    async def test_the_secret_stays_the_same(self, index: PrefixIndex) -> None:
        secret = await index.secret()
        assert secret is not None
        assert len(secret) == 64
        assert await index.secret() == secret


class TestMemory(IndexContract):
    now = 1000.0

    @pytest.fixture
    def index(self) -> MemoryPrefixIndex:
        return MemoryPrefixIndex(ttl_s=TTL_S, clock=lambda: self.now)

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds

    async def test_the_least_recently_used_leave_when_it_is_full(self) -> None:
        index = MemoryPrefixIndex(max_entries=3)
        for number in range(3):
            index.record(made(number), "a")
        index.record(made(0), "a")
        index.record(made(3), "a")
        assert len(index) == 3
        known = [number for number in range(4) if await index.match(made(number))]
        assert known == [0, 2, 3]

    def test_it_never_holds_more_than_it_may(self) -> None:
        index = MemoryPrefixIndex(max_entries=10)
        index.record(made(*range(200)), "a")
        assert len(index) == 10

    def test_what_has_expired_is_dropped(self, index: MemoryPrefixIndex) -> None:
        index.record(made(*range(8)), "a")
        self.now += TTL_S
        index.record(made(9), "a")
        assert len(index) == 1

    async def test_endpoints_that_are_gone_are_not_remembered_for_ever(
        self, index: MemoryPrefixIndex
    ) -> None:
        index.record(made(1), "pod-0")
        for number in range(100):
            index.forget(f"pod-{number}")
            self.now += 100
            assert await index.match(made(1)) == ()
        assert len(index._forgotten) == TTL_S / 100

    async def test_two_processes_make_different_secrets(self) -> None:
        assert await MemoryPrefixIndex().secret() != await MemoryPrefixIndex().secret()


def test_at_most_46_of_256_cuts_are_kept_and_all_of_16() -> None:
    assert kept(16) == tuple(range(16))
    assert max(len(kept(cuts)) for cuts in range(257)) == 46
    assert all(cuts - 1 in kept(cuts) for cuts in range(1, 257))


def test_a_longer_prompt_keeps_a_cut_close_to_the_end_of_a_shorter_one() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        shared = draw.randrange(1, 257)
        first, second = draw.randrange(shared, 257), draw.randrange(shared, 257)
        both = set(kept(first)) & set(kept(second)) & set(range(shared))
        assert max(both) >= shared - 8
