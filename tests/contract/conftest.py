"""The engines that the conformance suite runs over."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock_engine.api import Engine
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_testing.checkpoints import write_checkpoint
from penstock_testing.conformance import EngineFactory, Size
from penstock_testing.engine import FakeConfig, FakeEngine


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


def _native(size: Size, model: Path, speculation: str) -> Engine:
    settings = NativeSettings(
        model,
        device="cpu",
        kv_blocks=size.capacity_blocks,
        max_batch=size.max_batch,
        max_batched_tokens=48,
        max_waiting=size.max_waiting,
        max_context=size.max_context,
        threads=1,
        speculation=speculation,
        draft_model=model if speculation == "draft" else None,
    )
    return NativeEngine(settings)


def _fake(size: Size) -> Engine:
    config = FakeConfig(
        capacity_blocks=size.capacity_blocks,
        max_batch=size.max_batch,
        max_waiting=size.max_waiting,
        max_context_tokens=size.max_context,
    )
    return FakeEngine(config)


@pytest.fixture(params=["fake", "none", "ngram", "draft"])
def engine_factory(request: pytest.FixtureRequest, tiny_model: Path) -> EngineFactory:
    @asynccontextmanager
    async def make(size: Size) -> AsyncIterator[Engine]:
        kind = request.param  # of speculation, for the native engine
        engine = _fake(size) if kind == "fake" else _native(size, tiny_model, kind)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()

    return make
