"""A stream in lookaside whose worker fails, stands still or vanishes: the client goes on elsewhere."""

from contextlib import aclosing

import pytest

from penstock_client import AsyncClient, Completed, Delta, GenerateOptions, Started, StreamEvent
from penstock_core.blocks import unpack_tokens
from penstock_core.errors import Aborted, Evicted, PenstockError, WorkerLost
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import DEFAULT_SETTINGS, running_cluster
from penstock_testing.servers.scripted_fleet import API_KEY, FleetFactory, Script

PROMPT = list(range(100))


def positions(events: list[StreamEvent]) -> list[int]:
    """Positions of all tokens."""
    return [
        event.first_position + offset
        for event in events
        if isinstance(event, Delta)
        for offset in range(len(event.token_ids))
    ]


async def test_a_worker_that_stands_still_is_left(fleet: FleetFactory) -> None:
    running = await fleet(Script(tokens=2, hangs=True), Script(tokens=3))
    async with AsyncClient(running.target, api_key=API_KEY, stall_s=0.3) as client:
        events = [event async for event in client.stream("hello")]

    assert positions(events) == [0, 1, 2]
    assert sum(isinstance(event, Started) for event in events) == 1
    assert unpack_tokens(running.workers[1].requests[0].resume.choices[0].emitted.ids) == [0, 1]
    assert list(running.routing.calls[1].excluded_worker_ids) == ["w0"]


async def test_the_router_is_told_what_was_emitted(fleet: FleetFactory) -> None:
    running = await fleet(Script(error=Evicted("going"), error_after=1), Script())
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        await client.generate("hello")

    resume = running.routing.calls[1].request.resume
    assert unpack_tokens(resume.choices[0].emitted.ids) == [0]
    assert resume.timing.total_s >= resume.timing.ttft_s > 0
    ids = {script.requests[0].request_id for script in running.workers}
    assert len(ids) == 1, "all attempts are one request"


@pytest.mark.parametrize("error", [Aborted("ended"), PenstockError("odd")])
async def test_what_no_worker_can_mend_is_raised(fleet: FleetFactory, error: PenstockError) -> None:
    running = await fleet(Script(error=error, error_after=1), Script())
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        with pytest.raises(type(error)):
            await client.generate("hello")

    assert not running.workers[1].requests


async def test_a_routers_verdict_is_final(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    running.proxied.error, running.proxied.error_after = WorkerLost("all gone"), 1
    async with AsyncClient(running.target, api_key=API_KEY, mode="proxy") as client:
        with pytest.raises(WorkerLost, match="all gone"):
            await client.generate("hello")

    assert len(running.proxied.requests) == 1


async def test_a_killed_workers_stream_goes_on_with_the_same_tokens() -> None:
    options = GenerateOptions(max_tokens=40, temperature=1.0, seed=4, n=2, logprobs=1)
    events: list[StreamEvent] = []
    async with (
        running_cluster(FakeEngine(), FakeEngine(), settings=DEFAULT_SETTINGS) as cluster,
        AsyncClient(cluster.router.endpoint) as client,
    ):
        expected = await client.generate(PROMPT, model="fake", options=options)
        for worker in cluster.workers:
            engine = cluster.engine(worker.info.worker_id)
            engine.hold()
            engine.allow(10)
        async with aclosing(client.stream(PROMPT, model="fake", options=options)) as stream:
            async for event in stream:
                events.append(event)
                if isinstance(event, Delta) and sum(isinstance(e, Delta) for e in events) == 2:
                    started = events[0]
                    assert isinstance(started, Started)
                    await cluster.worker(started.worker_id).kill()
                    for worker in cluster.workers:
                        cluster.engine(worker.info.worker_id).release()
    for choice in expected.choices:
        deltas = [e for e in events if isinstance(e, Delta) and e.choice_index == choice.index]
        assert sum((d.token_ids for d in deltas), ()) == choice.token_ids
        assert "".join(d.text for d in deltas) == choice.text
        assert sum((d.logprobs for d in deltas), ()) == choice.logprobs
    last = events[-1]
    assert isinstance(last, Completed)
    assert last.usage.completion_tokens == expected.usage.completion_tokens
