"""What a router's restart, and more routers, cost in hit rate and throughput.

    python benchmarks/routers.py --rate 40 --seconds 8

Router processes before workers of this process, whose fake engines compute prompts at a set rate
and hold real prefix caches, too small to hold every prefix twice. Requests come at one rate, behind
prefixes of which some are asked for more than others. One router serves; it is killed with -9 and
started again under load; then three routers serve by turns, from cold caches as the one did. Prints
JSON; exits with 1 if a restart costs more than 5 % of the hit rate within 2 s, or three routers 2 %.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock_core.rpc import server as rpc
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.processes.fleet import ManagedProcess, ProcessFleet
from penstock_testing.servers.cluster import ask, collect
from penstock_testing.servers.worker import running_worker

BLOCK_TOKENS = 32
PREFIX_BLOCKS = 24
PREFIXES = 48
WORKERS = 4
PREFILL_TOKENS_PER_S = 20_000
WITHIN_S = 2.0
DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """One request: when it was asked, and of how many prompt tokens how many were cached."""

    at: float
    prompt_tokens: int
    cached_tokens: int
    seconds: float


@asynccontextmanager
async def fleet(directory: Path, routers: int) -> AsyncIterator[ProcessFleet]:
    """Cold workers here, routers in processes of their own."""

    async def pace(tokens: int) -> None:
        await asyncio.sleep(tokens / PREFILL_TOKENS_PER_S)

    capacity = PREFIXES * PREFIX_BLOCKS // WORKERS * 3 // 2
    found = ProcessFleet()
    async with AsyncExitStack() as stack:
        endpoints = []
        for number in range(WORKERS):
            engine = FakeEngine(FakeConfig(capacity_blocks=capacity), pace=pace)
            worker = running_worker(engine, worker_id=f"worker-{number}")
            endpoints.append((await stack.enter_async_context(worker)).endpoint)
        for number in range(routers):
            endpoint = f"unix:{directory}/{routers}-{number}.sock"
            settings = {
                "PENSTOCK_ROUTER_WORKERS": ",".join(endpoints),
                "PENSTOCK_ROUTER_CACHE_SECRET": "salt",
                "PENSTOCK_ROUTER_LISTEN": endpoint,
            }
            log = directory / f"{routers}-{number}.log"
            process = ManagedProcess(f"{number}", "penstock_router", endpoint, log, settings)
            stack.push_async_callback(process.kill)
            await process.start()
            found.routers.append(process)
        await found.live(WORKERS)
        yield found


def prompts(seed: int) -> Iterator[list[int]]:
    """Without end: each a prefix and a tail of its own."""
    rng, letters = random.Random(seed), range(97, 123)
    weights = [1 / (rank + 1) ** 0.7 for rank in range(PREFIXES)]
    heads = [
        random.Random(prefix).choices(letters, k=PREFIX_BLOCKS * BLOCK_TOKENS)
        for prefix in range(PREFIXES)
    ]
    while True:
        yield [*rng.choices(heads, weights)[0], *rng.choices(letters, k=40)]


async def load(
    targets: Sequence[str],
    seconds: float,
    rate: float,
    seed: int,
    stop: asyncio.Event | None = None,
) -> list[Served]:
    """Ask at a rate, of each router in turn, until ``stop``; who finds it down asks again."""
    rng, served, coming = random.Random(seed), list[Served](), prompts(seed)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        channels = [await stack.enter_async_context(rpc.channel(each)) for each in targets]
        stubs = [inference_service_pb2_grpc.InferenceServiceStub(each) for each in channels]
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end and not (stop and stop.is_set()):
            request = ask(next(coming), max_tokens=2)
            group.create_task(_one(stubs[number % len(stubs)], request, served))
            number += 1
            await asyncio.sleep(rng.expovariate(rate))
    return served


async def _one(
    stub: "inference_service_pb2_grpc.InferenceServiceAsyncStub",
    request: generate_pb2.GenerateRequest,
    served: list[Served],
) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            at = time.monotonic()
            try:
                answer = await collect(stub.Generate(request, wait_for_ready=True))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)
                continue
            tokens = len(request.tokens.ids) // 4
            cached = answer.started.cached_tokens
            served.append(Served(at, tokens, cached, time.monotonic() - at))
            return


def hit_rate(served: Sequence[Served]) -> float:
    """Cached tokens of all prompt tokens."""
    return sum(s.cached_tokens for s in served) / max(sum(s.prompt_tokens for s in served), 1)


async def measured(targets: Sequence[str], options: argparse.Namespace) -> dict[str, float]:
    """Warm up, then measure."""
    await load(targets, options.seconds / 2, options.rate, 1)
    served = await load(targets, options.seconds, options.rate, 2)
    began, ended = min(s.at for s in served), max(s.at + s.seconds for s in served)
    return {
        "hit_rate": round(hit_rate(served), 4),
        "requests_per_s": round(len(served) / (ended - began), 2),
        "latency_p50_s": round(statistics.median(s.seconds for s in served), 4),
    }


async def restarted(router: ManagedProcess, options: argparse.Namespace) -> dict[str, float]:
    """Kill the router in the middle of the load; what is found in caches once it listens again."""
    stop = asyncio.Event()
    loading = asyncio.create_task(load([router.endpoint], DEADLINE_S, options.rate, 3, stop))
    await asyncio.sleep(options.seconds / 4)
    await router.kill()
    down = time.monotonic()
    await router.start()
    up = time.monotonic()
    await asyncio.sleep(WITHIN_S + 1)
    stop.set()
    served = await loading
    soon = [s for s in served if down < s.at < up + WITHIN_S and s.at + s.seconds > up]
    return {
        "down_s": round(up - down, 2),
        "requests_within_2_s": len(soon),
        "hit_rate_within_2_s": round(hit_rate(soon), 4),
    }


async def run(options: argparse.Namespace) -> int:
    """All three. Prints; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="pr-") as name:
        async with fleet(Path(name), 1) as one:
            single = await measured(one.targets, options)
            restart = await restarted(one.routers[0], options)
        async with fleet(Path(name), 3) as three:
            several = await measured(three.targets, options)
    report = {"one_router": single, "restart": restart, "three_routers": several}
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    kept = restart["hit_rate_within_2_s"] >= 0.95 * single["hit_rate"]
    alike = all(several[k] >= 0.98 * single[k] for k in ("hit_rate", "requests_per_s"))
    return 0 if kept and alike else 1


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
