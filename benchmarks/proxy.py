"""What a forwarded token costs the router, and what a forwarded request waits.

    python benchmarks/proxy.py --streams 200 --rate 50 --seconds 10 --requests-per-s 200

A worker process with an engine that only keeps time, a router process, and this one as their client.
Prints JSON: tokens a second of the router's CPU time when ``--streams`` run at ``--rate`` tokens a
second each (through the router, then in lookaside, where no token passes it), and the time to first
token of ``--requests-per-s`` through the router against straight from the worker. Long runs are
theirs: the cost of routing is part of the figures.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import uvloop

from penstock.common.v1 import tokens_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock_client import AsyncClient, GenerateOptions
from penstock_core.blocks import TOKEN_BYTES, pack_tokens
from penstock_core.rpc.channels import channel
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.worker import running_worker

_Stub = inference_service_pb2_grpc.InferenceServiceStub
_READY_S = 60.0
_LONG_S = 600.0
_PROMPT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Setup:
    """Where everything listens, and the router's process."""

    worker: str
    router: str
    process: psutil.Process


async def _serve_engine(endpoint_file: Path, rate: float, burst: int) -> None:
    """The worker's process: one real worker before an engine that takes its time and no more.

    It yields eight tokens at a time, so that one core can play a whole fleet; what reaches the router
    is the same as of an engine that yields them one by one, since their messages are shared anyway.
    """

    async def pace(num_tokens: int) -> None:
        if num_tokens == 1 and rate:
            await asyncio.sleep(burst / rate)

    config = FakeConfig(
        tokens_per_step=burst, max_batch=10_000, max_waiting=10_000, max_context_tokens=100_000
    )
    async with running_worker(FakeEngine(config, pace=pace)) as worker:
        await asyncio.to_thread(endpoint_file.write_text, worker.endpoint)
        await asyncio.Event().wait()


async def _proxy(setup: Setup, options: argparse.Namespace) -> dict[str, float]:
    async with channel(setup.router) as connected:
        stub = _Stub(connected)

        async def stream(number: int) -> tuple[int, int]:
            messages = tokens = 0
            async for event in stub.Generate(_request(number, options), timeout=_LONG_S):
                messages += 1
                tokens += len(event.delta.tokens.ids) // TOKEN_BYTES
            return messages, tokens

        return await _measured(setup, options, stream)


async def _lookaside(setup: Setup, options: argparse.Namespace) -> dict[str, float]:
    wanted = GenerateOptions(max_tokens=_num_tokens(options), temperature=0.0)
    async with AsyncClient(setup.router) as client:

        async def stream(number: int) -> tuple[int, int]:
            whole = await client.generate(
                _prompt(number), model="fake", options=wanted, timeout_s=_LONG_S
            )
            return 0, len(whole.token_ids)

        return await _measured(setup, options, stream)


async def _measured(
    setup: Setup,
    options: argparse.Namespace,
    stream: Callable[[int], Awaitable[tuple[int, int]]],
) -> dict[str, float]:
    """All streams at once, begun over a second; the router's CPU time over all of it."""

    async def one(number: int) -> tuple[int, int]:
        await asyncio.sleep(random.Random(number).random())
        return await stream(number)

    before, began = _cpu_s(setup), time.perf_counter()
    counts = await asyncio.gather(*(one(number) for number in range(options.streams)))
    cpu_s, seconds = _cpu_s(setup) - before, time.perf_counter() - began
    messages, tokens = (sum(column) for column in zip(*counts, strict=True))
    return {
        "streams": options.streams,
        "tokens_per_s_and_stream": round(tokens / options.streams / (seconds - 0.5), 1),
        "tokens_per_message": round(tokens / messages, 2) if messages else 0.0,
        "router_cpu_share": round(cpu_s / seconds, 3),
        "router_us_per_token": round(cpu_s * 1e6 / tokens, 2),
        "tokens_per_router_core_second": round(tokens / cpu_s),
    }


