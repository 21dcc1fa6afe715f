"""One simulated engine on a port of 127.0.0.1: HTTP around `Engine`, with faults that can be switched on."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import orjson
from aiohttp import web

from addons.sim.answers import APIS, DONE, Form, Reply, answer_tokens, event
from addons.sim.asked import Asked, read_embedding, read_json
from addons.sim.config import HOST, SimConfig
from addons.sim.engine import Engine, Job
from addons.sim.errors import NoSuchModel, QueueFull, SimError
from addons.sim.faults import NO_FAULT, FaultKind, FaultOrder, FaultSwitch, PageFault
from addons.sim.listener import Listener, send_reset
from addons.sim.metrics import EnginePage
from addons.sim.truth import Truth, Visit

_VERSION = "0.32.0"
_MID_STREAM = frozenset({FaultKind.RESET_MID_STREAM, FaultKind.CLOSE_MID_STREAM, FaultKind.HANG_MID_STREAM})

AdminHandler = Callable[[web.BaseRequest], Awaitable[web.Response]]


class SimServer:
    """A running engine. `engine` is its model, `truth` what happened, `faults` what is switched on.

    `admin` answers requests to /admin/*.
    """

    def __init__(self, config: SimConfig, *, admin: AdminHandler | None = None) -> None:
        self.config = config
        self.name = config.name
        self.engine = Engine(config)
        self.faults = FaultSwitch()
        self.truth = Truth()
        self._page = EnginePage(self.engine)
        self.listener = Listener(config.port, self._handle)
        self._admin = admin
        self._ids = itertools.count(1)
        self._undo: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """0 until `start`, if the engine takes a free port."""
        return self.listener.port

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        await self.listener.start()

    async def stop(self) -> None:
        """End everything, open requests too."""
        self._forget_undo()
        self.engine.freeze(False)
        await self.listener.stop()

    async def fault(self, kind: str | None = None, **params: Any) -> None:
        """`apply` with the keys of `FaultOrder`: `await engine.fault("error_500", times=2)`."""
        await self.apply(FaultOrder.model_validate({"fault": kind, **params}))

    async def apply(self, order: FaultOrder) -> None:
        """Switch faults on or off; ends a `refuse` or `freeze` that is on when the fault changes."""
        self.faults.set(order)
        if order.fault is None:
            return
        self._forget_undo()
        self.engine.freeze(order.fault is FaultKind.FREEZE)
        if order.fault is FaultKind.REFUSE:
            self.listener.refuse(cut=order.cut)
        else:
            await self.listener.accept()
        if order.seconds is not None:
            self._undo = asyncio.create_task(self._end_fault(order.seconds))

    async def _end_fault(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._undo = None
        await self.apply(NO_FAULT)

    def _forget_undo(self) -> None:
        if self._undo is not None:
            self._undo.cancel()
            self._undo = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if not request.path.startswith("/v1/"):
            return await self._page_of(request)
        with self.truth.visit(request.path, request.headers.get("x-request-id", "")) as visit:
            return await self._v1(request, visit)

    async def _page_of(self, request: web.BaseRequest) -> web.Response:
        path = request.path
        if path.startswith("/admin/") and self._admin is not None:
            return await self._admin(request)
        if path == "/health":
            return await self._broken_page(self.faults.health) or web.Response()
        if path == "/metrics":
            broken = await self._broken_page(self.faults.metrics)
            return broken or web.Response(
                body=self._page.text(),
                headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
            )
        if path == "/version":
            return _json({"version": _VERSION})
        return _json({"detail": "Not Found"}, status=404)

    async def _broken_page(self, fault: PageFault) -> web.Response | None:
        if fault is PageFault.HANG:
            await _for_ever()
        if fault is PageFault.ERROR_500:
            return web.Response(status=500, text="Internal Server Error")
        if fault is PageFault.GARBAGE:
            return web.Response(body=b"<html>\x00\xff vllm:num_requests_waiting{engine= NaN\n{}}")
        return None

    async def _v1(self, request: web.BaseRequest, visit: Visit) -> web.StreamResponse:
        path = request.path
        if path == "/v1/models" and request.method == "GET":
            return self._models()
        try:
            if request.method == "POST" and (path in APIS or path == "/v1/embeddings"):
                return await self._generate(request, visit, self.faults.take())
            return _json({"detail": "Not Found"}, status=404)
        except web.HTTPRequestEntityTooLarge as error:
            return _error(413, "BadRequestError", error.text or "too large")
        except SimError as error:
            return _error(error.status, error.kind, str(error))

    def _models(self) -> web.Response:
        names = (*(self.config.models or (self.config.model_name,)), *self.config.adapters)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "vllm"} for name in names]
        return _json({"object": "list", "data": data})

    async def _generate(
        self, request: web.BaseRequest, visit: Visit, fault: FaultOrder
    ) -> web.StreamResponse:
        raw = await request.read()
        broken = await self._fails_first(request, visit, fault)
        if broken is not None:
            return broken
        if request.path == "/v1/embeddings":
            return await self._embed(read_embedding(read_json(raw)))
        read, form = APIS[request.path]
        asked = read(read_json(raw))
        del raw  # the largest thing here, and a stream can be long
        model = self._model_of(asked)
        wanted = request.headers.get("x-request-id") or f"{self.name}-{next(self._ids)}"
        self.engine.check_room(asked.prompt, asked.max_tokens)
        pieces = answer_tokens(self.name, asked)
        reply = Reply(form.id_prefix + wanted, int(time.time()), model, asked, pieces)
        if fault.fault is FaultKind.SSE_ERROR and not asked.stream:
            return _error(fault.status or 503, QueueFull.kind, str(QueueFull()))
        adapter = model if model in self.config.adapters else ""
        with self.engine.submit(asked.prompt, len(pieces), adapter=adapter) as job:
            if asked.stream:
                return await self._stream(request, visit, fault, form, reply, job)
            return await self._whole(request, visit, fault, form, reply, job)

    async def _fails_first(
        self, request: web.BaseRequest, visit: Visit, fault: FaultOrder
    ) -> web.Response | None:
        if fault.fault is FaultKind.ERROR_500:
            await asyncio.sleep(fault.delay_s)
            return _error(fault.status or 500, "InternalServerError", "EngineCore encountered an issue.")
        if fault.fault is FaultKind.QUEUE_FULL_503:
            raise QueueFull
        if fault.fault is FaultKind.RESET_BEFORE_HEADERS:
            await self._cut(request, visit, reset=True)
        if fault.fault is FaultKind.HANG:
            await _for_ever()
        return None

    def _model_of(self, asked: Asked) -> str:
        model = asked.model or self.config.model_name
        if self.config.models and model not in (*self.config.models, *self.config.adapters):
            raise NoSuchModel(f"The model `{model[:100]}` does not exist.")
        return model

    async def _embed(self, asked: Asked) -> web.Response:
        model = self._model_of(asked)
        with self.engine.submit(asked.prompt, 0) as job:
            await job.prefill()
            job.finish("stop")
        data = [
            {"object": "embedding", "index": index, "embedding": [count / 1000, 0.5, -0.5]}
            for index, count in enumerate(asked.inputs)
        ]
        usage = {"prompt_tokens": len(asked.prompt), "total_tokens": len(asked.prompt)}
        return _json({"object": "list", "model": model, "data": data, "usage": usage})

    async def _whole(
        self, request: web.BaseRequest, visit: Visit, fault: FaultOrder, form: Form, reply: Reply, job: Job
    ) -> web.StreamResponse:
        await job.prefill()
        if fault.fault is FaultKind.SLOW_DRIP:
            await asyncio.sleep(fault.interval_s * (len(reply.pieces) - 1))
        await job.rest()
        reply.cached_tokens = job.cached_tokens
        body = form.whole(reply)
        if fault.fault in _MID_STREAM:
            broken = web.StreamResponse(headers=_headers("application/json"))
            broken.content_length = len(body)
            await broken.prepare(request)
            await broken.write(body[: len(body) // 2])
            await self._break_off(request, visit, fault)
        job.finish(_engine_reason(reply), reply.pieces)
        return web.Response(body=body, headers=_headers("application/json"))

    async def _stream(
        self, request: web.BaseRequest, visit: Visit, fault: FaultOrder, form: Form, reply: Reply, job: Job
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=_headers("text/event-stream; charset=utf-8"))
        await response.prepare(request)  # before there is a seat, as vLLM does
        if fault.fault is FaultKind.SSE_ERROR:
            job.finish("error")
            status = fault.status or 503
            visit.finish()
            await response.write(event(_error_body(status, QueueFull.kind, str(QueueFull()))) + DONE)
            return response
        end = len(reply.pieces)
        if fault.fault in _MID_STREAM:
            end = min(end, fault.chunks)
        await job.prefill()
        reply.cached_tokens = job.cached_tokens
        out = form.opening(reply)
        sent, due = 0, 1
        while sent < end:
            for index in range(sent, min(due, end)):
                out += form.piece(reply, index)
                if fault.fault is FaultKind.SLOW_DRIP:
                    await response.write(out)
                    out = b""
                    await asyncio.sleep(fault.interval_s)
            sent = min(due, end)
            if sent < end:
                if out:
                    await response.write(out)
                out = b""
                due += await job.more()
        if fault.fault in _MID_STREAM:
            if out:
                await response.write(out)
            await self._break_off(request, visit, fault)
        job.finish(_engine_reason(reply), reply.pieces)
        visit.finish()
        await response.write(out + form.closing(reply))
        return response

    async def _break_off(self, request: web.BaseRequest, visit: Visit, fault: FaultOrder) -> NoReturn:
        if fault.fault is not FaultKind.HANG_MID_STREAM:
            await self._cut(request, visit, reset=fault.fault is FaultKind.RESET_MID_STREAM)
        await _for_ever()

    async def _cut(self, request: web.BaseRequest, visit: Visit, *, reset: bool) -> NoReturn:
        # Let what was written reach the client: a reset throws away what its kernel has not handed over.
        await asyncio.sleep(0.02 if reset else 0)
        visit.cut()
        if request.transport is not None:
            if reset:
                send_reset(request.transport)
            else:
                request.transport.close()
        await _for_ever()  # the lost connection cancels the handler


async def _for_ever() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody sets this future")


def _engine_reason(reply: Reply) -> str:
    return "length" if reply.asked.limited else "stop"


def _headers(content_type: str) -> dict[str, str]:
    return {"Content-Type": content_type, "Server": "uvicorn"}


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), headers=_headers("application/json"))


def _error_body(status: int, kind: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _error(status: int, kind: str, message: str) -> web.Response:
    return _json(_error_body(status, kind, message), status=status)
