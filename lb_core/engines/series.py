"""A page in Prometheus' text format → the samples of the metrics that are wanted.

A page of vLLM has some 650 lines, of which some 15 are of use, and `prometheus_client` takes its time for
each. So lines are found by their names, and what stands before a line's value, which is the same in every
page, is parsed once. Lines are parsed one by one: what is wrong with one says nothing about the others.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from prometheus_client.parser import text_string_to_metric_families

_MOST_SERIES = 1024
"""Of one metric. No engine has more (one for each data-parallel rank), and parsing them takes seconds."""
_LONGEST_LINE = 16_384
_REMEMBERED = 2048
"""Bytes before the value; of longer lines the labels are parsed each time, to bound what is kept."""

type Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One series. `value` is as the page has it: perhaps NaN, infinite or negative."""

    labels: Labels
    value: float


@dataclass(slots=True)
class Page:
    """The wanted lines of one page, parsed when asked for."""

    lines: dict[str, list[bytes]] = field(default_factory=dict)
    """By metric; never an empty list."""
    counters: frozenset[str] = frozenset()
    """The wanted metrics that the page says are counters."""
    announced: frozenset[str] = frozenset()
    """The wanted metrics whose type the page tells, be there series or not."""

    def samples(self, name: str) -> list[Sample] | None:
        """All series of a metric, [] where there is none; None where a line of it cannot be understood.

        Of series with the same labels the last one counts.
        """
        lines = self.lines.get(name, ())
        if len(lines) > _MOST_SERIES:
            return None
        if len(lines) == 1:
            sample = parsed(lines[0])
            return None if sample is None else [sample]
        found: dict[tuple[tuple[str, str], ...], Sample] = {}
        for line in lines:
            if (sample := parsed(line)) is None:
                return None
            found[tuple(sorted(sample.labels.items()))] = sample
        return list(found.values())

    def newest(self, name: str) -> Sample | None:
        """The series with the largest value, for metrics whose value is the time of their last change.

        vLLM never takes back old label sets of `lora_requests_info`, so there may be thousands: only the
        one that counts is parsed.
        """
        lines = self.lines.get(name)
        return parsed(max(lines, key=_age_of)) if lines else None


class Finder:
    """Finds the lines of the metrics called `names` in pages of any bytes whatever."""

    def __init__(
        self, names: Iterable[str], *, typed: Iterable[str] = (), announced: Iterable[str] = ()
    ) -> None:
        """`typed` are metrics of which `Page.counters` shall tell, `announced` those of `Page.announced`."""
        groups: dict[bytes, list[bytes]] = {}
        for name in sorted(names):
            raw = name.encode()
            # The vendor, as in "vllm:": the search for a fixed text before a choice is many times faster.
            vendor = re.split(rb"(?<=[:_])", raw, maxsplit=1)[0]
            groups.setdefault(vendor, []).append(raw[len(vendor) :])
        self._patterns = [
            (b"\n" + vendor, vendor.decode(), _pattern(b"\n" + re.escape(vendor), rests))
            for vendor, rests in groups.items()
        ]
        raw_typed = [name.encode() for name in sorted(typed)]
        self._announced = [(name, b"\n# TYPE %s " % name.encode()) for name in announced]
        self._counters = _pattern(rb"\n# TYPE ", raw_typed, rb"[ \t]+counter\s") if raw_typed else None

    def find(self, text: bytes) -> Page:
        """The lines that are wanted."""
        page = Page()
        text = b"\n" + text + b"\n"
        for start, vendor, pattern in self._patterns:
            if start not in text:
                continue
            for name, rest in pattern.findall(text):
                if len(rest) <= _LONGEST_LINE:
                    page.lines.setdefault(vendor + name.decode(), []).append(start[1:] + name + rest)
        if self._counters is not None:
            page.counters = frozenset(name.decode() for name, _ in self._counters.findall(text))
        page.announced = frozenset(name for name, line in self._announced if line in text)
        return page


def _pattern(before: bytes, names: list[bytes], after: bytes = rb"[{ \t][^\n]*") -> re.Pattern[bytes]:
    return re.compile(before + b"(" + b"|".join(map(re.escape, names)) + b")(" + after + b")")


def parsed(line: bytes) -> Sample | None:
    """One line's sample; None for a line that is none."""
    head, brace, tail = line.rpartition(b"}")
    if b" # " in line:  # an exemplar, with labels of its own
        return _parsed(line)
    words = (tail if brace else line).split(None, 2)
    if not brace:
        head, words = words[0], words[1:]
    if not words or b"_" in words[0]:  # Python reads 1_000
        return None
    labels = _labels(head + brace) if len(head) <= _REMEMBERED else _labels.__wrapped__(head + brace)
    try:
        return None if labels is None else Sample(labels, float(words[0]))
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def _labels(head: bytes) -> Labels | None:
    """The labels of a line up to its value; None where it cannot be understood."""
    sample = _parsed(head + b" 0")
    return None if sample is None else sample.labels


def _parsed(line: bytes) -> Sample | None:
    try:
        for family in text_string_to_metric_families(line.decode()):
            for sample in family.samples:
                return Sample(sample.labels, float(sample.value))
    except (ValueError, IndexError, KeyError, OverflowError):  # what the parser raises for nonsense
        return None
    return None


def _age_of(line: bytes) -> float:
    """The value of a line with labels, without parsing these; nonsense is the oldest."""
    words = line.rpartition(b"}")[2].split(None, 1)
    try:
        value = float(words[0])
    except (ValueError, IndexError):
        return float("-inf")
    return value if value < float("inf") else float("-inf")
