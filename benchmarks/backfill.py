"""What interactive requests notice of batch work that fills the slack.

    python benchmarks/backfill.py --workers 1 --share 0.4 --seconds 40 --rounds 3

A router process before worker processes with the demo model. First each kind of request alone, as many
as are taken: what the engines can do. Then interactive requests arrive by chance (Poisson) at a share
of that, alone and with batch work waiting all the time, in turn, with the same arrivals. Capacity in use
is the sum of both kinds' rates, each against its rate alone. Prints JSON: 99th percentiles of the time to
first token, their ratio, and the share of capacity in use. Both cores of a small machine are in use,
so let nothing else run.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock_client import AsyncClient, Completed, Delta, GenerateOptions, Timing
from penstock_client.options import Priority
from penstock_testing.processes.fleet import process_fleet

WARM_S = 3.0
_FRESH = random.SystemRandom()
BATCH_WAITING = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request; lengths vary by half around these."""

    priority: Priority
    prompt_tokens: int
    max_tokens: int


@dataclass(slots=True)
class Served:
    """Times to first token of those that began after the warm-up, and how many have ended since.

    ``timings`` are what their worker tells of the same, and ``elsewhere_s`` what is left: the way there and back.
    """

    since: float
    ttft_s: list[float] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    elsewhere_s: list[float] = field(default_factory=list)
    ended: int = 0

    def add(self, others: "Served") -> None:
        """Those of another round."""
        self.ttft_s += others.ttft_s
        self.timings += others.timings
        self.elsewhere_s += others.elsewhere_s


async def serve(client: AsyncClient, kind: Kind, rng: random.Random, served: Served) -> None:
    """Ask once, with a prompt that nobody has cached; the lengths are by ``rng``."""
    length = _vary(kind.prompt_tokens, rng)
    prompt = [_FRESH.randrange(100, 4000) for _ in range(length)]
    options = GenerateOptions(
        max_tokens=_vary(kind.max_tokens, rng),
        ignore_eos=True,
        temperature=0.0,
        priority=kind.priority,
    )
    began, ttft_s = time.monotonic(), None
    async for event in client.stream(prompt, options=options, timeout_s=300.0):
        if ttft_s is None and isinstance(event, Delta):
            ttft_s = time.monotonic() - began
        if isinstance(event, Completed) and ttft_s is not None and began >= served.since:
            served.ttft_s.append(ttft_s)
            served.timings.append(event.timing)
            served.elsewhere_s.append(ttft_s - event.timing.queue_s - event.timing.prefill_s)
    if time.monotonic() >= served.since:
        served.ended += 1


async def keep_waiting(client: AsyncClient, kind: Kind, count: int, served: Served) -> None:
    """Ask without end, ``count`` at a time; until cancelled."""

    async def one_after_another(seed: int) -> None:
        rng = random.Random(seed)
        while True:
            await serve(client, kind, rng, served)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one_after_another(number))


async def arrive(
    client: AsyncClient, kind: Kind, rate: float, until: float, seed: int, served: Served
) -> None:
    """Ask at a rate, by chance, and see all of them end."""
    rng = random.Random(seed)
    async with asyncio.TaskGroup() as group:
        while time.monotonic() < until:
            group.create_task(serve(client, kind, random.Random(rng.random()), served))
            await asyncio.sleep(rng.expovariate(rate))


async def alone(client: AsyncClient, kind: Kind, count: int, seconds: float) -> float:
    """Requests a second when nothing else is asked for."""
    served = Served(time.monotonic() + WARM_S)
    asking = asyncio.create_task(keep_waiting(client, kind, count, served))
    await asyncio.sleep(WARM_S + seconds)
    ended = served.ended
    await _cancel(asking)
    return ended / seconds


async def interactive(
    client: AsyncClient, kinds: Sequence[Kind], rate: float, seconds: float, seed: int, fill: bool
) -> tuple[Served, float, float]:
    """What became of the arrivals; requests a second of both kinds."""
    since = time.monotonic() + WARM_S
    online, offline = Served(since), Served(since)
    filling = asyncio.create_task(
        keep_waiting(client, kinds[1], BATCH_WAITING if fill else 0, offline)
    )
    await arrive(client, kinds[0], rate, since + seconds, seed, online)
    took = time.monotonic() - since
    ended = offline.ended
    await _cancel(filling)
    return online, online.ended / took, ended / took


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


async def measure(client: AsyncClient, options: argparse.Namespace) -> dict[str, float]:
    """All of it, against a running fleet."""
    online = Kind("interactive", options.prompt, options.max_tokens)
    offline = Kind("batch", options.batch_prompt, options.batch_max_tokens)
    most_online = await alone(client, online, 16 * options.workers, options.seconds)
    most_offline = await alone(
        client, offline, BATCH_WAITING * options.workers, options.seconds / 2
    )
    rate = options.share * most_online
    quiet, filled = Served(0.0), Served(0.0)
    used: list[float] = []
    for seed in range(options.rounds):
        for fill in (False, True):
            served, got_online, got_offline = await interactive(
                client, (online, offline), rate, options.seconds, seed, fill
            )
            (filled if fill else quiet).add(served)
            if fill:
                used.append(got_online / most_online + got_offline / most_offline)
    report = {
        "capacity_interactive_per_s": most_online,
        "capacity_batch_per_s": most_offline,
        "capacity_used": statistics.mean(used),
        "requests": float(len(quiet.ttft_s)),
    }
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99)):
        before, after = _percentile(quiet.ttft_s, percent), _percentile(filled.ttft_s, percent)
        report |= {f"ttft_{name}_s": before, f"ttft_{name}_filled_s": after}
        report[f"ttft_{name}_ratio"] = after / before
    for name, served in (("", quiet), ("_filled", filled)):
        report[f"engine_queue_p50{name}_s"] = statistics.median(t.queue_s for t in served.timings)
        report[f"engine_prefill_p50{name}_s"] = statistics.median(
            t.prefill_s for t in served.timings
        )
        report[f"elsewhere_p50{name}_s"] = statistics.median(served.elsewhere_s)
    return report


def _vary(length: int, rng: random.Random) -> int:
    return round(length * rng.uniform(0.5, 1.5))


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def run(options: argparse.Namespace) -> int:
    """Start the processes, measure, print; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="pb-") as name:
        settings = {"DTYPE": "bfloat16", "KV_MEMORY_MIB": "512", "MODEL": options.model}
        async with (
            process_fleet(Path(name), workers=options.workers, worker_settings=settings) as fleet,
            AsyncClient(fleet.targets[0]) as client,
        ):
            report = await measure(client, options)
    sys.stdout.write(json.dumps({k: round(v, 4) for k, v in report.items()}, indent=1) + "\n")
    return 0


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="demo or a directory")
    parser.add_argument("--workers", type=int, default=1, help="one core each")
    parser.add_argument("--share", type=float, default=0.4, help="of capacity that is interactive")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="alone and filled, in turn")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of an interactive prompt")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of its answer")
    parser.add_argument("--batch-prompt", type=int, default=512, help="tokens of a batch prompt")
    parser.add_argument("--batch-max-tokens", type=int, default=128, help="tokens of its answer")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
