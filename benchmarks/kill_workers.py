"""Kills worker processes while they stream and compares every stream with an undisturbed run.

    python benchmarks/kill_workers.py --streams 300 --mode proxy --mode lookaside

Half of the streams draw with a seed, a quarter is constrained. Streams that differ between a cold
and a warm cache without any kill are left out and counted. Prints JSON; exits with 1 on any loss.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from penstock_client import Mode
from penstock_testing.callers import chaos
from penstock_testing.processes.fleet import ProcessFleet, process_fleet


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mode", action="append", choices=["proxy", "lookaside"])
    return asyncio.run(_main(parser.parse_args()))


async def _main(options: argparse.Namespace) -> int:
    work = chaos.jobs(options.streams, options.max_tokens, options.seed)
    with tempfile.TemporaryDirectory(prefix="pk-") as directory:
        async with process_fleet(Path(directory), workers=options.workers) as fleet:
            _say(f"{len(work)} streams undisturbed")
            settled = await chaos.settled(fleet.targets[0], work, options.concurrency)
            reports = [
                await _disturbed(fleet, mode, settled, options)
                for mode in options.mode or ("proxy", "lookaside")
            ]
    sys.stdout.write(json.dumps(reports, indent=1) + "\n")
    return int(any(report["different"] for report in reports))


async def _disturbed(
    fleet: ProcessFleet,
    mode: Mode,
    settled: tuple[list[chaos.Job], list[chaos.Told]],
    options: argparse.Namespace,
) -> dict[str, object]:
    work, expected = settled
    _say(f"{len(work)} streams under fire, {mode}")
    began, streams = time.monotonic(), chaos.Streams()
    killing = asyncio.create_task(chaos.kill_at_random(fleet, streams, options.seed))
    try:
        got = await chaos.run(fleet.targets[0], mode, work, streams, options.concurrency)
    finally:
        killing.cancel()
        kills = await killing
    return {
        "mode": mode,
        "streams": len(got),
        "unsettled": options.streams - len(got),
        "kills": kills,
        "streams_hit": streams.touched,
        "different": sum(a != b for a, b in zip(got, expected, strict=True)),
        "seconds": round(time.monotonic() - began, 1),
    }


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")


if __name__ == "__main__":
    sys.exit(main())
