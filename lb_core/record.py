"""A decision and its outcome as plain values: what is saved with a flow and shown to people.

Only str, int, float, bool, None, list and dict, so that any format can hold it. No prompt, key or address.
"""

from heapq import nsmallest
from typing import Any

from lb_core.engines.model import Observation
from lb_core.errors import RouteError
from lb_core.types import Choice, Outcome, Placement, PrefixMatch

type Record = dict[str, Any]

_MOST_ADAPTERS = 16
"""Names of adapters that are written down for one endpoint, the first by their order."""


def opened(placement: Placement, *, host: str) -> Record:
    """What was decided, and every candidate with what the decision was made on.

    `host` is the name that the client asked for, which a replay needs to match the same route.
    """
    decision, tier = placement.decision, placement.tier
    return {
        "route": placement.route,
        "cluster": placement.cluster,
        "policy": decision.policy,
        "endpoint": placement.endpoint.name,
        "reason": tier.reason,
        "detail": tier.detail,
        "model": placement.request.model,
        "host": host,
        "tie": placement.request.tie,
        "candidates": _candidates(placement),
        "prefix": _prefix(placement.prefix),
        "out": {name: str(state) for name, state in placement.out.items()},
        "panic": placement.panic,
        "services": _services(placement),
        "outcome": None,
    }


def refused(error: RouteError, *, host: str, path: str) -> Record:
    """A request that was not placed, and why; host, path and model are what routes match."""
    return {
        "route": None,
        "cluster": None,
        "policy": None,
        "endpoint": None,
        "reason": error.code,
        "detail": error.message,
        "model": error.model,
        "host": host,
        "path": path,
        "candidates": [],
        "out": {},
        "panic": False,
        "services": [],
        "outcome": {"ending": "refused", "status": error.status},
    }


def close(record: Record, outcome: Outcome) -> None:
    """Add what became of the request."""
    usage = outcome.usage
    record["outcome"] = {
        "ending": outcome.ending.value,
        "status": outcome.status,
        "ttft_s": _rounded(outcome.ttft_s),
        "duration_s": _rounded(outcome.duration_s),
        "chunks": outcome.chunks,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "error": outcome.error,
    }


def line(record: Record) -> str:
    """One line of it, for a list of requests."""
    outcome = record["outcome"] or {}
    if record["endpoint"] is None:
        return f"{outcome.get('status')} {record['reason']}: {record['detail']}"
    parts = [f"{record['endpoint']} ({record['policy']}: {record['reason']})"]
    if outcome:
        parts.append(f"{outcome['ending']} {outcome['status'] or ''}".rstrip())
        if outcome["ttft_s"] is not None:
            parts.append(f"ttft {outcome['ttft_s']:.3f} s")
        if outcome["duration_s"] is not None:
            parts.append(f"{outcome['duration_s']:.3f} s")
    return ", ".join(parts)


def _candidates(placement: Placement) -> list[Record]:
    """One row for each endpoint, under the best tier that it is in; without a tier, `not_offered`."""
    tiers, metrics = placement.decision.tiers, placement.metrics
    if len(tiers) == 1 and not metrics:
        return [_row(choice, placement, tiers[0].reason) for choice in tiers[0].choices]
    rows: dict[str, Record] = {}
    for tier in tiers:
        for choice in tier.choices:
            name = choice.endpoint.name
            if name not in rows:
                rows[name] = _row(choice, placement, tier.reason)
    for name in sorted(metrics.keys() - rows.keys()):
        row = {"endpoint": name, "reason": "not_offered", "in_flight": placement.in_flight.get(name, 0)}
        rows[name] = row | {"metrics": _metrics(metrics[name])}
    return list(rows.values())


def _services(placement: Placement) -> list[Record]:
    """The clusters that the route chose among, best first; empty where it had one."""
    if placement.services is None:
        return []
    policy = placement.services.policy
    return [
        {
            "cluster": choice.name,
            "policy": policy,
            "reason": choice.reason,
            "detail": choice.detail,
            "score": choice.score,
        }
        for choice in placement.services.choices
    ]


def _row(choice: Choice, placement: Placement, reason: str) -> Record:
    endpoint = choice.endpoint
    row = {
        "endpoint": endpoint.name,
        "reason": reason,
        "in_flight": placement.in_flight.get(endpoint.name, 0),
        "max_in_flight": endpoint.max_in_flight,
        "weight": endpoint.weight,
        "virtual_load": choice.virtual_load,
        "score": choice.score,
    }
    if placement.metrics:
        row["metrics"] = _metrics(placement.metrics.get(endpoint.name))
    return row


def _metrics(observed: Observation | None) -> Record | None:
    """The signals by which endpoints are told apart; None is a signal, or a page, that is missing."""
    if observed is None:
        return None
    metrics = observed.metrics
    return {
        "age_s": _rounded(observed.age_s),
        "waiting": metrics.waiting,
        "running": metrics.running,
        "kv_usage": metrics.kv_usage,
        "placed_since": observed.placed_since,
        "max_loras": metrics.max_loras,
        "adapters": None if metrics.adapters is None else nsmallest(_MOST_ADAPTERS, metrics.adapters),
        "targets": dict(metrics.raw),
    }


def _prefix(match: PrefixMatch | None) -> Record | None:
    """Who has had how much of the prompt; None where nothing of it is known, or nobody asked."""
    if match is None:
        return None
    return {"owner": match.owner, "matched": match.matched, "cuts": match.cuts}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
