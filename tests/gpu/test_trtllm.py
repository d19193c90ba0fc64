"""What is run first where there are NVIDIA GPUs and TensorRT-LLM: see README, "TensorRT-LLM workers".

``TRTLLM_TEST_MODEL`` is a directory with a checkpoint. What else there is decides which tests run:
``TRTLLM_TEST_DRAFT`` (a small model with the same tokenizer), ``TRTLLM_TEST_EAGLE3`` (a head for the
model), ``TRTLLM_TEST_MTP`` (a checkpoint with MTP layers), ``TRTLLM_TEST_TP`` (GPUs to spread it over).
"""

import asyncio
import importlib.util
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from penstock_core.blocks import chain, pack_tokens
from penstock_engine.api import (
    Admitted,
    Constraint,
    EngineOutput,
    EngineRequest,
    FinishReason,
    KvMoved,
    KvStored,
    RequestDone,
    Sampling,
    TokenOut,
)
from penstock_engine.trtllm import canary
from penstock_engine.trtllm.building import build_engine, read_checkpoint
from penstock_engine.trtllm.engine import TrtLlmEngine
from penstock_engine.trtllm.settings import TrtLlmSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.trtllm,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("default"),  # the package's own are not ours to forbid
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_llm") is None or "TRTLLM_TEST_MODEL" not in os.environ,
        reason="needs TensorRT-LLM, GPUs and TRTLLM_TEST_MODEL",
    ),
]
GREEDY = Sampling(temperature=0)
Scenario = Callable[[TrtLlmEngine], Coroutine[Any, Any, None]]


def modes() -> list[dict[str, object]]:
    """Kinds of speculation that what is there allows."""
    found: list[dict[str, object]] = [{"mode": m} for m in ("none", "ngram", "auto")]
    if draft := os.environ.get("TRTLLM_TEST_DRAFT"):
        found.append({"mode": "draft_target", "draft_model": draft})
    if head := os.environ.get("TRTLLM_TEST_EAGLE3"):
        found += [
            {"mode": "eagle3", "draft_model": head, "one_model": one} for one in (True, False)
        ]
    if os.environ.get("TRTLLM_TEST_MTP"):
        found.append({"mode": "mtp"})
    return found


def content(**given: object) -> dict[str, object]:
    """A file's content for the model under test."""
    is_mtp = given.get("speculation") == {"mode": "mtp"}
    model = os.environ["TRTLLM_TEST_MTP" if is_mtp else "TRTLLM_TEST_MODEL"]
    tensor = int(os.environ.get("TRTLLM_TEST_TP", "1"))
    small = {"max_batch_size": 8, "max_seq_len": 2048, "startup_timeout_s": 900}
    return {"model": model, "parallel": {"tensor": tensor}, **small, **given}


def with_engine(scenario: Scenario, **given: object) -> None:
    """Build the engine before there is an event loop, as the worker does, and run one on it."""
    settings = TrtLlmSettings.model_validate(content(**given))
    engine = build_engine(settings, read_checkpoint(settings, Path(settings.model)), dict)

    async def live() -> None:
        try:
            await engine.start()
            await scenario(engine)
        finally:
            await engine.close()

    asyncio.run(live())


def ask(engine: TrtLlmEngine, name: str, max_tokens: int = 16, **changes: Any) -> EngineRequest:
    prompt = [(7 * i + 5) % min(engine.info().vocab_size, 900) + 10 for i in range(200)]
    fields: dict[str, Any] = {"prompt": prompt, "sampling": GREEDY, "chain_start": 1, **changes}
    return EngineRequest(name, max_tokens=max_tokens, **fields)


async def run(engine: TrtLlmEngine, request: EngineRequest) -> list[EngineOutput]:
    async with asyncio.timeout(300):
        return [output async for output in engine.generate(request)]


def said(outputs: list[EngineOutput]) -> list[int]:
    return [t for out in outputs if isinstance(out, TokenOut) for t in out.token_ids]


