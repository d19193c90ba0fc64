"""How lines meet a router that pushes back, loses work, refuses us or goes away."""

import asyncio
from collections import Counter

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from penstock.inference.v1 import generate_pb2
from penstock_batch.batches import NewBatch
from penstock_batch.state.fold import Status
from penstock_core import errors as e
from penstock_core.telemetry import semconv as sc
from penstock_testing.servers.batch import COMPLETIONS, TENANT, BatchBench, chunks, jsonl
from penstock_testing.servers.echo_router import EchoRouter

Request = generate_pb2.GenerateRequest


class FailsFirst:
    """Fails the first calls of each prompt."""

    def __init__(self, error: e.PenstockError, times: int) -> None:
        self._error = error
        self._times = times
        self.seen: Counter[str] = Counter()

    async def __call__(self, request: Request) -> None:
        self.seen[request.text] += 1
        if self.seen[request.text] <= self._times:
            raise self._error


@pytest.mark.parametrize(
    "error", [e.Overloaded("full", retry_after_s=0.01), e.NoWorker("none"), e.Draining("bye")]
)
async def test_a_refusal_before_work_began_never_fails_a_line(
    bench: BatchBench, router: EchoRouter, error: e.PenstockError
) -> None:
    # More refusals than there are attempts for work that began.
    router.before = FailsFirst(error, times=3)
    batch = await bench.submit(jsonl(4))
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert (batch.counts.completed, batch.counts.failed) == (4, 0)
    assert set(router.calls.values()) == {4}


async def test_pushing_back_narrows_and_success_widens(
    bench: BatchBench, router: EchoRouter
) -> None:
    caller = bench.jobs.runner._caller
    router.before = FailsFirst(e.Overloaded("full"), times=1)
    await bench.submit(jsonl(8))
    await bench.run_next()
    before = caller._gate.width
    await bench.run_next()
    assert router.most_at_once <= before
    narrowed = caller._gate.width
    router.before = None
    for _ in range(4):
        await bench.submit(jsonl(8))
        await bench.run_all()
    assert caller._gate.width > narrowed


@pytest.mark.parametrize("error", [e.WorkerLost("gone"), e.EngineFailed("broken")])
async def test_lost_work_is_tried_again_a_few_times(
    bench: BatchBench, router: EchoRouter, error: e.PenstockError
) -> None:
    router.before = FailsFirst(error, times=1)
    batch = await bench.submit(jsonl(2))
    await bench.run_all()
    assert (await bench.batches.get(TENANT, batch.id)).counts.completed == 2
    router.before = FailsFirst(error, times=99)
    batch = await bench.submit(jsonl(2))
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert (batch.status, batch.counts.failed) == (Status.COMPLETED, 2)
    assert {line["response"]["body"]["error"]["code"] for line in await bench.errors(batch)} == {
        error.slug
    }


async def test_an_unknown_model_fails_its_lines_with_404(
    bench: BatchBench, router: EchoRouter
) -> None:
    router.before = FailsFirst(e.ModelNotFound("no such model"), times=99)
    batch = await bench.submit(jsonl(1))
    await bench.run_all()
    (line,) = await bench.errors(await bench.batches.get(TENANT, batch.id))
    assert line["response"]["status_code"] == 404


async def test_a_refusal_of_our_own_key_fails_no_line(
    bench: BatchBench, router: EchoRouter
) -> None:
    router.before = FailsFirst(e.Unauthenticated("the API key is wrong"), times=1)
    batch = await bench.submit(jsonl(2))
    await bench.run_next()
    with pytest.raises(e.Unauthenticated):
        await bench.run_next()
    assert (await bench.batches.get(TENANT, batch.id)).counts.failed == 0
    await bench.board._redis.flushdb()  # the pause after a failure
    router.before = None
    await bench.reconciler.look()
    await bench.run_all()
    assert (await bench.batches.get(TENANT, batch.id)).counts.completed == 2


async def test_a_cancelled_line_is_cancelled_at_the_router(
    bench: BatchBench, router: EchoRouter
) -> None:
    ended = asyncio.Event()

    async def hang(request: Request) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    router.before = hang
    batch = await bench.submit(jsonl(1))
    await bench.run_next()
    running = asyncio.create_task(bench.run_next())
    await router.until(lambda r: len(r.calls) == 1)
    await bench.batches.cancel(TENANT, batch.id)
    async with asyncio.timeout(10):
        await ended.wait()
        await running


async def test_a_watcher_sees_progress_within_a_running_shard(
    bench: BatchBench, router: EchoRouter
) -> None:
    go_on = asyncio.Event()

    async def hold_the_last(request: Request) -> None:
        if request.text == "prompt 8":
            await go_on.wait()

    router.before = hold_the_last
    batch = await bench.submit(jsonl(8))
    await bench.run_next()
    running = asyncio.create_task(bench.run_all())
    seen = []
    async with asyncio.timeout(20):
        async for now in bench.batches.watch(TENANT, batch.id):
            seen.append((now.counts.completed, now.shards_done))
            if now.counts.completed == 7:
                go_on.set()
        await running
    assert (7, 0) in seen
    assert seen[-1] == (8, 1)
    assert seen == sorted(seen)


async def test_shards_have_traces_of_their_own_that_link_to_the_submitters(
    bench: BatchBench, router: EchoRouter
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    bench.batches._tracer = bench.jobs.runner._tracer = tracer
    batch = await bench.submit(jsonl(2))
    await bench.run_all()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    submit, shard = spans[sc.SPAN_SUBMIT].get_span_context(), spans[sc.SPAN_SHARD]
    assert submit is not None
    context = shard.get_span_context()
    assert context is not None
    assert shard.parent is None
    assert [link.context.span_id for link in shard.links] == [submit.span_id]
    assert context.trace_id != submit.trace_id
    attributes = shard.attributes or {}
    assert (attributes[sc.BATCH_ID], attributes[sc.BATCH_SHARD]) == (batch.id, 0)
    parents = {metadata["traceparent"].split("-")[1] for metadata in router.metadata}
    assert parents == {format(context.trace_id, "032x")}
    provider.shutdown()


async def test_a_file_over_the_limit_leaves_nothing_behind(bench: BatchBench) -> None:
    with pytest.raises(e.InvalidRequest, match="larger"):
        await bench.files.upload(TENANT, "big", chunks(b"x" * 2_000_000, 100_000), 0.0)
    assert await bench.objects.names("tenants") == []


async def test_a_file_comes_back_whole_and_from_an_offset(bench: BatchBench) -> None:
    data = bytes(range(256)) * 3000
    file = await bench.upload(data)
    assert file.size == len(data)
    for offset in (0, 1, 700_000, len(data), len(data) + 5):
        got = b"".join([piece async for piece in bench.files.stream(TENANT, file.id, offset)])
        assert got == data[offset:]
    await bench.files.delete(TENANT, file.id)
    with pytest.raises(e.NotFound):
        await bench.files.read(TENANT, file.id)


async def test_a_batch_whose_input_was_deleted_fails_and_says_so(bench: BatchBench) -> None:
    file = await bench.upload(jsonl(1))
    batch = await bench.batches.create(TENANT, NewBatch(file.id, COMPLETIONS))
    await bench.files.delete(TENANT, file.id)
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert [problem.code for problem in batch.problems] == ["file_not_found"]
