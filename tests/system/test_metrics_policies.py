"""`endpoint_metrics` through a real mitmdump: engines that differ, that lie, and that say nothing."""

import asyncio
import re
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.system.balancer import Balancer, Engines
from tests.waiting import wait_until

PAGES = Path(__file__).resolve().parents[1] / "data" / "metrics"
ADAPTER = "sql-lora"
POLICIES: dict[str, dict[str, Any]] = {
    "default": {"metric_policy": "default"},
    "waiting": {"metric_policy": "least", "target_metric": "vllm:num_requests_waiting"},
    "running": {"metric_policy": "least", "target_metric": "vllm:num_requests_running"},
}


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended; the endpoint and the reason are what the balancer says."""

    status: int
    endpoint: str
    reason: str
    seconds: float
    model: str


async def ask(client: httpx.AsyncClient, balancer: Balancer, body: dict[str, Any]) -> Answer:
    """Ask once and read the whole answer, stream or not."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    answer = await client.post(balancer.url + "/v1/chat/completions", json=body)
    if answer.is_success and body.get("stream"):
        assert answer.text.rstrip().endswith("data: [DONE]")
    headers = answer.headers
    endpoint, reason = headers.get("x-ai-lb-endpoint", ""), headers.get("x-ai-lb-reason", "")
    return Answer(answer.status_code, endpoint, reason, loop.time() - begun, body["model"])


def body(
    model: str = "sim", *, tokens: int = 20, text: str = "hello", stream: bool = False
) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "stream": stream}


def config(endpoints: Sequence[dict[str, Any]], policy: dict[str, Any], **metrics: Any) -> dict[str, Any]:
    return {
        "clusters": {
            "engines": {"endpoints": list(endpoints), "metrics": {"scrape_interval": 0.3, **metrics}}
        },
        "lb_policy": "endpoint_metrics",
        "lb_config": policy,
        "expose_decision": True,
    }


# -- six engines that differ ------------------------------------------------------------------------------


