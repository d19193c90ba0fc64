"""A worker's relay: each of its streams is served as a call of its own, and none holds another."""

import asyncio

import grpc
import pytest
from opentelemetry import trace

from penstock.common.v1 import lease_pb2
from penstock.inference.v1.generate_pb2 import GenerateRequest
from penstock.worker.v1 import relay_pb2
from penstock_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LeaseInvalid,
    MalformedMessage,
    ModelNotFound,
    Unauthenticated,
)
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.leases import internal_metadata, sign
from penstock_core.telemetry import logs
from penstock_testing.callers.calls import calls_to
from penstock_testing.callers.relays import relay_to
from penstock_testing.engines.fake import FakeConfig, FakeEngine
from penstock_testing.servers.worker import RunningWorker, running_worker

SECRET = b"of the fleet"
MANY = FakeConfig(max_batch=256, max_waiting=256)


def ask(request_id: str = "", max_tokens: int = 8, model: str = "fake") -> GenerateRequest:
    request = GenerateRequest(model=model, text="hello " * 10, request_id=request_id)
    request.stop.max_tokens = max_tokens
    request.sampling.seed = 3
    return request


async def test_a_stream_of_a_relay_says_what_a_call_of_its_own_says() -> None:
    async with running_worker() as worker, calls_to(worker.endpoint) as calls:
        alone = await calls.generate(ask())
        async with relay_to(worker.endpoint) as relay:
            await relay.open(7, ask())
            (said,) = await relay.until_over(7)

    assert said.kinds[:2] == ["started", "delta"]
    assert said.kinds[-2:] == ["finished", "completed"]
    assert "".join(e.delta.text for e in said.events) == alone.text()
    assert said.failure is None


async def test_what_many_streams_have_to_say_shares_messages() -> None:
    async with running_worker(FakeEngine(MANY)) as worker, relay_to(worker.endpoint) as relay:
        for number in range(100):
            await relay.open(number, ask())
        said = await relay.until_over(*range(100))

    events = sum(len(one.events) for one in said)
    assert all(one.kinds[-1] == "completed" for one in said)
    assert relay.messages < events / 2


async def test_a_stream_that_nobody_reads_holds_no_other_and_goes_on_with_room() -> None:
    async with running_worker(FakeEngine(MANY)) as worker, relay_to(worker.endpoint) as relay:
        await relay.open(1, ask(max_tokens=400), credit_bytes=1)
        await relay.open(2, ask())
        await relay.until_over(2)
        slow = relay.said[1]
        assert slow.kinds == ["started"], "one event may exceed the room, none follows it"

        await relay.give(1, 1 << 20)
        await relay.until_over(1)

    assert slow.kinds[-1] == "completed"


async def test_a_cancelled_stream_frees_its_place_and_the_others_go_on() -> None:
    engine = FakeEngine(MANY)
    engine.hold()
    async with running_worker(engine) as worker, relay_to(worker.endpoint) as relay:
        await relay.open(1, ask(max_tokens=500))
        await relay.open(2, ask())
        await engine.until(lambda e: e.state().running == 2)

        await relay.cancel(1)

        await engine.until(lambda e: e.state().running == 1)
        engine.release()
        await relay.until_over(2)
    assert not relay.said[1].has_ended, "who cancels hears no more"


async def test_the_end_of_a_relay_ends_all_its_streams() -> None:
    engine = FakeEngine(MANY)
    engine.hold()
    async with running_worker(engine) as worker:
        async with relay_to(worker.endpoint) as relay:
            for number in range(5):
                await relay.open(number, ask(max_tokens=500))
            await engine.until(lambda e: e.state().running == 5)

        await engine.until(lambda e: e.state().running + e.state().waiting == 0)


async def test_each_stream_has_a_deadline_of_its_own() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, relay_to(worker.endpoint) as relay:
        await relay.open(1, ask(), timeout_s=0.05)
        (said,) = await relay.until_over(1)
        await engine.until(lambda e: e.state().running == 0)
    assert isinstance(said.failure, DeadlineExceeded)


