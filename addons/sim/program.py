"""The engines as a program of its own: `python -m addons.sim_engines --ports 9101,9102,9103`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence

import orjson

from addons.sim.config import SimConfig
from addons.sim.fleet import SimFleet

DEFAULT_PORTS = "9101,9102,9103"


def parse_ports(text: str) -> list[int]:
    """ "9101,9102" as numbers; 0 is a free port. Raises ValueError."""
    ports = []
    for part in text.split(","):
        if not part.strip().isdecimal() or int(part) > 65535:
            raise ValueError(f"{part.strip()!r} in {text!r} is not a port (0 to 65535)")
        ports.append(int(part))
    named = [port for port in ports if port]
    if len(named) != len(set(named)):
        raise ValueError(f"{text!r} names a port twice")
    return ports


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    One JSON line tells when all engines listen: {"engines": {name: url}, "pid": number}.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        ports = parse_ports(args.ports) if args.ports else _numbered(args.count, args.base_port)
        kind = SimConfig(
            models=tuple(args.model),
            adapters=tuple(args.adapter),
            ttft_base_s=args.ttft,
            prefill_tokens_per_s=args.prefill,
            tpot_s=args.tpot,
            max_num_seqs=args.max_num_seqs,
            max_queue=args.max_queue,
            num_blocks=args.num_blocks,
            block_size=args.block_size,
            speed=args.speed,
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        asyncio.run(_serve(SimFleet.of(ports, kind), args.ready_fd))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _numbered(count: int, base_port: int) -> list[int]:
    return [base_port + index if base_port else 0 for index in range(count)]


def _parser() -> argparse.ArgumentParser:
    default = SimConfig()
    parser = argparse.ArgumentParser(prog="python -m addons.sim_engines", description=__doc__)
    parser.add_argument("--ports", help="e.g. 9101,9102,9103; 0 is a free port")
    parser.add_argument("--count", type=int, default=3, help="without --ports: how many engines")
    parser.add_argument("--base-port", type=int, default=9101, help="the first port; 0: free ports")
    parser.add_argument("--model", action="append", default=[], help="served name, repeatable (default: any)")
    parser.add_argument("--adapter", action="append", default=[], help="LoRA adapter, repeatable")
    parser.add_argument("--ttft", type=float, default=default.ttft_base_s, help="base, seconds")
    parser.add_argument("--tpot", type=float, default=default.tpot_s, help="seconds per further token")
    parser.add_argument(
        "--prefill", type=float, default=default.prefill_tokens_per_s, help="tokens per second, or inf"
    )
    parser.add_argument("--max-num-seqs", type=int, default=default.max_num_seqs)
    parser.add_argument("--max-queue", type=int, default=default.max_queue, help="default: no bound")
    parser.add_argument("--num-blocks", type=int, default=default.num_blocks)
    parser.add_argument("--block-size", type=int, default=default.block_size)
    parser.add_argument("--speed", type=float, default=default.speed, help="divides every delay")
    parser.add_argument("--ready-fd", type=int, default=1, help="where the ready line goes (default: stdout)")
    return parser


async def _serve(fleet: SimFleet, ready_fd: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with fleet:
        os.write(ready_fd, orjson.dumps({"engines": fleet.urls, "pid": os.getpid()}) + b"\n")
        await stop.wait()
