"""Following a worker: what it held is let go of without holding up decisions."""

import asyncio

import grpc
import pytest

from penstock_core.blocks import pack_hashes
from penstock_router import frames
from penstock_router.decisions.book import DecisionBook
from penstock_router.fleet import follower
from penstock_router.fleet.changes import Changes
from penstock_router.fleet.follower import Follower, Subscription
from penstock_router.fleet.tracked import Picture, TrackedWorker
from penstock_router.metrics import RouterMetrics

CHAINS = 5000


def met_worker(picture: Picture) -> TrackedWorker:
    """One that holds so many chains of one block."""
    worker = TrackedWorker("127.0.0.1:1", picture)
    blocks = pack_hashes(range(100, 100 + CHAINS))
    digest = 0
    for block in range(100, 100 + CHAINS):
        digest ^= block
    told: tuple[frames.Frame, ...] = (
        frames.SnapshotBegin("e", 1, CHAINS, frames.WorkerFacts("w", "e", "host:1")),
        frames.SnapshotChunk("e", 0, blocks, (0,) * CHAINS, (7,) * CHAINS),
        frames.SnapshotEnd("e", digest, ()),
    )
    for frame in told:
        for _ in worker.sync.apply(frame, 0.0):
            pass
    return worker


async def test_a_worker_that_leaves_is_forgotten_between_decisions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = Picture(DecisionBook(), RouterMetrics(), lambda: 0.0)
    worker = met_worker(picture)
    assert len(picture.index) == CHAINS
    monkeypatch.setattr(follower, "_SLICE_S", 0.0)
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        following = Follower(worker, Subscription(channel, "router"), picture, Changes())
        task = asyncio.create_task(following.run())
        await asyncio.sleep(0)
        task.cancel()
        turns = 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
    assert len(picture.index) == 0
    assert turns >= CHAINS // 512, "others have their turns meanwhile"
