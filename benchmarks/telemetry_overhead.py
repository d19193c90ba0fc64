"""What telemetry costs: requests through the whole platform with traces of all of them, and without any.

Two platforms (gateway, router, worker each) stand side by side. ``off`` has OpenTelemetry's SDK disabled;
``on`` samples 100 %, exports every span over OTLP to a receiver that only counts bytes, and is scraped as by
Prometheus. Rounds of the same requests go to one and the other in turn, the order changing: the median of the
rounds' paired ratios of throughput. Two sets of processes are never quite alike, so tracing is measured
alone as well: rounds on the ``on`` platform whose callers' ``traceparent`` says sampled or not in turn,
and the CPU seconds its processes use for a token.

    python benchmarks/telemetry_overhead.py --pairs 10 --json
"""

import argparse
import asyncio
import json
import secrets
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import httpx
import psutil

from penstock_testing.deployment import Deployment, deployment

MODEL = "penstock-demo"
ACCEPT = "application/openmetrics-text;version=1.0.0"
OFF = {"OTEL_SDK_DISABLED": "true"}
SERVING = ("gateway", "router-1", "worker-1")


@dataclass(frozen=True, slots=True)
class Round:
    """One round on one platform: tokens a second, and CPU seconds a token of its processes."""

    tokens_s: float
    cpu_s_token: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a round consists of."""

    requests: int
    concurrency: int
    tokens: int


class Sink(grpc.GenericRpcHandler):
    """Takes OTLP without looking into it."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler":
        """Whatever is called."""

        async def take(raw: bytes, _context: object) -> bytes:
            self.num_bytes += len(raw)
            return b""

        return grpc.unary_unary_rpc_method_handler(take)


@asynccontextmanager
async def sink() -> AsyncIterator[tuple[str, Sink]]:
    server, handler = grpc.aio.server(), Sink()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}", handler
    finally:
        await server.stop(None)


def cpu_s(platform: Deployment) -> float:
    """CPU seconds of the processes that serve."""
    spent = 0.0
    for name in SERVING:
        times = psutil.Process(platform.services[name].pid).cpu_times()
        spent += times.user + times.system
    return spent


async def one(http: httpx.AsyncClient, prompt: str, tokens: int, *, sampled: bool) -> None:
    body = {
        "model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "stream": True, "ignore_eos": True,
    }  # fmt: skip
    trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"
    async with http.stream(
        "POST", "/completions", json=body, timeout=120, headers={"traceparent": trace}
    ) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_bytes():
            pass


async def run_round(platform: Deployment, work: Work, salt: int, *, sampled: bool = True) -> Round:
    places = asyncio.Semaphore(work.concurrency)
    limits = httpx.Limits(max_connections=work.concurrency)
    async with httpx.AsyncClient(base_url=platform.gateway, limits=limits) as http:

        async def placed(number: int) -> None:
            async with places:
                await one(
                    http,
                    f"# {salt} {number}\n" + "def f(a, b):\n    " * 6,
                    work.tokens,
                    sampled=sampled,
                )

        before, began = cpu_s(platform), time.perf_counter()
        await asyncio.gather(*(placed(n) for n in range(work.requests)))
        seconds = time.perf_counter() - began
    tokens = work.requests * work.tokens
    return Round(tokens / seconds, (cpu_s(platform) - before) / tokens)


async def scrape_often(platform: Deployment) -> None:
    """As Prometheus does, every 5 s."""
    addresses = [platform.services[name].metrics for name in SERVING]
    while True:
        for address in addresses:
            request = urllib.request.Request(
                f"http://{address}/metrics", headers={"accept": ACCEPT}
            )
            await asyncio.to_thread(lambda r=request: urllib.request.urlopen(r).read())
        await asyncio.sleep(5)


async def measure(pairs: int, sampling: int, work: Work) -> dict[str, object]:
    """All rounds, and the ratios on/off."""
    rounds: dict[str, list[Round]] = {"off": [], "on": []}
    traced: dict[str, list[Round]] = {"off": [], "on": []}
    async with sink() as (endpoint, sent):
        on = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none"}
        with tempfile.TemporaryDirectory(prefix="pk-") as a, tempfile.TemporaryDirectory() as b:
            async with (
                deployment(Path(a), routers=1, workers=1, environment=OFF) as without,
                deployment(Path(b), routers=1, workers=1, environment=on) as with_it,
            ):
                platforms = {"off": without, "on": with_it}
                for platform in platforms.values():
                    await platform.live()
                    for name in ("batch", "batch-worker"):
                        await platform.services[name].stop()
                    await run_round(platform, work, -1)
                scraping = asyncio.create_task(scrape_often(with_it))
                for pair in range(pairs):
                    order = ("off", "on") if pair % 2 else ("on", "off")
                    for name in order:
                        rounds[name].append(await run_round(platforms[name], work, pair))
                    sys.stderr.write(f"\r{pair + 1}/{pairs} pairs")
                for number in range(sampling):
                    for name in ("off", "on") if number % 2 else ("on", "off"):
                        # New prompts, else the second would find the first's in the cache.
                        salt = pairs + 2 * number + (name == "on")
                        done = await run_round(with_it, work, salt, sampled=name == "on")
                        traced[name].append(done)
                    sys.stderr.write(f"\r{number + 1}/{sampling} pairs, sampled or not")
                scraping.cancel()
        num_bytes = sent.num_bytes
    return report(rounds, traced, num_bytes)


def report(
    rounds: dict[str, list[Round]], traced: dict[str, list[Round]], num_bytes: int
) -> dict[str, object]:
    """Ratios on/off."""
    paired = zip(rounds["off"], rounds["on"], strict=True)
    throughput = [on.tokens_s / off.tokens_s for off, on in paired]
    cpu = [
        on.cpu_s_token / off.cpu_s_token
        for off, on in zip(traced["off"], traced["on"], strict=True)
    ]
    whole = {name: sum(r.cpu_s_token for r in rs) for name, rs in traced.items()}
    return {
        "tokens_s": {
            name: statistics.median(r.tokens_s for r in rs) for name, rs in rounds.items()
        },
        "throughput_ratio": statistics.median(throughput),
        "throughput_quartiles": quartiles(throughput),
        "tracing_cpu_ratio": whole["on"] / whole["off"],
        "tracing_cpu_quartiles": quartiles(cpu),
        "tracing_cpu_standard_error": statistics.stdev(cpu) / len(cpu) ** 0.5,
        "otlp_bytes": num_bytes,
        "rounds": {name: [asdict(r) for r in rs] for name, rs in rounds.items()},
        "traced": {name: [asdict(r) for r in rs] for name, rs in traced.items()},
    }


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8, help="rounds on each platform, in turn")
    parser.add_argument("--sampling", type=int, default=24, help="pairs of rounds, sampled or not")
    parser.add_argument("--requests", type=int, default=32, help="requests of a round")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    work = Work(options.requests, options.concurrency, options.tokens)
    result = asyncio.run(measure(options.pairs, options.sampling, work))
    sys.stderr.write("\n")
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"tokens/s off and on: {result['tokens_s']}")
    for name in ("throughput", "tracing_cpu"):
        low, high = result[f"{name}_quartiles"]
        print(f"{name} on/off: {result[f'{name}_ratio']:.4f} (quartiles {low:.4f} {high:.4f})")
    print(f"standard error of the CPU's: {result['tracing_cpu_standard_error']:.4f}")


if __name__ == "__main__":
    main()
