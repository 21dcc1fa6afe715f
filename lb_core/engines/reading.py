"""One endpoint's pages → `EngineMetrics`.

What a page does not say, or says in a way that cannot be (NaN, infinite, negative, beyond all measure, not
understood), is None, and never 0. One bad series makes its signal None, because a sum without it would be
too low; the other signals stay.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from lb_core.engines.dialects import DIALECTS, NUMBERS, SHARES, Dialect, Source, names
from lb_core.engines.model import EngineMetrics
from lb_core.engines.series import Finder, Labels, Page, Sample

_MOST = {"waiting": 1e6, "running": 1e6, "kv_usage": 1.05, "max_loras": 1e5, "block_size": 1e6}
"""What is more than this is a fault of the page."""
_MOST_OF_ALL = 1e18
_LARGEST = frozenset({"kv_usage", "block_size", "max_loras"})
"""Signals of which the largest of several engines' values counts; the others are summed."""
_WHOLE = frozenset({"max_loras", "block_size", "kv_blocks"})
_MEAN_KEPT_S = 60.0
"""How long a histogram's mean is taken for today's where no new samples came."""

_BY_DIALECT = {key: names(dialect) for key, dialect in DIALECTS.items()}
_ADAPTERS = frozenset(dialect.adapters for dialect in DIALECTS.values() if dialect.adapters)
_MOST_MODELS, _LONGEST_MODEL = 16, 256
_KNOWN = frozenset(name for read in _BY_DIALECT.values() for name in read)


@dataclass(frozen=True, slots=True)
class _Before:
    """A cumulative metric at the last page; `rate` is what was told then, taken at `rate_at`."""

    at: float
    total: float
    count: float
    rate: float | None = None
    rate_at: float = 0.0


class Reader:
    """Reads the pages of one endpoint, in their order; remembers what rates need.

    `dialect` is a key of `DIALECTS`, or None to choose for each page the one of which it has most metrics.
    `targets` are metrics that are read beside, into `EngineMetrics.raw`: gauges as they are, summed over
    their series (KV usages: the largest); counters as their rate per second since the page before;
    histograms and summaries as the mean of what was observed since the page before. A counter's name may
    be given with or without `_total`.
    """

    def __init__(self, *, dialect: str | None = None, targets: Iterable[str] = ()) -> None:
        self._dialect = dialect
        self._targets = tuple(targets)
        self._before: dict[str, _Before] = {}
        asked = [target + suffix for target in self._targets for suffix in ("", "_total", "_sum", "_count")]
        known = _BY_DIALECT[dialect] if dialect else _KNOWN
        self._finder = Finder({*known, *asked}, typed=asked, announced=_ADAPTERS)

    def read(self, text: bytes, at: float) -> EngineMetrics | None:
        """What the page says; None where it has nothing that was looked for, as a login page has."""
        page = self._finder.find(text)
        key = self._dialect or _best(page)
        raw: dict[str, float] = {}
        absent = []
        for target in self._targets:
            found, value = self._target(page, target, at)
            if value is not None:
                raw[target] = value
            if not found:
                absent.append(target)
        if key is None or not page.lines.keys() & _BY_DIALECT[key]:
            return EngineMetrics(at, raw=raw, absent=tuple(absent)) if raw else None
        return _metrics(page, key, at, raw, tuple(absent))

    def _target(self, page: Page, name: str, at: float) -> tuple[bool, float | None]:
        """Whether the page has it, and its value where there is one."""
        if name + "_sum" in page.lines and name + "_count" in page.lines:
            return True, self._mean(page, name, at)
        for each in (name, name + "_total"):
            if each not in page.lines:
                continue
            samples = page.samples(each)
            value = _fold(
                [sample.value for sample in samples] if samples else None, max if each in SHARES else sum
            )
            if each in page.counters or each.endswith("_total"):
                return True, self._rate(each, value, at)
            return True, value
        return False, None

    def _rate(self, name: str, total: float | None, at: float) -> float | None:
        before = self._before.pop(name, None)
        if total is None:
            return None
        self._before[name] = _Before(at, total, 0)
        if before is None or total < before.total or at <= before.at:
            return None
        return (total - before.total) / (at - before.at)

    def _mean(self, page: Page, name: str, at: float) -> float | None:
        before = self._before.pop(name, None)
        total, count = (
            _fold([sample.value for sample in samples] if samples else None, sum)
            for samples in (page.samples(name + "_sum"), page.samples(name + "_count"))
        )
        if total is None or count is None:
            return None
        mean, mean_at = (before.rate, before.rate_at) if before else (None, at)
        if before and count > before.count and total >= before.total:
            mean, mean_at = (total - before.total) / (count - before.count), at
        elif (before and count < before.count) or at - mean_at > _MEAN_KEPT_S:
            mean = None
        self._before[name] = _Before(at, total, count, mean, mean_at)
        return mean


