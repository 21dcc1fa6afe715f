"""The model of one engine, without HTTP: queue, batch, prefix cache, and how long each token takes.

Time to the first token = wait for a seat in the batch and for blocks + wait for the prompts before it
+ uncached prompt tokens / `prefill_tokens_per_s` + `ttft_base_s`; then one token each `tpot_s`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from addons.sim.blocks import BlockCache
from addons.sim.config import SimConfig
from addons.sim.counters import Counters
from addons.sim.errors import BadRequest, QueueFull
from addons.sim.prompt import block_keys

_MAX_LORA_SETS = 32  # vLLM keeps every label set for ever; a simulator need not


class Job:
    """One request in the engine, from `Engine.submit` to the end of its `with` block.

    Leaving the block without `finish` is an abort: queue place, seat and blocks are free at once.
    """

    def __init__(self, engine: Engine, prompt: Sequence[str], max_tokens: int, adapter: str) -> None:
        size = engine.config.block_size
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.adapter = adapter
        self.root = hash(adapter)
        self.keys = block_keys(self.root, prompt, size)
        # All blocks are taken at the start, so this engine never has to preempt.
        self.private = -(-(len(prompt) + max_tokens) // size) - len(self.keys)
        self.arrived = engine.clock()
        self.cached_tokens = 0
        self.generated = 0
        self.admitted: asyncio.Future[None] | None = None
        self._engine = engine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.remove(self)

    async def prefill(self) -> None:
        """Return when the first token is there (after the queue, the prompt and the base time)."""
        await self._engine.prefill(self)

    async def more(self) -> int:
        """Wait for the next token; returns how many are there by now, at least one, at most all."""
        return await self._engine.more(self)

    async def rest(self) -> None:
        """Return when the last token is there."""
        await self._engine.rest(self)

    def finish(self, reason: str, answer: Sequence[str] = ()) -> None:
        """The answer is complete; its tokens stay in the prefix cache. `reason` is vLLM's finished_reason."""
        self._engine.finish(self, reason, answer)


class Engine:
    """Use it from one event loop. `clock` gives monotonic seconds."""

    def __init__(self, config: SimConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.clock = clock
        self.counters = Counters()
        self.cache = BlockCache(config.num_blocks)
        self.lora_sets: dict[str, float] = {}
        """Each list of adapters in use at some time, and the unix time when it last was the true one."""
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._prefill_turn = asyncio.Lock()
        self._awake = asyncio.Event()
        self._awake.set()
        self._base_s = config.ttft_base_s / config.speed
        self._tpot_s = config.tpot_s / config.speed
        self._prefill_s = 1 / (config.prefill_tokens_per_s * config.speed)
        if config.adapters:
            self.lora_sets[""] = time.time()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def frozen(self) -> bool:
        return not self._awake.is_set()

    def freeze(self, frozen: bool = True) -> None:
        """Stop every token, or go on where it stopped: SIGSTOP and SIGCONT to vLLM's worker."""
        if frozen:
            self._awake.clear()
        else:
            self._awake.set()

    def check_room(self, prompt: Sequence[str], max_tokens: int) -> None:
        """Raises BadRequest if prompt and answer are longer than the whole cache."""
        room = self.config.num_blocks * self.config.block_size
        if len(prompt) + max_tokens > room:
            raise BadRequest(
                f"This model's maximum context length is {room} tokens. However, you requested {max_tokens} "
                f"output tokens and your prompt contains {len(prompt)} input tokens."
            )

    def submit(self, prompt: Sequence[str], max_tokens: int, *, adapter: str = "") -> Job:
        """Queue a request. Raises BadRequest if it can never fit, QueueFull if too many wait."""
        self.check_room(prompt, max_tokens)
        job = Job(self, prompt, max_tokens, adapter)
        if self._waiting or not self._start(job):
            if self.config.max_queue is not None and len(self._waiting) >= self.config.max_queue:
                self.counters.rejections += 1
                raise QueueFull
            job.admitted = asyncio.get_running_loop().create_future()
            self._waiting.append(job)
        self._note_adapters()
        return job

    def _start(self, job: Job) -> bool:
        if len(self._running) >= self.config.max_num_seqs:
            return False
        hits = self.cache.acquire(job.keys, job.private)
        if hits is None:
            return False
        # The last token of a prompt is always computed: its output is the first new token.
        size = self.config.block_size
        job.cached_tokens = min(hits, max(len(job.prompt) - 1, 0) // size) * size
        self.counters.prefix_queries += len(job.prompt)
        self.counters.prefix_hits += job.cached_tokens
        self._running.add(job)
        return True

    def _admit(self) -> None:
        # First come, first served: a large prompt at the head holds up the small ones behind it, as in vLLM.
        while self._waiting and self._start(self._waiting[0]):
            admitted = self._waiting.popleft().admitted
            if admitted is not None and not admitted.done():
                admitted.set_result(None)

    async def prefill(self, job: Job) -> None:
        if job.admitted is not None:
            await job.admitted
        cost = (len(job.prompt) - job.cached_tokens) * self._prefill_s
        if cost > 0:
            async with self._prefill_turn:
                await asyncio.sleep(cost)
        if self._base_s:
            await asyncio.sleep(self._base_s)
        await self._awake.wait()
        self.counters.prompt_tokens += len(job.prompt)
        self._generated(job, min(1, job.max_tokens))
        self.counters.ttft.observe(self.clock() - job.arrived)

    async def more(self, job: Job) -> int:
        due = self.clock() + self._tpot_s
        if self._tpot_s:
            await asyncio.sleep(self._tpot_s)
        await self._awake.wait()
        # A loop that comes late has several tokens to hand out: the pace stays, the chunks grow.
        left = job.max_tokens - job.generated
        late = int((self.clock() - due) / self._tpot_s) if self._tpot_s else left
        new = min(1 + max(late, 0), left)
        self._generated(job, new)
        return new

    async def rest(self, job: Job) -> None:
        left = job.max_tokens - job.generated
        if left > 0 and self._tpot_s:
            await asyncio.sleep(left * self._tpot_s)
        await self._awake.wait()
        self._generated(job, left)

    def _generated(self, job: Job, count: int) -> None:
        job.generated += count
        self.counters.generation_tokens += count

    def finish(self, job: Job, reason: str, answer: Sequence[str]) -> None:
        self.counters.finished[reason] += 1
        self.counters.e2e.observe(self.clock() - job.arrived)
        self._remove(job, answer)

    def remove(self, job: Job) -> None:
        """Forget the job, wherever it is; a second time does nothing."""
        self._remove(job, ())

    def _remove(self, job: Job, answer: Sequence[str]) -> None:
        if job in self._running:
            self._running.remove(job)
            size = self.config.block_size
            keyed = len(job.keys) * size
            parent = job.keys[-1] if job.keys else job.root
            tail = block_keys(parent, [*job.prompt[keyed:], *answer], size) if answer else []
            self.cache.release(job.keys, job.private, answer=tail)
        elif job in self._waiting:
            self._waiting.remove(job)
        else:
            return
        self._admit()
        self._note_adapters()

    def _note_adapters(self) -> None:
        if not self.config.adapters:
            return
        jobs = (*self._running, *self._waiting)
        names = ",".join(sorted({job.adapter for job in jobs if job.adapter}))
        self.lora_sets.pop(names, None)
        self.lora_sets[names] = time.time()
        if len(self.lora_sets) > _MAX_LORA_SETS:
            del self.lora_sets[next(iter(self.lora_sets))]
