"""What telemetry costs: requests through the whole platform with traces of all of them, and without any.

One platform (gateway, router, worker) samples 100 % of what its callers sample, exports every span over OTLP to a
receiver that only counts bytes, and is scraped as by Prometheus. What is compared is CPU seconds of its processes,
which other load on the machine moves less than times; where they fill the machine it is throughput.

1. What tracing costs a request: many blocks of a few short requests each, whose callers' ``traceparent`` says sampled
   or not in turn (first one, then the other first), so that what else the machine does falls on both alike. Requests
   have the same spans however many tokens they have, so short ones show them with the least work around them, whose
   noise would hide them. Two kinds of threads are left out of that difference: the engine's, which makes no spans, and
   those that export, since what they do for a block comes seconds later; all they do is added instead.
2. What a usual request costs: rounds of ``--tokens`` tokens, not sampled, all threads.

``tracing_share`` is the first over the second.

``--pairs N`` starts a second platform with OpenTelemetry's SDK disabled and compares throughput and CPU: rounds on both
in turn, the median of their ratios. Two sets of processes are never quite alike, so this is the coarser figure; it
has in it what metrics cost.

    python benchmarks/telemetry_overhead.py --sampling 400 --json
"""

import argparse
import asyncio
import json
import math
import secrets
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import grpc
import httpx

from penstock_testing.deployment import Deployment, deployment

MODEL = "penstock-demo"
ACCEPT = "application/openmetrics-text;version=1.0.0"
OFF = {"OTEL_SDK_DISABLED": "true"}
SERVING = ("gateway", "router-1", "worker-1")


USUAL_EVERY = 100
SHORT_TOKENS, SHORT_CONCURRENCY, WARM_REQUESTS = 2, 2, 100
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
    """How many pairs of what. None is begun that would end after ``within_s`` of measuring."""

    pairs: int
    sampling: int
    work: Work
    short: Work
    within_s: float


class Budget:
    """Whether there is time for another round, going by the longest so far."""

    def __init__(self, within_s: float) -> None:
        self._ends = time.monotonic() + within_s
        self._began = time.monotonic()
        self._longest = 0.0

    def allows_another(self) -> bool:
        """To be asked before each."""
        now = time.monotonic()
        self._longest, self._began = max(self._longest, now - self._began), now
        return now + self._longest < self._ends


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


async def run_round(
    platform: Deployment, work: Work, salt: str, clock: Clock, *, sampled: bool = True
) -> Round:
    """A round, until its spans are exported."""
    async with caller(platform, work) as http:
        before, began = clock.process_s(), time.perf_counter()
        await ask(http, work, salt, sampled=sampled)
        seconds = time.perf_counter() - began
        await asyncio.sleep(EXPORTED_S)
    return Round(work.requests * work.tokens / seconds, clock.process_s() - before)


def caller(platform: Deployment, work: Work) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=work.concurrency)
    return httpx.AsyncClient(base_url=platform.gateway, limits=limits)


async def scrape_often(platform: Deployment) -> None:
    """As Prometheus does, every 5 s."""
    addresses = [platform.services[name].metrics for name in SERVING]
    while True:
        for address in addresses:
            request = urllib.request.Request(
                f"http://{address}/metrics", headers={"accept": ACCEPT}
            )
            await asyncio.to_thread(_read, request)
        await asyncio.sleep(5)


def _read(request: urllib.request.Request) -> None:
    with urllib.request.urlopen(request) as response:
        response.read()


@dataclass(slots=True)
class Results:
    """Rounds in the order of their pairs; of blocks the CPU seconds, not sampled and sampled."""

    blocks: list[tuple[float, float]] = field(default_factory=list)
    export_s: float = 0.0
    usual: list[Round] = field(default_factory=list)
    off: list[Round] = field(default_factory=list)
    on: list[Round] = field(default_factory=list)
    num_bytes: int = 0


async def measure(plan: Plan) -> Results:
    """All rounds."""
    results = Results()
    async with sink() as (endpoint, sent), AsyncExitStack() as stack:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none"}
        running = await stack.enter_async_context(started(environment))
        clock = await warm_up(running, plan)
        scraping = asyncio.create_task(scrape_often(running))
        await compare_sampling(running, clock, plan, results)
        if plan.pairs:
            without = await stack.enter_async_context(started(OFF))
            await compare_platforms((running, without), clock, plan, results)
        scraping.cancel()
        results.num_bytes = sent.num_bytes
    return results


