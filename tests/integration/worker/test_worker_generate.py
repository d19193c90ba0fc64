"""Generate on a worker, over real sockets, with an engine whose outputs are known."""

import asyncio
from dataclasses import replace

import pytest

from penstock.common.v1 import chat_pb2, sampling_pb2, tokens_pb2
from penstock.inference.v1 import generate_pb2
from penstock.inference.v1.generate_pb2 import GenerateRequest
from penstock_core.blocks import chain, chain_start, pack_tokens
from penstock_core.errors import Conflict, EngineFailed, NotSupported
from penstock_engine.api import EngineRequest, Priority
from penstock_testing.callers.calls import calls_to
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.worker import DEFAULT_OPTIONS, running_worker

STOP = generate_pb2.FINISH_REASON_STOP
LENGTH = generate_pb2.FINISH_REASON_LENGTH
PROMPT = "the quick brown fox jumps over the lazy dog and runs away"


def ask(text: str = PROMPT, max_tokens: int = 12, **fields: object) -> GenerateRequest:
    request = GenerateRequest(model="fake", text=text, **fields)  # type: ignore[arg-type]
    request.stop.max_tokens = max_tokens
    return request


async def test_a_stream_tells_start_tokens_end_and_usage() -> None:
    engine = FakeEngine(script=list("héllo".encode()))
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        first = await calls.generate(ask())
        second = await calls.generate(ask())

    assert first.started is not None
    assert first.started.worker_id == worker.info.worker_id
    assert first.started.epoch == worker.info.epoch
    assert first.text() == "héllo"
    assert bytes(first.tokens()) == "héllo".encode()
    assert first.finished[0].reason == STOP
    assert first.finished[0].WhichOneof("matched_stop") is None, "the end of sequence has no name"
    assert first.completed is not None
    assert first.completed.usage.prompt_tokens == len(PROMPT)
    assert first.completed.usage.completion_tokens == 6
    assert 0 < first.completed.timing.ttft_s <= first.completed.timing.total_s
    assert second.started is not None
    assert second.started.cached_tokens == 32
    assert second.completed is not None
    assert second.completed.usage.cached_tokens == 32


async def test_the_engine_gets_what_was_asked() -> None:
    request = ask(
        priority=sampling_pb2.PRIORITY_CLASS_BATCH,
        speculation=sampling_pb2.SPECULATION_MODE_OFF,
    )
    request.sampling.temperature = 0.5
    request.sampling.top_k = 3
    request.sampling.seed = 99
    request.sampling.n = 2
    request.sampling.logit_bias[65] = -2
    request.stop.token_ids.append(65)
    request.stop.min_tokens = 1
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(request)
        engine = worker.engine
    assert isinstance(engine, FakeEngine)
    (seen,) = engine.requests

    assert list(seen.prompt) == list(PROMPT.encode())
    assert (seen.sampling.temperature, seen.sampling.top_k, seen.sampling.seed) == (0.5, 3, 99)
    assert seen.sampling.top_p == 1.0
    assert seen.sampling.logit_bias == {65: -2}
    assert seen.stop_token_ids == {65, 256}
    assert (seen.n, seen.min_tokens, seen.max_tokens) == (2, 1, 12)
    assert (seen.priority, seen.speculation) == (Priority.BATCH, False)
    assert transcript.started is not None
    assert transcript.started.seed == 99


async def test_blocks_are_hashed_as_routers_hash_them() -> None:
    engine = FakeEngine()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        await calls.generate(ask())
        start = chain_start(worker.info.model_revision, worker.info.tokenizer_digest)

    assert set(chain(pack_tokens(list(PROMPT.encode())), start, 32)) <= engine.cache.hashes


async def test_prompts_come_as_text_tokens_or_chat() -> None:
    chat = chat_pb2.ChatPrompt(messages=[chat_pb2.ChatMessage(role="user", content="Hi")])
    packed = tokens_pb2.TokenIds(ids=pack_tokens([1, 2, 3]))
    engine = FakeEngine(script=[])
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        await calls.generate(GenerateRequest(model="fake", tokens=packed))
        await calls.generate(GenerateRequest(model="fake", chat=chat))

    assert [bytes(request.prompt) for request in engine.requests] == [
        b"\x01\x02\x03",
        b"<user>Hi\n<assistant>",
    ]


async def test_output_runs_to_the_contexts_end_unless_limited() -> None:
    engine = FakeEngine(FakeConfig(max_context_tokens=100))
    request = GenerateRequest(model="fake", text=PROMPT)
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(request)

    assert len(transcript.tokens()) == 100 - len(PROMPT)
    assert transcript.finished[0].reason == LENGTH


async def test_seeds_are_made_told_and_repeatable() -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        first = await calls.generate(ask())
        other = await calls.generate(ask())
        assert first.started is not None
        again = await calls.generate(ask(sampling={"seed": first.started.seed}))

    assert first.tokens() == again.tokens() != other.tokens()


async def test_samples_are_streamed_side_by_side() -> None:
    request = ask(sampling={"n": 3, "seed": 1})
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(request)

    assert set(transcript.finished) == {0, 1, 2}
    assert len({tuple(transcript.tokens(i)) for i in range(3)}) == 3
    assert transcript.completed is not None
    assert transcript.completed.usage.completion_tokens == 36


