"""Pages of every engine give the right values, name by name."""

from pathlib import Path
from typing import Any

import pytest

from lb_core.engines.dialects import DIALECTS
from lb_core.engines.model import EngineMetrics
from lb_core.engines.reading import Reader

PAGES = Path(__file__).parents[1] / "data" / "metrics"

VLLM = {
    "dialect": "vllm",
    "models": frozenset({"tiny"}),
    "sleeping": False,
    "block_size": 128,
    "prefix_hits": 0,
}
LLAMA = {"dialect": "llamacpp", "prefix_hits": 0, "generated_tokens": 0}

# Read off the pages by hand.
REAL: dict[str, dict[str, Any]] = {
    "vllm-idle": VLLM
    | {"waiting": 0, "running": 0, "kv_usage": 0.0, "kv_blocks": 2048}
    | {"prefix_queries": 28, "generated_tokens": 22, "progress": 22 + 28},
    "vllm-loaded": VLLM
    | {"waiting": 8, "running": 4, "kv_usage": 0.005862237420615535, "kv_blocks": 2048}
    | {"prefix_queries": 556, "generated_tokens": 591, "progress": 591 + 556},
    "vllm-kv-full": VLLM
    | {"waiting": 2, "running": 4, "kv_usage": 0.8941176470588236, "kv_blocks": 256}
    | {"prefix_queries": 28076, "generated_tokens": 1160, "progress": 1160 + 28076},
    "vllm-lora-idle": VLLM
    | {"waiting": 0, "running": 0, "kv_usage": 0.0, "kv_blocks": 256}
    | {"prefix_queries": 28, "generated_tokens": 16, "progress": 16 + 28}
    | {"lora": True, "max_loras": 2, "running_adapters": frozenset(), "waiting_adapters": frozenset()},
    "vllm-lora-loaded": VLLM
    | {
        "waiting": 6,
        "running": 4,
        "kv_usage": 0.03137254901960784,
        "kv_blocks": 256,
        "max_loras": 2,
        "lora": True,
    }
    | {"prefix_queries": 556, "generated_tokens": 41, "progress": 41 + 556}
    | {"lora": True, "max_loras": 2}
    | {"running_adapters": frozenset({"ad1", "ad2"}), "waiting_adapters": frozenset({"ad1", "ad2"})},
    "llamacpp-idle": LLAMA | {"waiting": 0, "running": 0, "progress": 0},
    "llamacpp-loaded": LLAMA | {"waiting": 8, "running": 4, "progress": 178},
}