def _best(page: Page) -> str | None:
    """The dialect of which the page has most metrics."""
    counted = {key: len(read & page.lines.keys()) for key, read in _BY_DIALECT.items()}
    best = max(counted, key=counted.__getitem__)
    return best if counted[best] else None


def _metrics(
    page: Page, key: str, at: float, raw: Mapping[str, float], absent: tuple[str, ...]
) -> EngineMetrics:
    dialect = DIALECTS[key]
    numbers = {signal: _signal(page, dialect, signal) for signal in NUMBERS}
    whole = {signal: None if (value := numbers[signal]) is None else int(value) for signal in _WHOLE}
    lora = dialect.adapters in page.announced or dialect.adapters in page.lines
    most_loras, running, waiting = _adapters(page, dialect) if lora else (None, None, None)
    awake = _values(page, dialect.awake, dialect.copies) if dialect.awake else None
    steps = [_fold(_values(page, source, dialect.copies), sum) for source in dialect.progress]
    moved = [step for step in steps if step is not None]
    return EngineMetrics(
        at=at,
        dialect=key,
        waiting=numbers["waiting"],
        running=numbers["running"],
        kv_usage=numbers["kv_usage"],
        models=_models(page, dialect),
        lora=lora,
        max_loras=whole["max_loras"] if most_loras is None else most_loras,
        running_adapters=running,
        waiting_adapters=waiting,
        block_size=whole["block_size"],
        kv_blocks=whole["kv_blocks"],
        prefix_hits=numbers["prefix_hits"],
        prefix_queries=numbers["prefix_queries"],
        generated_tokens=numbers["generated_tokens"],
        progress=sum(moved) if moved else None,
        sleeping=min(awake) < 1 if awake and all(value in {0, 1} for value in awake) else None,
        raw=raw,
        absent=absent,
    )


def _signal(page: Page, dialect: Dialect, signal: str) -> float | None:
    fold = max if signal in _LARGEST else sum
    for source in getattr(dialect, signal):
        values = _values(page, source, dialect.copies)
        if values == []:
            continue
        value = _fold(values, fold)
        if source.over is not None:
            value = _ratio(value, _fold(_values(page, source.over, dialect.copies), fold))
        if value is None or value > _MOST.get(signal, _MOST_OF_ALL):
            return None
        return min(value, 1.0) if signal == "kv_usage" else value
    return None


def _values(page: Page, source: Source, copies: frozenset[str]) -> list[float] | None:
    """The numbers of a source, one for each engine; [] where the page has none, None where one is bad."""
    samples = page.samples(source.name)
    if samples is None:
        return None
    fitting = [sample for sample in samples if _fits(sample.labels, source.labels)]
    try:
        numbers = [float(sample.labels[source.label]) if source.label else sample.value for sample in fitting]
    except (KeyError, ValueError):  # such as num_gpu_blocks="None" before the engine has measured
        return None
    if not all(0 <= number <= _MOST_OF_ALL for number in numbers):
        return None
    if not copies:
        return numbers
    engines: dict[tuple[tuple[str, str], ...], float] = {}
    for sample, number in zip(fitting, numbers, strict=True):
        engine = tuple(sorted(item for item in sample.labels.items() if item[0] not in copies))
        engines[engine] = max(number, engines.get(engine, 0.0))
    return list(engines.values())


def _fits(labels: Labels, wanted: Labels) -> bool:
    """A label that is not there is "", as Prometheus has it."""
    return all(labels.get(name, "") == text for name, text in wanted.items())


def _fold(values: list[float] | None, fold: Callable[[list[float]], float]) -> float | None:
    """One number for all, None where there is none or one of them cannot be."""
    if not values or not all(0 <= value <= _MOST_OF_ALL for value in values):
        return None
    return fold(values)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _models(page: Page, dialect: Dialect) -> frozenset[str]:
    """The engine's own models; as many and as long as an engine may have."""
    samples = (page.samples(dialect.models) if dialect.models else None) or ()
    names = {sample.labels.get("model_name", "") for sample in samples} - {""}
    return frozenset(islice((name for name in sorted(names) if len(name) <= _LONGEST_MODEL), _MOST_MODELS))


def _adapters(
    page: Page, dialect: Dialect
) -> tuple[int | None, frozenset[str] | None, frozenset[str] | None]:
    """Most adapters at once, those of running and those of waiting requests."""
    newest: Sample | None = page.newest(dialect.adapters)
    if newest is None and dialect.adapters not in page.lines:  # no adapter was asked for yet
        return None, frozenset(), frozenset()
    if newest is None or not 0 <= newest.value <= _MOST_OF_ALL:
        return None, None, None
    most = newest.labels.get("max_lora", "")
    return (
        int(most) if most.isascii() and most.isdigit() and len(most) < 6 else None,
        _listed(newest.labels.get("running_lora_adapters")),
        _listed(newest.labels.get("waiting_lora_adapters")),
    )


def _listed(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(name.strip() for name in text.split(",") if name.strip())