async def compare_sampling(running: Deployment, clock: Clock, plan: Plan, results: Results) -> None:
    """Blocks in turn; now and then a usual round."""
    budget, exported = Budget(plan.within_s), clock.export_s()
    async with caller(running, plan.short) as http:
        for number in range(plan.sampling):
            if number and not budget.allows_another():
                break
            spent = {}
            for sampled in (False, True) if number % 2 else (True, False):
                before = clock.request_s()
                await ask(http, plan.short, f"{number} {sampled}", sampled=sampled)
                spent[sampled] = clock.request_s() - before
            results.blocks.append((spent[False], spent[True]))
            if number % USUAL_EVERY == 0:
                salt = f"usual {number}"
                done = await run_round(running, plan.work, salt, clock, sampled=False)
                results.usual.append(done)
                sys.stderr.write(f"\r{number + 1}/{plan.sampling} pairs, sampled or not")
    await asyncio.sleep(EXPORTED_S)
    results.export_s = clock.export_s() - exported


async def compare_platforms(
    platforms: tuple[Deployment, Deployment], clock: Clock, plan: Plan, results: Results
) -> None:
    """Rounds on the one with telemetry and the one without."""
    running, without = platforms
    budget = Budget(plan.within_s)
    sides = {"on": (running, clock, results.on), "off": (without, Clock(without), results.off)}
    await run_round(without, plan.work, "warm", sides["off"][1])
    for pair in range(plan.pairs):
        if pair and not budget.allows_another():
            break
        for name in ("off", "on") if pair % 2 else ("on", "off"):
            platform, its_clock, rounds = sides[name]
            rounds.append(await run_round(platform, plan.work, f"pair {pair}", its_clock))
        sys.stderr.write(f"\r{pair + 1}/{plan.pairs} pairs on two platforms")


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


async def warm_up(platform: Deployment, plan: Plan) -> Clock:
    """A clock that knows the engine's thread, the busiest, and those that work only if spans are made."""
    clock, few = Clock(platform), Work(WARM_REQUESTS, SHORT_CONCURRENCY, SHORT_TOKENS)
    await run_round(platform, plan.work, "warm", clock)
    spent = []
    for sampled in (False, True):
        before = clock.threads()
        await run_round(platform, few, f"warm {sampled}", clock, sampled=sampled)
        spent.append({task: now - before.get(task, 0.0) for task, now in clock.threads().items()})
    off, on = spent
    clock.engine = max(off, key=lambda task: off[task])
    for pid in {task.parts[2] for task in on}:
        idle = [t for t in on if t.parts[2] == pid and off.get(t, 1.0) < WARM_REQUESTS * IDLE_S]
        clock.exporters.append(max(idle, key=lambda task: on[task]))
    told = ", ".join(f"{1e3 * on[task]:.1f}" for task in clock.exporters)
    sys.stderr.write(f"threads that export took {told} ms for {WARM_REQUESTS} requests\n")
    return clock


def report(results: Results, work: Work, short: Work) -> dict[str, object]:
    """Costs, shares and ratios."""
    requests, usual = short.requests, [1e3 * done.cpu_s / work.requests for done in results.usual]
    export_us = 1e6 * results.export_s / (requests * len(results.blocks))
    costs = [1e6 * (on - off) / requests + export_us for off, on in results.blocks]
    mean_ms = statistics.mean(usual)
    told: dict[str, object] = {
        "pairs": len(costs),
        "short_request_us": 1e6 * statistics.mean(off for off, _ in results.blocks) / requests,
        "export_us": export_us,
        "tracing_us": summary(costs),
        "usual_request_ms": summary(usual),
        "tracing_share": summary([cost / 1e3 / mean_ms for cost in costs]),
    }
    if results.on:
        sides = list(zip(results.off, results.on, strict=True))
        told["throughput"] = summary([on.tokens_s / off.tokens_s for off, on in sides])
        told["cpu"] = summary([on.cpu_s / off.cpu_s for off, on in sides])
    told["otlp_bytes"] = results.num_bytes
    return told


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
    parser.add_argument("--pairs", type=int, default=0, help="rounds on two platforms, in turn")
    parser.add_argument("--sampling", type=int, default=400, help="pairs of blocks, sampled or not")
    parser.add_argument("--requests", type=int, default=48, help="usual requests of a round")
    parser.add_argument("--short", type=int, default=8, help="short requests of a block")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds; fewer pairs then")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.sampling < 1:
        parser.error("--sampling must be at least 1: the blocks tell what spans cost")
    work = Work(options.requests, options.concurrency, options.tokens)
    short = Work(options.short, SHORT_CONCURRENCY, SHORT_TOKENS)
    plan = Plan(options.pairs, options.sampling, work, short, options.within)
    result = report(asyncio.run(measure(plan)), work, short)
    sys.stderr.write("\n")
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        if isinstance(value, float):
            print(f"{name}: {value:.3f}")
        elif isinstance(value, dict) and "mean" in value:
            quarters = f"quartiles {value['low']:.4f} {value['high']:.4f}"
            print(f"{name}: {value['mean']:.4f} +- {value['error']:.4f} ({quarters})")


if __name__ == "__main__":
    main()
