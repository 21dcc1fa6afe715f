"""The balancer's addon inside a real mitmproxy master, in the test's own event loop."""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from mitmproxy import options
from mitmproxy.tools.dump import DumpMaster

from addons.ai_lb import AiLb
from tests.waiting import free_port, until

ADDON = Path(__file__).resolve().parents[2] / "addons" / "ai_lb.py"


class Proxy:
    """`async with Proxy(folder, config) as proxy`: serves at `proxy.port`; `addon` is the loaded addon."""

    def __init__(self, folder: Path, config: dict[str, Any], *more_addons: object, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._path = folder / f"ai_lb-{self.port}.yaml"
        for cluster in config.get("clusters", {}).values():
            cluster.setdefault("metrics", False)  # endpoints count what comes to them
        self._path.write_text(yaml.safe_dump({"listen": f"127.0.0.1:{self.port}", **config}))
        self._confdir = folder.parent / "mitmproxy"
        self._more_addons = more_addons
        self._settings = settings

    async def __aenter__(self) -> Self:
        opts = options.Options(confdir=str(self._confdir))
        self.master = DumpMaster(opts, with_termlog=False, with_dumper=False)
        self.master.addons.add(*self._more_addons)
        opts.set(f"ai_lb_config={self._path}", *(f"{k}={v}" for k, v in self._settings.items()), defer=True)
        opts.update(scripts=[str(ADDON)])
        self._task = asyncio.create_task(self.master.run())
        await until(self._serves, "the proxy serves")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.master.shutdown()
        await self._task

    def _serves(self) -> bool:
        if self._task.done():
            self._task.result()
        addresses = self.master.addons.get("proxyserver").listen_addrs()
        return any(address[1] == self.port for address in addresses) and self.addon._runtime is not None

    @property
    def addon(self) -> AiLb:
        """The instance that mitmproxy loaded from the script (a class of its own, of the same shape)."""
        script = self.master.addons.get("scriptloader").addons[0]
        addon: AiLb = script.ns.addons[0]
        return addon

    def in_flight(self) -> int:
        """Requests placed and not finished, over all endpoints."""
        assert self.addon._runtime is not None
        return sum(sum(counts.values()) for counts in self.addon._runtime.in_flight().values())

    def is_clean(self) -> bool:
        """Nothing in flight, and nothing remembered about any request."""
        return not self.in_flight() and not self.addon._exchanges and not self.addon._by_client


class Gate:
    """Keeps requests waiting for their slot until it is opened, as a Redis that takes its time does."""

    def __init__(self, proxy: Proxy, cluster: str = "c") -> None:
        self.waiting = 0
        self.opened = asyncio.Event()
        assert proxy.addon._runtime is not None
        store = proxy.addon._runtime.clusters[cluster].store
        acquire = store.acquire

        async def slow(*args: Any) -> Any:
            self.waiting += 1
            await self.opened.wait()
            return await acquire(*args)

        store.acquire = slow  # type: ignore[method-assign, assignment]
