"""Malformed requests end as refusals: nothing breaks, nothing is left behind.

``benchmarks/fuzz.py`` sends ten thousand.
"""

import logging
from pathlib import Path

import pytest

from penstock_testing.callers.fuzz import Fuzzer
from penstock_testing.servers.guarded import guarded_platform

COUNT = 480


async def test_malformed_requests_crash_nothing_and_leave_nothing_behind(
    tmp_path: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with guarded_platform(tmp_path, redis_url) as platform:
        report = await Fuzzer(platform, seed=7).run(COUNT)
    defects = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert report.defects == []
    assert defects == []
    assert report.count == COUNT
    assert report.open_requests == 0
    assert report.tasks[1] <= report.tasks[0] + 4
    assert report.descriptors[1] <= report.descriptors[0] + 4
