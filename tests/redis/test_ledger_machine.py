"""The Lua ledger does what its Python twin does, whatever happens in whatever order."""

import time
from collections import Counter
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lb_core.stores.ballot import Ballots
from lb_core.stores.ledger import COUNTS, LEDGER, OWNERS, key
from lb_core.stores.scripts import ACQUIRE, BEAT, FSCK, HOLD, REAP, RELEASE, Script
from lb_core.types import Choice, Decision, Tier
from tests.core.build import endpoint
from tests.redis.servers import RedisServer, counts_in, ledgers_in
from tests.redis.twin import Twin

LEASE_MS = 600_000
OWNERS_NAMES = ("p", "q", "r")
MEMBERS = (
    endpoint("a"),
    endpoint("b", weight=2.0),
    endpoint("c", max_in_flight=2),
    endpoint("d", weight=0.5, max_in_flight=3),
)

owners = st.sampled_from(OWNERS_NAMES)
slots = st.integers(0, 9).map(str)
names = st.sampled_from([member.name for member in MEMBERS])
ties = st.integers(0, 999).map(lambda number: number / 1000)
choices = st.builds(Choice, st.sampled_from(MEMBERS), virtual_load=st.sampled_from([0.0, 0.0, 0.5, 3.0]))
tiers = st.lists(choices, min_size=1, max_size=4, unique_by=lambda choice: choice.endpoint.name).map(
    lambda found: Tier(tuple(found), "r")
)
decisions = st.builds(
    Decision,
    st.just("p"),
    st.lists(tiers, min_size=1, max_size=3).map(tuple),
    st.sampled_from([None, None, 1, 3]),
)


