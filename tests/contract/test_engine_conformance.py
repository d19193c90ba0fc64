"""What every engine must do, run over each of them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TypeVar, cast

import pytest

from penstock_core.blocks import chain, pack_tokens, reusable_blocks
from penstock_core.errors import EngineFailed, InvalidRequest, Overloaded
from penstock_engine.api import (
    Admitted,
    Engine,
    EngineOutput,
    EngineRequest,
    FinishReason,
    KvStored,
    RequestDone,
    Sampling,
    TokenOut,
)
from penstock_testing.checkpoints import write_checkpoint
from penstock_testing.engines import BLOCK_TOKENS as BLOCK
from penstock_testing.engines import KINDS, Size, small_engine

Out = TypeVar("Out", Admitted, TokenOut, RequestDone)

GREEDY = Sampling(temperature=0.0)
PROMPT = [(7 * i + i * i) % 250 for i in range(75)]

EngineFactory = Callable[[Size], AbstractAsyncContextManager[Engine]]


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


@dataclass
class Collected:
    """Everything one request put out."""

    outputs: list[EngineOutput] = field(default_factory=list)

    @property
    def tokens(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for out in self.of(TokenOut):
            found.setdefault(out.choice_index, []).extend(out.token_ids)
        return found

    @property
    def last(self) -> dict[int, TokenOut]:
        return {out.choice_index: out for out in self.of(TokenOut)}

    @property
    def cached(self) -> int:
        return self.of(Admitted)[0].cached_tokens

    def of(self, kind: type[Out]) -> list[Out]:
        return [out for out in self.outputs if isinstance(out, kind)]


async def run(engine: Engine, request: EngineRequest) -> Collected:
    collected = Collected()
    async with asyncio.timeout(60):
        async for output in engine.generate(request):
            collected.outputs.append(output)
    return collected


def stream(engine: Engine, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
    """The outputs as what they are: something that can be closed early."""
    return cast("AsyncGenerator[EngineOutput, None]", engine.generate(request))


def ask(name: str, max_tokens: int = 10, **changes: object) -> EngineRequest:
    """A request that drafts wherever the engine can: nothing of the contract may change by it."""
    fields: dict[str, object] = {"prompt": PROMPT, "sampling": GREEDY, "speculation": True}
    fields |= changes
    return EngineRequest(name, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


async def test_outputs_come_as_admitted_tokens_done(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        got = await run(engine, ask("a"))

    kinds = [type(output) for output in got.outputs]
    assert kinds[0] is Admitted
    assert kinds[-1] is RequestDone
    assert set(kinds[1:-1]) == {TokenOut}


async def test_positions_are_contiguous(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        got = await run(engine, ask("a", n=3, sampling=Sampling(seed=5)))

    for choice in range(3):
        outs = [out for out in got.of(TokenOut) if out.choice_index == choice]
        assert outs[0].first_position == 0
        for before, after in pairwise(outs):
            assert after.first_position == before.first_position + len(before.token_ids)


async def test_max_tokens_is_exact(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        for limit in (1, 2, 33):
            got = await run(engine, ask(f"a{limit}", limit))

            assert len(got.tokens[0]) == limit
            assert got.last[0].finish is FinishReason.LENGTH


async def test_a_stop_token_ends_a_sample_and_is_not_emitted(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        free = (await run(engine, ask("free", 20))).tokens[0]
        stop = free[5]
        got = await run(engine, ask("stopped", 20, stop_token_ids=frozenset({stop})))

    assert got.tokens[0] == free[: free.index(stop)]
    assert got.last[0].finish is FinishReason.STOP
    assert got.last[0].matched_token == stop


async def test_abort_ends_a_request(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        got = Collected()
        async for output in engine.generate(ask("a", 400)):
            got.outputs.append(output)
            if len(got.of(TokenOut)) == 1:
                engine.abort("a")

        assert got.last[0].finish is FinishReason.ABORTED
        assert isinstance(got.outputs[-1], RequestDone)
        assert not engine.abort("a")
        assert not engine.abort("never heard of")


async def test_abort_of_one_sample_leaves_the_others(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        got = Collected()
        async for output in engine.generate(ask("a", 300, n=2, sampling=Sampling(seed=1))):
            got.outputs.append(output)
            if len(got.of(TokenOut)) == 2:
                assert engine.abort("a", 1)

    assert got.last[1].finish is FinishReason.ABORTED
    assert got.last[0].finish is FinishReason.LENGTH
    assert len(got.tokens[0]) == 300


async def test_closing_the_iterator_frees_everything(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        async with aclosing(stream(engine, ask("a", 400, n=3))) as outputs:
            async for output in outputs:
                if isinstance(output, TokenOut):
                    break
        await run(engine, ask("b", 1))  # commands are taken in order, so the end of "a" was too

        state = engine.state()
        assert (state.running, state.waiting, state.used_blocks) == (0, 0, 0)


async def test_the_same_seed_draws_the_same_tokens(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        runs = [
            await run(engine, ask(f"{i}", 20, sampling=Sampling(seed=i // 2))) for i in range(3)
        ]

    assert runs[0].tokens == runs[1].tokens
    assert runs[0].tokens != runs[2].tokens


async def test_a_batch_draws_what_each_would_alone(engine_factory: EngineFactory) -> None:
    def requests(prefix: str) -> list[EngineRequest]:
        shapes = [(3, GREEDY), (40, Sampling(seed=3)), (64, GREEDY), (100, Sampling(seed=4))]
        prompts = [([i, *PROMPT, *PROMPT][:size], s) for i, (size, s) in enumerate(shapes)]
        return [
            ask(f"{prefix}{i}", 24, prompt=prompt, sampling=sampling)
            for i, (prompt, sampling) in enumerate(prompts)
        ]

    async with engine_factory(Size()) as engine:
        alone = [(await run(engine, request)).tokens for request in requests("alone")]
    async with engine_factory(Size()) as engine:
        together = await asyncio.gather(*(run(engine, r) for r in requests("together")))

    assert [got.tokens for got in together] == alone


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


async def test_logprobs_come_with_their_alternatives(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        got = await run(engine, ask("a", 5, logprobs=3))

    logprobs = [logprob for out in got.of(TokenOut) for logprob in out.logprobs]
    assert [logprob.token_id for logprob in logprobs] == got.tokens[0]
    assert all(len(logprob.top) == 3 and logprob.logprob <= 0 for logprob in logprobs)


async def test_a_full_queue_refuses(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size(max_batch=1, max_waiting=1)) as engine:
        running = stream(engine, ask("running", 400))
        await anext(running)
        waiting = asyncio.create_task(run(engine, ask("waiting", 1)))
        await asyncio.sleep(0)  # its first step puts it into the queue

        with pytest.raises(Overloaded):
            await run(engine, ask("too many", 1))

        await running.aclose()
        assert len((await waiting).tokens[0]) == 1


async def test_what_never_fits_is_refused_with_both_numbers(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size(max_context=128)) as engine:
        with pytest.raises(InvalidRequest, match=r"175.*128"):
            await run(engine, ask("a", 100))


async def test_a_resumed_request_goes_on_as_if_never_interrupted(
    engine_factory: EngineFactory,
) -> None:
    sampling = Sampling(temperature=1.0, seed=8)
    async with engine_factory(Size()) as engine:
        whole = await run(engine, ask("whole", 40, n=2, sampling=sampling))
    async with engine_factory(Size()) as engine:
        emitted = [whole.tokens[0][:7], whole.tokens[1][:21]]
        rest = await run(engine, ask("rest", 40, n=2, sampling=sampling, emitted=emitted))

    assert rest.tokens == {0: whole.tokens[0][7:], 1: whole.tokens[1][21:]}
    assert rest.of(TokenOut)[0].first_position in {7, 21}


async def test_a_closed_engine_refuses(engine_factory: EngineFactory) -> None:
    async with engine_factory(Size()) as engine:
        await engine.close()

        with pytest.raises(EngineFailed):
            await run(engine, ask("late"))
