"""What telemetry costs: requests through the whole platform with all of it, without traces, and without any.

Two platforms (gateway, router, worker each): one samples 100 % of what its callers sample, exports every span over OTLP
to a receiver that only counts bytes, and has metrics as scraped by Prometheus; the other has OpenTelemetry's SDK
disabled. What is compared is CPU seconds of their processes, which other load on the machine moves less than times;
where they fill the machine it is throughput.

1. What telemetry costs a request: many blocks of a few short requests each, in turn (in all orders) on the platform
   without telemetry, on the one with it whose callers' ``traceparent`` says not sampled, and on that sampled, so that
   what else the machine does falls on all alike. Requests have the same spans and metrics however many tokens they
   have, so short ones show them with the least work around them, whose noise would hide them. Two kinds of threads are
   left out of those differences: the engines', which make no spans and record nothing, and those that export, since
   what they do for a block comes seconds later; all they do is added instead. So is what Prometheus' scrapes cost.
2. What a usual request costs, and the throughput: rounds of ``--tokens`` tokens on both platforms, all threads.

``tracing_share`` and ``telemetry_share`` (traces, metrics, scrapes) are the first over the second. Two sets of processes
are never quite alike, so both platforms are started afresh ``--platforms`` times; the errors are of the means over these.

    python benchmarks/telemetry_overhead.py --platforms 8 --json
"""

import argparse
import asyncio
import itertools
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import grpc
import httpx

from penstock_testing.processes.deployment import Deployment, deployment

MODEL = "penstock-demo"
ACCEPT = "application/openmetrics-text;version=1.0.0"
OFF = {"OTEL_SDK_DISABLED": "true"}
SERVING = ("gateway", "router-1", "worker-1")

USUAL_EVERY = 50
SHORT_TOKENS, SHORT_CONCURRENCY, WARM_REQUESTS = 2, 2, 100
SCRAPES, SCRAPED_EVERY_S = 20, 5.0
# Spans leave 5 s after they ended at the latest.
EXPORTED_S = 5.5
# A thread that exports does nothing while nothing is sampled: less than this for each request.
IDLE_S = 30e-6


@dataclass(frozen=True, slots=True)
class Round:
    """One round on one platform: tokens a second, and CPU seconds of its processes."""

    tokens_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a round or block consists of."""

    requests: int
    concurrency: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How often both platforms are started, and so many blocks each way between."""

    platforms: int
    blocks: int
    work: Work
    short: Work


class Sink(grpc.GenericRpcHandler):
    """Takes OTLP without looking into it."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
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


class Clock:
    """CPU seconds of the processes that serve."""

    def __init__(self, platform: Deployment) -> None:
        self._pids = [platform.services[name].pid for name in SERVING]
        self.engine: Path | None = None
        self.exporters: list[Path] = []

    def process_s(self) -> float:
        """Of all threads."""
        return sum(_process_s(pid) for pid in self._pids)

    def export_s(self) -> float:
        """Of the threads that export."""
        return sum(_thread_s(task) for task in self.exporters)

    def request_s(self) -> float:
        """Of all but those and the engine's."""
        engine_s = _thread_s(self.engine) if self.engine else 0.0
        return self.process_s() - engine_s - self.export_s()

    def threads(self) -> dict[Path, float]:
        """Of each thread."""
        tasks = [Path(path) for pid in self._pids for path in glob(f"/proc/{pid}/task/*")]
        return {task: _thread_s(task) for task in tasks}


def _process_s(pid: int) -> float:
    # clock_getcpuclockid(3): in nanoseconds, where /proc/PID/stat counts in hundredths of a second.
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def _thread_s(task: Path) -> float:
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:
        return 0.0  # it has ended


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


async def ask(http: httpx.AsyncClient, work: Work, salt: str, *, sampled: bool) -> None:
    """All requests of a round or block, with prompts that no other has: else they would be cached."""
    places = asyncio.Semaphore(work.concurrency)

    async def placed(number: int) -> None:
        async with places:
            prompt = f"# {salt} {number}\n" + "def f(a, b):\n    " * 6
            await one(http, prompt, work.tokens, sampled=sampled)

    await asyncio.gather(*(placed(n) for n in range(work.requests)))


