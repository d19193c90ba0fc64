"""The asyncio client over real sockets, against a scripted router and scripted workers."""

import asyncio
import socket
from contextlib import aclosing

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from penstock_client import (
    AsyncClient,
    Completed,
    Delta,
    Finished,
    GenerateOptions,
    Message,
    Started,
)
from penstock_client.connections import Connections, Unreachable
from penstock_core.blocks import unpack_tokens
from penstock_core.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    LeaseStale,
    ModelNotFound,
    NotFound,
    Overloaded,
    PenstockError,
    Unauthenticated,
    Unavailable,
)
from penstock_testing.servers.scripted_fleet import API_KEY, FleetFactory, Script


async def test_lookaside_streams_straight_from_the_worker_that_the_router_chose(
    fleet: FleetFactory,
) -> None:
    running = await fleet(Script())
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        events = [event async for event in client.stream("hello", model="demo", max_tokens=3)]

    assert [type(event) for event in events] == [Started, Delta, Delta, Delta, Finished, Completed]
    assert isinstance(events[0], Started)
    assert (events[0].worker_id, events[0].mode) == ("w0", "lookaside")
    assert running.proxied.requests == []
    (direct,) = running.workers[0].requests
    assert direct.lease.signature == b"signature"
    assert direct.request_id == "req_routed"
    assert direct.WhichOneof("prompt") == "tokens"
    assert direct.stop.max_tokens == 3


