"""What every engine must do with its cache and with several samples, run over each of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from penstock_core.blocks import chain, pack_tokens, reusable_blocks
from penstock_engine.api import KvStored, RequestDone, Sampling
from penstock_testing.engines.conformance import BLOCK, PROMPT, EngineFactory, Size, ask, run


async def test_a_cached_prefix_is_reported_and_changes_nothing(
    engine_factory: EngineFactory,
) -> None:
    async with engine_factory(Size()) as engine:
        cold = await run(engine, ask("cold"))
        warm = await run(engine, ask("warm"))

    assert cold.cached == 0
    assert warm.cached == reusable_blocks(len(PROMPT), BLOCK) * BLOCK
    assert warm.tokens == cold.tokens
    assert cold.of(RequestDone)[0].computed_prompt_tokens == len(PROMPT)
    assert warm.of(RequestDone)[0].cached_tokens == warm.cached


async def test_the_last_prompt_token_is_never_cached(engine_factory: EngineFactory) -> None:
    prompt = PROMPT[: 2 * BLOCK]
    async with engine_factory(Size()) as engine:
        await run(engine, ask("cold", prompt=prompt))
        warm = await run(engine, ask("warm", prompt=prompt))

    assert warm.cached == BLOCK


async def test_another_chain_start_shares_nothing(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        await run(engine, ask("mine", chain_start=1))
        theirs = await run(engine, ask("theirs", chain_start=2))

    assert theirs.cached == 0


async def test_generated_tokens_are_cached_too(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        first = await run(engine, ask("turn 1", 60))
        said = [*PROMPT, *first.tokens[0]]
        second = await run(engine, ask("turn 2", prompt=[*said, 1, 2, 3]))

    # The last generated token's KV was never computed.
    assert second.cached == (len(said) - 1) // BLOCK * BLOCK


async def test_events_replayed_tell_what_a_request_will_hit(engine_factory: EngineFactory) -> None:
    prompts = [[i, *PROMPT, *PROMPT][: 40 + 30 * i] for i in range(6)]
    async with engine_factory(Size(capacity_blocks=12)) as engine:
        resident: set[int] = set()
        events = engine.kv_events()
        for i, prompt in enumerate([*prompts, *prompts[3:], prompts[0]]):
            expected = _depth(prompt, resident)
            got = await run(engine, ask(f"{i}", 3, prompt=prompt, chain_start=9))
            assert got.cached == expected * BLOCK
            if expected < reusable_blocks(len(prompt), BLOCK):
                await _replay(events, prompt, resident)
        assert len(resident) <= 12


async def _replay(
    events: AsyncIterator[Sequence[object]], prompt: list[int], resident: set[int]
) -> None:
    """Take events in until the prompt's blocks are there, as a follower would."""
    wanted = set(chain(pack_tokens(prompt), 9, BLOCK))
    async with asyncio.timeout(20):
        while not wanted <= resident:
            for event in await anext(events):
                keys = set(event.hashes)  # type: ignore[attr-defined]
                if isinstance(event, KvStored):
                    assert not keys & resident, "a resident block was stored again"
                    assert event.parent in resident | {9}
                    resident |= keys
                else:
                    assert keys <= resident, "a block was removed that was not there"
                    resident -= keys


def _depth(prompt: list[int], resident: set[int]) -> int:
    hashes = chain(pack_tokens(prompt), 9, BLOCK, reusable_blocks(len(prompt), BLOCK))
    return next((i for i, key in enumerate(hashes) if key not in resident), len(hashes))


async def test_samples_are_independent_and_the_first_is_as_if_alone(
    engine_factory: EngineFactory,
) -> None:
    sampling = Sampling(temperature=1.0, seed=11)
    async with engine_factory(Size()) as engine:
        alone = await run(engine, ask("one", 30, sampling=sampling))
        several = await run(engine, ask("four", 30, n=4, sampling=sampling))

    assert several.tokens[0] == alone.tokens[0]
    assert len({tuple(tokens) for tokens in several.tokens.values()}) == 4


async def test_more_samples_than_places_all_finish(engine_factory: EngineFactory) -> None:
    sampling = Sampling(temperature=1.0, seed=11)
    async with engine_factory(Size()) as engine:
        wide = await run(engine, ask("wide", 12, n=5, sampling=sampling))
    async with engine_factory(Size(max_batch=2)) as engine:
        narrow = await run(engine, ask("narrow", 12, n=5, sampling=sampling))

    assert narrow.tokens == wide.tokens
