"""Simulated engines beside the balancer: `mitmdump -s addons/sim_engines.py -s addons/ai_lb.py`.

They listen on 127.0.0.1, at the ports of the option `sim_engines_ports`, and are named sim-1, sim-2, …
A program of its own: `python -m addons.sim_engines --help`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from addons.sim.fleet import SimFleet
from addons.sim.program import DEFAULT_PORTS, main, parse_ports

if TYPE_CHECKING:
    from mitmproxy.addonmanager import Loader

logger = logging.getLogger(__name__)


class SimEngines:
    """The hooks are plain functions: an `async def running` or `done` would break mitmproxy's live reload."""

    def __init__(self) -> None:
        self._ports = parse_ports(DEFAULT_PORTS)
        self._fleet: SimFleet | None = None
        self._change: asyncio.Future[None] | None = None

    def load(self, loader: Loader) -> None:
        loader.add_option(
            "sim_engines_ports",
            str,
            DEFAULT_PORTS,
            "Ports on 127.0.0.1 for simulated engines, comma separated.",
        )

    def configure(self, updated: AbstractSet[str]) -> None:
        # The program has no use for mitmproxy, which takes a while to import.
        from mitmproxy import ctx, exceptions

        if "sim_engines_ports" not in updated:
            return
        try:
            self._ports = parse_ports(ctx.options.sim_engines_ports)
        except ValueError as error:
            raise exceptions.OptionsError(f"sim_engines_ports: {error}") from error
        if self._fleet is not None:
            self.done()
            self.running()

    def running(self) -> asyncio.Future[None]:
        self._fleet = SimFleet.of(self._ports)
        self._change = asyncio.ensure_future(_start(self._fleet, self._change))
        return self._change

    def done(self) -> asyncio.Future[None]:
        fleet, self._fleet = self._fleet, None
        # At once: in a live reload the next generation binds the same ports before the future has run.
        if fleet is not None:
            fleet.close_listeners()
        self._change = asyncio.ensure_future(_stop(fleet, self._change))
        return self._change


async def _start(fleet: SimFleet, before: asyncio.Future[None] | None) -> None:
    if before is not None:
        await before
    try:
        await fleet.start()
    except OSError as error:
        logger.error("Simulated engines do not start: %s", error)
        return
    logger.info("Simulated engines listen: %s", ", ".join(fleet.urls.values()))


async def _stop(fleet: SimFleet | None, before: asyncio.Future[None] | None) -> None:
    if before is not None:
        await before
    if fleet is not None:
        await fleet.stop()


if __name__ == "__main__":
    sys.exit(main())

addons = [SimEngines()]
