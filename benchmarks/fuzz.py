"""Ten thousand malformed requests at a whole platform in this process; prints what came of them.

python benchmarks/fuzz.py --count 10000 --seed 1 --json
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from penstock_testing.callers.fuzz import Fuzzer, Report
from penstock_testing.processes.redis import redis_server
from penstock_testing.servers.guarded import guarded_platform


async def run(count: int, seed: int) -> Report:
    with tempfile.TemporaryDirectory(prefix="penstock-fuzz-") as folder, redis_server() as redis:
        async with guarded_platform(Path(folder), redis) as platform:
            return await Fuzzer(platform, seed).run(count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    began = time.perf_counter()
    report = asyncio.run(run(options.count, options.seed))
    seconds = time.perf_counter() - began
    if options.json:
        print(json.dumps({**asdict(report), "seconds": seconds}, indent=2))
    else:
        for kind, number in report.answers.most_common():
            print(f"{number:7} {kind}")
        tenths = " ".join(f"{mib:.1f}" for mib in report.memory_by_tenth)
        print(f"MiB after each tenth: {tenths}")
        for name in ("tasks", "descriptors", "memory_mib"):
            before, after = getattr(report, name)
            print(f"{name}: {before:.0f} -> {after:.0f}")
        print(
            f"open requests {report.open_requests}, defects {len(report.defects)}, {seconds:.0f} s"
        )
        print("\n".join(report.defects[:20]))
    return 1 if report.defects or report.open_requests else 0


if __name__ == "__main__":
    sys.exit(main())
