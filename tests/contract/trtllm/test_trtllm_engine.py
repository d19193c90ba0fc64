"""The TensorRT-LLM engine on the contract double, beyond what every engine must do."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, cast

import pytest

from penstock_core.errors import Conflict, EngineFailed, InternalError, InvalidRequest, NotSupported
from penstock_engine.api import (
    Admitted,
    Constraint,
    EngineOutput,
    EngineRequest,
    FinishReason,
    KvEvent,
    KvMoved,
    KvRemoved,
    KvStored,
    Priority,
    RequestDone,
    Sampling,
    TokenOut,
)

Event = TypeVar("Event", KvStored, KvRemoved, KvMoved)

GREEDY = Sampling(temperature=0)
PROMPT = [(7 * i) % 250 for i in range(75)]


def ask(name: str = "r", max_tokens: int = 10, **changes: Any) -> EngineRequest:
    fields: dict[str, Any] = {"prompt": PROMPT, "sampling": GREEDY, **changes}
    return EngineRequest(name, max_tokens=max_tokens, **fields)


async def run(engine: Any, request: EngineRequest) -> list[EngineOutput]:
    async with asyncio.timeout(30):
        return [output async for output in engine.generate(request)]


def said(outputs: list[EngineOutput]) -> list[int]:
    return [t for out in outputs if isinstance(out, TokenOut) for t in out.token_ids]


class Following:
    """The engine's cache events, one at a time."""

    def __init__(self, engine: Any) -> None:
        self._batches: AsyncIterator[Sequence[KvEvent]] = engine.kv_events()
        self._events: list[KvEvent] = []

    async def until(self, kind: type[Event]) -> Event:
        """The next event of a kind; others are dropped."""
        async with asyncio.timeout(10):
            while True:
                while self._events:
                    event = self._events.pop(0)
                    if isinstance(event, kind):
                        return event
                self._events += await anext(self._batches)


async def test_a_class_that_waits_goes_before_a_lesser_one(start: Any) -> None:
    async with start(max_batch_size=1) as double:
        double.hold()
        first = asyncio.create_task(run(double.engine, ask("first")))
        await asyncio.sleep(0)
        lesser = asyncio.create_task(run(double.engine, ask("lesser", 2, priority=Priority.BATCH)))
        await asyncio.sleep(0)
        better = asyncio.create_task(run(double.engine, ask("better", 3, priority=Priority.SYSTEM)))
        await asyncio.sleep(0)
        state = double.engine.state()
        double.hold(held=False)
        await asyncio.gather(first, lesser, better)

    assert (state.running, state.waiting) == (1, 2)
    assert state.queued_prefill_tokens == 3 * len(PROMPT)
    assert [r.params.max_tokens for r in double.submitted] == [10, 3, 2]


async def test_the_callers_trace_goes_with_each_request(start: Any) -> None:
    headers = {"traceparent": "00-aa-bb-01"}
    async with start(headers=lambda: headers) as double:
        await run(double.engine, ask(n=2, sampling=Sampling(seed=1)))

    assert [r.trace_headers for r in double.submitted] == [headers, headers]


async def test_samples_are_requests_of_their_own_that_share_the_prompt(start: Any) -> None:
    async with start() as double:
        outputs = await run(double.engine, ask(n=3, sampling=Sampling(seed=5)))

    seeds = [r.params.seed for r in double.submitted]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert [r.params.n for r in double.submitted] == [1, 1, 1]
    assert [r.cached for r in double.submitted] == [0, 64, 64]
    assert len({id(r.params) for r in double.submitted}) == 3
    assert isinstance(outputs[-1], RequestDone)


async def test_an_adapter_is_passed_on_and_keeps_its_own_cache(start: Any, model: Any) -> None:
    lora = {"adapters": [{"name": "tuned", "path": str(model)}], "max_rank": 8}
    async with start(lora=lora, cuda_graphs=None) as double:
        await run(double.engine, ask("plain"))
        await run(double.engine, ask("tuned", adapter="tuned", chain_start=1))
        with pytest.raises(NotSupported, match="'other'"):
            await run(double.engine, ask("other", adapter="other"))
        assert double.llm.args.lora_config.max_lora_rank == 8

    assert [r.lora and r.lora.lora_name for r in double.submitted] == [None, "tuned"]
    assert double.engine.info().adapters == ("tuned",)


