"""What one simulated engine is like."""

from __future__ import annotations

import math
from dataclasses import dataclass

HOST = "127.0.0.1"
DEFAULT_MODEL = "sim-model"


@dataclass(frozen=True, slots=True)
class SimConfig:
    """One simulated engine; times are in seconds, sizes in tokens or blocks.

    The defaults are visible to the eye and still quick: 30 ms to the first token, 10 ms for each further one.
    Raises ValueError, naming the field, for a value that makes no engine.
    """

    name: str = "sim-1"
    port: int = 0
    """0 takes a free port; `SimServer.port` tells which."""
    models: tuple[str, ...] = ()
    """The names it serves, the first one labels the metrics. Empty: any name is answered."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters, asked for by their name as the model."""
    ttft_base_s: float = 0.030
    prefill_tokens_per_s: float = 20_000.0
    """Shared by all prompts of the engine, one after the other; `math.inf` makes prefill free."""
    tpot_s: float = 0.010
    max_num_seqs: int = 8
    max_queue: int | None = None
    """How many may wait before the engine answers 503; None has no bound, as in vLLM."""
    num_blocks: int = 16_384
    block_size: int = 16
    speed: float = 1.0
    """Divides every delay: 2 is an engine twice as fast."""

    def __post_init__(self) -> None:
        for field, value, least in (
            ("port", self.port, 0),
            ("ttft_base_s", self.ttft_base_s, 0),
            ("tpot_s", self.tpot_s, 0),
            ("max_num_seqs", self.max_num_seqs, 1),
            ("max_queue", self.max_queue or 0, 0),
            ("num_blocks", self.num_blocks, 1),
            ("block_size", self.block_size, 1),
        ):
            if not least <= value < math.inf:
                raise ValueError(f"{self.name}: {field}: {value} is not a finite number of at least {least}")
        for field, rate in (("prefill_tokens_per_s", self.prefill_tokens_per_s), ("speed", self.speed)):
            if not rate > 0:
                raise ValueError(f"{self.name}: {field}: {rate} is not above 0")

    @property
    def model_name(self) -> str:
        """The model_name label of its metrics."""
        return self.models[0] if self.models else DEFAULT_MODEL
