"""An engine on the double, and how tests of it ask."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from penstock_engine.trtllm.engine import Headers, TrtLlmEngine
from penstock_testing.engines.models import BYTE_EOS, BYTE_VOCAB_SIZE, write_byte_tokenizer
from penstock_testing.engines.trtllm import double_and_engine


@dataclass(frozen=True, slots=True)
class OnDouble:
    """A started engine, and the double's LLM to steer it by."""

    engine: TrtLlmEngine
    llm: Any
    executor: Any

    @property
    def steering(self) -> Any:
        """What tests pull."""
        return self.executor.steering

    @property
    def submitted(self) -> list[Any]:
        """What was submitted after the warm-up."""
        return list(self.steering.requests[1:])

    def hold(self, *, held: bool = True) -> None:
        """Stop before the next step, or go on."""
        self.steering.held = held
        self.executor.poke()


Start = Callable[..., AbstractAsyncContextManager[OnDouble]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint without weights, with bytes as tokens."""
    path = write_byte_tokenizer(tmp_path / "model")
    config = {
        "vocab_size": BYTE_VOCAB_SIZE, "max_position_embeddings": 512, "eos_token_id": BYTE_EOS,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def start(tensorrt_llm: ModuleType, model: Path) -> Start:
    """Starts an engine with the settings of a file, and closes it."""

    @asynccontextmanager
    async def make(headers: Headers | None = None, **settings: object) -> AsyncIterator[OnDouble]:
        given = {"kv_cache": {"max_tokens": 2048}, "drain_timeout_s": 5, **settings}
        llm, engine = double_and_engine(model, given, headers)
        try:
            await engine.start()
            yield OnDouble(engine, llm, cast("Any", llm).executor)
        finally:
            await engine.close()

    return make
