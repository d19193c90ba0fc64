"""What a forwarded token costs the router, and what a forwarded request waits.

    python benchmarks/proxy.py --streams 200 --rate 50 --seconds 10 --requests-per-s 200

A worker process with an engine that only keeps time, a router process, and this one as their client.
Prints JSON: tokens a second of the router's CPU time when ``--streams`` run at ``--rate`` tokens a
second each (through the router, then in lookaside, where no token passes it), and the time to first
token of ``--requests-per-s`` through the router against straight from the worker, with the router's
CPU time for each that passed it; then the same through a process that decides nothing and forwards
bytes with ``grpc.aio``, which is the least that any router of this kind can add. Long runs are
theirs: the cost of routing is part of the figures.

The client shares the cores with what is measured. So for the latencies it sends requests that were
serialized before, and parses no answer, on both ways; it is the same process for both.
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
from contextlib import AsyncExitStack, asynccontextmanager
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
from penstock_router.relay.frames import GENERATE
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.worker import running_worker

_Stub = inference_service_pb2_grpc.InferenceServiceStub
_READY_S = 60.0
_LONG_S = 600.0
_PROMPT_TOKENS = 64
# A response is one oneof, so its first byte tells which event it is.
_DELTA_TAG = generate_pb2.GenerateResponse.DELTA_FIELD_NUMBER << 3 | 2


@dataclass(frozen=True, slots=True)
class Way:
    """Where a process between client and worker listens."""

    target: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """CPU time that the process has used."""
        used = self.process.cpu_times()
        return float(used.user + used.system)


@dataclass(frozen=True, slots=True)
class Setup:
    """Where the worker listens, and what leads to it."""

    worker: str
    router: Way
    forwarder: Way


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


async def _forward(worker: str, target: str) -> None:
    """The forwarder's process: bytes from the worker as they come."""
    async with channel(worker) as connected:
        call = _raw(connected)

        async def generate(raw: bytes, _: object) -> AsyncIterator[bytes]:
            async for event in call(raw, timeout=_LONG_S):
                yield event

        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(generate)
        service, name = GENERATE.removeprefix("/").split("/")
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {name: method}),)
        )
        server.add_insecure_port(target)
        await server.start()
        await server.wait_for_termination()


async def _proxy(setup: Setup, options: argparse.Namespace) -> dict[str, float]:
    async with channel(setup.router.target) as connected:
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
    async with AsyncClient(setup.router.target) as client:

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

    before, began = setup.router.cpu_s(), time.perf_counter()
    counts = await asyncio.gather(*(one(number) for number in range(options.streams)))
    cpu_s, seconds = setup.router.cpu_s() - before, time.perf_counter() - began
    messages, tokens = (sum(column) for column in zip(*counts, strict=True))
    return {
        "streams": options.streams,
        "tokens_per_s_and_stream": round(tokens / options.streams / (seconds - 0.5), 1),
        "tokens_per_message": round(tokens / messages, 2) if messages else 0.0,
        "router_cpu_share": round(cpu_s / seconds, 3),
        "router_us_per_token": round(cpu_s * 1e6 / tokens, 2),
        "tokens_per_router_core_second": round(tokens / cpu_s),
    }


async def _latency(setup: Setup, way: Way, options: argparse.Namespace) -> dict[str, float]:
    """Requests at random times, each straight or by ``way``; the order is drawn."""
    times: dict[str, list[float]] = {way.target: [], setup.worker: []}
    count = int(options.requests_per_s * options.seconds)
    async with channel(way.target) as between, channel(setup.worker) as worker:
        calls = {way.target: _raw(between), setup.worker: _raw(worker)}

        async def one(raw: bytes, target: str) -> None:
            began, first_s = time.perf_counter(), 0.0
            async for event in calls[target](raw, timeout=_LONG_S):  # to its end
                if event[0] == _DELTA_TAG:
                    first_s = first_s or time.perf_counter() - began
            times[target].append(first_s)

        rng = random.Random(0)
        planned = [(_short(n), rng.choice(list(times))) for n in range(count)]
        before = way.cpu_s()
        async with asyncio.TaskGroup() as group:
            for raw, target in planned:
                group.create_task(one(raw, target))
                await asyncio.sleep(rng.expovariate(options.requests_per_s))
        cpu_s = way.cpu_s() - before
    through, straight = (statistics.median(times[t]) * 1000 for t in (way.target, setup.worker))
    return {
        "requests_per_s": options.requests_per_s,
        "us_per_request": round(cpu_s * 1e6 / len(times[way.target])),
        "p50_ms": round(through, 3),
        "direct_p50_ms": round(straight, 3),
        "added_p50_ms": round(through - straight, 3),
    }


def _raw(connected: grpc.aio.Channel) -> "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]":
    """``Generate`` from bytes to bytes."""
    return connected.unary_stream(GENERATE, request_serializer=bytes, response_deserializer=bytes)


def _short(number: int) -> bytes:
    request = generate_pb2.GenerateRequest(model="fake")
    request.tokens.CopyFrom(tokens_pb2.TokenIds(ids=pack_tokens(_prompt(number))))
    request.stop.max_tokens = 2
    return request.SerializeToString()


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


@asynccontextmanager
async def _running(rate: float, burst: int) -> AsyncIterator[Setup]:
    """The worker, the router and the forwarder, ready."""
    async with AsyncExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="pk-")))
        told = directory / "worker"
        engine = ("--engine", str(told), "--rate", str(rate), "--burst", str(burst))
        await running.enter_async_context(_process(__file__, *engine))
        async with asyncio.timeout(_READY_S):
            worker = await asyncio.to_thread(_told, told)
        router, forwarder = (
            f"unix:{directory / name}" for name in ("router.sock", "forwarder.sock")
        )
        settings = {"PENSTOCK_ROUTER_WORKERS": worker, "PENSTOCK_ROUTER_LISTEN": router}
        routing = await running.enter_async_context(_process("-m", "penstock_router", **settings))
        forward = (__file__, "--forward", worker, forwarder)
        forwarding = await running.enter_async_context(_process(*forward))
        await _answers(router)
        await _answers(forwarder)
        yield Setup(worker, Way(router, routing), Way(forwarder, forwarding))


@asynccontextmanager
async def _process(*arguments: str, **environment: str) -> AsyncIterator[psutil.Process]:
    """A Python of its own, killed in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env={**os.environ, **environment},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        await process.wait()


def _told(file: Path) -> str:
    for _ in range(int(_READY_S / 0.05)):
        if file.exists() and (text := file.read_text(encoding="utf-8")):
            return text
        time.sleep(0.05)
    raise TimeoutError("the worker did not start")


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
    if options.forward:
        await _forward(*options.forward)
    report: dict[str, object] = {}
    async with _running(options.rate, options.burst) as setup:
        if options.streams:
            report["proxy"] = await _proxy(setup, options)
            report["lookaside"] = await _lookaside(setup, options)
        if options.requests_per_s:
            report["added_latency"] = await _latency(setup, setup.router, options)
            report["added_by_forwarding_alone"] = await _latency(setup, setup.forwarder, options)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--requests-per-s", type=float, default=200.0)
    parser.add_argument("--burst", type=int, default=8)
    parser.add_argument("--engine", default="", help=argparse.SUPPRESS)
    parser.add_argument("--forward", nargs=2, help=argparse.SUPPRESS)
    uvloop.run(_main(parser.parse_args()))
