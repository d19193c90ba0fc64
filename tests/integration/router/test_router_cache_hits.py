"""What the router predicts is what the worker finds."""

import asyncio
from collections.abc import Sequence

from penstock.inference.v1.generate_pb2 import GenerateRequest
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import Answer, Cluster, ask, running_cluster

PREFIX = [(7 * n) % 250 for n in range(1000)]


def requests(count: int) -> list[GenerateRequest]:
    """Requests that share a thousand tokens and differ behind them."""
    return [ask([*PREFIX, n, 2, 3, *range(n % 40)], f"req-{n}") for n in range(count)]


async def check_predictions(
    cluster: Cluster, asked: Sequence[GenerateRequest], answers: Sequence[Answer]
) -> list[int]:
    """Predicted, found by the worker, told to the client: all the same. Returns them."""
    hits = []
    for request, answer in zip(asked, answers, strict=True):
        outcome = (await cluster.explain(request.request_id)).outcome
        assert outcome.status == "OK"
        assert outcome.predicted_cached_tokens == outcome.actual_cached_tokens
        assert outcome.predicted_cached_tokens == answer.started.cached_tokens
        assert outcome.predicted_cached_tokens == answer.completed.usage.cached_tokens
        hits.append(outcome.predicted_cached_tokens)
    return hits


async def test_forty_requests_one_after_another_find_the_prefix_as_predicted() -> None:
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        asked = requests(40)
        answers = [await cluster.generate(request) for request in asked]
        hits = await check_predictions(cluster, asked, answers)
    assert hits[0] == 0
    assert all(hit >= 992 for hit in hits[1:])
    assert len({a.started.worker_id for a in answers}) == 1


async def test_forty_requests_at_once_wait_for_the_first_ones_prefill() -> None:
    async with running_cluster(FakeEngine(), FakeEngine()) as cluster:
        asked = requests(40)
        answers = await asyncio.gather(*map(cluster.generate, asked))
        hits = await check_predictions(cluster, asked, answers)
    assert 1 <= hits.count(0) <= 2, "each worker computes the prefix at most once"
    assert all(hit >= 992 for hit in hits if hit)


async def test_a_sibling_goes_on_alone_when_the_first_one_is_cancelled() -> None:
    engine = FakeEngine()
    async with running_cluster(engine) as cluster:
        engine.hold()
        first, second = requests(2)
        stream = cluster.inference.Generate(first)
        await engine.until(lambda e: len(e.requests) == 1)
        sibling = asyncio.create_task(cluster.generate(second))
        stream.cancel()
        await engine.until(lambda e: len(e.requests) == 2)
        engine.release()
        answer = await sibling
        assert await check_predictions(cluster, [second], [answer]) == [0]