async def _latency(setup: Setup, options: argparse.Namespace) -> dict[str, float]:
    """Requests at random times, each both ways; the order is drawn."""
    times: dict[str, list[float]] = {setup.router: [], setup.worker: []}
    async with channel(setup.router) as router, channel(setup.worker) as worker:
        stubs = {setup.router: _Stub(router), setup.worker: _Stub(worker)}

        async def one(number: int, target: str) -> None:
            request = generate_pb2.GenerateRequest(model="fake")
            request.tokens.CopyFrom(tokens_pb2.TokenIds(ids=pack_tokens(_prompt(number))))
            request.stop.max_tokens = 2
            began, first_s = time.perf_counter(), 0.0
            async for event in stubs[target].Generate(request, timeout=_LONG_S):  # to its end
                if event.HasField("delta"):
                    first_s = first_s or time.perf_counter() - began
            times[target].append(first_s)

        rng, count = random.Random(0), int(options.requests_per_s * options.seconds)
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number, rng.choice(list(times))))
                await asyncio.sleep(rng.expovariate(options.requests_per_s))
    through, straight = (statistics.median(times[t]) * 1000 for t in (setup.router, setup.worker))
    return {
        "requests_per_s": options.requests_per_s,
        "router_p50_ms": round(through, 3),
        "direct_p50_ms": round(straight, 3),
        "added_p50_ms": round(through - straight, 3),
    }


def _num_tokens(options: argparse.Namespace) -> int:
    return int(options.rate * options.seconds)


def _prompt(number: int) -> list[int]:
    rng = random.Random(number)
    return [rng.randrange(256) for _ in range(_PROMPT_TOKENS)]


def _request(number: int, options: argparse.Namespace) -> generate_pb2.GenerateRequest:
    request = generate_pb2.GenerateRequest(model="fake")
    request.tokens.CopyFrom(tokens_pb2.TokenIds(ids=pack_tokens(_prompt(number))))
    request.stop.max_tokens = _num_tokens(options)
    return request


def _cpu_s(setup: Setup) -> float:
    used = setup.process.cpu_times()
    return float(used.user + used.system)


@asynccontextmanager
async def _running(rate: float, burst: int) -> AsyncIterator[Setup]:
    """The worker and the router, ready."""
    with tempfile.TemporaryDirectory(prefix="pk-") as directory:
        told, socket = Path(directory) / "worker", Path(directory) / "router.sock"
        argv = (
            sys.executable,
            __file__,
            "--engine",
            str(told),
            "--rate",
            str(rate),
            "--burst",
            str(burst),
        )
        worker = await asyncio.create_subprocess_exec(*argv)
        router = None
        try:
            async with asyncio.timeout(_READY_S):
                endpoint = await asyncio.to_thread(_told, told)
            settings = {"WORKERS": endpoint, "LISTEN": f"unix:{socket}"}
            router = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "penstock_router",
                env={**_environment(), **{f"PENSTOCK_ROUTER_{k}": v for k, v in settings.items()}},
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            await _answers(f"unix:{socket}")
            yield Setup(endpoint, f"unix:{socket}", psutil.Process(router.pid))
        finally:
            for process in (worker, router):
                if process is not None:
                    process.kill()
                    await process.wait()


def _told(file: Path) -> str:
    for _ in range(int(_READY_S / 0.05)):
        if file.exists() and (text := file.read_text(encoding="utf-8")):
            return text
        time.sleep(0.05)
    raise TimeoutError("the worker did not start")


def _environment() -> dict[str, str]:
    return dict(os.environ)


async def _answers(target: str) -> None:
    """Wait for the first request that is served."""
    async with channel(target) as connected, asyncio.timeout(_READY_S):
        request = generate_pb2.GenerateRequest(model="fake", text="warm")
        request.stop.max_tokens = 1
        while True:
            try:
                async for _ in _Stub(connected).Generate(request, timeout=5):
                    pass
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)
            else:
                return


async def _main(options: argparse.Namespace) -> None:
    if options.engine:
        await _serve_engine(Path(options.engine), options.rate, options.burst)
    report: dict[str, object] = {}
    async with _running(options.rate, options.burst) as setup:
        if options.streams:
            report["proxy"] = await _proxy(setup, options)
            report["lookaside"] = await _lookaside(setup, options)
        if options.requests_per_s:
            report["added_latency"] = await _latency(setup, options)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--requests-per-s", type=float, default=200.0)
    parser.add_argument("--burst", type=int, default=8)
    parser.add_argument("--engine", default="", help=argparse.SUPPRESS)
    uvloop.run(_main(parser.parse_args()))
