"""How a worker's streams behave in time: coalescing, cancellation, deadlines, resuming."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from penstock.common.v1 import tokens_pb2
from penstock.inference.v1 import generate_pb2
from penstock.inference.v1.generate_pb2 import ChoiceState, GenerateRequest, ResumeState
from penstock.worker.v1 import worker_service_pb2 as worker_pb2
from penstock_core.blocks import pack_tokens
from penstock_testing.callers.calls import Calls, Transcript, calls_to, read
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.worker import DEFAULT_OPTIONS, running_worker

NEVER_S = 3600.0
LENGTH = generate_pb2.FINISH_REASON_LENGTH


def ask(max_tokens: int = 64, **fields: object) -> GenerateRequest:
    request = GenerateRequest(model="fake", text="hello " * 10, **fields)  # type: ignore[arg-type]
    request.stop.max_tokens = max_tokens
    request.sampling.seed = 3
    return request


async def test_fast_tokens_share_messages() -> None:
    options = replace(DEFAULT_OPTIONS, coalesce_s=NEVER_S)
    async with running_worker(options=options) as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(ask())

    sizes = [len(delta.tokens.ids) // 4 for delta in transcript.deltas]
    assert sum(sizes) == 64
    assert all(size >= 8 for size in sizes[1:-1])


async def test_the_first_token_and_then_eight_are_enough_to_send() -> None:
    engine = FakeEngine()
    engine.hold()
    options = replace(DEFAULT_OPTIONS, coalesce_s=NEVER_S)
    async with running_worker(engine, options=options) as worker, calls_to(worker.endpoint) as c:
        stream = aiter(c.inference.Generate(ask()))
        transcript = Transcript()
        transcript.add(await anext(stream))
        engine.allow(1)
        transcript.add(await anext(stream))
        assert len(transcript.tokens()) == 1

        engine.allow(8)
        transcript.add(await anext(stream))

        assert len(transcript.tokens()) == 9
        engine.release()


async def test_tokens_do_not_wait_for_company_forever() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        stream = aiter(calls.inference.Generate(ask()))
        transcript = Transcript()
        transcript.add(await anext(stream))
        engine.allow(3)

        async with asyncio.timeout(20):
            while len(transcript.tokens()) < 3:
                transcript.add(await anext(stream))
        engine.release()


async def test_a_reader_that_stops_reading_does_not_stop_the_engine() -> None:
    engine = FakeEngine()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        slow = aiter(calls.inference.Generate(ask(max_tokens=3000)))
        transcript = Transcript()
        transcript.add(await anext(slow))

        await engine.until(lambda e: e.state().running == 0)

        async for response in slow:
            transcript.add(response)
        assert len(transcript.tokens()) == 3000


async def test_cancelling_frees_what_the_engine_held() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        running = calls.inference.Generate(ask())
        await running.read()
        engine.allow(2)
        await running.read()
        assert engine.state().used_blocks > 0

        running.cancel()

        await engine.until(lambda e: e.state().running == e.state().used_blocks == 0)
        state = await calls.control.GetWorker(worker_pb2.GetWorkerRequest())
        assert list(state.request_ids) == []


async def test_a_request_that_waits_for_its_turn_can_be_cancelled() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        streams = [calls.inference.Generate(ask()) for _ in range(17)]
        reads = [asyncio.ensure_future(stream.read()) for stream in streams]
        await engine.until(lambda e: (e.state().running, e.state().waiting) == (16, 1))

        for stream in streams:
            stream.cancel()

        await engine.until(lambda e: e.state().running == e.state().waiting == 0)
        await asyncio.gather(*reads, return_exceptions=True)


async def test_a_deadline_ends_the_request() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in calls.inference.Generate(ask(), timeout=0.3):
                pass

        await engine.until(lambda e: e.state().running == 0)

    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def state_of(transcript: Transcript, index: int = 0) -> ChoiceState:
    """What a client that saw this much would send to resume."""
    emitted = tokens_pb2.TokenIds(ids=pack_tokens(transcript.tokens(index)))
    return ChoiceState(
        choice_index=index, emitted=emitted, emitted_chars=len(transcript.text(index))
    )


async def cut_short(calls: Calls, engine: FakeEngine, request: GenerateRequest) -> Transcript:
    """A stream that breaks after some tokens."""
    transcript = Transcript()
    stream = calls.inference.Generate(request)
    engine.hold()
    engine.allow(5)
    async with asyncio.timeout(20):
        while len(transcript.tokens()) < 5:
            response = await stream.read()
            assert isinstance(response, generate_pb2.GenerateResponse)
            transcript.add(response)
    stream.cancel()
    engine.release()
    return transcript


async def test_a_resumed_stream_repeats_and_skips_nothing() -> None:
    # Characters of two tokens each, so that the cut falls into one.
    engine = FakeEngine(script=list(("é" * 20).encode()))
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        whole = await calls.generate(ask(max_tokens=40))
        begun = await cut_short(calls, engine, ask(max_tokens=40))
        resume = ResumeState(choices=[state_of(begun)], seed=3, attempt=1)
        rest = await calls.generate(ask(max_tokens=40, resume=resume))

    assert begun.tokens() + rest.tokens() == whole.tokens()
    assert begun.text() + rest.text() == whole.text() == "é" * 20
    assert rest.first_positions[0] == len(begun.tokens())
    assert rest.finished[0].completion_tokens == 40
    assert rest.completed is not None
    assert rest.completed.usage.completion_tokens == 40


async def test_a_resumed_draw_goes_on_with_its_seed() -> None:
    engine = FakeEngine()
    request = ask(max_tokens=20)
    request.sampling.ClearField("seed")
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        begun = await cut_short(calls, engine, request)
        assert begun.started is not None
        request.resume.seed = begun.started.seed
        request.resume.choices.append(state_of(begun))
        rest = await calls.generate(request)
        request.ClearField("resume")
        request.sampling.seed = begun.started.seed
        whole = await calls.generate(request)

    assert begun.tokens() + rest.tokens() == whole.tokens()


async def test_samples_that_had_ended_are_not_drawn_again() -> None:
    request = ask(max_tokens=4, output={"echo": True})
    request.sampling.n = 3
    whole = tokens_pb2.TokenIds(ids=pack_tokens([97, 98, 99, 100]))
    told = ChoiceState(choice_index=0, emitted=whole, emitted_chars=4, finish_reason=LENGTH)
    untold = ChoiceState(choice_index=1, emitted=whole, emitted_chars=4)
    request.resume.choices.extend([told, untold])
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(request)

    assert set(transcript.finished) == {1, 2}, "the client knows of the end of the first"
    assert (transcript.text(0), transcript.text(1)) == ("", "")
    assert len(transcript.tokens(2)) == 4
    assert transcript.text(2).startswith("hello"), "only a new sample is echoed to"


async def test_a_request_of_which_only_the_end_is_missing_asks_no_engine() -> None:
    request = ask(max_tokens=2)
    whole = tokens_pb2.TokenIds(ids=pack_tokens([97, 98]))
    request.resume.choices.append(ChoiceState(emitted=whole, emitted_chars=2))
    engine = FakeEngine()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(request)

    assert engine.requests == []
    assert transcript.finished[0].reason == LENGTH
    assert transcript.completed is not None
    assert transcript.completed.usage.completion_tokens == 2


async def test_an_aborted_request_finishes_as_aborted() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        running = asyncio.create_task(read(calls.inference.Generate(ask(request_id="r"))))
        await engine.until(lambda e: e.state().running == 1)

        known = await calls.control.Abort(worker_pb2.AbortRequest(request_id="r"))
        transcript = await running
        gone = await calls.control.Abort(worker_pb2.AbortRequest(request_id="r"))

    assert (known.aborted, gone.aborted) == (True, False)
    assert transcript.finished[0].reason == generate_pb2.FINISH_REASON_ABORTED
    assert transcript.completed is not None


async def test_a_request_that_waits_for_its_turn_can_be_aborted() -> None:
    engine = FakeEngine(FakeConfig(max_batch=1))
    engine.hold()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        first = asyncio.create_task(calls.generate(ask(request_id="first")))
        await engine.until(lambda e: e.state().running == 1)
        second = asyncio.create_task(calls.generate(ask(request_id="second")))
        await engine.until(lambda e: e.state().waiting == 1)

        await calls.control.Abort(worker_pb2.AbortRequest(request_id="second"))
        transcript = await second
        engine.release()

        assert len((await first).tokens()) == 64
    assert transcript.finished[0].reason == generate_pb2.FINISH_REASON_ABORTED
    assert transcript.tokens() == []