@dataclass(slots=True)
class Fleet:
    """Six engines, four of which work; `total` counts what really came to each."""

    programs: dict[tuple[str, ...], Engines]

    @property
    def endpoints(self) -> dict[str, dict[str, Any]]:
        return {
            name: {**endpoint, "name": name}
            for names, program in self.programs.items()
            for name, endpoint in zip(names, program.endpoints(), strict=True)
        }

    def total(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for names, program in self.programs.items():
            truth = program.truth()
            counted |= Counter(
                {name: truth[own]["total"] for name, own in zip(names, program.names, strict=True)}
            )
        return counted


@contextmanager
def six_engines() -> Iterator[Fleet]:
    """`frozen` and `full` report that they are idle and are in good health by their own account."""
    kind = ("--ttft", "0.02", "--tpot", "0.01", "--max-num-seqs", "4", "--model", "sim")
    with (
        Engines(4, *kind) as four,
        Engines(1, *kind, "--speed", "0.5") as slow,
        Engines(1, *kind, "--adapter", ADAPTER) as adapter,
    ):
        four.fault("sim-3", "freeze")
        four.fault("sim-4", "queue_full_503")
        yield Fleet({("one", "two", "frozen", "full"): four, ("slow",): slow, ("adapter",): adapter})


@dataclass(slots=True)
class Clients:
    """Clients that ask again and again, each one request at a time; half of the answers are streams."""

    balancer: Balancer
    answers: list[Answer] = field(default_factory=list)
    stuck: int = 0
    """Requests that had no answer when all others had theirs."""

    async def run(self, fleet: Fleet, models: Sequence[str], *, seconds: float) -> tuple[int, Counter[str]]:
        """Gives the number of answers at a third of the time, and what had come to each engine by then."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
            tasks = [asyncio.create_task(self._ask_on(client, model, until)) for model in models]
            await asyncio.sleep(seconds / 3)
            early = len(self.answers), await asyncio.to_thread(fleet.total)
            stuck = set(tasks)
            while loop.time() < until + 6 and len(stuck) > (await asyncio.to_thread(fleet.total))["frozen"]:
                _, stuck = await asyncio.wait(stuck, timeout=0.1)
            self.stuck = len(stuck)
            for task in stuck:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                assert ended is None or isinstance(ended, asyncio.CancelledError), ended
        return early

    async def _ask_on(self, client: httpx.AsyncClient, model: str, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            asked = body(model, stream=len(self.answers) % 2 == 0)
            self.answers.append(await ask(client, self.balancer, asked))


async def steered(folder: Path, policy: str, *, seconds: float) -> None:
    """Load on six engines under one policy, and what must be true of the shares."""
    with six_engines() as fleet:
        endpoints = fleet.endpoints
        if policy != "default":
            # A single metric says nothing of adapters; then the configuration says who has which.
            for name, endpoint in endpoints.items():
                endpoint["models"] = ["*"] if name == "adapter" else ["sim"]
        settings = config(tuple(endpoints.values()), POLICIES[policy])
        with Balancer(folder, settings) as balancer:
            clients = Clients(balancer)
            models = ["sim"] * 18 + [ADAPTER] * 6
            begun, early = await clients.run(fleet, models, seconds=seconds)
            wait_until(lambda: balancer.in_flight() == 0, within_s=2, what="nothing is counted")
            log = balancer.log()
            total = fleet.total()
    answers = clients.answers
    late = Counter(answer.endpoint for answer in answers[begun:])
    print(f"{policy}: {len(answers)} answers, {dict(total)}; after a third of the time {dict(late)}")
    assert {answer.status for answer in answers} == {200}
    assert len(answers) > 15 * seconds
    # The frozen one: what came to it is stuck, and it gets hardly anything once that is noticed.
    assert clients.stuck == total["frozen"] <= min(len(models) / 2, total.total() / 6)
    assert total["frozen"] - early["frozen"] <= 0.02 * total.total() + 1
    # The full one: one request finds out about it each time it has rested.
    assert total["full"] <= len(models) / 4 + 1.5 * (seconds + 3)
    assert late["full"] == 0
    # The slow one: used, and less than those that are twice as fast.
    assert 0 < late["slow"] < 0.8 * min(late["one"], late["two"])
    # The adapter: those that ask for it find it.
    wanted = Counter(answer.endpoint for answer in answers[begun:] if answer.model == ADAPTER)
    assert wanted["adapter"] >= 0.9 * wanted.total() > 0
    assert max(late["one"], late["two"]) < 1.6 * min(late["one"], late["two"])
    assert "Traceback" not in log


@pytest.mark.parametrize("policy", POLICIES)
async def test_each_policy_steers_around_engines_that_lie_and_spares_the_slow_one(
    tmp_path: Path, policy: str
) -> None:
    await steered(tmp_path, policy, seconds=4)


@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.timeout(300)
async def test_each_policy_steers_so_for_a_minute(tmp_path: Path, policy: str) -> None:
    await steered(tmp_path, policy, seconds=60)


# -- pages that do not come -------------------------------------------------------------------------------


async def without_pages(folder: Path, number: int, *, clients: int) -> tuple[float, float]:
    """Ask two balancers in turn, one of which gets no page any more; gives the medians, with and without.

    Each is asked `number` times, by so many clients.
    """
    quick = ("--ttft", "0.002", "--tpot", "0.0005", "--max-num-seqs", "64")
    with ExitStack() as stack:
        fleets = [stack.enter_context(Engines(3, *quick)) for _ in range(2)]
        balancers = [
            stack.enter_context(Balancer(folder, config(engines.endpoints(), {}, stale_after=1)))
            for engines in fleets
        ]
        with_pages: list[Answer] = []
        without: list[Answer] = []
        answers = (with_pages, without)
        async with httpx.AsyncClient(timeout=20) as client:
            for balancer in balancers:
                for _ in range(20):
                    await ask(client, balancer, body(tokens=5))
            for name in fleets[1].names:
                fleets[1].fault(name, "none", metrics="hang")
            # Pages do not grow old at the same moment: until all have, those with one are preferred.
            async with asyncio.timeout(10):
                while (await ask(client, balancers[1], body(tokens=5))).reason != "all_stale":
                    await asyncio.sleep(0.05)

            async def keep_asking() -> None:
                for turn in range(number // clients):
                    for which in (turn % 2, 1 - turn % 2):
                        answers[which].append(await ask(client, balancers[which], body(tokens=5)))

            await asyncio.gather(*(keep_asking() for _ in range(clients)))
        assert {answer.status for side in answers for answer in side} == {200}
        assert {answer.reason for answer in without} == {"all_stale"}, "in-flight counts decide"
        assert Counter(answer.reason for answer in with_pages)["all_stale"] < number / 2
        spread = Counter(answer.endpoint for answer in without)
        assert min(spread[name] for name in fleets[1].names) > 0.2 * number, spread
        log = balancers[1].log()
        for name in fleets[1].names:
            assert log.count(f"Endpoint {name}: no metrics") == 1, "told once"
    medians = tuple(statistics.median(answer.seconds for answer in side) for side in answers)
    print(
        f"{number} requests: median {medians[0] * 1e3:.2f} ms with pages, {medians[1] * 1e3:.2f} ms without"
    )
    return medians[0], medians[1]


async def test_400_requests_are_served_as_fast_while_every_page_hangs(tmp_path: Path) -> None:
    working, hanging = await without_pages(tmp_path, 400, clients=2)
    assert hanging < working + 0.05, "nobody waits for a page; the millisecond is for the long form"


@pytest.mark.long
async def test_400_requests_are_less_than_a_millisecond_slower_while_every_page_hangs(tmp_path: Path) -> None:
    for _ in range(5):
        working, hanging = await without_pages(tmp_path, 400, clients=1)
        assert hanging < working + 0.001


# -- pages that say little --------------------------------------------------------------------------------


class PageEngine:
    """An engine with a page as a test wants it; `served` counts what it answered."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.served = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(outer.page.encode(), "text/plain; version=0.0.4")

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                outer.served += 1
                self._answer(b'{"choices": []}', "application/json")

            def _answer(self, content: bytes, content_type: str) -> None:
                self.send_response(200)
                self.send_header("content-type", content_type)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def page(name: str = "vllm-idle", *, without: str = "", awake: bool = True) -> str:
    """A real page, less the lines that hold a word; or as of an engine whose weights are put away."""
    lines = (PAGES / f"{name}.txt").read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not without or without not in line)
    return text if awake else text.replace('sleep_state="awake"} 1.0', 'sleep_state="awake"} 0.0')