# In the words of the engines' documentation, since no page of a running one is at hand.
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "vllm before the renaming": (
        """
        vllm:num_requests_running{engine="0"} 3.0
        vllm:num_requests_waiting{engine="0"} 2.0
        vllm:gpu_cache_usage_perc{engine="0"} 0.25
        vllm:gpu_prefix_cache_hits_total{engine="0"} 64.0
        vllm:gpu_prefix_cache_queries_total{engine="0"} 128.0
        vllm:generation_tokens_total{engine="0"} 9.0
        vllm:generation_tokens_created{engine="0"} 1.7e+09
        """,
        {"dialect": "vllm", "running": 3, "waiting": 2, "kv_usage": 0.25, "generated_tokens": 9}
        | {"prefix_hits": 64, "prefix_queries": 128, "progress": 9},
    ),
    "vllm with a deferred queue, data-parallel and partly asleep": (
        """
        vllm:num_requests_running{engine="0"} 3.0
        vllm:num_requests_running{engine="1"} 4.0
        vllm:num_requests_waiting{engine="0"} 9.0
        vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 1.0
        vllm:num_requests_waiting_by_reason{engine="0",reason="deferred"} 8.0
        vllm:num_requests_waiting_by_reason{engine="1",reason="capacity"} 5.0
        vllm:kv_cache_usage_perc{engine="0"} 0.5
        vllm:kv_cache_usage_perc{engine="1"} 0.75
        vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0
        vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="101"} 1.0
        vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1.0
        vllm:engine_sleep_state{engine="1",sleep_state="awake"} 0.0
        vllm:engine_sleep_state{engine="1",sleep_state="weights_offloaded"} 1.0
        """,
        {"dialect": "vllm", "running": 7, "waiting": 6, "kv_usage": 0.75}
        | {"block_size": 16, "kv_blocks": 201, "sleeping": True},
    ),
    "sglang with priorities and two ranks that tell the same": (
        """
        sglang:num_running_reqs{dp_rank="0",model_name="m",priority="",tp_rank="0"} 8.0
        sglang:num_running_reqs{dp_rank="0",model_name="m",priority="",tp_rank="1"} 8.0
        sglang:num_running_reqs{dp_rank="1",priority="",tp_rank="2"} 1.0
        sglang:num_running_reqs{dp_rank="0",priority="5",tp_rank="0"} 8.0
        sglang:num_queue_reqs{dp_rank="0",priority="",tp_rank="0"} 4.0
        sglang:token_usage{dp_rank="0",tp_rank="0"} 0.52
        sglang:page_size{tp_rank="0"} 64.0
        sglang:num_pages{tp_rank="0"} 1000.0
        sglang:cached_tokens_total{cache_source="device"} 10.0
        sglang:cached_tokens_total{cache_source="host"} 5.0
        sglang:prompt_tokens_total{model_name="m"} 40.0
        sglang:generation_tokens_total{model_name="m"} 0.0
        sglang:realtime_tokens_total{mode="decode",tp_rank="0"} 7.0
        sglang:realtime_tokens_total{mode="prefill_compute",tp_rank="0"} 30.0
        sglang:lora_pool_slots_total{tp_rank="0"} 8.0
        """,
        {"dialect": "sglang", "running": 9, "waiting": 4, "kv_usage": 0.52, "block_size": 64}
        | {"kv_blocks": 1000, "prefix_hits": 15, "prefix_queries": 40, "generated_tokens": 0}
        | {"progress": 37, "max_loras": 8, "models": frozenset({"m"})},
    ),
    "sglang with its info metric": (
        """
        sglang:num_queue_reqs{model_name="m"} 1.0
        sglang:cache_config_info{num_pages="512",page_size="32"} 1.0
        """,
        {"dialect": "sglang", "waiting": 1, "block_size": 32, "kv_blocks": 512},
    ),
    "trtllm-serve": (
        """
        trtllm_num_requests_running 3
        trtllm_num_requests_waiting 1
        trtllm_kv_cache_utilization 0.125
        trtllm_kv_cache_tokens_per_block 32
        trtllm_kv_cache_max_blocks 4096
        trtllm_prompt_tokens_total{model_name="m"} 100.0
        trtllm_prompt_cached_tokens_total{model_name="m"} 60.0
        trtllm_generation_tokens_total{model_name="m"} 17.0
        """,
        {"dialect": "trtllm", "running": 3, "waiting": 1, "kv_usage": 0.125, "block_size": 32}
        | {"kv_blocks": 4096, "prefix_hits": 60, "prefix_queries": 100, "generated_tokens": 17},
    ),
    "triton": (
        """
        nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 2
        nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
        nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 5
        nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm"} 0.5
        nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm"} 64
        nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm"} 6239
        nv_trt_llm_general_metrics{general_type="iteration_counter",model="tensorrt_llm"} 77
        """,
        {"dialect": "triton", "running": 2, "waiting": 5, "kv_usage": 0.5}
        | {"block_size": 64, "kv_blocks": 6239, "progress": 77},
    ),
    "triton without the fraction": (
        """
        nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm"} 100
        nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm"} 400
        """,
        {"dialect": "triton", "kv_usage": 0.25, "kv_blocks": 400},
    ),
    "tgi": (
        """
        # TYPE tgi_queue_size gauge
        tgi_queue_size 6
        tgi_batch_current_size 2
        tgi_batch_current_max_tokens 300
        tgi_batch_max_total_tokens 1200
        tgi_request_generated_tokens_sum 50
        tgi_batch_inference_success{method="decode"} 40
        tgi_batch_inference_success{method="prefill"} 2
        """,
        {"dialect": "tgi", "waiting": 6, "running": 2, "kv_usage": 0.25, "generated_tokens": 50}
        | {"progress": 42},
    ),
    "llama.cpp of 2024": (
        """
        llamacpp:kv_cache_usage_ratio 0.5
        llamacpp:requests_processing 1
        llamacpp:requests_deferred 0
        """,
        {"dialect": "llamacpp", "kv_usage": 0.5, "running": 1, "waiting": 0},
    ),
}


