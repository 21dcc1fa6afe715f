"""Pages of all sorts of nonsense: finite or missing, no exception, no growth.

Pages are made of real ones by cheap random damage, with a seed that a failure names.
"""

import gc
import math
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from lb_core.engines.model import EngineMetrics
from lb_core.engines.reading import Reader

PAGES = Path(__file__).parents[1] / "data" / "metrics"
TARGETS = ("vllm:time_to_first_token_seconds", "vllm:generation_tokens", "python_info", "tgi_queue_size")
NAMES = (
    "vllm:num_requests_waiting",
    "vllm:lora_requests_info",
    "vllm:cache_config_info",
    "vllm:engine_sleep_state",
    "vllm:time_to_first_token_seconds_sum",
    "vllm:time_to_first_token_seconds_count",
    "sglang:token_usage",
    "sglang:realtime_tokens_total",
    "tgi_batch_max_total_tokens",
    "nv_trt_llm_kv_cache_block_metrics",
)
VALUES = (
    "NaN",
    "+Inf",
    "-Inf",
    "1e400",
    "-1",
    "1e-400",
    "0",
    "0x1F",
    "1_000",
    "9" * 5000,
    "",
    "\u0661",
    "1 1 1",
)
LABELS = (
    "",
    "{}",
    "{",
    "}",
    '{engine="0"}',
    '{engine="0",engine="1"}',
    '{a="\\"}',
    "{=}",
    '{"":" "}',
    '{max_lora="x",running_lora_adapters=",,",waiting_lora_adapters="a"}',
    '{block_size="1e400",num_gpu_blocks="-5"}',
    '{kv_cache_block_type="max"}',
    '{sleep_state="awake"}',
    '{__name__="x"}',
    '{é="\\n\\\\"} # {b="1"} 2',
    '{a="' + "\\" * 300 + '"}',
)


def short(page: bytes, rng: random.Random) -> bytes:
    """Twenty lines or so of a real page, the useful ones among them: quick to damage and to read."""
    lines = [line for line in page.splitlines(keepends=True) if b"_bucket" not in line and line[:1] != b"#"]
    start = rng.randrange(len(lines))
    return b"".join(lines[start : start + 20])


def cut(page: bytes, rng: random.Random) -> bytes:
    return page[: rng.randrange(len(page) + 1)]


def flipped(page: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(page)
    for _ in range(rng.randrange(1, 8)):
        damaged[rng.randrange(len(damaged))] = rng.choice(b'\x00\n\r\t "{}\\,=#_-+.eE0N\xff\xc3')
    return bytes(damaged)


def shuffled(page: bytes, rng: random.Random) -> bytes:
    lines = page.splitlines(keepends=True)
    return b"".join(rng.choices(lines, k=len(lines)))


def made_up(_: bytes, rng: random.Random) -> bytes:
    lines = []
    for _line in range(rng.randrange(1, 15)):
        name, labels = rng.choice(NAMES), rng.choice(LABELS)
        blank = rng.choice((" ", "\t", "  ", ""))
        lines.append(f"{name}{labels}{blank}{rng.choice(VALUES)}{rng.choice(('', ' 1.7e12', ' x'))}")
    return "\n".join(lines).encode()


def html(page: bytes, _: random.Random) -> bytes:
    return b"<html><pre>\n" + page.replace(b'"', b"&quot;") + b"</pre>"


def bytes_only(_: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(300))


DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    cut,
    flipped,
    shuffled,
    made_up,
    html,
    bytes_only,
)


def check(metrics: EngineMetrics) -> None:
    for field in fields(metrics):
        value = getattr(metrics, field.name)
        if isinstance(value, float | int):
            assert math.isfinite(value), field.name
            assert value >= 0, field.name
    assert all(math.isfinite(value) for value in metrics.raw.values())
    assert metrics.kv_usage is None or metrics.kv_usage <= 1


def run(count: int, seed: int) -> int:
    """Read so many pages with a few readers, as a scraper does; how many said something."""
    real = [path.read_bytes() for path in sorted(PAGES.glob("*.txt"))]
    rng = random.Random(seed)
    readers = [Reader(targets=TARGETS), Reader(dialect="vllm"), Reader(targets=TARGETS)]
    understood = 0
    for number in range(count):
        page = short(rng.choice(real), rng)
        for _ in range(rng.randrange(1, 3)):
            page = rng.choice(DAMAGE)(page, rng) or b"\n"
        metrics = rng.choice(readers).read(page, float(number))
        if metrics is not None:
            understood += 1
            check(metrics)
    return understood


def grown(count: int, seed: int) -> int:
    """Bytes that are kept after reading so many pages, when as many were read before."""
    run(count, seed)
    gc.collect()
    tracemalloc.start()
    try:
        run(count, seed + 1)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_no_page_is_too_broken() -> None:
    assert run(3_000, seed=1) > 500


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [10, 20])
def test_no_page_of_many_is_too_broken(seed: int) -> None:
    assert run(50_000, seed) > 5_000


def test_reading_keeps_no_more_than_its_bounds() -> None:
    assert grown(1_000, seed=3) < 12 << 20


def test_labels_that_never_come_again_are_not_kept() -> None:
    reader = Reader()
    tracemalloc.start()
    try:
        for number in range(40):
            lines = (f'vllm:num_requests_running{{engine="{number}-{line}"}} 1' for line in range(500))
            reader.read("\n".join(lines).encode(), 1.0)
        assert tracemalloc.get_traced_memory()[0] < 6 << 20
    finally:
        tracemalloc.stop()


def test_a_page_of_lines_that_are_all_wanted_is_read_in_time() -> None:
    line = b'vllm:num_requests_waiting{engine="0",model_name="m"} 1\n'
    metrics = Reader().read(line * ((4 << 20) // len(line)) + b"vllm:num_requests_running 1\n", 1.0)
    assert metrics is not None
    assert (metrics.waiting, metrics.running) == (None, 1)