class LedgerMachine(RuleBasedStateMachine):
    """One server, three owners, and what each owner believes that it holds."""

    client: Any

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.now = int(time.time() * 1000)
        self.twin = Twin(lambda: self.now, lease_ms=LEASE_MS)
        self.believed: dict[str, dict[str, str]] = {owner: {} for owner in OWNERS_NAMES}
        self.ballots = Ballots({}, lambda: 0.0)
        self.lost_counts = False

    def call(self, script: Script, keys: tuple[str, ...], *arguments: object) -> Any:
        try:
            return self.client.evalsha(script.sha.decode(), len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:
            return self.client.eval(script.source.decode(), len(keys), *keys, *arguments)

    def ask(self, owner: str, slot: str, decision: Decision, tie: float) -> list[Any]:
        ballot = self.ballots.write(decision, tie)
        keys = (key("m", COUNTS), key("m", LEDGER + owner), key("m", OWNERS))
        reply = self.call(ACQUIRE, keys, owner, slot, LEASE_MS, repr(tie), *ballot.arguments)
        assert isinstance(reply, list)
        return reply

    @rule(owner=owners, slot=slots, decision=decisions, tie=ties, lost=st.booleans())
    def acquire(self, owner: str, slot: str, decision: Decision, tie: float, lost: bool) -> None:
        """Also one that is carried out late: its reply is lost, and the slot may be held already."""
        counts = self.twin.counts
        name, tier, fresh, seen = self.ask(owner, slot, decision, tie)
        assert fresh == (owner not in self.twin.owners)
        assert (name, tier) == self.twin.acquire(owner, slot, decision, tie)
        asked = [choice.endpoint.name for tier in decision.tiers for choice in tier.choices]
        assert [int(count or 0) for count in seen] == [counts[name] for name in asked]
        if name and not lost:
            self.believed[owner][slot] = str(name)

    @rule(owner=owners, some=st.lists(slots, max_size=4))
    def release(self, owner: str, some: list[str]) -> None:
        """Some of them are not held, or stand there twice."""
        if some:
            keys = (key("m", COUNTS), key("m", LEDGER + owner))
            assert self.call(RELEASE, keys, *some) == self.twin.release(owner, some)
        for slot in some:
            self.believed[owner].pop(slot, None)

    @rule(owner=owners, slot=slots, to=names, limit=st.sampled_from([None, 0, 1, 2, 3]))
    def move(self, owner: str, slot: str, to: str, limit: int | None) -> None:
        if slot in self.believed[owner] and self.hold(owner, {slot: to}, limit) >= 0:
            self.believed[owner][slot] = to

    def hold(self, owner: str, pairs: dict[str, str], limit: int | None = None) -> int:
        keys = (key("m", COUNTS), key("m", LEDGER + owner), key("m", OWNERS))
        flat = [text for pair in pairs.items() for text in pair]
        told = self.call(HOLD, keys, owner, LEASE_MS, "" if limit is None else limit, *flat)
        assert told == self.twin.hold(owner, pairs, limit)
        return int(told[0])

    @rule(owner=owners)
    def resync(self, owner: str) -> None:
        """Afterwards the ledger says exactly what the owner believes."""
        self.hold(owner, self.believed[owner])
        ledger = key("m", LEDGER + owner)
        surplus = [slot for slot in self.client.hkeys(ledger) if slot not in self.believed[owner]]
        if surplus:
            released = self.call(RELEASE, (key("m", COUNTS), ledger), *surplus)
            assert released == len(surplus) == self.twin.release(owner, surplus)
        assert self.client.hgetall(ledger) == self.believed[owner]

    @rule(owner=owners)
    def beat(self, owner: str) -> None:
        keys = (key("m", OWNERS), key("m", LEDGER + owner), key("m", COUNTS))
        known, held, expired = self.call(BEAT, keys, owner, LEASE_MS)
        assert (bool(known), held, set(expired)) == self.twin.beat(owner)

    @rule(owner=owners)
    def lease_runs_out(self, owner: str) -> None:
        if owner in self.twin.owners:
            self.twin.owners[owner] = 1
            self.client.zadd(key("m", OWNERS), {owner: 1})

    @rule(owner=owners)
    def clock_was_set_back(self, owner: str) -> None:
        if owner in self.twin.owners:
            self.twin.owners[owner] = self.now + 10 * LEASE_MS
            self.client.zadd(key("m", OWNERS), {owner: self.now + 10 * LEASE_MS})

    @rule(dead=owners, caller=owners, chunk=st.sampled_from([1, 3, 500]))
    def reap(self, dead: str, caller: str, chunk: int) -> None:
        """What a living owner holds stays; what a dead one held comes back once, in chunks too."""
        keys = (key("m", OWNERS), key("m", COUNTS), key("m", LEDGER + dead))
        before, total, left = self.twin.counts.total(), 0, 1
        while left:
            taken, left = self.call(REAP, keys, dead, caller, chunk)
            total += taken
        assert total == self.twin.reap(dead, caller)
        assert before - total == self.twin.counts.total()

    @rule(owner=owners)
    def crash(self, owner: str) -> None:
        """It comes back as if new and believes nothing."""
        self.believed[owner].clear()

    @rule()
    def server_is_flushed(self) -> None:
        self.client.flushdb()
        self.twin.clear()

    @rule()
    def scripts_are_flushed(self) -> None:
        self.client.script_flush()

    @rule()
    def fsck_finds_nothing(self) -> None:
        assert self.fsck() == 0

    def fsck(self) -> Any:
        alive = self.client.zrange(key("m", OWNERS), 0, -1)
        keys = (key("m", COUNTS), key("m", OWNERS), *(key("m", LEDGER + owner) for owner in alive))
        return self.call(FSCK, keys, *alive)

    @precondition(lambda self: self.twin.counts)
    @rule(name=names, score=st.integers(1, 9))
    def fsck_corrects(self, name: str, score: int) -> None:
        truth = self.twin.counts[name]
        self.client.zadd(key("m", COUNTS), {name: score})
        assert self.fsck() == (truth != score)

    @invariant()
    def the_server_says_what_the_twin_says(self) -> None:
        ledgers = ledgers_in(self.client, "m")
        counts = counts_in(self.client, "m")
        assert ledgers == {owner: ledger for owner, ledger in self.twin.ledgers.items() if ledger}
        assert counts == dict(Counter(name for ledger in ledgers.values() for name in ledger.values()))
        assert all(count > 0 for count in counts.values())
        expiries = dict(self.client.zrange(key("m", OWNERS), 0, -1, withscores=True))
        assert expiries.keys() == self.twin.owners.keys()
        for owner, expiry in self.twin.owners.items():
            assert abs(expiries[owner] - expiry) < LEASE_MS / 2, "but for the time that the test takes"

    @invariant()
    def every_key_goes_away_by_itself(self) -> None:
        for name in self.client.scan_iter(match="{ai_lb:m}*"):
            assert 0 < self.client.ttl(name) <= 3600, name


def explore(server: RedisServer, *, runs: int) -> None:
    class Machine(LedgerMachine):
        client = server.client

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=runs, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_the_ledger_is_its_twin(server: RedisServer) -> None:
    explore(server, runs=150)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_ledger_is_its_twin_in_2000_runs(server: RedisServer) -> None:
    explore(server, runs=2000)
