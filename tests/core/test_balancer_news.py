"""What the balancer tells the health while a request is at work, and its client when there is no place."""

import asyncio
import contextlib

import pytest

from lb_core.balancer import Balancer
from lb_core.engines.model import EngineMetrics, Scrape
from lb_core.errors import Saturated
from lb_core.health import State, Work
from lb_core.policies.cluster_metrics import ClusterMetrics
from lb_core.request import LLMRequest
from lb_core.routes import Match, Route, ServiceGroup
from lb_core.services import ServiceBoard
from lb_core.stores.memory import MemoryStore
from lb_core.stores.patience import at_most
from lb_core.stores.placement import FULL
from lb_core.stores.wire import ServerAway
from lb_core.types import Ending, Endpoint, Outcome, Placement
from tests.core.build import endpoint
from tests.core.test_giving_back import FAILED, GOOD, Rig

STREAM = LLMRequest("chat", stream=True)


async def place(rig: Rig, llm: LLMRequest | None) -> Placement:
    asked = rig.balancer.request(host="h", path="/", headers={}, session=None, llm=llm)
    return await rig.balancer.route(asked, started=rig.now)


def narrow() -> Rig:
    """With one endpoint, which has one place."""
    rig = Rig(1)
    rig.cluster.members((endpoint("e0", max_in_flight=1),))
    return rig


# -- how the engine works ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("llm", "work"),
    [
        (STREAM, Work.STREAM),
        (LLMRequest("chat"), Work.ANSWER),
        (LLMRequest("other", stream=True), Work.OTHER),
        (None, Work.OTHER),
    ],
)
async def test_streams_and_answers_show_if_the_engine_works_and_nothing_else_does(
    llm: LLMRequest | None, work: Work
) -> None:
    rig = Rig(2)
    first = await place(rig, llm)
    assert rig.balancer._homes[first.request.id].attempt.work is work
    second = await rig.balancer.retry(first, FAILED)
    assert second is not None
    assert rig.balancer._homes[second.request.id].attempt.work is work


async def test_progress_is_told_before_the_end() -> None:
    rig = Rig(2)
    stream, _, _ = await place(rig, STREAM), await place(rig, None), await place(rig, STREAM)
    rig.balancer.content(stream)
    for _ in range(3):
        rig.now += 100
        rig.balancer.progressed(stream)
        rig.health.tick()
        assert rig.state() is State.HEALTHY
    rig.balancer.finish(stream, GOOD)
    rig.balancer.progressed(stream)


# -- another endpoint -------------------------------------------------------------------------------


async def test_a_retry_counts_on_the_board_of_its_new_endpoint() -> None:
    rig = Rig(2)
    rig.board.take(Scrape("e1", rig.now - 1, 0.1, EngineMetrics(at=rig.now - 1, dialect="vllm")))
    assert await rig.balancer.retry(await rig.place(), FAILED) is not None
    assert rig.board.observations(["e1"])["e1"].placed_since == 1


class Filled(MemoryStore):
    """Others have filled e1, which is heard when it is asked for."""

    async def move(self, lease_id: str, endpoint: Endpoint, max_in_flight: int | None = None) -> bool:
        if endpoint.name == "e1":
            raise Saturated(FULL)
        return await super().move(lease_id, endpoint, max_in_flight)


async def test_an_endpoint_that_others_have_filled_is_passed_over_and_its_attempt_is_over() -> None:
    rig = Rig(3)
    rig.cluster.store = Filled("c")
    moved = await rig.balancer.retry(await place(rig, STREAM), FAILED)
    assert moved is not None
    assert moved.endpoint.name == "e2"
    rig.balancer.content(moved)
    rig.now += 200
    rig.health.tick()
    assert rig.state("e1") is State.HEALTHY, "no stream waits there"