def page(text: str) -> bytes:
    return "\n".join(line.strip() for line in text.splitlines()).encode()


def read(text: str | bytes, **options: Any) -> EngineMetrics | None:
    return Reader(**options).read(page(text) if isinstance(text, str) else text, 1.0)


def numbers(text: str, **options: Any) -> EngineMetrics:
    metrics = read(text, **options)
    assert metrics is not None
    return metrics


@pytest.mark.parametrize("name", sorted(REAL))
def test_a_real_page_gives_what_a_reader_sees(name: str) -> None:
    assert read((PAGES / f"{name}.txt").read_bytes()) == EngineMetrics(at=1.0, **REAL[name])


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_every_dialect_is_understood(name: str) -> None:
    text, expected = WRITTEN[name]
    assert read(text) == EngineMetrics(at=1.0, **expected)


def test_each_dialect_has_a_page_here() -> None:
    tested = {values["dialect"] for values in (*REAL.values(), *(table for _, table in WRITTEN.values()))}
    assert tested == set(DIALECTS)


@pytest.mark.parametrize(
    "bad", ["NaN", "+Inf", "-Inf", "-1", "1e400", "1e30", "9" * 5000, "abc", "", "1_0", '"', "{"]
)
def test_a_value_that_cannot_be_is_missing_and_takes_no_other_with_it(bad: str) -> None:
    metrics = numbers(f"vllm:num_requests_waiting {bad}\nvllm:num_requests_running 3\n")
    assert (metrics.waiting, metrics.running) == (None, 3)


@pytest.mark.parametrize("bad", ['x{engine="1"} NaN', "x{engine=1} 1", 'x{engine="1} 1', "x{"])
def test_one_bad_series_of_several_makes_the_signal_missing_not_smaller(bad: str) -> None:
    name = "vllm:num_requests_waiting"
    metrics = numbers(f'{name}{{engine="0"}} 4\n{bad.replace("x", name, 1)}\nvllm:num_requests_running 3')
    assert (metrics.waiting, metrics.running) == (None, 3)


def test_a_nan_of_one_rank_is_not_covered_by_its_twin() -> None:
    name = "sglang:num_queue_reqs"
    metrics = numbers(f'{name}{{tp_rank="0"}} NaN\n{name}{{tp_rank="1"}} 3\nsglang:num_running_reqs 1')
    assert metrics.waiting is None


def test_kv_usage_beyond_all_is_missing_and_a_rounding_above_one_is_one() -> None:
    assert numbers("vllm:kv_cache_usage_perc 87.5").kv_usage is None
    assert numbers("vllm:kv_cache_usage_perc 1.0000001").kv_usage == 1


def test_the_same_series_twice_counts_once() -> None:
    twice = 'vllm:num_requests_waiting{engine="0"} 4\n'
    assert numbers(twice * 2).waiting == 4


def test_more_series_than_any_engine_has_are_missing() -> None:
    many = "\n".join(f'vllm:num_requests_waiting{{engine="{n}"}} 1' for n in range(2000))
    assert numbers(many + "\nvllm:num_requests_running 1").waiting is None


def test_blocks_that_the_engine_has_not_measured_yet_are_missing() -> None:
    metrics = numbers('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0')
    assert (metrics.block_size, metrics.kv_blocks) == (16, None)


def test_timestamps_tabs_and_carriage_returns_are_part_of_the_format() -> None:
    metrics = numbers(
        'vllm:num_requests_waiting{engine="0"} 4 1700000000000\r\nvllm:num_requests_running\t3\r\n'
        'vllm:kv_cache_usage_perc{engine="}"} 0.5\n'
    )
    assert (metrics.waiting, metrics.running, metrics.kv_usage) == (4, 3, 0.5)