async def test_stop_strings_end_one_sample_and_not_the_other() -> None:
    def script(_: EngineRequest, choice: int) -> list[int]:
        return list(b"one two STOP three" if choice == 0 else b"a" * 18)

    request = ask(max_tokens=18, sampling={"n": 2}, stop={"strings": ["STOP", "x"]})
    request.stop.max_tokens = 18
    engine = FakeEngine(script=script)
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(request)

    assert transcript.text(0) == "one two "
    assert transcript.finished[0].reason == STOP
    assert transcript.finished[0].matched_string == "STOP"
    assert transcript.finished[0].completion_tokens == len("one two STOP")
    assert transcript.text(1) == "a" * 18
    assert transcript.finished[1].reason == LENGTH


async def test_a_stop_string_ends_the_engines_work_too() -> None:
    engine = FakeEngine(script=list(b"ab!" + b"x" * 1000))
    engine.hold()
    engine.allow(3)
    request = ask(max_tokens=1000, stop={"strings": ["!"]})
    request.stop.max_tokens = 1000
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        transcript = await asyncio.wait_for(calls.generate(request), 20)

    assert transcript.text() == "ab"


async def test_stop_tokens_are_named() -> None:
    engine = FakeEngine(script=list(b"abc"))
    request = ask(stop={"token_ids": [ord("c")]})
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(request)

    assert transcript.text() == "ab"
    assert transcript.finished[0].matched_token_id == ord("c")


async def test_echo_sends_the_prompt_first() -> None:
    request = ask(output={"echo": True}, sampling={"n": 2})
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(request)

    assert transcript.text(0).startswith(PROMPT)
    assert transcript.text(1).startswith(PROMPT)
    assert [delta.is_echo for delta in transcript.deltas[:2]] == [True, True]
    assert len(transcript.tokens(0)) == 12


async def test_log_probabilities_come_with_every_token() -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(ask(output={"logprobs": 2}))

    logprobs = [entry for delta in transcript.deltas for entry in delta.logprobs]
    assert [entry.token_id for entry in logprobs] == transcript.tokens()
    assert all(len(entry.top) == 2 for entry in logprobs)
    assert b"".join(entry.token_bytes for entry in logprobs).decode() == transcript.text()
    total = sum(entry.logprob for entry in logprobs)
    assert transcript.finished[0].cumulative_logprob == pytest.approx(total)


async def test_best_of_returns_the_likeliest_samples_only() -> None:
    seeded = {"seed": 5, "n": 4}
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        everything = await calls.generate(ask(sampling=seeded, output={"logprobs": 0}))
        best = await calls.generate(ask(sampling={"seed": 5, "n": 2, "best_of": 4}))

    ranked = sorted(range(4), key=lambda i: everything.finished[i].cumulative_logprob, reverse=True)
    assert [best.tokens(i) for i in range(2)] == [everything.tokens(i) for i in ranked[:2]]
    assert set(best.finished) == {0, 1}
    assert not best.deltas[0].logprobs
    assert best.completed is not None
    assert best.completed.usage.completion_tokens == 48, "every sample drawn was paid for"


async def test_a_vote_is_taken_over_the_samples() -> None:
    answers = [b"Paris", b"paris ", b"Rome"]
    engine = FakeEngine(script=lambda _, choice: list(answers[choice]))
    request = ask(
        sampling={"n": 3}, aggregation=sampling_pb2.AGGREGATION_MAJORITY_VOTE, max_tokens=9
    )
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        transcript = await calls.generate(request)

    assert transcript.completed is not None
    vote = transcript.completed.vote
    assert (vote.answer, vote.choice_index, vote.votes, vote.total) == ("paris", 0, 2, 3)
    assert transcript.text(2) == "Rome"


async def test_an_id_that_runs_cannot_run_again() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        running = asyncio.create_task(calls.generate(ask(request_id="same")))
        await engine.until(lambda e: e.state().running == 1)

        with pytest.raises(Conflict, match="same runs already"):
            await calls.generate(ask(request_id="same"))
        engine.release()

        assert (await running).text()
        assert (await calls.generate(ask(request_id="same"))).text()


async def test_what_the_engine_refuses_or_breaks_at_reaches_the_caller() -> None:
    engine = FakeEngine()
    async with running_worker(engine) as worker, calls_to(worker.endpoint) as calls:
        with pytest.raises(NotSupported, match="constraints"):
            await calls.generate(ask(constraint={"regex": "a+"}))
        engine.hold()
        running = asyncio.create_task(calls.generate(ask()))
        await engine.until(lambda e: e.state().running == 1)
        engine.fail("the device is gone")

        with pytest.raises(EngineFailed, match="the device is gone") as caught:
            await running
        assert caught.value.retryable


async def test_a_model_may_have_several_names() -> None:
    options = replace(DEFAULT_OPTIONS, models=("org/fake", "alias"))
    async with running_worker(options=options) as worker, calls_to(worker.endpoint) as calls:
        request = ask()
        request.model = "alias"
        transcript = await calls.generate(request)

    assert transcript.started is not None
    assert transcript.started.model == "alias"