async def run_round(platform: Deployment, work: Work, salt: str, clock: Clock) -> Round:
    """A round of sampled requests, until its spans are exported."""
    async with caller(platform, work) as http:
        before, began = clock.process_s(), time.perf_counter()
        await ask(http, work, salt, sampled=True)
        seconds = time.perf_counter() - began
        await asyncio.sleep(EXPORTED_S)
    return Round(work.requests * work.tokens / seconds, clock.process_s() - before)


def caller(platform: Deployment, work: Work) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=work.concurrency)
    return httpx.AsyncClient(base_url=platform.gateway, limits=limits)


async def scrape_cpu_s(platform: Deployment, clock: Clock) -> float:
    """CPU seconds that a scrape of all processes takes them."""
    before = clock.process_s()
    for _ in range(SCRAPES):
        for name in SERVING:
            url = f"http://{platform.services[name].metrics}/metrics"
            request = urllib.request.Request(url, headers={"accept": ACCEPT})
            await asyncio.to_thread(_read, request)
    return (clock.process_s() - before) / SCRAPES


def _read(request: urllib.request.Request) -> None:
    with urllib.request.urlopen(request) as response:
        response.read()


@dataclass(frozen=True, slots=True)
class Side:
    """A platform under one kind of requests."""

    platform: Deployment
    clock: Clock
    sampled: bool


@dataclass(slots=True)
class Results:
    """What one start of both platforms showed: CPU seconds of each block by side, and of what is added."""

    blocks: list[Mapping[str, float]] = field(default_factory=list)
    export_s: float = 0.0
    scrape_s: float = 0.0
    off: list[Round] = field(default_factory=list)
    on: list[Round] = field(default_factory=list)


async def measure(plan: Plan) -> list[Results]:
    """All starts."""
    results = []
    async with sink() as (endpoint, sent):
        told = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none"}
        for number in range(plan.platforms):
            before = sent.num_bytes
            async with AsyncExitStack() as stack:
                # Which is started first may matter, so they take turns in that, too.
                kinds = {"on": told, "off": OFF} if number % 2 else {"off": OFF, "on": told}
                up = {k: await stack.enter_async_context(started(e)) for k, e in kinds.items()}
                results.append(await compare(up["on"], up["off"], plan))
            assert sent.num_bytes > before, "no spans were exported"
            sys.stderr.write(f"; {number + 1}/{plan.platforms} starts\n")
    return results


async def compare(running: Deployment, without: Deployment, plan: Plan) -> Results:
    """Blocks on all sides in turn; now and then a usual round."""
    results = Results()
    on, off = await warm_up(running, plan), await warm_up(without, plan, exports=False)
    results.scrape_s = await scrape_cpu_s(running, on)
    sides = {
        "off": Side(without, off, sampled=True),
        "unsampled": Side(running, on, sampled=False),
        "on": Side(running, on, sampled=True),
    }
    orders = itertools.cycle(itertools.permutations(sides))
    exported = on.export_s()
    for number, order in zip(range(plan.blocks), orders, strict=False):
        results.blocks.append({n: await block_s(sides[n], plan, f"{number} {n}") for n in order})
        sys.stderr.write(f"\r{number + 1}/{plan.blocks} blocks")
    await asyncio.sleep(EXPORTED_S)
    results.export_s = on.export_s() - exported
    for number in range(0, plan.blocks, USUAL_EVERY):
        for rounds, side in ((results.off, sides["off"]), (results.on, sides["on"])):
            salt = f"usual {number}"
            rounds.append(await run_round(side.platform, plan.work, salt, side.clock))
    return results


async def block_s(side: Side, plan: Plan, salt: str) -> float:
    """CPU seconds of a block of short requests."""
    async with caller(side.platform, plan.short) as http:
        before = side.clock.request_s()
        await ask(http, plan.short, salt, sampled=side.sampled)
        return side.clock.request_s() - before


@asynccontextmanager
async def started(environment: dict[str, str]) -> AsyncIterator[Deployment]:
    """A platform without its batch service."""
    with tempfile.TemporaryDirectory(prefix="pk-") as folder:
        async with deployment(
            Path(folder), routers=1, workers=1, environment=environment
        ) as running:
            await running.live()
            for name in ("batch", "batch-worker"):
                await running.services[name].stop()
            yield running


