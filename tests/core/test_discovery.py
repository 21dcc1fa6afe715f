"""Members from DNS names and from files: which there are, what they are called, and when it is told."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_core.config import DnsEndpoints
from lb_core.discovery import Discovery, EndpointList, EndpointsFile, members
from lb_core.dns import Asking
from lb_core.errors import ConfigError, Problem
from lb_core.types import Endpoint
from tests.waiting import until

QUICK_S = 0.01
TEMPLATE = Endpoint("pods", "http", "engines.test", 8000, 2.0, 16, ("llama-*",))


def fixed(name: str, host: str = "10.1.0.1", port: int = 8000) -> Endpoint:
    return Endpoint(name, "http", host, port)


def listed(*endpoints: Endpoint, dns: Collection[Endpoint] = ()) -> EndpointList:
    return EndpointList(endpoints, tuple(DnsEndpoints(template) for template in dns))


def names(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [endpoint.name for endpoint in endpoints]


def hosts(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [endpoint.host for endpoint in endpoints]


class Zone:
    """What each DNS name resolves to; a name that is not in it hangs."""

    def __init__(self, **addresses: Collection[str]) -> None:
        self.addresses = {f"{name}.test": found for name, found in addresses.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Collection[str]:
        self.asked.append(host)
        if host not in self.addresses:
            await asyncio.Event().wait()
        return self.addresses[host]


def load_json(path: Path) -> EndpointList:
    """Name → address; an address that ends in .test is a DNS name."""
    try:
        found = [fixed(name, host) for name, host in json.loads(path.read_text()).items()]
    except (ValueError, AttributeError):
        raise ConfigError(str(path), (Problem("", "bad"),)) from None
    dns = [endpoint for endpoint in found if endpoint.host.endswith(".test")]
    return listed(*(endpoint for endpoint in found if endpoint not in dns), dns=dns)


def write(path: Path, **endpoints: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(endpoints))
    new.replace(path)


class Told:
    """What `on_members` was told."""

    def __init__(self) -> None:
        self.members: list[tuple[Endpoint, ...]] = []

    def __call__(self, cluster: str, endpoints: tuple[Endpoint, ...]) -> None:
        assert cluster == "c"
        self.members.append(endpoints)

    @property
    def hosts(self) -> list[str]:
        return hosts(self.members[-1]) if self.members else []


def discovery(
    endpoints: EndpointList,
    told: Told,
    zone: Zone,
    *,
    file: Path | None = None,
    after: Discovery | None = None,
    timeout_s: float = QUICK_S,
) -> Discovery:
    return Discovery(
        "c",
        endpoints,
        told,
        file=EndpointsFile(file, load_json) if file else None,
        after=after,
        resolve=zone,
        asking=Asking(interval_s=QUICK_S, timeout_s=timeout_s),
        interval_s=QUICK_S,
    )


@asynccontextmanager
async def running(one: Discovery) -> AsyncIterator[Discovery]:
    one.start()
    yield one
    await one.stop()


# Which members there are


def test_members_take_everything_but_name_and_host_from_their_template() -> None:
    (member,) = members([listed(dns=[TEMPLATE])], {"engines.test": ("10.0.0.1",)})
    assert member == replace(member, port=8000, weight=2.0, max_in_flight=16, models=("llama-*",))
    assert member.host == "10.0.0.1"


def test_names_of_members_show_no_address_and_stay_the_same() -> None:
    found = members([listed(dns=[TEMPLATE])], {"engines.test": ("10.0.0.1", "10.0.0.2")})
    assert names(found) == ["pods-f9e3d1", "pods-f45ea8"]


def test_the_order_is_that_of_the_lists_and_then_of_the_addresses() -> None:
    other = replace(TEMPLATE, name="other", host="other.test")
    lists = [listed(fixed("z"), dns=[TEMPLATE]), listed(fixed("a", "10.1.0.2"), dns=[other])]
    found = members(lists, {"other.test": ("10.0.0.3",), "engines.test": ("10.0.0.1", "10.0.0.2")})
    assert hosts(found) == ["10.1.0.1", "10.1.0.2", "10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_an_engine_that_is_listed_twice_is_one_member() -> None:
    again = replace(TEMPLATE, name="again", host="again.test")
    both = [listed(fixed("own", "10.0.0.1"), dns=[TEMPLATE, again])]
    addresses = ("10.0.0.1", "10.0.0.2")
    found = members(both, {"engines.test": addresses, "again.test": addresses})
    assert hosts(found) == ["10.0.0.1", "10.0.0.2"]
    assert names(found)[0] == "own"


def test_two_names_that_lead_to_one_address_are_two_members() -> None:
    one, two = (replace(fixed(name, "10.0.0.1"), server_name=f"{name}.test") for name in "ab")
    assert names(members([listed(one, two, dns=[TEMPLATE])], {"engines.test": ("10.0.0.1",)})) == ["a", "b"]


def test_of_two_lists_that_clash_the_first_one_counts() -> None:
    """As between a reload and the next reading of an endpoints file."""
    first = listed(fixed("a"))
    second = listed(fixed("a", "10.1.0.2"), fixed("b"), fixed("c", "10.1.0.3"))
    assert names(members([first, second], {})) == ["a", "c"]


def test_a_member_whose_name_is_taken_gets_more_digits() -> None:
    found = members(
        [listed(fixed("pods-f9e3d1"), dns=[TEMPLATE])], {"engines.test": ("10.0.0.1", "10.0.0.2")}
    )
    assert [len(name) for name in names(found)] == [11, 12, 11]


ADDRESSES = st.sets(st.ip_addresses(v=4).map(str), max_size=8).map(lambda found: tuple(sorted(found)))


@given(before=ADDRESSES, after=ADDRESSES, own=ADDRESSES)
def test_who_stays_keeps_the_name_and_names_and_addresses_are_unique(
    before: tuple[str, ...], after: tuple[str, ...], own: tuple[str, ...]
) -> None:
    here = listed(*(fixed(f"own{number}", host) for number, host in enumerate(own)), dns=[TEMPLATE])
    old = members([here], {"engines.test": before})
    new = members([here], {"engines.test": after})
    assert set(hosts(new)) == {*own, *after}
    assert len(set(names(new))) == len(set(hosts(new))) == len(new)
    was = {endpoint.host: endpoint for endpoint in old}
    assert all(was.get(endpoint.host, endpoint) == endpoint for endpoint in new)


@pytest.mark.skipif(not hasattr(Endpoint, "server_name"), reason="Endpoint has no server_name yet")
def test_the_dns_name_stays_what_tls_and_host_headers_say() -> None:
    (member,) = members([listed(dns=[TEMPLATE])], {"engines.test": ("10.0.0.1",)})
    assert getattr(member, "server_name", None) == "engines.test"


# When it is told


async def test_members_are_told_when_they_change_and_only_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told, zone = Told(), Zone(engines=["10.0.0.2", "10.0.0.1"])
    async with running(discovery(listed(fixed("own"), dns=[TEMPLATE]), told, zone)) as one:
        assert hosts(one.members) == ["10.1.0.1"]
        await one.settled()
        assert told.hosts == ["10.1.0.1", "10.0.0.1", "10.0.0.2"]
        await until(lambda: len(zone.asked) > 4)
        assert len(told.members) == 1
        zone.addresses["engines.test"] = ["10.0.0.2", "10.0.0.3"]
        await until(lambda: told.hosts == ["10.1.0.1", "10.0.0.2", "10.0.0.3"])
        assert one.members == told.members[-1]
    assert [record.message for record in caplog.records] == [
        "Cluster c has 3 endpoints: 2 new, 0 gone.",
        "Cluster c has 3 endpoints: 1 new, 1 gone.",
    ]


async def test_nothing_to_follow_is_told_nothing() -> None:
    told = Told()
    async with running(discovery(listed(fixed("own")), told, Zone())) as one:
        await one.settled()
    assert told.members == []


async def test_a_name_that_hangs_holds_up_neither_the_start_nor_other_names() -> None:
    told, zone = Told(), Zone(engines=["10.0.0.1"])
    silent = replace(TEMPLATE, name="silent", host="silent.test")
    async with running(discovery(listed(dns=[silent, TEMPLATE]), told, zone)) as one, asyncio.timeout(2):
        await one.settled()
        await until(lambda: told.hosts == ["10.0.0.1"])


async def test_two_templates_of_one_name_ask_once() -> None:
    told, zone = Told(), Zone(engines=["10.0.0.1"])
    second = replace(TEMPLATE, name="second", port=8001)
    async with running(discovery(listed(dns=[TEMPLATE, second]), told, zone)) as one:
        await one.settled()
        assert [endpoint.port for endpoint in one.members] == [8000, 8001]
        assert len(zone.asked) == 1


async def test_after_a_reload_nothing_disappears_for_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    write(path, b="10.2.0.1")
    told, zone = Told(), Zone(engines=["10.0.0.1"])
    async with running(discovery(listed(dns=[TEMPLATE]), told, zone, file=path)) as one:
        await one.settled()
        heavier = listed(dns=[replace(TEMPLATE, weight=3.0)])
        two = discovery(heavier, Told(), Zone(), file=path, after=one)
    assert names(two.members) == names(told.members[-1])
    assert [endpoint.weight for endpoint in two.members] == [1.0, 3.0]
    assert discovery(listed(), Told(), Zone(), after=one).members == ()


async def test_a_stopped_discovery_tells_nothing(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    write(path, a="10.2.0.1")
    told, zone = Told(), Zone(engines=["10.0.0.1"])
    async with running(discovery(listed(dns=[TEMPLATE]), told, zone, file=path)) as one:
        await one.settled()
    count = len(told.members)
    zone.addresses["engines.test"] = ["10.0.0.2"]
    write(path, a="10.2.0.2")
    await asyncio.sleep(10 * QUICK_S)
    assert len(told.members) == count


# Files


async def test_a_files_endpoints_come_and_go_with_it(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    write(path, a="10.2.0.1")
    told = Told()
    async with running(discovery(listed(fixed("own")), told, Zone(), file=path, timeout_s=2)) as one:
        await one.settled()
        assert told.hosts == ["10.1.0.1", "10.2.0.1"]
        write(path, a="10.2.0.1", b="10.2.0.2")
        await until(lambda: told.hosts == ["10.1.0.1", "10.2.0.1", "10.2.0.2"])
        write(path)
        await until(lambda: told.hosts == ["10.1.0.1"])


async def test_dns_names_in_a_file_are_followed_as_long_as_they_are_in_it(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    write(path, pods="engines.test")
    told, zone = Told(), Zone(engines=["10.0.0.1"])
    async with running(discovery(listed(), told, zone, file=path)):
        await until(lambda: told.hosts == ["10.0.0.1"])
        write(path, b="10.2.0.2")
        await until(lambda: told.hosts == ["10.2.0.2"])
        asked = len(zone.asked)
        await asyncio.sleep(5 * QUICK_S)
        assert len(zone.asked) == asked


async def test_a_bad_file_changes_nothing_and_is_logged_once_at_each_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "endpoints.json"
    write(path, a="10.2.0.1")
    told = Told()
    async with running(discovery(listed(), told, Zone(), file=path)):
        await until(lambda: told.hosts == ["10.2.0.1"])
        caplog.clear()
        path.write_text("[")
        await until(lambda: caplog.records)
        await asyncio.sleep(5 * QUICK_S)
        write(path, a="10.2.0.1")
        await until(lambda: len(caplog.records) == 2)
        assert len(told.members) == 1
        write(path, a="10.2.0.1", b="10.2.0.2")
        await until(lambda: len(told.members) == 2)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "INFO"]
    assert caplog.records[-1].message == "Cluster c has 2 endpoints: 1 new, 0 gone."


@pytest.mark.parametrize("clash", [{"own": "10.2.0.1"}, {"a": "10.1.0.1"}, {"pods": "10.2.0.1"}])
async def test_a_file_that_clashes_with_the_configuration_is_bad(
    tmp_path: Path, clash: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "endpoints.json"
    write(path, **clash)
    told, zone = Told(), Zone(engines=[])
    async with running(discovery(listed(fixed("own"), dns=[TEMPLATE]), told, zone, file=path)):
        await until(lambda: any("cannot be used" in record.message for record in caplog.records))
    assert told.members == []


async def test_a_missing_file_does_not_stop_the_start(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    told = Told()
    async with running(discovery(listed(), told, Zone(), file=path, timeout_s=60)) as one:
        async with asyncio.timeout(5):
            await one.settled()
        write(path, a="10.2.0.1")
        await until(lambda: told.hosts == ["10.2.0.1"])