async def test_api_key_goes_to_the_router_and_never_to_a_worker(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        await client.generate("hello")

    assert "authorization" not in running.workers[0].metadata[0]


async def test_generate_collects_text_tokens_usage_and_timing(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        whole = await client.generate([Message("user", "hi")])

    assert whole.text == "0 1 2 "
    assert whole.token_ids == (0, 1, 2)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.cached_tokens == 2
    assert whole.timing.ttft_s == 0.5
    assert whole.worker_id == "w0"


async def test_proxy_mode_never_asks_for_a_route(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    async with AsyncClient(running.target, api_key=API_KEY, mode="proxy") as client:
        whole = await client.generate("hello")

    assert whole.worker_id == "through-router"
    assert whole.started.mode == "proxy"
    assert running.routing.calls == []


async def test_unreachable_worker_falls_back_to_the_router(fleet: FleetFactory) -> None:
    running = await fleet(None)
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        whole = await client.generate("hello")

    assert whole.worker_id == "through-router"


@pytest.mark.parametrize("error", [Draining("going"), LeaseStale("old"), EngineFailed("broken")])
async def test_refusal_before_the_first_token_is_routed_elsewhere(
    fleet: FleetFactory, error: PenstockError
) -> None:
    running = await fleet(Script(error=error), Script())
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        events = [event async for event in client.stream("hello")]

    assert [e.worker_id for e in events if isinstance(e, Started)] == ["w1"]
    assert list(running.routing.calls[1].excluded_worker_ids) == ["w0"]


async def test_failure_after_the_first_token_is_made_good_by_another_worker(
    fleet: FleetFactory,
) -> None:
    running = await fleet(Script(error=Draining("going"), error_after=2), Script())
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        seen = [event async for event in client.stream("hello")]

    assert [e.first_position for e in seen if isinstance(e, Delta)] == [0, 1, 2]
    assert [e.worker_id for e in seen if isinstance(e, Started)] == ["w0"]
    resume = running.workers[1].requests[0].resume
    assert unpack_tokens(resume.choices[0].emitted.ids) == [0, 1]
    assert resume.choices[0].emitted_chars == len("0 1 ")
    assert resume.attempt == 1


async def test_error_that_no_retry_can_help_reaches_the_caller_typed(fleet: FleetFactory) -> None:
    error = InvalidRequest("top_p is 2", field="sampling.top_p")
    running = await fleet(Script(error=error), Script())
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        with pytest.raises(InvalidRequest, match="top_p is 2") as caught:
            await client.generate("hello")

    assert caught.value.field == "sampling.top_p"
    assert running.workers[1].requests == []


async def test_when_every_worker_refuses_the_router_has_the_last_word(fleet: FleetFactory) -> None:
    running = await fleet(*(Script(error=Draining("going")) for _ in range(4)))
    running.proxied.error = Overloaded("full", retry_after_s=2.0)
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        with pytest.raises(Overloaded) as caught:
            await client.generate("hello")

    assert caught.value.retry_after_s == 2.0
    assert len(running.routing.calls) == 3


async def test_closing_the_stream_ends_the_request_on_the_worker(fleet: FleetFactory) -> None:
    running = await fleet(Script(hangs=True))
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        async with aclosing(client.stream("hello")) as events:
            async for event in events:
                if isinstance(event, Delta):
                    break
        async with asyncio.timeout(5):
            await running.workers[0].ended.wait()


async def test_cancelled_task_ends_the_request_on_the_worker(fleet: FleetFactory) -> None:
    running = await fleet(Script(hangs=True))
    began = asyncio.Event()

    async def consume(client: AsyncClient) -> None:
        async for event in client.stream("hello"):
            if isinstance(event, Delta):
                began.set()

    async with AsyncClient(running.target, api_key=API_KEY) as client:
        task = asyncio.ensure_future(consume(client))
        async with asyncio.timeout(5):
            await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            await running.workers[0].ended.wait()


async def test_deadline_covers_the_whole_request(fleet: FleetFactory) -> None:
    running = await fleet(Script(hangs=True))
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("hello", timeout_s=0.2)
        async with asyncio.timeout(5):
            await running.workers[0].ended.wait()


async def test_wrong_api_key_is_unauthenticated(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    async with AsyncClient(running.target, api_key="pk-bad") as client:
        with pytest.raises(Unauthenticated):
            await client.generate("hello", model="demo")


async def test_router_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as taken:  # bound and not listening: refuses connections
        taken.bind(("127.0.0.1", 0))
        async with AsyncClient(f"127.0.0.1:{taken.getsockname()[1]}") as client:
            with pytest.raises(Unavailable):
                await client.generate("hello", model="demo")


async def test_model_must_be_named_when_there_are_two(fleet: FleetFactory) -> None:
    running = await fleet(Script(), models=("a", "b"))
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        with pytest.raises(InvalidRequest, match="a, b"):
            await client.generate("hello")
        assert (await client.generate("hello", model="b")).text == "0 1 2 "


async def test_default_model_is_looked_up_again_after_it_was_not_found(fleet: FleetFactory) -> None:
    running = await fleet(Script(), models=["old"])
    async with AsyncClient(running.target, api_key=API_KEY, mode="proxy") as client:
        await client.generate("hello")
        running.rename("new")
        with pytest.raises(ModelNotFound):
            await client.generate("hello")
        assert (await client.generate("hello")).text == "0 1 2 "


async def test_callers_trace_reaches_router_and_worker(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(context)):
        async with AsyncClient(running.target, api_key=API_KEY) as client:
            await client.generate("hello")

    assert format(0xABC, "032x") in running.workers[0].metadata[0]["traceparent"]


async def test_tokenize_detokenize_workers_and_explain_answer(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        assert await client.tokenize("ab") == [97, 98]
        assert await client.detokenize([1, 2, 3]) == "3"
        assert [model.name for model in await client.models()] == ["demo"]
        assert len(await client.workers()) == 1
        assert (await client.explain(decision_id="dec_1")).decision.decision_id == "dec_1"
        with pytest.raises(NotFound):
            await client.explain(request_id="req_unknown")
        async with aclosing(client.watch_workers()) as views:
            assert [(await anext(views))[0].seq for _ in range(2)] == [1, 2]


async def test_option_that_does_not_fit_the_wire_names_its_field(fleet: FleetFactory) -> None:
    running = await fleet(Script())
    async with AsyncClient(running.target, api_key=API_KEY) as client:
        with pytest.raises(InvalidRequest) as seed:
            await client.generate("hello", options=GenerateOptions(seed=-1))
        with pytest.raises(InvalidRequest) as tokens:
            await client.generate([2**32])
    assert (seed.value.field, tokens.value.field) == ("sampling.seed", "tokens.ids")


async def test_connections_keep_to_their_limit_and_spare_those_in_use(fleet: FleetFactory) -> None:
    running = await fleet(Script(), Script(), Script())
    endpoints = list(running.routing.endpoints.values())
    connections = Connections(limit=1)
    async with connections.use(endpoints[0]):
        async with connections.use(endpoints[1]), connections.use(endpoints[2]):
            assert len(connections) == 3
        assert len(connections) == 1
    async with connections.use(endpoints[0]) as still_open:
        assert len(connections) == 1
        assert still_open.get_state().name == "READY"
    await connections.close()


async def test_endpoint_that_refused_is_not_tried_again_at_once() -> None:
    connections = Connections()
    for _ in range(2):
        with pytest.raises(Unreachable):
            async with connections.use("127.0.0.1:1"):
                pass
    assert len(connections) == 0
