"""The engines that the conformance suite runs over."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import pytest

from penstock_engine.api import Engine
from penstock_testing.engines.checkpoints import write_checkpoint
from penstock_testing.engines.conformance import EngineFactory, Size
from penstock_testing.engines.small import KINDS, small_engine


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=KINDS)
def engine_factory(
    request: pytest.FixtureRequest, tiny_model: Path, tensorrt_llm: ModuleType
) -> EngineFactory:
    @asynccontextmanager
    async def make(size: Size) -> AsyncIterator[Engine]:
        engine = small_engine(request.param, size, tiny_model)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()

    return make
