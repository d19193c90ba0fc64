"""What a request cost: told at its end, added up over workers that were lost on the way."""

from contextlib import aclosing
from dataclasses import replace

import pytest

from penstock.common.v1 import usage_pb2
from penstock_client import AsyncClient, Completed, Delta, GenerateOptions, Started
from penstock_core.cost.pricing import Price
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import DEADLINE_S, ask, running_cluster
from penstock_testing.servers.worker import DEFAULT_OPTIONS

PROMPT = list(range(100))
PER_SECOND = 1000.0
PRICED = replace(DEFAULT_OPTIONS, cost_class="fake", price=Price(3600 * PER_SECOND, "EUR"))


def seconds(cost: usage_pb2.Cost) -> float:
    """Of workers, in all."""
    return cost.prefill_s + cost.decode_s


async def test_a_request_tells_its_price_and_its_share_of_the_worker() -> None:
    async with running_cluster(FakeEngine(), options=PRICED) as cluster:
        cost = (await cluster.generate(ask(PROMPT))).completed.cost
        info = cluster.workers[0].info

    assert cost.prefill_s > 0
    assert cost.decode_s > 0
    assert cost.amount == pytest.approx(PER_SECOND * seconds(cost))
    assert cost.micros == round(cost.amount * 1e6)
    assert (cost.currency, info.currency, info.cost_class) == ("EUR", "EUR", "fake")


async def test_without_a_price_there_is_no_cost_but_the_time_is_told() -> None:
    async with running_cluster(FakeEngine()) as cluster:
        completed = (await cluster.generate(ask(PROMPT))).completed

    assert not completed.HasField("cost")
    assert completed.timing.worker_s > 0


async def test_a_resumed_stream_adds_up_what_its_workers_took() -> None:
    engines = FakeEngine(), FakeEngine()
    for engine in engines:
        engine.hold()
        engine.allow(12)
    async with running_cluster(*engines, options=PRICED) as cluster:
        stream = aiter(cluster.inference.Generate(ask(PROMPT, max_tokens=60), timeout=DEADLINE_S))
        victim = cluster.worker((await anext(stream)).started.worker_id)
        lost = (await anext(stream)).delta.spent
        await victim.kill()
        for engine in engines:
            engine.release()
        after = [event async for event in stream]

    # The lost worker may have told more before it went; the heir told its own, beginning anew.
    total, own = after[-1].completed, [e.delta.spent for e in after if e.HasField("delta")][-1]
    assert seconds(total.cost) >= seconds(lost) + seconds(own)
    assert total.timing.worker_s == pytest.approx(seconds(total.cost))
    assert total.cost.amount == pytest.approx(PER_SECOND * seconds(total.cost))


async def test_the_client_library_adds_up_in_lookaside_too() -> None:
    engines = FakeEngine(), FakeEngine()
    for engine in engines:
        engine.hold()
        engine.allow(12)
    async with (
        running_cluster(*engines, options=PRICED) as cluster,
        AsyncClient(cluster.router.endpoint) as client,
        aclosing(client.stream("x" * 100, options=GenerateOptions(max_tokens=60))) as stream,
    ):
        started, first = await anext(stream), await anext(stream)
        assert isinstance(started, Started)
        assert isinstance(first, Delta)
        await cluster.worker(started.worker_id).kill()
        heir = next(w for w in cluster.workers if w.info.worker_id != started.worker_id)
        for engine in engines:
            engine.release()
        last = [event async for event in stream][-1]
        booked = heir.worker.accounts.totals()

    assert isinstance(last, Completed)
    assert last.cost is not None
    (own,) = booked.values()
    # Each worker charges what it did itself; the client is told both.
    assert last.cost.prefill_s > own.prefill_s > 0
    assert last.timing.worker_s == pytest.approx(last.cost.prefill_s + last.cost.decode_s)
