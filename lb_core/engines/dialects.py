"""How each engine names what it says: one table per engine. Nothing else in the project knows these names.

A signal has one or more sources; the first that the page has counts, so newer names stand first. Sources:
vLLM `vllm/v1/metrics/loggers.py` (0.8.5 to 0.32.0) and its V0 pages; SGLang
`python/sglang/srt/observability/metrics_collector.py` (0.5); TensorRT-LLM `tensorrt_llm/metrics/collector.py`
and Triton's `tensorrtllm_backend`; TGI `docs/source/reference/metrics.md` and `backends/v3`; llama.cpp
`tools/server/README.md`. The choice for waiting, running and KV usage is that of the Gateway API inference
extension's model server protocol, where it has one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Source:
    """Where a number is: the series of metric `name` that have `labels`.

    The number is the value, or with `label` the text of that label. With `over` it is divided by that.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    over: "Source | None" = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """One engine's names. `()` is a signal that the engine does not give."""

    waiting: tuple[Source, ...]
    running: tuple[Source, ...]
    kv_usage: tuple[Source, ...]
    block_size: tuple[Source, ...] = ()
    kv_blocks: tuple[Source, ...] = ()
    max_loras: tuple[Source, ...] = ()
    prefix_hits: tuple[Source, ...] = ()
    prefix_queries: tuple[Source, ...] = ()
    generated_tokens: tuple[Source, ...] = ()
    progress: tuple[Source, ...] = ()
    """Unlike elsewhere all that the page has are added up."""
    awake: Source | None = None
    """1 while the weights are loaded."""
    models: str = ""
    """A metric whose label `model_name` is the engine's own model."""
    adapters: str = ""
    """An info metric of adapters in vLLM's way; the newest series counts."""
    copies: frozenset[str] = frozenset()
    """Labels of ranks that share their requests: of series that differ in these alone one counts."""


def _plain(*names: str) -> tuple[Source, ...]:
    return tuple(Source(name) for name in names)