async def test_what_is_wrong_with_a_stream_is_its_own_end_with_all_details() -> None:
    async with running_worker() as worker, relay_to(worker.endpoint) as relay:
        await relay.open(1, b"\xff\xff")
        await relay.open(2, ask(model="another"))
        await relay.open(3, GenerateRequest(model="fake", text=""))
        await relay.open(4, ask())
        await relay.open(5, ask(), timeout_s=float("nan"))
        malformed, unknown, invalid, good, endless = await relay.until_over(1, 2, 3, 4, 5)

    assert isinstance(malformed.failure, MalformedMessage)
    assert isinstance(unknown.failure, ModelNotFound)
    assert isinstance(invalid.failure, InvalidRequest)
    assert invalid.failure.field
    assert isinstance(endless.failure, InvalidRequest)
    assert good.failure is None


async def test_a_relay_that_uses_an_open_id_again_is_ended() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, relay_to(worker.endpoint) as relay:
        await relay.open(1, ask())
        await engine.until(lambda e: e.state().running == 1)
        await relay.open(1, ask())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await relay.until_over(1)
        await engine.until(lambda e: e.state().running == 0)
    assert isinstance(from_rpc_error(caught.value), InvalidRequest)


def lease(worker: RunningWorker, request_id: str) -> lease_pb2.Lease:
    claims = lease_pb2.LeaseClaims(
        worker_id=worker.info.worker_id,
        epoch=worker.info.epoch,
        request_id=request_id,
        expires_unix_ms=1 << 45,
    )
    return sign(claims, SECRET)


async def test_a_relay_is_the_platforms_and_each_stream_needs_its_lease() -> None:
    async with running_worker(lease_secret=SECRET) as worker:
        async with relay_to(worker.endpoint) as stranger:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stranger.listen()
        async with relay_to(worker.endpoint, internal_metadata(SECRET)) as relay:
            await relay.open(1, ask("r1"))
            permitted = ask("r2")
            permitted.lease.CopyFrom(lease(worker, "r2"))
            await relay.open(2, permitted)
            without, leased = await relay.until_over(1, 2)

    assert isinstance(from_rpc_error(caught.value), Unauthenticated)
    assert isinstance(without.failure, LeaseInvalid)
    assert leased.failure is None


class Listening(FakeEngine):
    """Notes in whose name and trace a request came."""

    def generate(self, request):  # type: ignore[no-untyped-def]
        self.heard = (logs.request_id.get(), trace.get_current_span().get_span_context())
        return super().generate(request)


async def test_a_streams_trace_and_request_id_are_those_of_its_call() -> None:
    engine = Listening()
    parent = f"00-{7:032x}-{9:016x}-01"
    async with running_worker(engine) as worker, relay_to(worker.endpoint) as relay:
        await relay.open(1, ask("r1"), metadata=(("traceparent", parent),))
        await relay.until_over(1)
    request_id, span = engine.heard
    assert (request_id, span.trace_id) == ("r1", 7)


async def test_a_worker_that_leaves_tells_its_relays_all_and_ends_them() -> None:
    engine = FakeEngine()
    engine.hold()
    async with running_worker(engine) as worker, relay_to(worker.endpoint) as relay:
        await relay.open(1, ask())
        await engine.until(lambda e: e.state().running == 1)
        leaving = asyncio.create_task(worker.stop())
        (said,) = await relay.until_over(1)
        with pytest.raises(EOFError):
            await relay.listen()
        async with asyncio.timeout(1.5):  # less than what calls that do not end are waited for
            await leaving
    assert said.failure is not None
    assert said.failure.retryable


async def test_a_worker_says_that_it_serves_relays() -> None:
    async with running_worker() as worker, relay_to(worker.endpoint) as relay:
        await relay.call.write(relay_pb2.RelayRequest(cancelled=[1]))
        assert worker.info.relays
