"""`lb_type`, `lb_policy` and `lb_config` → a policy with its parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from lb_core.config import higress
from lb_core.config.model import Config, PolicyConfig
from lb_core.config.report import Path, Report, Value, clipped, nearest
from lb_core.config.shape import build, field_names
from lb_core.errors import ConfigError, Problem
from lb_core.policies import CLUSTER_POLICIES, POLICIES, Policy

_POLICIES: Mapping[str, type[Any]] = {**POLICIES, **CLUSTER_POLICIES}
_CHOICE = f"; valid policies: {', '.join(sorted(_POLICIES))}"
KEYS = ("lb_type", "lb_policy", "lb_config")
_TYPES = ("endpoint", "cluster")
POLICY_OFF = "off"
"""The name that stands for each cluster's own strategy."""


def read_policy(
    values: Mapping[str, Value], path: Path, report: Report, *, hosts: Mapping[str, str]
) -> PolicyConfig | None:
    """The policy that a route, or the top level, names; None when it names none or a faulty one."""
    given = [key for key in KEYS if key in values]
    if not given:
        return None
    name, chosen = "", None
    if "lb_policy" in values:
        name, chosen = _chosen(values["lb_policy"], (*path, "lb_policy"), report)
    else:
        report.add((*path, given[0]), f"the key 'lb_policy' is missing{_CHOICE}")
    _check_type(values, path, report, name=name, chosen=chosen)

    at = (*path, "lb_config")
    raw = values.get("lb_config")
    raw_config = {} if raw is None else report.mapping(raw, at)
    parts = higress.split(raw_config, _owners(), name if chosen else None, at, report)
    redis = higress.redis_config(parts.redis, at, report, hosts=hosts)
    settings = build(higress.Settings, parts.settings, at, report, names=parts.names)
    if chosen is None:
        return None
    policy = build(chosen, parts.parameters, at if "lb_config" in values else path, report, names=parts.names)
    if policy is None or settings is None:
        return None
    return PolicyConfig(name, policy, redis, settings.detail_log)


def _owners() -> dict[str, list[str]]:
    """Parameter → the policies that have it."""
    owners: dict[str, list[str]] = {}
    for name, policy in _POLICIES.items():
        for parameter in field_names(policy):
            owners.setdefault(parameter, []).append(name)
    return owners


def chooses_cluster(values: Mapping[str, Value], policy: PolicyConfig | None) -> bool:
    """Whether the policy chooses among clusters, as far as a possibly faulty document tells."""
    if policy is not None:
        return bool(policy.policy.lb_type == "cluster")
    named = values.get("lb_policy")
    chosen = _POLICIES.get(named) if isinstance(named, str) else None
    return values.get("lb_type") == "cluster" or (chosen is not None and chosen.lb_type == "cluster")


def services(policy: PolicyConfig | None) -> tuple[str, ...]:
    """The clusters that a policy of the type `cluster` chooses among."""
    listed = getattr(policy.policy, "service_list", ()) if policy else ()
    return tuple(listed)


def listed_services(values: Mapping[str, Value]) -> Sequence[Value]:
    """The same as they are written: where another parameter is faulty there is no policy to ask."""
    parameters = values.get("lb_config")
    listed = parameters.get("service_list") if isinstance(parameters, dict) else None
    return listed if isinstance(listed, list) else ()


def metrics_fault(policy: PolicyConfig, cluster: str) -> str | None:
    """Why the policy cannot be used on a cluster that is not asked for its metrics; None if it can."""
    if "metrics" not in policy.policy.signals:
        return None
    return (
        f"{policy.name} needs what the engines report, and cluster '{cluster}' has metrics: false;"
        " leave that out or choose another policy"
    )


def policy_named(name: str, config: Config) -> PolicyConfig:
    """The policy called `name`, for a change while running.

    It has the configured parameters when it is the default policy, else its defaults. Where Redis is, and the
    other settings that any policy takes, stay as configured. Raises ConfigError for an unknown name and for a
    policy that has parameters without a default, or needs metrics that are not asked for.
    """
    report = Report(config.source)
    name = higress.POLICY_ALIASES.get(name, name)
    default = config.default_policy
    if default is not None and default.name == name:
        return default
    if fault := _fault(name):
        raise ConfigError(config.source, (Problem("", fault),))
    policy = build(_POLICIES[name], {}, (), report)
    if policy is None:
        raise ConfigError(
            config.source,
            tuple(Problem("", f"{name}: {problem.message}") for problem in report.error().problems),
        )
    chosen = PolicyConfig(name, policy)
    for cluster in [route.cluster for route in config.routes if route.cluster and route.policy is None]:
        if config.clusters[cluster].metrics is None and (fault := metrics_fault(chosen, cluster)):
            raise ConfigError(config.source, (Problem("", fault),))
    if default is None:
        return chosen
    return replace(default, name=name, policy=policy)


def _chosen(value: Value, at: Path, report: Report) -> tuple[str, type[Any] | None]:
    if value is None:
        report.add(at, f"the name of a policy is missing{_CHOICE}")
        return "", None
    if not isinstance(value, str):
        report.add(at, f"expected the name of a policy, got {report.shown(at)}{_CHOICE}")
        return "", None
    name = higress.POLICY_ALIASES.get(value, value)
    if fault := _fault(name, shown=report.shown(at)):
        report.add(at, fault)
    return name, _POLICIES.get(name)


def _fault(name: str, *, shown: str | None = None) -> str | None:
    if name in _POLICIES:
        return None
    near = nearest(name, {*_POLICIES, *higress.POLICY_ALIASES})
    choice = _CHOICE.removeprefix(";") if near else _CHOICE
    return f"unknown policy {shown or repr(clipped(name))}{near}{choice}"


def _check_type(
    values: Mapping[str, Value], path: Path, report: Report, *, name: str, chosen: type[Any] | None
) -> None:
    """`lb_type` may be left out: a policy has only one."""
    given = values.get("lb_type")
    at = (*path, "lb_type")
    if "lb_type" not in values:
        return
    if given not in _TYPES:
        valid = " or ".join(f"'{kind}'" for kind in _TYPES)
        report.add(at, f"{report.shown(at)} is not {valid}")
    elif chosen is not None and given != chosen.lb_type:
        report.add(at, f"{name} needs lb_type '{chosen.lb_type}', got {report.shown(at)}")


def endpoint_policy(config: PolicyConfig | None) -> Policy | None:
    """The policy, None if it chooses among clusters."""
    if config is None or config.name not in POLICIES:
        return None
    return cast(Policy, config.policy)


def default_policy(name: str, config: Config) -> Policy | None:
    """The policy of the routes that have none of their own, by the name that `Runtime.use_policy` takes.

    Raises ConfigError for a name that cannot be used.
    """
    chosen = config.default_policy
    if name == POLICY_OFF:
        chosen = None
    elif name:
        chosen = policy_named(name, config)
    if name and any(route.cluster is None and route.policy is None for route in config.routes):
        raise ConfigError(
            "ai_lb_policy", (Problem("", "the default policy chooses clusters; leave this option empty"),)
        )
    if name and chosen is not None and endpoint_policy(chosen) is None:
        raise ConfigError("ai_lb_policy", (Problem("", f"{name} chooses clusters, not endpoints"),))
    return endpoint_policy(chosen)
