"""GET /metrics in the names, labels and types of vLLM 0.32.0 (the part of the page that balancers read)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from addons.sim.counters import Histogram
from addons.sim.engine import Engine


class EnginePage(Collector):
    """Reads the engine at every scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._labels = {"engine": "0", "model_name": engine.config.model_name}
        self._created = time.time()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """The page, in the text format 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        engine, counters = self._engine, self._engine.counters
        # A vLLM front end whose worker hangs has nothing to report, and reports it as zero.
        alive = not engine.frozen
        running, waiting = (engine.running, engine.waiting) if alive else (0, 0)
        yield self._gauge("num_requests_running", "Number of requests in model execution batches.", running)
        yield self._gauge("num_requests_waiting", "Number of requests waiting to be processed.", waiting)
        yield self._gauges(
            "num_requests_waiting_by_reason",
            "Number of waiting requests by reason.",
            "reason",
            {"capacity": waiting, "deferred": 0},
        )
        yield self._gauges(
            "engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake.",
            "sleep_state",
            {"awake": 1, "weights_offloaded": 0, "discard_all": 0},
        )
        yield self._gauge(
            "kv_cache_usage_perc",
            "KV-cache usage. 1 means 100 percent usage.",
            engine.cache.usage if alive else 0,
        )
        yield self._counter(
            "prefix_cache_queries",
            "Prefix cache queries, in terms of number of queried tokens.",
            counters.prefix_queries,
        )
        yield self._counter(
            "prefix_cache_hits",
            "Prefix cache hits, in terms of number of cached tokens.",
            counters.prefix_hits,
        )
        yield self._counter("num_preemptions", "Cumulative number of preemption from the engine.", 0)
        yield self._counter("prompt_tokens", "Number of prefill tokens processed.", counters.prompt_tokens)
        yield self._counter(
            "generation_tokens", "Number of generation tokens processed.", counters.generation_tokens
        )
        finished = CounterMetricFamily(
            "vllm:request_success",
            "Count of successfully processed requests.",
            labels=("engine", "finished_reason", "model_name"),
        )
        for reason, count in counters.finished.items():
            finished.add_metric(("0", reason, self._labels["model_name"]), count, created=self._created)
        yield finished
        rejections = CounterMetricFamily(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            labels=("model_name", "reason"),
        )
        for reason, count in (("max_num_queued_reqs", counters.rejections), ("max_num_queued_tokens", 0)):
            rejections.add_metric((self._labels["model_name"], reason), count, created=self._created)
        yield rejections
        yield self._histogram(
            "time_to_first_token_seconds", "Histogram of time to first token in seconds.", counters.ttft
        )
        yield self._histogram(
            "e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", counters.e2e
        )
        if engine.config.adapters:
            yield self._lora()
        yield self._cache_config()

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", help_text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), value)
        return family

    def _gauges(self, name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", help_text, labels=(*self._labels, label))
        for key, value in values.items():
            family.add_metric((*self._labels.values(), key), value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", help_text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), value, created=self._created)
        return family

    def _histogram(self, name: str, help_text: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(f"vllm:{name}", help_text, labels=tuple(self._labels))
        buckets = [
            ("+Inf" if math.isinf(bound) else str(bound), count) for bound, count in histogram.cumulative()
        ]
        family.add_metric(tuple(self._labels.values()), buckets, histogram.sum)
        return family

    def _lora(self) -> Metric:
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Running stats on lora requests.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        for names, at in self._engine.lora_sets.items():
            # Both lists hold the same names in vLLM 0.32.0.
            family.add_metric((str(len(self._engine.config.adapters)), names, names), at)
        return family

    def _cache_config(self) -> Metric:
        config = self._engine.config
        labels = {
            "block_size": str(config.block_size),
            "cache_dtype": "auto",
            "enable_prefix_caching": "True",
            "engine": "0",
            "gpu_memory_utilization": "0.92",
            "kv_cache_max_concurrency": str(float(config.max_num_seqs)),
            "kv_cache_size_tokens": str(config.num_blocks * config.block_size),
            "num_cpu_blocks": "None",
            "num_gpu_blocks": str(config.num_blocks),
            "prefix_caching_hash_algo": "sha256",
        }
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", labels=tuple(labels)
        )
        family.add_metric(tuple(labels.values()), 1)
        return family
