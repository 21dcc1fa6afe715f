"""What leads a request to a cluster: the routes, in the order in which they are tried."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Self

from lb_core.cluster import Cluster
from lb_core.engines.shares import RecentChoices
from lb_core.policies import ClusterPolicy, Policy
from lb_core.services import ServiceBoard
from lb_core.types import Request


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a route takes. A pattern that is None takes all."""

    hosts: re.Pattern[str] | None = None
    paths: re.Pattern[str] | None = None
    models: re.Pattern[str] | None = None

    @classmethod
    def of(cls, *, hosts: Iterable[str] = (), paths: Iterable[str] = (), models: Iterable[str] = ()) -> Self:
        """Compile lists of globs; an empty list takes all. Host names are matched in lower case."""
        return cls(_any_of(host.lower() for host in hosts), _any_of(paths), _any_of(models))

    def takes(self, request: Request) -> bool:
        """Tell if all three agree; a request without a model is not taken by a list of models."""
        return (
            (self.hosts is None or self.hosts.match(request.host.lower()) is not None)
            and (self.paths is None or self.paths.match(request.path) is not None)
            and (self.models is None or self.models.match(request.model or "") is not None)
        )


def _any_of(globs: Iterable[str]) -> re.Pattern[str] | None:
    patterns = [translate(glob) for glob in globs]
    return re.compile("|".join(patterns)) if patterns else None


@dataclass(frozen=True, slots=True)
class ServiceGroup:
    """The clusters that a route chooses among, and what it knows of them."""

    policy: ClusterPolicy
    board: ServiceBoard
    clusters: Mapping[str, Cluster]


@dataclass(frozen=True, slots=True)
class Route:
    """A match and where it leads. `policy` None is the default policy; a group's clusters use their own."""

    name: str
    match: Match
    target: Cluster | ServiceGroup
    policy: Policy | None = None
    recent: RecentChoices = field(default_factory=RecentChoices, repr=False, compare=False)
