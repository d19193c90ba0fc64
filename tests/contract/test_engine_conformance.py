"""What every engine must do, run over each of them: streams, ends, refusals."""

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest

from penstock_core.errors import EngineFailed, InvalidRequest, Overloaded
from penstock_engine.api import (
    Admitted,
    EngineRequest,
    FinishReason,
    RequestDone,
    Sampling,
    TokenOut,
)
from penstock_testing.engines.conformance import (
    GREEDY,
    PROMPT,
    Collected,
    EngineFactory,
    Size,
    ask,
    run,
    stream,
)


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
