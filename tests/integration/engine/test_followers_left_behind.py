"""A constrained sample that ends while a thread of the kernel still looks for what could follow it."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock_engine.api import Constraint, EngineRequest, Sampling
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.fused.following import FollowedMasks, Follower
from penstock_engine.native.settings import NativeSettings
from penstock_engine.native.structured.grammars import Followed
from penstock_engine.native.structured.llguidance_c import CMatcher
from penstock_engine.native.structured.vocabulary import Vocabulary
from penstock_testing.engines.checkpoints import write_checkpoint
from penstock_testing.engines.kernel import kernel_or_lack

TOKENS = [*(bytes([value]) for value in range(256)), b"name", b""]
FORCED = "name and nothing else"
CONSTRAINT = Constraint("regex", "[cd]begin[cd]" + FORCED)
NUM_TOKENS = 7
"""The last is the second that there is a choice about."""
ENOUGH = 3
"""Times; now and then the step thread lets go of a sample after the kernel's is through."""
PATIENCE_S = 20.0


class Collecting:
    """Cuts forced bytes into tokens, so slowly that a thread of the kernel is woken for it.

    What only the last token makes forced it cuts after it collected all samples that there were, the one that it works
    for among them.
    """

    def __init__(self) -> None:
        self.held: weakref.WeakSet[Follower] = weakref.WeakSet()
        self.never = threading.Event()
        self.ended_in_time: list[bool] = []

    def __call__(self, text: str) -> Sequence[int]:
        self.never.wait(0.001)
        is_kernels = isinstance(threading.current_thread(), threading._DummyThread)
        if FORCED in text and is_kernels:
            followers = [weakref.ref(follower) for follower in self.held]
            until = time.monotonic() + PATIENCE_S
            while any(ref() for ref in followers) and time.monotonic() < until:
                gc.collect()
                self.never.wait(0.001)  # others get Python's lock, who may hold them still
            self.ended_in_time.append(not any(ref() for ref in followers))
        return list(text.encode())


async def test_its_follower_may_be_collected_by_the_thread_that_works_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(lack := kernel_or_lack(), str):
        pytest.skip(lack)
    collecting = Collecting()
    follow = FollowedMasks.follow

    def noted(masks: FollowedMasks, raw: CMatcher, followed: Followed) -> Follower:
        follower = follow(masks, raw, followed)
        collecting.held.add(follower)
        return follower

    monkeypatch.setattr(FollowedMasks, "follow", noted)
    model = write_checkpoint(tmp_path, {"vocab_size": len(TOKENS)})
    settings = NativeSettings(model, device="cpu", kv_blocks=16, threads=2, speculation="none")
    engine = NativeEngine(settings, Vocabulary(TOKENS, collecting))
    await engine.start()
    gc.disable()  # nobody else shall collect
    try:
        async with asyncio.timeout(3 * PATIENCE_S):
            for number in range(10_000):  # each time the kernel's thread may be late
                if len(collecting.ended_in_time) >= ENOUGH:
                    break
                request = EngineRequest(
                    f"{number}",
                    [1, 2],
                    NUM_TOKENS,
                    Sampling(temperature=0.0),
                    constraint=CONSTRAINT,
                )
                async for _ in engine.generate(request):
                    pass
    finally:
        gc.enable()
        await engine.close()

    assert all(collecting.ended_in_time)
    assert len(collecting.ended_in_time) >= ENOUGH
