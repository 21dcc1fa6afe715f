"""Whose pages are visited, and whose board hears of them."""

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping

from lb_core.cluster import Cluster
from lb_core.config import MetricsConfig
from lb_core.engines.board import Board
from lb_core.engines.model import Scrape
from lb_core.engines.scraper import Scraper, Target
from lb_core.policies import Policy
from lb_core.policies.endpoint_metrics import EndpointMetrics
from lb_core.types import Endpoint


class Visits:
    """Has the pages of all endpoints visited, whatever the policies: they tell who sleeps, hangs or works.

    Where a policy needs the pages of a cluster, one that is missing is told as a WARNING. Where none does
    it is told once, and is asked for less and less. `tls` is how pages by https are trusted, from the next
    `aim` on. Belongs to the event loop.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self.tls: ssl.SSLContext | None = None
        self._scraper = Scraper(self._scraped, clock=clock)
        self._started = False
        self._boards: dict[tuple[str, str], Board] = {}
        """By cluster and endpoint: names in the files of two clusters may be the same."""

    def aim(
        self,
        clusters: Mapping[str, Cluster],
        settings: Mapping[str, MetricsConfig | None],
        uses: Iterable[tuple[Cluster, Policy | None]],
    ) -> None:
        """Visit the pages of these clusters from now on, by their `settings`; None leaves a cluster out.

        `uses` are the policies in use and the clusters that they are used on.
        """
        needed: dict[str, set[str]] = {}
        for cluster, policy in uses:
            if policy is not None and "metrics" in policy.signals:
                names = needed.setdefault(cluster.name, set())
                if isinstance(policy, EndpointMetrics) and policy.target_metric:
                    names.add(policy.target_metric)
        targets = []
        self._boards = {}
        for name, cluster in clusters.items():
            cluster.board.need(name in needed)
            if (how := settings[name]) is None:
                cluster.board.forget()
                continue
            for endpoint in cluster.endpoints:
                self._boards[name, endpoint.name] = cluster.board
                targets.append(_target(name, endpoint, how, needed.get(name), self.tls))
        self._scraper.set_targets(targets)
        if targets and not self._started:
            self._started = True
            self._scraper.start(asyncio.get_running_loop())

    async def close(self) -> None:
        """Visit nothing any more."""
        if self._started:
            await asyncio.to_thread(self._scraper.stop)

    def _scraped(self, scrape: Scrape) -> None:
        if (board := self._boards.get((scrape.cluster, scrape.endpoint))) is not None:
            board.take(scrape)


def _target(
    cluster: str,
    endpoint: Endpoint,
    how: MetricsConfig,
    needed: set[str] | None,
    tls: ssl.SSLContext | None,
) -> Target:
    return Target(
        endpoint.name,
        f"{endpoint.scheme}://{endpoint.authority}{how.path}",
        headers=how.headers,
        interval_s=how.scrape_interval_s,
        dialect=how.dialect,
        metrics=tuple(sorted(needed or ())),
        eager=needed is not None,
        address=endpoint.host if endpoint.server_name else None,
        tls=tls,
        cluster=cluster,
    )
