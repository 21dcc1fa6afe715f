"""The configuration file → frozen values, or an error that names everything wrong with it, line by line.

The way of a file: `source` reads the text, `check` takes the document apart, with `clusters`, `routes`,
`policy` and `higress` for its parts, `shape` for validation and `report` for what is found; `model` is what
comes out.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from lb_core.config.check import read_config
from lb_core.config.model import (
    ClusterConfig,
    Config,
    Listen,
    Match,
    PolicyConfig,
    RedisConfig,
    RouteConfig,
)
from lb_core.config.policy import Registry, policy_named
from lb_core.config.report import Report
from lb_core.config.source import parse, read_text
from lb_core.policies import POLICIES


def load(path: Path, *, env: Mapping[str, str] = os.environ, policies: Registry = POLICIES) -> Config:
    """The configuration in a file. Raises ConfigError with all problems, in the order of their lines."""
    return loads(read_text(path), str(path), env, policies=policies)


def loads(
    text: str,
    source_name: str = "<text>",
    env: Mapping[str, str] = os.environ,
    *,
    policies: Registry = POLICIES,
) -> Config:
    """The configuration in a text, which messages call `source_name`. Raises ConfigError like `load`."""
    report = Report(source_name)
    values = parse(text, report, env)
    return read_config(values, report, policies=policies)


__all__ = [
    "ClusterConfig",
    "Config",
    "Listen",
    "Match",
    "PolicyConfig",
    "RedisConfig",
    "RouteConfig",
    "load",
    "loads",
    "policy_named",
]
