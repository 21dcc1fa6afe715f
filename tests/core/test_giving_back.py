"""What a request takes comes back, once, whichever way it goes: the balancer over a store in memory."""

import asyncio
from dataclasses import replace

import pytest

from lb_core.balancer import Balancer
from lb_core.cluster import Cluster
from lb_core.engines.board import Board
from lb_core.engines.model import EngineMetrics, Scrape
from lb_core.errors import NoEndpoint
from lb_core.health import Health, HealthConfig, State
from lb_core.health.fleet import Alone, Fleet
from lb_core.policies.cluster_metrics import ClusterMetrics
from lb_core.policies.least_request import LeastRequest
from lb_core.prefix.finder import PrefixFinder
from lb_core.prefix.memory import MemoryPrefixIndex
from lb_core.routes import Match, Route, ServiceGroup
from lb_core.services import ServiceBoard
from lb_core.stats import Stats
from lb_core.stores.memory import MemoryStore
from lb_core.types import Ending, Outcome, Placement
from tests.core.build import endpoints

GOOD = Outcome(Ending.COMPLETE, 200, duration_s=1.0)
FAILED = Outcome(Ending.UPSTREAM_FAILED)
REFUSED = Outcome(Ending.UPSTREAM_FAILED, connected=False)


class Gate(Alone):
    """A fleet whose claims for probes it answers: it says no, or yes once `turn` is set."""

    def __init__(self, *, says: bool = True) -> None:
        self.says = says
        self.asked = asyncio.Event()
        self.turn = asyncio.Event()
        self.held: set[str] = set()

    async def claim(self, endpoint: str, ttl_s: float) -> bool:
        self.asked.set()
        if self.says:
            await self.turn.wait()
            self.held.add(endpoint)
        return self.says

    def release(self, endpoint: str) -> None:
        self.held.discard(endpoint)


class Rig:
    """One cluster of equal endpoints behind one route; the clock stands still unless told."""

    def __init__(self, count: int = 4, *, gate: Fleet | None = None, services: bool = False) -> None:
        self.now = 1000.0
        self.stats = Stats()
        self.store = MemoryStore("c")
        self.board = Board(clock=self.clock)
        # Without ghost load, equals are taken in their order.
        config = HealthConfig(max_ghost_s=0)
        self.health = Health(config, endpoints(count), clock=self.clock, dice=lambda: 0.5, fleet=gate)
        self.cluster = Cluster(
            "c",
            endpoints(count),
            store=self.store,
            health=self.health,
            board=self.board,
            balance=LeastRequest(),
            new_finder=lambda policy: PrefixFinder("c", MemoryPrefixIndex()),
            clock=self.clock,
        )
        self.services = ServiceBoard(["c"], queue_size=10, sample_ttl_s=60, clock=self.clock)
        group = ServiceGroup(ClusterMetrics("LeastBusy", ("c",)), self.services, {"c": self.cluster})
        route = Route("all", Match(), group if services else self.cluster)
        self.balancer = Balancer((route,), default_policy=None, stats=self.stats, clock=self.clock)

    def clock(self) -> float:
        return self.now

    async def place(self, *, tie: float = 0.0) -> Placement:
        """One request; of equals it goes to the first, and to the last if `tie` is near 1."""
        asked = self.balancer.request(host="h", path="/", headers={}, session=None, llm=None)
        return await self.balancer.route(replace(asked, tie=tie), started=self.now)

    async def end(self, outcome: Outcome, times: int = 1) -> None:
        for _ in range(times):
            self.balancer.finish(await self.place(), outcome)

    def at_e0(self) -> int:
        """Own requests at e0 since its page."""
        return self.board.observations(["e0"])["e0"].placed_since

    def page(self) -> None:
        self.board.take(Scrape("e0", self.now - 1, 0.1, EngineMetrics(at=self.now - 1, dialect="vllm")))

    def state(self, name: str = "e0") -> State:
        return self.health.states()[name]

    async def half_open(self) -> None:
        """Have e0 wait for its probe."""
        await self.end(FAILED, 3)
        self.wait_for_probe()

    def wait_for_probe(self) -> None:
        assert self.state() is State.EJECTED
        self.now += 20
        self.health.tick()
        assert self.state() is State.HALF_OPEN


# -- the end ----------------------------------------------------------------------------------------


async def test_the_end_gives_the_slot_back() -> None:
    rig = Rig()
    placement = await rig.place()
    assert dict(rig.store.in_flight) == {"e0": 1}
    rig.balancer.finish(placement, GOOD)
    assert dict(rig.store.in_flight) == {}


async def test_a_request_ends_once() -> None:
    rig = Rig()
    placement = await rig.place()
    for _ in range(3):
        rig.balancer.finish(placement, GOOD)
    labels = {"route": "all", "endpoint": "e0", "ending": "complete"}
    assert rig.stats.registry.get_sample_value("ai_lb_requests_total", labels) == 1
    assert not rig.balancer._homes


async def test_the_end_tells_how_the_endpoint_did() -> None:
    rig = Rig()
    await rig.end(FAILED, 3)
    assert rig.state() is State.EJECTED


