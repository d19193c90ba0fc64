"""Workers killed with -9 while they stream: every stream completes, token for token as undisturbed."""

import asyncio
import tempfile
from pathlib import Path

import pytest

from penstock_client import Mode
from penstock_testing.callers import chaos
from penstock_testing.processes.fleet import process_fleet

pytestmark = pytest.mark.process
COUNT = 40


@pytest.mark.timeout(300)
async def test_no_killed_worker_costs_a_token_in_either_mode() -> None:
    modes: tuple[Mode, ...] = ("proxy", "lookaside")
    with tempfile.TemporaryDirectory(prefix="pk-") as directory:
        async with process_fleet(Path(directory)) as fleet:
            target = fleet.targets[0]
            work, expected = await chaos.settled(target, chaos.jobs(COUNT))
            assert len(work) >= 0.9 * COUNT
            for seed, mode in enumerate(modes):
                streams = chaos.Streams()
                killing = asyncio.create_task(chaos.kill_at_random(fleet, streams, seed))
                try:
                    got = await chaos.run(target, mode, work, streams)
                finally:
                    killing.cancel()
                    kills = await killing
                assert got == expected
                assert kills > 0
                assert streams.touched > 0