async def served(balancer: Balancer, number: int) -> Counter[str]:
    """Ask so often and give who answered; all must."""
    async with httpx.AsyncClient(timeout=20) as client:
        answers = [await ask(client, balancer, body()) for _ in range(number)]
    assert {answer.status for answer in answers} == {200}
    return Counter(answer.endpoint for answer in answers)


def listed(engines: dict[str, PageEngine]) -> list[dict[str, Any]]:
    return [{"name": name, "url": engine.url} for name, engine in engines.items()]


async def test_a_sleeping_engine_gets_nothing_until_it_wakes(tmp_path: Path) -> None:
    with PageEngine(page(awake=False)) as sleeper, PageEngine(page()) as second, PageEngine(page()) as third:
        engines = {"sleeper": sleeper, "second": second, "third": third}
        with Balancer(tmp_path, config(listed(engines), {}, scrape_interval=0.2)) as balancer:
            wait_until(
                lambda: "Endpoint sleeper: its engine is asleep" in balancer.log(),
                within_s=5,
                what="it is told",
            )
            spread = await served(balancer, 60)
            assert spread.keys() == {"second", "third"}
            assert sleeper.served == 0
            sleeper.page = page()
            wait_until(
                lambda: "Endpoint sleeper: its engine is awake" in balancer.log(), within_s=5, what="it wakes"
            )
            assert (await served(balancer, 120))["sleeper"] > 0
            assert balancer.log().count("Endpoint sleeper: its engine is asleep") == 1