async def test_the_end_tells_the_board_that_the_request_is_gone() -> None:
    rig = Rig()
    rig.page()
    placement = await rig.place()
    assert rig.at_e0() == 1
    rig.balancer.finish(placement, GOOD)
    assert rig.at_e0() == 0


async def test_the_end_tells_the_services_what_it_took() -> None:
    rig = Rig(services=True)
    await rig.end(GOOD, 2)
    assert rig.services.view({})[0].samples == 2


async def test_no_connection_a_retry_after_and_an_error_event_reach_the_health() -> None:
    rig = Rig()
    await rig.end(REFUSED, 2)
    assert rig.state("e0") is State.EJECTED
    await rig.end(Outcome(Ending.COMPLETE, 503, retry_after="20"))
    rig.now += 9
    rig.health.tick()
    assert rig.state("e1") is State.RESTING
    await rig.end(Outcome(Ending.COMPLETE, 200, error_code=503))
    assert rig.state("e2") is State.RESTING


async def test_content_and_a_connection_are_told_before_the_end() -> None:
    rig = Rig()
    await rig.half_open()
    probe = await rig.place()
    assert not rig.health.eligible({}).probes
    rig.balancer.content(probe)
    assert rig.health.eligible({}).probes == {"e0"}, "the stream goes on, the probe is over"
    one = Rig(2)
    await one.end(REFUSED, 2)
    await one.end(REFUSED, 2)
    one.now += 1
    probe = await one.place()
    await one.place()
    with pytest.raises(NoEndpoint):
        await one.place()
    one.balancer.connected(probe)
    assert (await one.place()).endpoint == probe.endpoint


# -- on the way there -------------------------------------------------------------------------------


async def test_a_request_that_may_not_be_the_probe_gives_its_slot_back_and_goes_elsewhere() -> None:
    rig = Rig(gate=Gate(says=False))
    await rig.half_open()
    placement = await rig.place()
    assert placement.endpoint.name != "e0"
    assert dict(rig.store.in_flight) == {placement.endpoint.name: 1}


async def test_a_client_that_leaves_while_a_probe_is_claimed_leaves_nothing() -> None:
    gate = Gate()
    rig = Rig(gate=gate)
    await rig.half_open()
    placing = asyncio.create_task(rig.place())
    await gate.asked.wait()
    assert dict(rig.store.in_flight) == {"e0": 1}
    placing.cancel()
    await asyncio.gather(placing, return_exceptions=True)
    assert dict(rig.store.in_flight) == {}


# -- another endpoint -------------------------------------------------------------------------------


async def test_a_retry_moves_the_slot_and_what_the_boards_know_of_it() -> None:
    rig = Rig()
    rig.page()
    first = await rig.place()
    second = await rig.balancer.retry(first, FAILED)
    assert second is not None
    assert (first.endpoint.name, second.endpoint.name) == ("e0", "e1")
    assert dict(rig.store.in_flight) == {"e1": 1}
    assert rig.at_e0() == 0
    rig.balancer.finish(second, GOOD)
    assert dict(rig.store.in_flight) == {}


async def test_the_attempt_before_a_retry_is_charged_to_its_endpoint() -> None:
    rig = Rig()
    for _ in range(2):
        second = await rig.balancer.retry(await rig.place(), REFUSED)
        assert second is not None
        rig.balancer.finish(second, GOOD)
    assert rig.state("e0") is State.EJECTED
    assert rig.state("e1") is State.HEALTHY


async def test_a_retry_goes_to_each_endpoint_once_and_then_to_none() -> None:
    rig = Rig(3)
    placement: Placement | None = await rig.place()
    names = []
    while placement is not None:
        names.append(placement.endpoint.name)
        placement = await rig.balancer.retry(placement, FAILED)
    assert sorted(names) == ["e0", "e1", "e2"]


async def test_what_an_endpoint_answers_is_not_tried_again_where_all_others_rest() -> None:
    rig = Rig(3)
    full = Outcome(Ending.COMPLETE, 503, retry_after="20")
    first = await rig.place()
    second = await rig.balancer.retry(first, full)
    assert second is not None
    third = await rig.balancer.retry(second, full)
    assert third is not None
    assert await rig.balancer.retry(third, full) is None
    rig.balancer.finish(third, full)
    again = await rig.place()  # all rest, so the first is asked whether it still is full
    assert await rig.balancer.retry(again, full) is None
    # Who cannot be connected to, or breaks off, said nothing: another may take the request.
    assert await rig.balancer.retry(again, FAILED) is not None


async def test_a_request_that_ends_while_its_retry_is_placed_keeps_neither_slot_nor_probe() -> None:
    gate = Gate()
    rig = Rig(2, gate=gate)
    await rig.end(FAILED, 5)
    rig.wait_for_probe()
    placement = await rig.place(tie=0.9)
    assert placement.endpoint.name == "e1"
    retrying = asyncio.create_task(rig.balancer.retry(placement, FAILED))
    await gate.asked.wait()
    rig.balancer.finish(placement, GOOD)
    gate.turn.set()
    assert await retrying is None
    assert dict(rig.store.in_flight) == {}
    assert not gate.held