async def test_a_constraint_is_passed_on_as_a_guide(start: Any) -> None:
    async with start() as double:
        await run(double.engine, ask(constraint=Constraint("choice", options=("yes", "no"))))

    assert double.submitted[0].params.guided_decoding.regex == "(yes|no)"
    assert double.llm.args.guided_decoding_backend == "xgrammar"


async def test_drafts_are_counted_by_request_and_in_the_state(start: Any) -> None:
    speculation = {"mode": "ngram", "max_draft_tokens": 3}
    async with start(speculation=speculation) as double:
        done = (await run(double.engine, ask(max_tokens=60)))[-1]
        state = double.engine.state()

    assert isinstance(done, RequestDone)
    request = double.submitted[0]
    assert (done.drafted_tokens, done.accepted_draft_tokens) == (request.drafted, request.accepted)
    assert 0 < done.accepted_draft_tokens < done.drafted_tokens
    assert state.tokens_per_step > 1
    assert double.engine.info().speculation == "ngram"


async def test_drafts_are_counted_from_steps_where_the_engine_does_not_tell(start: Any) -> None:
    async with start(speculation={"mode": "ngram", "max_draft_tokens": 3}) as double:
        double.steering.no_metrics = True
        done = (await run(double.engine, ask(max_tokens=60)))[-1]
    request = double.submitted[0]

    assert isinstance(done, RequestDone)
    assert done.accepted_draft_tokens == 60 - request.iterations > 0
    assert done.drafted_tokens == 3 * (request.iterations - 1) == request.drafted


async def test_without_the_engines_figures_the_request_is_still_accounted(start: Any) -> None:
    async with start() as double:
        double.steering.no_metrics = True
        outputs = await run(double.engine, ask())

    admitted, done = outputs[0], outputs[-1]
    assert isinstance(admitted, Admitted)
    assert isinstance(done, RequestDone)
    assert admitted.late_s > 0
    assert done.computed_prompt_tokens == len(PROMPT)
    assert done.worker_s > 0


async def test_one_failed_request_leaves_the_others(start: Any) -> None:
    error = __import__("tensorrt_llm.llmapi").llmapi.RequestError("out of sorts")
    async with start() as double:
        double.hold()
        tasks = [asyncio.create_task(run(double.engine, ask(f"{i}"))) for i in range(2)]
        for _ in range(3):
            await asyncio.sleep(0)
        double.steering.fails.append(error)
        double.hold(held=False)
        failed, fine = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(failed, InternalError)
        assert "out of sorts" in str(failed)
        assert isinstance(fine, list)
        assert len(said(fine)) == 10
        assert not double.engine.state().failed


async def test_a_request_that_the_package_refuses_ends_alone(start: Any) -> None:
    async with start() as double:
        with pytest.raises(InvalidRequest, match="bad sampling"):  # which nobody checks before
            await run(double.engine, ask(sampling=Sampling(top_p=-1.0)))
        outputs = await run(double.engine, ask("later"))
        assert not double.engine.state().failed

    assert len(said(outputs)) == 10


async def test_a_dead_engine_fails_everything_and_says_so(start: Any) -> None:
    async with start() as double:
        double.steering.fails.append(RuntimeError("CUDA error"))
        with pytest.raises(EngineFailed, match="CUDA error"):
            await run(double.engine, ask())
        with pytest.raises(EngineFailed, match="CUDA error"):
            await run(double.engine, ask("later"))
        with pytest.raises(EngineFailed, match="CUDA error"):
            async for _ in double.engine.kv_events():
                pass
        assert double.engine.state().failed


async def test_an_engine_that_falls_silent_is_given_up(start: Any) -> None:
    async with start(stall_timeout_s=0.2) as double:
        double.steering.stalled = True
        with pytest.raises(EngineFailed, match=r"no response within 0\.2 s"):
            await run(double.engine, ask())
        assert double.engine.state().failed


async def test_an_abort_that_is_not_heeded_ends_for_the_caller_all_the_same(start: Any) -> None:
    async with start(drain_timeout_s=0.1) as double:
        double.steering.ignores_aborts = double.steering.stalled = False
        generating = cast(
            "AsyncGenerator[EngineOutput, None]", double.engine.generate(ask("a", 400))
        )
        got: list[EngineOutput] = []
        async with aclosing(generating) as outputs:
            async for output in outputs:
                got.append(output)
                if len(got) == 2:
                    double.steering.ignores_aborts = double.steering.stalled = True
                    assert double.engine.abort("a")
                    assert not double.engine.abort("a")
        last = got[-2]

    assert isinstance(last, TokenOut)
    assert last.finish is FinishReason.ABORTED
    assert isinstance(got[-1], RequestDone)