def test_of_thousands_of_old_adapter_sets_the_newest_counts() -> None:
    old = "".join(
        f'vllm:lora_requests_info{{max_lora="4",running_lora_adapters="a{n}",waiting_lora_adapters=""}} {n}\n'
        for n in range(5000)
    )
    new = 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="x, y",waiting_lora_adapters="z"} 9e9\n'
    metrics = numbers(new + old)
    assert metrics.adapters == frozenset("xyz")
    assert metrics.max_loras == 4


@pytest.mark.parametrize("help_too", [True, False])
def test_an_engine_with_lora_that_was_asked_for_no_adapter_has_none(help_too: bool) -> None:
    """Then the page has the metric's name and type, and no series."""
    text = "vllm:num_requests_running 0.0\n# TYPE vllm:lora_requests_info gauge\n"
    metrics = numbers("# HELP vllm:lora_requests_info Running stats.\n" * help_too + text)
    assert (metrics.lora, metrics.max_loras, metrics.adapters) == (True, None, frozenset())


def test_the_engines_own_models_are_bounded_in_number_and_length() -> None:
    names = [f"m{n:02}" for n in range(40)] + ["x" * 257, ""]
    lines = "".join(f'vllm:num_requests_running{{model_name="{name}"}} 1\n' for name in names)
    assert numbers(lines).models == frozenset(names[:16])


@pytest.mark.parametrize(
    "text", ["", "<html><body>Log in</body></html>", "\x00\xff", "python_info 1", "vllm:num_requests_waiting"]
)
def test_what_is_no_page_of_an_engine_is_none(text: str) -> None:
    assert read(text.encode("latin-1")) is None


def test_the_dialect_can_be_given() -> None:
    both = "vllm:num_requests_waiting 4\nvllm:num_requests_running 4\nsglang:num_queue_reqs 7"
    assert numbers(both).waiting == 4
    assert numbers(both, dialect="sglang").waiting == 7
    assert read(both, dialect="tgi") is None


def test_h12_a_target_gauge_is_summed_over_its_series_and_a_cache_usage_is_the_largest() -> None:
    text = 'x{e="0"} 3\nx{e="1"} 4\nvllm:kv_cache_usage_perc{e="0"} 0.5\nvllm:kv_cache_usage_perc{e="1"} 0.75'
    targets = ("x", "vllm:kv_cache_usage_perc", "missing")
    metrics = numbers(text, targets=targets)
    assert metrics.raw == {"x": 7, "vllm:kv_cache_usage_perc": 0.75}
    assert metrics.absent == ("missing",)


@pytest.mark.parametrize("asked", ["done_total", "done"])
def test_h12_a_target_counter_is_its_rate_and_unknown_over_a_restart(asked: str) -> None:
    reader = Reader(targets=(asked,))
    rates = []
    for at, total in ((1.0, 100), (3.0, 150), (4.0, 7), (5.0, 8), (5.0, 9)):
        metrics = reader.read(f"# TYPE done_total counter\ndone_total {total}\ntgi_queue_size 0".encode(), at)
        assert metrics is not None
        assert metrics.absent == ()
        rates.append(metrics.raw.get(asked))
    assert rates == [None, 25, None, 1, None]


def test_a_counter_without_its_suffix_is_known_by_its_type() -> None:
    reader = Reader(targets=("n_decode",))
    text = "# HELP n_decode Steps.\n# TYPE n_decode counter\nn_decode %d\ntgi_queue_size 0"
    pages = [reader.read((text % total).encode(), at) for at, total in ((1.0, 5), (2.0, 8))]
    assert [each.raw if each else None for each in pages] == [{}, {"n_decode": 3}]


def test_a_target_histogram_is_the_mean_since_the_last_page_kept_while_nothing_comes() -> None:
    reader = Reader(targets=("ttft",))
    seen = []
    steps = ((0, 10.0, 10), (1, 13.0, 12), (2, 13.0, 12), (61, 13.0, 12), (62, 13.0, 12), (63, 0.5, 1))
    for at, total, count in steps:
        text = f'ttft_bucket{{le="+Inf"}} {count}\nttft_sum {total}\nttft_count {count}\ntgi_queue_size 0'
        metrics = reader.read(text.encode(), at)
        assert metrics is not None
        seen.append(metrics.raw.get("ttft"))
    assert seen == [None, 1.5, 1.5, 1.5, None, None]