async def test_a_missing_signal_is_told_once_and_the_policy_stays_on(tmp_path: Path) -> None:
    crowded = page("vllm-loaded")
    with (
        PageEngine(page(without="vllm:num_requests_waiting")) as no_waiting,
        PageEngine(page(without="vllm:kv_cache_usage_perc")) as no_kv_usage,
        PageEngine(page("llamacpp-idle")) as llamacpp,
        PageEngine(crowded) as loaded,
    ):
        engines = {
            "no-waiting": no_waiting,
            "no-kv-usage": no_kv_usage,
            "llamacpp": llamacpp,
            "loaded": loaded,
        }
        with Balancer(tmp_path, config(listed(engines), {}, scrape_interval=0.2)) as balancer:
            expected = {"no-waiting": "waiting", "no-kv-usage": "kv_usage", "llamacpp": "kv_usage"}
            wait_until(
                lambda: balancer.log().count("is missing") >= len(expected), within_s=5, what="it is told"
            )
            spread = await served(balancer, 120)
            log = balancer.log()
        warnings = [line for line in log.splitlines() if "is missing" in line]
        assert len(warnings) == len(expected), warnings
        for endpoint, signal in expected.items():
            assert sum(f"Endpoint {endpoint}: the metric {signal} is missing;" in w for w in warnings) == 1
        # Eight wait at the loaded one by its page, so the policy is on; and those without a signal take part.
        assert spread["loaded"] == 0, spread
        assert all(spread[name] >= 20 for name in expected), spread


# -- adapters ---------------------------------------------------------------------------------------------


async def test_no_client_of_a_cold_adapter_meets_an_engine_without_lora(tmp_path: Path) -> None:
    """Engines answer 404 for what they do not serve; both with LoRA have all their adapters in use."""
    kind = ("--ttft", "0.01", "--tpot", "0.005", "--model", "base")
    with Engines(2, *kind) as plain, Engines(2, *kind, "--adapter", "warm", "--adapter", "cold") as lora:
        listed = [{**each, "name": f"plain-{n}"} for n, each in enumerate(plain.endpoints())]
        listed += [{**each, "name": f"lora-{n}"} for n, each in enumerate(lora.endpoints())]
        with Balancer(tmp_path, config(listed, {}, scrape_interval=0.1)) as balancer:
            await asyncio.sleep(1)
            async with httpx.AsyncClient(timeout=60) as client:

                async def many(model: str, number: int, tokens: int) -> list[Answer]:
                    asked = [ask(client, balancer, body(model, tokens=tokens)) for _ in range(number)]
                    return await asyncio.gather(*asked)

                busy = [asyncio.create_task(many(name, 6, 600)) for name in ("warm", "cold")]
                await asyncio.sleep(0.5)
                cold = await many("cold", 40, 5)
                base = await many("base", 40, 5)
                held = await asyncio.gather(*busy)
    assert {answer.status for answer in (*cold, *base, *held[0], *held[1])} == {200}
    assert {answer.endpoint for answer in cold} <= {"lora-0", "lora-1"}
    assert {answer.endpoint for answer in base} >= {"plain-0", "plain-1"}


async def test_requests_for_the_base_model_stay_on_engines_whose_adapter_slots_are_full(
    tmp_path: Path,
) -> None:
    """An engine with one slot, in use, and an idle one with a slot free: the base model needs none."""
    full = page("vllm-lora-loaded").replace('max_lora="2"', 'max_lora="1"')
    idle_now = r"(vllm:(?:num_requests_running|num_requests_waiting|kv_cache_usage)\S*) \S+"
    full = re.sub(idle_now, r"\1 0.0", full)
    with PageEngine(full) as busy, PageEngine(page("vllm-lora-idle")) as idle:
        engines = {"busy": busy, "idle": idle}
        with Balancer(tmp_path, config(listed(engines), {}, scrape_interval=0.2)) as balancer:
            await asyncio.sleep(1)
            async with httpx.AsyncClient(timeout=20) as client:
                base = [await ask(client, balancer, body("tiny")) for _ in range(40)]
                other = [await ask(client, balancer, body("ad3")) for _ in range(10)]
    assert {answer.endpoint for answer in base} == {"busy", "idle"}
    assert {answer.endpoint for answer in other} == {"idle"}