async def warm_up(platform: Deployment, plan: Plan, *, exports: bool = True) -> Clock:
    """A clock that knows the engine's thread, the busiest, and those that work only if spans are made."""
    clock, few = Clock(platform), Work(WARM_REQUESTS, SHORT_CONCURRENCY, SHORT_TOKENS)
    await run_round(platform, plan.work, "warm", clock)
    spent = []
    for sampled in (False, True):
        before = clock.threads()
        async with caller(platform, few) as http:
            await ask(http, few, f"warm {sampled}", sampled=sampled)
            await asyncio.sleep(EXPORTED_S)
        spent.append({task: now - before.get(task, 0.0) for task, now in clock.threads().items()})
    off, on = spent
    clock.engine = max(off, key=lambda task: off[task])
    for pid in {task.parts[2] for task in on} if exports else ():
        idle = [t for t in on if t.parts[2] == pid and off.get(t, 1.0) < WARM_REQUESTS * IDLE_S]
        clock.exporters.append(max(idle, key=lambda task: on[task]))
    told = ", ".join(f"{1e3 * on[task]:.1f}" for task in clock.exporters)
    if exports:
        sys.stderr.write(f"threads that export took {told} ms for {WARM_REQUESTS} requests\n")
    return clock


def report(results: Sequence[Results], work: Work, short: Work) -> dict[str, object]:
    """Costs, shares and ratios, each over the starts."""
    costs = [costs_us(one, short) for one in results]
    usual_ms = [1e3 * statistics.mean(r.cpu_s for r in one.off) / work.requests for one in results]
    # Scrapes come by the clock: what they take of all cores is theirs, however many requests there are.
    scrapes = [one.scrape_s / SCRAPED_EVERY_S / (os.cpu_count() or 1) for one in results]
    tracing = [c["tracing"] / 1e3 / ms for c, ms in zip(costs, usual_ms, strict=True)]
    rest = [c["rest"] / 1e3 / ms for c, ms in zip(costs, usual_ms, strict=True)]
    told: dict[str, object] = {
        f"{name}_us": summary([cost[name] for cost in costs]) for name in costs[0]
    }
    told["usual_request_ms"] = summary(usual_ms)
    told["scrape_ms"] = summary([1e3 * one.scrape_s for one in results])
    told["tracing_share"] = summary(tracing)
    told["telemetry_share"] = summary([sum(s) for s in zip(tracing, rest, scrapes, strict=True)])
    told["throughput"] = summary([_ratio(one) for one in results])
    return told


def costs_us(one: Results, short: Work) -> dict[str, float]:
    """Of a request: without any telemetry, what traces add, and what all the rest adds."""
    mean = {n: statistics.mean(b[n] for b in one.blocks) for n in ("off", "unsampled", "on")}
    export_s = one.export_s / len(one.blocks)
    costs = {
        "short_request": mean["off"],
        "export": export_s,
        "tracing": mean["on"] - mean["unsampled"] + export_s,
        "rest": mean["unsampled"] - mean["off"],
    }
    return {name: 1e6 * seconds / short.requests for name, seconds in costs.items()}


def _ratio(one: Results) -> float:
    """Tokens a second with telemetry over those without."""
    return statistics.mean(r.tokens_s for r in one.on) / statistics.mean(
        r.tokens_s for r in one.off
    )


def summary(values: Sequence[float]) -> dict[str, float]:
    """Where the pairs lie; ``error`` is the standard error of the mean."""
    low, high = quartiles(values)
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {
        "mean": statistics.mean(values), "error": error,
        "median": statistics.median(values), "low": low, "high": high,
    }  # fmt: skip


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platforms", type=int, default=4, help="starts of both platforms")
    parser.add_argument("--blocks", type=int, default=100, help="of each side, after each start")
    parser.add_argument("--requests", type=int, default=48, help="usual requests of a round")
    parser.add_argument("--short", type=int, default=8, help="short requests of a block")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if min(options.platforms, options.blocks) < 1:
        parser.error("--platforms and --blocks must be at least 1")
    work = Work(options.requests, options.concurrency, options.tokens)
    short = Work(options.short, SHORT_CONCURRENCY, SHORT_TOKENS)
    plan = Plan(options.platforms, options.blocks, work, short)
    result = report(asyncio.run(measure(plan)), work, short)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        assert isinstance(value, dict)
        quarters = f"quartiles {value['low']:.4f} {value['high']:.4f}"
        print(f"{name}: {value['mean']:.4f} +- {value['error']:.4f} ({quarters})")


if __name__ == "__main__":
    main()