VLLM = Dialect(
    # Deferred requests wait for a LoRA slot or a KV transfer, which no other engine would give them sooner.
    waiting=(
        Source("vllm:num_requests_waiting_by_reason", {"reason": "capacity"}),
        Source("vllm:num_requests_waiting"),
    ),
    running=_plain("vllm:num_requests_running"),
    kv_usage=_plain("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    block_size=(Source("vllm:cache_config_info", label="block_size"),),
    kv_blocks=(Source("vllm:cache_config_info", label="num_gpu_blocks"),),
    prefix_hits=_plain("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    prefix_queries=_plain("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    generated_tokens=_plain("vllm:generation_tokens_total"),
    progress=_plain("vllm:generation_tokens_total", "vllm:prompt_tokens_total"),
    awake=Source("vllm:engine_sleep_state", {"sleep_state": "awake"}),
    models="vllm:num_requests_running",
    adapters="vllm:lora_requests_info",
)

SGLANG = Dialect(
    # With priority scheduling there is a series for each priority beside the total, whose priority is "".
    waiting=(Source("sglang:num_queue_reqs", {"priority": ""}),),
    running=(Source("sglang:num_running_reqs", {"priority": ""}),),
    kv_usage=_plain("sglang:token_usage"),
    block_size=(Source("sglang:cache_config_info", label="page_size"), Source("sglang:page_size")),
    kv_blocks=(Source("sglang:cache_config_info", label="num_pages"), Source("sglang:num_pages")),
    max_loras=_plain("sglang:lora_pool_slots_total"),
    prefix_hits=_plain("sglang:cached_tokens_total"),
    prefix_queries=_plain("sglang:prompt_tokens_total"),
    generated_tokens=_plain("sglang:generation_tokens_total"),
    # The token counters above are added to when a request ends, which says nothing about a long one.
    progress=_plain("sglang:realtime_tokens_total"),
    models="sglang:num_running_reqs",
    copies=frozenset({"tp_rank", "pp_rank", "moe_ep_rank"}),
)

TRTLLM = Dialect(
    waiting=_plain("trtllm_num_requests_waiting"),
    running=_plain("trtllm_num_requests_running"),
    kv_usage=_plain("trtllm_kv_cache_utilization"),
    block_size=_plain("trtllm_kv_cache_tokens_per_block"),
    kv_blocks=_plain("trtllm_kv_cache_max_blocks"),
    prefix_hits=_plain("trtllm_prompt_cached_tokens_total", "trtllm_prompt_cached_tokens"),
    prefix_queries=_plain("trtllm_prompt_tokens_total", "trtllm_prompt_tokens"),
    generated_tokens=_plain("trtllm_generation_tokens_total", "trtllm_generation_tokens"),
)


def _triton_requests(kind: str) -> tuple[Source, ...]:
    return (Source("nv_trt_llm_request_metrics", {"request_type": kind}),)


def _triton_blocks(kind: str, over: Source | None = None) -> Source:
    return Source("nv_trt_llm_kv_cache_block_metrics", {"kv_cache_block_type": kind}, over=over)


TRITON = Dialect(
    waiting=_triton_requests("waiting"),
    running=_triton_requests("scheduled"),
    kv_usage=(_triton_blocks("fraction"), _triton_blocks("used", _triton_blocks("max"))),
    block_size=(_triton_blocks("tokens_per"),),
    kv_blocks=(_triton_blocks("max"),),
    progress=(Source("nv_trt_llm_general_metrics", {"general_type": "iteration_counter"}),),
)

TGI = Dialect(
    waiting=_plain("tgi_queue_size"),
    running=_plain("tgi_batch_current_size"),
    # No KV usage by name; the tokens that the batch may come to, over those that fit in, stand for it.
    kv_usage=(Source("tgi_batch_current_max_tokens", over=Source("tgi_batch_max_total_tokens")),),
    # A histogram of finished requests.
    generated_tokens=_plain("tgi_request_generated_tokens_sum"),
    progress=_plain("tgi_batch_inference_success"),
)

LLAMACPP = Dialect(
    waiting=_plain("llamacpp:requests_deferred"),
    running=_plain("llamacpp:requests_processing"),
    kv_usage=_plain("llamacpp:kv_cache_usage_ratio"),  # until 2025; nothing took its place
    prefix_hits=_plain("llamacpp:prompt_tokens_cached_total"),
    # Added to when a request ends: with four at work for minutes a real page has 0.
    generated_tokens=_plain("llamacpp:tokens_predicted_total"),
    progress=_plain("llamacpp:n_decode_total"),
)

DIALECTS: Mapping[str, Dialect] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "trtllm": TRTLLM,
    "triton": TRITON,
    "tgi": TGI,
    "llamacpp": LLAMACPP,
}
"""By the names that the configuration has for them."""

NUMBERS = (
    "waiting",
    "running",
    "kv_usage",
    "max_loras",
    "block_size",
    "kv_blocks",
    "prefix_hits",
    "prefix_queries",
    "generated_tokens",
)
"""Signals that are one number from the first source that the page has."""


def sources(dialect: Dialect) -> tuple[Source, ...]:
    """All sources of a dialect."""
    found = [source for signal in (*NUMBERS, "progress") for source in getattr(dialect, signal)]
    if dialect.awake is not None:
        found.append(dialect.awake)
    return tuple(found)


def names(dialect: Dialect) -> frozenset[str]:
    """Every metric that a dialect reads."""
    read = {part.name for source in sources(dialect) for part in (source, source.over) if part}
    return frozenset(read | ({dialect.adapters} if dialect.adapters else set()))


COUNTS_OF_REQUESTS = frozenset(
    source.name for dialect in DIALECTS.values() for source in (*dialect.waiting, *dialect.running)
)
"""Metrics in whose unit a request placed just now is one more."""

SHARES = frozenset(source.name for dialect in DIALECTS.values() for source in dialect.kv_usage)
"""Metrics of which the largest of an engine's series counts, not the sum."""