class Slow(MemoryStore):
    """Asks twice, and is answered too late."""

    async def move(self, lease_id: str, endpoint: Endpoint, max_in_flight: int | None = None) -> bool:
        with contextlib.suppress(TimeoutError):
            async with at_most(0.01):
                await asyncio.sleep(1)
        with pytest.raises(ServerAway):
            async with at_most(0.01):
                raise AssertionError("no time is left")
        return await super().move(lease_id, endpoint, max_in_flight)


async def test_a_retry_has_one_wait_for_all_its_calls() -> None:
    rig = Rig(2)
    rig.cluster.store = Slow("c")
    assert await rig.balancer.retry(await rig.place(), FAILED) is not None


async def test_where_there_is_no_other_a_blameless_endpoint_gets_its_request_again() -> None:
    blameless = Outcome(Ending.ABANDONED)
    rig = narrow()
    first = await rig.place()
    assert await rig.balancer.retry(first, blameless) is None
    again = await rig.balancer.retry(first, blameless, or_same=True)
    assert again is not None
    assert again.endpoint == first.endpoint, "in the one place that there is, which it has"
    assert rig.cluster.store.in_flight == {"e0": 1}
    assert not rig.balancer._homes[first.request.id].attempt.over
    rig.balancer.finish(again, GOOD)
    assert rig.cluster.store.in_flight == {}
    assert await rig.balancer.retry(again, blameless, or_same=True) is None, "it was finished"


async def test_where_there_is_another_a_blameless_endpoint_gives_way_to_it() -> None:
    rig = Rig(2)
    first = await rig.place()
    second = await rig.balancer.retry(first, Outcome(Ending.ABANDONED), or_same=True)
    assert second is not None
    assert second.endpoint != first.endpoint


# -- when to come back ------------------------------------------------------------------------------


async def test_who_finds_no_place_is_told_when_there_should_be_one() -> None:
    rig = narrow()
    await rig.end(GOOD, 10)
    await rig.place()
    waits = []
    for _ in range(3):
        with pytest.raises(Saturated) as caught:
            await rig.place()
        waits.append(caught.value.retry_after_s)
    assert waits == [1, 2, 3]


async def test_of_several_clusters_the_fastest_tells_when_to_come_back() -> None:
    fast, slow = narrow(), narrow()
    await fast.end(GOOD, 10)
    for rig in (fast, slow):
        await rig.place()
    board = ServiceBoard(["fast", "slow"], queue_size=10, sample_ttl_s=60, clock=fast.clock)
    policy = ClusterMetrics("LeastBusy", ("fast", "slow"))
    group = ServiceGroup(policy, board, {"fast": fast.cluster, "slow": slow.cluster})
    route = Route("all", Match(), group)
    fast.balancer = Balancer((route,), default_policy=None, stats=fast.stats, clock=fast.clock)
    with pytest.raises(Saturated) as caught:
        await fast.place()
    assert caught.value.retry_after_s == 1


async def test_a_client_waits_for_the_first_endpoint_that_has_room() -> None:
    rig = Rig(2)
    busy, other = await rig.place(), await rig.place()
    assert rig.balancer.retry_after_s(busy, "7") == 1
    rig.balancer.finish(other, Outcome(Ending.COMPLETE, 503, retry_after="4"))
    assert rig.balancer.retry_after_s(busy, "7") == 4
    assert rig.balancer.retry_after_s(busy, "2") == 2
    rig.balancer.finish(busy, GOOD)
    assert rig.balancer.retry_after_s(busy, "7") == 7, "nothing is known of its cluster any more"


async def test_a_client_does_not_wait_for_an_endpoint_that_lacks_its_model() -> None:
    rig = Rig(3)
    big = endpoint("e0", models=("big",)), endpoint("e1", models=("big",))
    rig.cluster.members((*big, endpoint("e2", models=("small",))))
    busy, other = await place(rig, LLMRequest("chat", "big")), await place(rig, LLMRequest("chat", "big"))
    rig.balancer.finish(other, Outcome(Ending.COMPLETE, 503, retry_after="9"))
    assert rig.balancer.retry_after_s(busy, "20") == 9, "e2 is idle, and of no use"
