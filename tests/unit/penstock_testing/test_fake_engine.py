"""The fake engine does what tests rely on; the contract itself is checked with every other engine."""

import asyncio
from collections.abc import Sequence

import pytest

from penstock_core.errors import EngineFailed
from penstock_engine.api import (
    Admitted,
    EngineOutput,
    EngineRequest,
    FinishReason,
    KvRemoved,
    KvStored,
    Sampling,
    TokenOut,
)
from penstock_testing.engines.fake import FakeConfig, FakeEngine

PROMPT = list(range(100))


def request(name: str = "r", prompt: Sequence[int] = PROMPT, **fields: object) -> EngineRequest:
    return EngineRequest(name, prompt, **({"max_tokens": 4} | fields))  # type: ignore[arg-type]


async def outputs(engine: FakeEngine, asked: EngineRequest) -> list[EngineOutput]:
    return [output async for output in engine.generate(asked)]


def tokens(outs: Sequence[EngineOutput]) -> list[int]:
    return [token for out in outs if isinstance(out, TokenOut) for token in out.token_ids]


def cached(outs: Sequence[EngineOutput]) -> int:
    return next(out.cached_tokens for out in outs if isinstance(out, Admitted))


async def test_outputs_depend_on_prompt_seed_and_position_only() -> None:
    seeded = request(sampling=Sampling(seed=1))

    first = tokens(await outputs(FakeEngine(), seeded))
    again = tokens(await outputs(FakeEngine(), seeded))
    other = tokens(await outputs(FakeEngine(), request(sampling=Sampling(seed=2))))

    assert first == again != other


async def test_a_resumed_request_goes_on_as_it_would_have() -> None:
    whole = tokens(await outputs(FakeEngine(), request()))

    rest = tokens(await outputs(FakeEngine(), request(emitted=[whole[:2]])))

    assert rest == whole[2:]


async def test_the_cache_is_truthful() -> None:
    engine = FakeEngine(FakeConfig(capacity_blocks=4))

    cold = cached(await outputs(engine, request("a")))
    warm = cached(await outputs(engine, request("b")))
    await outputs(engine, request("c", prompt=list(range(1000, 1100))))
    evicted = cached(await outputs(engine, request("d")))
    held: set[int] = set()
    for event in engine.cache.take_events():
        if isinstance(event, KvStored):
            held.update(event.hashes)
        elif isinstance(event, KvRemoved):
            held.difference_update(event.hashes)

    assert (cold, warm) == (0, 96)
    assert evicted < 96
    assert held == engine.cache.hashes
    assert len(held) <= 4


async def test_a_script_is_spoken_and_then_ends() -> None:
    stops = frozenset({256})

    outs = await outputs(FakeEngine(script=[7, 8]), request(stop_token_ids=stops))

    assert tokens(outs) == [7, 8]
    last = [out for out in outs if isinstance(out, TokenOut)][-1]
    assert (last.finish, last.matched_token) == (FinishReason.STOP, 256)


async def test_time_passes_step_by_step() -> None:
    engine = FakeEngine()
    engine.hold()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(outputs(engine, request()))
        await engine.until(lambda e: e.state().running == 1)
        assert engine.state().queued_prefill_tokens == len(PROMPT)

        engine.allow(1)
        await engine.until(lambda e: e.state().context_tokens == len(PROMPT) + 1)
        assert engine.state().queued_prefill_tokens == 0
        engine.allow(3)

    assert len(tokens(running.result())) == 4


async def test_told_to_fail_it_fails_everybody() -> None:
    engine = FakeEngine()
    engine.hold()
    running = asyncio.create_task(outputs(engine, request()))
    await engine.until(lambda e: e.state().running == 1)

    engine.fail("gone")

    with pytest.raises(EngineFailed, match="gone"):
        await asyncio.wait_for(running, 10)
    with pytest.raises(EngineFailed, match="gone"):
        await outputs(engine, request())
    assert engine.state().failed