async def test_an_id_is_served_once_at_a_time(start: Any) -> None:
    async with start() as double:
        double.hold()
        task = asyncio.create_task(run(double.engine, ask()))
        await asyncio.sleep(0)
        with pytest.raises(Conflict):
            await run(double.engine, ask())
        double.hold(held=False)
        await task


async def test_chains_are_salted_apart_and_anew_after_a_gap(start: Any) -> None:
    async with start() as double:
        await run(double.engine, ask("a", chain_start=1))
        await run(double.engine, ask("b", chain_start=2))
        events = Following(double.engine)
        stored = [await events.until(KvStored) for _ in range(2)]
        double.executor.events.drop = 1
        await run(double.engine, ask("lost", prompt=[9, *PROMPT], chain_start=1))
        await run(double.engine, ask("seen", prompt=[8, *PROMPT], chain_start=1))
        removed = await events.until(KvRemoved)
        assert double.engine.state().cache_losses == 1
        await run(double.engine, ask("c", chain_start=1))

    salts = [r.cache_salt for r in double.submitted]
    assert {event.parent for event in stored} == {1, 2}
    assert salts[0] != salts[1]
    assert salts[-1] == "0000000000000001-1"
    assert set(removed.hashes) >= {key for event in stored for key in event.hashes}
    assert double.submitted[-1].cached == 0


async def test_an_event_stream_that_breaks_empties_the_picture_and_goes_on(start: Any) -> None:
    async with start() as double:
        events = Following(double.engine)
        await run(double.engine, ask("a"))
        before = await events.until(KvStored)
        double.executor.events.events.append({"garbage": True})
        await run(double.engine, ask("b", prompt=[9, *PROMPT]))
        removed = await events.until(KvRemoved)
        await run(double.engine, ask("c", prompt=[8, *PROMPT]))
        after = await events.until(KvStored)

    assert set(before.hashes) <= set(removed.hashes)
    assert not set(after.hashes) & set(before.hashes)


async def test_offloaded_blocks_move_in_the_feed(start: Any) -> None:
    kv = {"max_tokens": 4 * 32, "host_cache_bytes": 8 << 20, "host_offload_with_events": True}
    async with start(kv_cache=kv) as double:
        events = Following(double.engine)
        await run(double.engine, ask("a"))
        stored = await events.until(KvStored)
        await run(double.engine, ask("b", prompt=[9, *PROMPT]))
        out = await events.until(KvMoved)
        again = await run(double.engine, ask("c"))
        back = await events.until(KvMoved)
        while back.to_tier != "device":
            back = await events.until(KvMoved)

    assert (out.from_tier, out.to_tier) == ("device", "host")
    assert set(out.hashes) <= set(stored.hashes)
    assert isinstance(again[0], Admitted)
    assert again[0].cached_tokens == 64


async def test_a_rank_that_holds_the_prompt_gets_it(start: Any) -> None:
    async with start(parallel={"tensor": 2, "attention_dp": True}) as double:
        double.executor.events.rank = 1
        events = Following(double.engine)
        await run(double.engine, ask("a"))
        await events.until(KvStored)
        await run(double.engine, ask("b"))
        await run(double.engine, ask("c", prompt=[9, *PROMPT]))

    pinned = [r.scheduling and r.scheduling.attention_dp_rank for r in double.submitted]
    assert pinned == [None, 1, None]
    assert double.submitted[1].scheduling.attention_dp_relax is True
    assert double.llm.args.enable_attention_dp


async def test_figures_come_with_their_age(start: Any) -> None:
    async with start() as double:
        await run(double.engine, ask(max_tokens=60))
        async with asyncio.timeout(10):
            while double.engine.state().figures_age_s is None:
                await double.executor.stat_results._changed.wait()
        state = double.engine.state()

    assert state.prefill_tokens_per_s > 0
    assert state.figures_age_s is not None
    assert double.engine.info().capacity_blocks == 64


async def test_no_answer_at_the_start_is_a_failure(start: Any, model: Any) -> None:
    from penstock_testing.engines.trtllm import double_and_engine

    llm, engine = double_and_engine(model, {"startup_timeout_s": 0.1})
    cast("Any", llm).steering.stalled = True
    with pytest.raises(EngineFailed, match=r"did not answer within 0\.1 s"):
        await engine.start()
    with pytest.raises(EngineFailed, match="not started"):
        await run(engine, ask())
    await engine.close()
