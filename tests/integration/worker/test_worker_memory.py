"""Answers from memory: given to whom they belong, marked, and never where they could differ."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError

from penstock.common.v1 import lease_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2 as pb
from penstock_client import AsyncClient, GenerateOptions
from penstock_core.cost.pricing import Price
from penstock_core.security.leases import sign
from penstock_testing.callers.calls import Calls, Transcript, calls_to
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import running_cluster
from penstock_testing.servers.gateway import running_gateway
from penstock_testing.servers.worker import DEFAULT_OPTIONS, RunningWorker, running_worker

USE = pb.RESPONSE_CACHE_MODE_USE
REFRESH = pb.RESPONSE_CACHE_MODE_REFRESH
SECRET = b"shared"


def ask(mode: pb.ResponseCacheMode.ValueType = USE, **sampling: Any) -> pb.GenerateRequest:
    request = pb.GenerateRequest(model="fake", text="hello", response_cache=mode)
    request.stop.max_tokens = 20
    for name, value in (sampling or {"temperature": 0}).items():
        setattr(request.sampling, name, value)
    return request


@pytest.fixture
async def worker() -> AsyncIterator[RunningWorker]:
    async with running_worker() as running:
        yield running


@pytest.fixture
async def calls(worker: RunningWorker) -> AsyncIterator[Calls]:
    async with calls_to(worker.endpoint) as calls:
        yield calls


def computed(worker: RunningWorker) -> int:
    assert isinstance(worker.engine, FakeEngine)
    return len(worker.engine.requests)


def is_kept(transcript: Transcript) -> bool:
    assert transcript.completed is not None
    return transcript.completed.from_response_cache


async def test_an_equal_request_is_answered_from_memory_and_says_so(
    worker: RunningWorker, calls: Calls
) -> None:
    first = await calls.generate(ask())
    again = await calls.generate(ask())

    assert (is_kept(first), is_kept(again), computed(worker)) == (False, True, 1)
    assert again.tokens() == first.tokens()
    assert again.text() == first.text()
    assert again.finished == first.finished
    assert again.completed is not None
    assert first.completed is not None
    assert again.completed.usage == first.completed.usage
    assert again.completed.timing.worker_s == 0
    assert again.completed.response_age_s > 0
    assert again.started is not None
    assert first.started is not None
    assert again.started.request_id != first.started.request_id


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"temperature": 0, "n": 3}, True),
        ({"seed": 7}, True),
        ({"seed": 7, "temperature": 0.9, "n": 2, "best_of": 4}, True),
        ({"temperature": 0.7}, False),
    ],
)
async def test_only_greedy_or_seeded_requests_are_kept(
    calls: Calls, sampling: dict[str, Any], kept: bool
) -> None:
    first = await calls.generate(ask(**sampling))
    again = await calls.generate(ask(**sampling))

    assert is_kept(again) is kept
    if kept:
        assert [again.text(i) for i in again.finished] == [first.text(i) for i in first.finished]


DIFFERENT: dict[str, Any] = {
    "prompt": {"text": "hallo"},
    "logprobs": {"output": {"logprobs": 1}},
    "stop": {"stop": {"max_tokens": 20, "strings": ["q"]}},
    "max_tokens": {"stop": {"max_tokens": 19}},
    "penalty": {"sampling": {"temperature": 0, "presence_penalty": 1}},
    "vote": {"aggregation": 2},
    "seed": {"sampling": {"seed": 8}},
    "echo": {"output": {"echo": True}},
}


@pytest.mark.parametrize("changes", DIFFERENT.values(), ids=DIFFERENT)
async def test_whatever_changes_the_answer_is_part_of_what_it_is_kept_by(
    calls: Calls, changes: dict[str, Any]
) -> None:
    await calls.generate(ask())
    fields: dict[str, Any] = {"text": "hello", "stop": {"max_tokens": 20}}
    fields |= {"sampling": {"temperature": 0}, **changes}

    other = await calls.generate(pb.GenerateRequest(model="fake", response_cache=USE, **fields))

    assert not is_kept(other)


async def test_who_does_not_ask_gets_a_computed_answer_and_leaves_none(
    worker: RunningWorker, calls: Calls
) -> None:
    off = pb.RESPONSE_CACHE_MODE_UNSPECIFIED
    assert not is_kept(await calls.generate(ask(off)))
    assert not is_kept(await calls.generate(ask()))
    assert not is_kept(await calls.generate(ask(off)))
    assert computed(worker) == 3


async def test_refresh_computes_and_keeps(worker: RunningWorker, calls: Calls) -> None:
    await calls.generate(ask())

    assert not is_kept(await calls.generate(ask(REFRESH)))
    assert is_kept(await calls.generate(ask()))
    assert computed(worker) == 2


async def test_answers_that_failed_or_were_ended_are_not_kept(
    worker: RunningWorker, calls: Calls
) -> None:
    engine = worker.engine
    assert isinstance(engine, FakeEngine)
    engine.hold()
    asking = asyncio.create_task(calls.generate(ask()))
    await engine.until(lambda e: bool(e.requests))
    assert engine.abort(engine.requests[0].request_id)
    engine.release()
    ended = await asking
    engine.hold()  # or it might be done before it hears that nobody listens any more
    left = calls.inference.Generate(ask())
    await engine.until(lambda e: len(e.requests) == 2)
    left.cancel()
    await engine.until(lambda e: e.state().running + e.state().waiting == 0)
    engine.release()

    assert ended.finished[0].reason == pb.FINISH_REASON_ABORTED
    assert not is_kept(await calls.generate(ask()))


async def test_a_continued_attempt_has_no_part_in_it(worker: RunningWorker, calls: Calls) -> None:
    request = ask()
    request.resume.attempt = 1
    await calls.generate(request)

    assert not is_kept(await calls.generate(ask()))
    assert not is_kept(await calls.generate(request))


async def test_tenants_share_nothing() -> None:
    async with running_worker(lease_secret=SECRET) as worker, calls_to(worker.endpoint) as calls:

        async def by(tenant: str, number: int) -> Transcript:
            request = ask()
            request.request_id = f"r{number}"
            claims = lease_pb2.LeaseClaims(
                worker_id=worker.info.worker_id,
                epoch=worker.info.epoch,
                request_id=request.request_id,
                tenant=tenant,
                expires_unix_ms=2**53,
            )
            request.lease.CopyFrom(sign(claims, SECRET))
            return await calls.generate(request)

        kept = [is_kept(await by(tenant, i)) for i, tenant in enumerate(["a", "b", "a", "b"])]

    assert kept == [False, False, True, True]


async def test_without_room_nothing_is_kept() -> None:
    options = replace(DEFAULT_OPTIONS, response_cache_bytes=0)
    async with running_worker(options=options) as worker, calls_to(worker.endpoint) as calls:
        assert not is_kept(await calls.generate(ask()))
        assert not is_kept(await calls.generate(ask()))


@pytest.mark.parametrize("mode", ["lookaside", "proxy"])
async def test_both_ways_through_the_router_lead_to_it(mode: Any) -> None:
    options = GenerateOptions(max_tokens=9, temperature=0, response_cache="use")
    sampled = GenerateOptions(max_tokens=9, response_cache="use")
    async with (
        running_cluster(FakeEngine(), lease_secret="secret") as cluster,
        AsyncClient(cluster.router.endpoint, mode=mode) as client,
    ):
        first = await client.generate("hello", options=options)
        again = await client.generate("hello", options=options)
        for _ in range(2):  # the router draws a seed for it, which is not the caller's
            assert not (await client.generate("hello", options=sampled)).from_response_cache

    assert (first.from_response_cache, again.from_response_cache) == (False, True)
    assert (again.text, again.started.mode) == (first.text, mode)


async def test_the_gateway_takes_a_field_or_a_header_and_marks_the_answer() -> None:
    async with (
        running_cluster(FakeEngine()) as cluster,
        running_gateway(cluster.router.endpoint) as gateway,
        AsyncOpenAI(base_url=gateway.api, api_key="any", max_retries=0) as client,
    ):
        create = client.completions.with_raw_response.create
        asked: dict[str, Any] = {"model": "fake", "prompt": "x", "temperature": 0}

        async def said(**changes: Any) -> tuple[str | None, bool]:
            raw = await create(**asked, **changes)
            body = raw.http_response.json()
            kept = body["penstock"].get("from_response_cache", False)
            return raw.headers.get("x-penstock-cache"), kept

        assert await said() == (None, False)
        assert await said(extra_body={"response_cache": "use"}) == ("miss", False)
        assert await said(extra_headers={"x-penstock-cache": "use"}) == ("hit", True)
        assert await said(extra_headers={"x-penstock-cache": "refresh"}) == ("miss", False)
        with pytest.raises(BadRequestError, match="off, use, refresh"):
            await said(extra_headers={"x-penstock-cache": "yes"})


async def test_an_answer_from_memory_costs_nothing() -> None:
    options = replace(DEFAULT_OPTIONS, price=Price(3600.0, "USD"))
    async with running_worker(options=options) as worker, calls_to(worker.endpoint) as calls:
        first = await calls.generate(ask())
        again = await calls.generate(ask())
        charged = worker.worker.accounts.totals()

    assert first.completed is not None
    assert again.completed is not None
    assert first.completed.cost.amount > 0
    assert again.completed.cost == usage_pb2.Cost(currency="USD")
    assert not any(delta.HasField("spent") for delta in again.deltas)
    assert [spent.requests for spent in charged.values()] == [1]
