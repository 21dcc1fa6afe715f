"""Several simulated engines in one event loop, and the admin calls that reach each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web
from pydantic import ValidationError

from addons.sim.config import SimConfig
from addons.sim.faults import NO_FAULT, FaultOrder, PageFault
from addons.sim.server import SimServer

_ALL_WELL = FaultOrder(fault=NO_FAULT.fault, metrics=PageFault.NONE, health=PageFault.NONE)


class SimFleet:
    """`engines` by name, in the order of `configs`; `async with` starts and stops them.

    Raises ValueError for two engines of one name.
    """

    def __init__(self, configs: Sequence[SimConfig]) -> None:
        self.engines: dict[str, SimServer] = {}
        for config in configs:
            if config.name in self.engines:
                raise ValueError(f"two engines are named {config.name}")
            self.engines[config.name] = SimServer(config, admin=_Admin(self.engines, config.name).answer)

    @classmethod
    def of(cls, ports: Sequence[int], like: SimConfig | None = None) -> Self:
        """Engines sim-1, sim-2, … of one kind, one for each port (0: a free one)."""
        kind = like or SimConfig()
        numbered = enumerate(ports, start=1)
        return cls([replace(kind, name=f"sim-{number}", port=port) for number, port in numbered])

    @property
    def urls(self) -> dict[str, str]:
        return {name: engine.url for name, engine in self.engines.items()}

    async def start(self) -> None:
        """Raises OSError if a port is taken; then none is left listening."""
        try:
            for engine in self.engines.values():
                await engine.start()
        except OSError:
            await self.stop()
            raise

    def close_listeners(self) -> None:
        """Free all ports at once; `stop` does the rest."""
        for engine in self.engines.values():
            engine.listener.close()

    async def stop(self) -> None:
        for engine in self.engines.values():
            await engine.stop()

    async def reset(self) -> None:
        """Zero the truth and end the faults of all engines."""
        await _reset(self.engines.values())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


class _Admin:
    """/admin/* of one engine; {"engine": name} or ?engine=name reaches another of the process."""

    def __init__(self, engines: dict[str, SimServer], own: str) -> None:
        self._engines = engines
        self._own = own

    async def answer(self, request: web.BaseRequest) -> web.Response:
        match request.method, request.path:
            case "POST", "/admin/fault":
                return await self._fault(await request.read())
            case "GET", "/admin/truth":
                return self._truth(request.query.get("engine"))
            case "POST", "/admin/reset":
                await _reset(self._engines.values())
                return _json({"reset": list(self._engines)})
            case _:
                return _json({"error": "POST /admin/fault, GET /admin/truth or POST /admin/reset"}, 404)

    async def _fault(self, raw: bytes) -> web.Response:
        try:
            order = FaultOrder.model_validate_json(raw)
        except ValidationError as error:
            return _json({"error": error.errors(include_url=False, include_context=False)}, 400)
        engine = self._engines.get(order.engine or self._own)
        if engine is None:
            return _json({"error": f"no engine is named {order.engine}"}, 404)
        await engine.apply(order)
        return _json({"engine": engine.name, "fault": engine.faults.current.fault})

    def _truth(self, name: str | None) -> web.Response:
        if name is not None and name not in self._engines:
            return _json({"error": f"no engine is named {name}"}, 404)
        chosen = [name] if name is not None else list(self._engines)
        return _json({"engines": {each: self._engines[each].truth.as_json() for each in chosen}})


async def _reset(engines: Any) -> None:
    for engine in engines:
        engine.truth.reset()
        await engine.apply(_ALL_WELL)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")
