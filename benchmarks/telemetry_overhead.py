"""What telemetry costs: requests through the whole platform with traces of all of them, and without any.

One platform (gateway, router, worker) samples 100 % of what its callers sample, exports every span over OTLP to a
receiver that only counts bytes, and is scraped as by Prometheus. What is compared is CPU seconds of its processes,
which other load on the machine moves less than times; where they fill the machine it is throughput.

1. What tracing costs a request: rounds of short requests whose callers' ``traceparent`` says sampled or not in turn
   (first one, then the other first); a round ends when its spans are exported. Requests have the same spans however
   many tokens they have, so short ones show them with the least work around them, whose noise would hide them. The
   thread of the engine, which makes no spans, is left out for the same reason.
2. What a usual request costs: rounds of ``--tokens`` tokens, not sampled, all threads.

``tracing_share`` is the first over the second.

``--pairs N`` starts a second platform with OpenTelemetry's SDK disabled and compares throughput: rounds on both
in turn, the median of their ratios. Two sets of processes are never quite alike, so this is the coarser figure.

    python benchmarks/telemetry_overhead.py --sampling 16 --json
"""

import argparse
import asyncio
import json
import math
import os
import secrets
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path

import grpc
import httpx

from penstock_testing.deployment import Deployment, deployment

MODEL = "penstock-demo"
ACCEPT = "application/openmetrics-text;version=1.0.0"
OFF = {"OTEL_SDK_DISABLED": "true"}
SERVING = ("gateway", "router-1", "worker-1")


USUAL_EVERY = 5
SHORT_TOKENS, SHORT_CONCURRENCY = 2, 2
# Spans leave 2 s after they ended at the latest.
EXPORTED_S = 2.4


@dataclass(frozen=True, slots=True)
class Round:
    """One round on one platform: tokens a second; CPU seconds of its processes, all and beside the engine."""

    tokens_s: float
    cpu_s: float
    aside_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a round consists of."""

    requests: int
    concurrency: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How many rounds of what. No pair is begun that would end after ``within_s`` of measuring."""

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


class Clock:
    """CPU seconds of the processes that serve. ``engine`` is the thread that is not counted aside."""

    def __init__(self, platform: Deployment, engine: Path | None = None) -> None:
        self._pids = [platform.services[name].pid for name in SERVING]
        self._engine = engine

    def read(self) -> tuple[float, float]:
        """Of all threads, and of all but the engine's."""
        whole = sum(_process_s(pid) for pid in self._pids)
        return whole, whole - (_thread_s(self._engine) if self._engine else 0.0)


def _process_s(pid: int) -> float:
    # clock_getcpuclockid(3): in nanoseconds, where /proc counts in hundredths of a second.
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def _thread_s(task: Path) -> float:
    fields = (task / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


async def run_round(
    platform: Deployment, work: Work, salt: int, clock: Clock, *, sampled: bool = True
) -> Round:
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

        before, began = clock.read(), time.perf_counter()
        await asyncio.gather(*(placed(n) for n in range(work.requests)))
        seconds = time.perf_counter() - began
        await asyncio.sleep(EXPORTED_S)
    spent = [after - was for after, was in zip(clock.read(), before, strict=True)]
    return Round(work.requests * work.tokens / seconds, *spent)


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


@dataclass(slots=True)
class Results:
    """Rounds in the order of their pairs, ``off`` and ``on``."""

    platforms: dict[str, list[Round]]
    traced: dict[str, list[Round]]
    usual: list[Round]
    num_bytes: int = 0


async def measure(plan: Plan) -> Results:
    """All rounds."""
    results = Results({"off": [], "on": []}, {"off": [], "on": []}, [])
    work, short = plan.work, plan.short
    async with sink() as (endpoint, sent), AsyncExitStack() as stack:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRICS_EXPORTER": "none"}
        running = await stack.enter_async_context(started(environment))
        clock = await warm_up(running, work)
        scraping = asyncio.create_task(scrape_often(running))
        budget = Budget(plan.within_s)
        for number in range(plan.sampling):
            if number and not budget.allows_another():
                break
            for name in ("off", "on") if number % 2 else ("on", "off"):
                # New prompts, else the second would find the first's in the cache.
                salt = 2 * number + (name == "on")
                done = await run_round(running, short, salt, clock, sampled=name == "on")
                results.traced[name].append(done)
            sys.stderr.write(f"\r{number + 1}/{plan.sampling} pairs, sampled or not")
            if number % USUAL_EVERY == 0:
                usual = await run_round(running, work, -3 - number, clock, sampled=False)
                results.usual.append(usual)
        if plan.pairs:
            without = await stack.enter_async_context(started(OFF))
            sides = {
                "off": (without, await warm_up(without, work)),
                "on": (running, clock),
            }
            for pair in range(plan.pairs):
                if pair and not budget.allows_another():
                    break
                for name in ("off", "on") if pair % 2 else ("on", "off"):
                    platform, its_clock = sides[name]
                    done = await run_round(platform, work, pair, its_clock)
                    results.platforms[name].append(done)
                sys.stderr.write(f"\r{pair + 1}/{plan.pairs} pairs on two platforms")
        scraping.cancel()
        results.num_bytes = sent.num_bytes
    return results


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


async def warm_up(platform: Deployment, work: Work) -> Clock:
    """A clock that knows the engine's thread: the worker's busiest while requests are answered."""
    worker = platform.services["worker-1"].pid
    await run_round(platform, work, -1, Clock(platform))
    tasks = [Path(path) for path in glob(f"/proc/{worker}/task/*")]
    before = {task: _thread_s(task) for task in tasks}
    await run_round(platform, work, -2, Clock(platform))
    return Clock(platform, max(tasks, key=lambda task: _thread_s(task) - before[task]))


def report(results: Results, work: Work, short: Work) -> dict[str, object]:
    """Costs, shares and ratios."""
    paired = list(zip(results.traced["off"], results.traced["on"], strict=True))
    usual = [1e3 * done.cpu_s / work.requests for done in results.usual]
    costs = [1e6 * (on.aside_s - off.aside_s) / short.requests for off, on in paired]
    mean_ms = statistics.mean(usual)
    told: dict[str, object] = {
        "short_request_us": 1e6 * statistics.mean(off.cpu_s for off, _ in paired) / short.requests,
        "tracing_us": summary(costs),
        "usual_request_ms": summary(usual),
        "tracing_share": summary([cost / 1e3 / mean_ms for cost in costs]),
    }
    if results.platforms["on"]:
        sides = zip(results.platforms["off"], results.platforms["on"], strict=True)
        told["throughput"] = summary([on.tokens_s / off.tokens_s for off, on in sides])
    told["otlp_bytes"] = results.num_bytes
    for kind in ("traced", "platforms"):
        told[kind] = {
            name: [asdict(r) for r in rounds] for name, rounds in getattr(results, kind).items()
        }
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
    parser.add_argument("--sampling", type=int, default=16, help="pairs of rounds, sampled or not")
    parser.add_argument("--requests", type=int, default=48, help="usual requests of a round")
    parser.add_argument("--short", type=int, default=200, help="short requests of a round")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds; fewer pairs then")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
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