async def hears_of(events: AsyncIterator[Any], names: set[int]) -> None:
    """Read events until blocks of these names were stored."""
    async with asyncio.timeout(60):
        while names:
            for event in await anext(events):
                if isinstance(event, KvStored):
                    names -= set(event.hashes)


@pytest.mark.parametrize("speculation", modes(), ids=lambda kind: "-".join(map(str, kind.values())))
def test_it_starts_generates_reuses_tells_and_aborts(speculation: dict[str, object]) -> None:
    async def scenario(engine: TrtLlmEngine) -> None:
        events = engine.kv_events()
        cold = await run(engine, ask(engine, "cold", 64))
        prompt = ask(engine, "x").prompt
        await hears_of(events, set(chain(pack_tokens(prompt), 1, 32)))
        warm = await run(engine, ask(engine, "warm", 64))
        other = await run(engine, ask(engine, "other salt", 4, chain_start=2))
        samples = await run(engine, ask(engine, "n", 8, n=3, sampling=Sampling(seed=3)))
        told = await run(engine, ask(engine, "logprobs", 8, logprobs=2))
        aborted: list[EngineOutput] = []
        async for output in engine.generate(ask(engine, "aborted", 1500)):
            aborted.append(output)
            if len(aborted) == 4:
                engine.abort("aborted")
        state = engine.state()

        assert engine.info().capacity_blocks > 0
        assert isinstance(cold[0], Admitted)
        assert isinstance(warm[0], Admitted)
        assert isinstance(other[0], Admitted)
        assert (cold[0].cached_tokens, warm[0].cached_tokens) == (0, 192)
        assert other[0].cached_tokens == 0
        assert len(said(cold)) == 64
        assert said(cold)[:16] == said(warm)[:16]
        assert len(said(samples)) == 24
        assert [p.token_id for o in told if isinstance(o, TokenOut) for p in o.logprobs] == said(
            told
        )
        last = [out for out in aborted if isinstance(out, TokenOut)][-1]
        assert last.finish is FinishReason.ABORTED
        assert (state.running, state.waiting, state.failed) == (0, 0, False)
        if speculation["mode"] not in {"none", "auto"}:
            done = cold[-1]
            assert isinstance(done, RequestDone)
            assert done.drafted_tokens >= done.accepted_draft_tokens >= 0

    with_engine(scenario, speculation=speculation)


def test_guided_answers_parse() -> None:
    async def scenario(engine: TrtLlmEngine) -> None:
        guided = ask(engine, "guided", 8, constraint=Constraint("choice", options=("yes", "no")))
        assert said(await run(engine, guided))

    with_engine(scenario, guided_decoding="xgrammar")


def test_host_offload_and_events_live_together() -> None:
    """Only where this passes may ``kv_cache.host_offload_with_events`` be set."""

    async def scenario(engine: TrtLlmEngine) -> None:
        events = engine.kv_events()
        for number in range(40):
            prompt = [number + 10, *([number + 50] * 400)]
            await run(engine, ask(engine, f"{number}", 4, prompt=prompt))
        async with asyncio.timeout(60):
            moved = False
            while not moved:
                moved = any(isinstance(event, KvMoved) for event in await anext(events))
        assert not engine.state().failed

    kv = {"max_tokens": 4096, "host_cache_bytes": 1 << 30, "host_offload_with_events": True}
    with_engine(scenario, kv_cache=kv)


@pytest.mark.parametrize(
    "speculation", modes()[1:], ids=lambda kind: "-".join(map(str, kind.values()))
)
def test_speculation_changes_nothing_that_is_said(
    speculation: dict[str, object], tmp_path: Path
) -> None:
    config = tmp_path / "engine.yaml"
    config.write_text(json.dumps(content(speculation=speculation)))  # JSON is YAML

    assert canary.main(["--config", str(config)]) == 0
