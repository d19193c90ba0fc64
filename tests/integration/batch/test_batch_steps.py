"""Batches step by step: real Redis, real calls, a queue and a clock that the test moves."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from penstock.inference.v1 import generate_pb2
from penstock_batch.batches import NewBatch
from penstock_batch.state.facts import Costs
from penstock_batch.state.fold import Status
from penstock_batch.state.steps import shard_step
from penstock_core import errors as e
from penstock_testing.servers.batch import COMPLETIONS, TENANT, BatchBench, jsonl
from penstock_testing.servers.echo_router import DECODE_S, PREFILL_S, EchoRouter

Request = generate_pb2.GenerateRequest


def ids(lines: list[dict[str, Any]]) -> Counter[str]:
    return Counter(line["custom_id"] for line in lines)


def every_id(count: int) -> Counter[str]:
    return Counter(f"line-{n}" for n in range(1, count + 1))


async def test_every_line_is_answered_in_input_order(bench: BatchBench) -> None:
    batch = await bench.submit(jsonl(20))
    assert batch.status is Status.VALIDATING
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert batch.status is Status.COMPLETED
    assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (20, 20, 0)
    assert (batch.shards, batch.shards_done, batch.model) == (3, 3, "penstock-demo")
    output = await bench.output(batch)
    assert [line["custom_id"] for line in output] == [f"line-{n}" for n in range(1, 21)]
    texts = [line["response"]["body"]["choices"][0]["text"] for line in output]
    assert texts == [f"echo prompt {n}" for n in range(1, 21)]
    assert batch.error_file_id == ""
    assert await bench.store.open_batches() == []


async def test_identical_lines_are_run_once_and_each_gets_the_answer(
    bench: BatchBench, router: EchoRouter
) -> None:
    batch = await bench.submit(jsonl(10, prompt="same", temperature=0))
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert router.calls == {"same": 1}
    assert ids(await bench.output(batch)) == every_id(10)
    assert (batch.deduplicated, batch.counts.completed) == (9, 10)
    assert batch.cost == Costs(PREFILL_S + DECODE_S, "USD", PREFILL_S, DECODE_S), "it cost once"


async def test_a_batch_adds_up_what_its_lines_cost(bench: BatchBench) -> None:
    batch = await bench.submit(jsonl(20))
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert batch.cost.amount == pytest.approx(20 * (PREFILL_S + DECODE_S))
    assert batch.cost.decode_s == pytest.approx(20 * DECODE_S)


async def test_lines_wait_while_their_tenants_budget_is_spent(
    bench: BatchBench, router: EchoRouter
) -> None:
    refused = ["prompt 2"]

    async def before(request: Request) -> None:
        if request.text in refused:
            refused.clear()
            raise e.BudgetSpent("spent", retry_after_s=0.01)

    router.before = before
    batch = await bench.submit(jsonl(3))
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert (batch.counts.completed, batch.counts.failed) == (3, 0)
    assert router.calls["prompt 2"] == 2


async def test_lines_run_for_their_tenant_at_batch_priority(
    bench: BatchBench, router: EchoRouter
) -> None:
    await bench.submit(jsonl(1))
    await bench.run_all()
    (request,) = router.requests
    assert request.priority == 4  # PRIORITY_CLASS_BATCH
    assert router.tenants == {TENANT}


async def test_a_malformed_line_fails_the_batch_with_its_number(bench: BatchBench) -> None:
    batch = await bench.submit(jsonl(3) + b"{broken\n")
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert batch.status is Status.FAILED
    assert [(p.code, p.line) for p in batch.problems] == [("invalid_json_line", 4)]
    assert (batch.output_file_id, batch.error_file_id) == ("", "")


async def test_a_line_with_a_bad_body_fails_alone(bench: BatchBench, router: EchoRouter) -> None:
    bad = jsonl(1, temperature="hot").replace(b"line-1", b"bad-1")
    worse = jsonl(1, max_tokens=-1).replace(b"line-1", b"bad-2")
    batch = await bench.submit(jsonl(2) + bad + worse)
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert (batch.status, batch.counts.completed, batch.counts.failed) == (Status.COMPLETED, 2, 2)
    errors = await bench.errors(batch)
    assert ids(errors) == {"bad-1": 1, "bad-2": 1}
    for line, param in zip(errors, ("temperature", "max_tokens"), strict=True):
        assert line["response"]["status_code"] == 400
        assert line["response"]["body"]["error"]["param"] == param
    assert router.answers == 2


async def test_a_shard_whose_lines_all_fail_at_once_is_over_at_once(bench: BatchBench) -> None:
    batch = await bench.submit(jsonl(1, temperature="hot"))
    async with asyncio.timeout(20):
        await bench.run_all()
    assert (await bench.batches.get(TENANT, batch.id)).counts.failed == 1


async def test_a_shard_that_runs_twice_at_once_counts_once(
    bench: BatchBench, router: EchoRouter
) -> None:
    batch = await bench.submit(jsonl(8))
    await bench.run_next()
    both = asyncio.Barrier(2)
    attempts: set[str] = set()

    async def meet(request: Request) -> None:
        attempt = request.request_id.partition(".")[0]
        if attempt not in attempts:
            attempts.add(attempt)
            await both.wait()

    router.before = meet
    async with asyncio.timeout(20):
        await asyncio.gather(*(bench.jobs.runner.run(batch.id, 0) for _ in range(2)))
    assert len(attempts) == 2
    assert len(await bench.objects.names(f"batches/{batch.id}/answers")) == 1
    await bench.jobs.finalize(batch.id)
    batch = await bench.batches.get(TENANT, batch.id)
    assert batch.counts.completed == 8
    assert ids(await bench.output(batch)) == every_id(8)


async def test_a_step_that_somebody_runs_is_not_run_by_another(
    bench: BatchBench, router: EchoRouter
) -> None:
    batch = await bench.submit(jsonl(8))
    await bench.run_next()
    assert await bench.board.begin(batch.id, shard_step(0), "somebody", 30)
    await bench.run_next()
    assert not router.calls


async def test_cancelling_keeps_what_is_done_and_ends_what_runs(
    bench: BatchBench, router: EchoRouter
) -> None:
    batch = await bench.submit(jsonl(16))
    await bench.run_next()
    never = asyncio.Event()

    async def answer_only_the_first(request: Request) -> None:
        if request.text != "prompt 1":
            await never.wait()

    router.before = answer_only_the_first
    running = asyncio.create_task(bench.run_next())
    await router.until(lambda r: r.answers == 1 and len(r.calls) > 3)
    cancelling = await bench.batches.cancel(TENANT, batch.id)
    assert cancelling.status is Status.CANCELLING
    async with asyncio.timeout(10):
        await running
        await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert batch.status is Status.CANCELLED
    assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (16, 1, 15)
    assert ids(await bench.output(batch)) == {"line-1": 1}
    errors = await bench.errors(batch)
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert ids(errors) + ids(await bench.output(batch)) == every_id(16)
    assert (await bench.batches.cancel(TENANT, batch.id)).status is Status.CANCELLED


async def test_a_window_that_closes_ends_the_batch_with_partial_results(
    bench: BatchBench, router: EchoRouter
) -> None:
    batch = await bench.submit(jsonl(16), window_s=3600)
    await bench.run_next()
    await bench.run_next()
    bench.clock.now += 3601
    bench.queue.waiting.clear()
    await bench.reconciler.look()
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert (batch.status, batch.counts.completed, batch.counts.failed) == (Status.EXPIRED, 8, 8)
    errors = await bench.errors(batch)
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}
    assert ids(errors) + ids(await bench.output(batch)) == every_id(16)
    assert router.answers == 8


async def test_an_ended_batch_cannot_be_cancelled(bench: BatchBench) -> None:
    batch = await bench.submit(jsonl(1))
    await bench.run_all()
    with pytest.raises(e.Conflict):
        await bench.batches.cancel(TENANT, batch.id)


async def test_another_tenants_batches_and_files_do_not_exist(bench: BatchBench) -> None:
    batch = await bench.submit(jsonl(1))
    for call in (
        bench.batches.get("other", batch.id),
        bench.batches.cancel("other", batch.id),
        bench.files.describe("other", batch.input_file_id),
        bench.files.delete("other", batch.input_file_id),
        bench.batches.create("other", NewBatch(batch.input_file_id, COMPLETIONS)),
    ):
        with pytest.raises(e.NotFound):
            await call
    assert await bench.batches.page("other", "", 0) == ([], False)
    assert await bench.files.page("other", "", 10, "") == []


@pytest.mark.parametrize("batch_id", ["", "..", "a/b", "../../etc", "x" * 200, "é", "batch_0"])
async def test_an_id_that_cannot_be_is_not_found(bench: BatchBench, batch_id: str) -> None:
    with pytest.raises(e.NotFound):
        await bench.batches.get(TENANT, batch_id)
    with pytest.raises(e.NotFound):
        await bench.files.read(TENANT, batch_id)


async def test_the_same_client_request_id_returns_the_same_batch(bench: BatchBench) -> None:
    file = await bench.upload(jsonl(2))
    new = NewBatch(file.id, COMPLETIONS, client_request_id="mine")
    first, *others = await asyncio.gather(*(bench.batches.create(TENANT, new) for _ in range(4)))
    assert {batch.id for batch in others} == {first.id}
    assert len((await bench.batches.page(TENANT, "", 0))[0]) == 1
    different = NewBatch(file.id, COMPLETIONS, metadata={"a": "b"}, client_request_id="mine")
    with pytest.raises(e.Conflict):
        await bench.batches.create(TENANT, different)


async def test_batches_are_listed_newest_first_in_pages(bench: BatchBench) -> None:
    made = [(await bench.submit(jsonl(1))).id for _ in range(3)]
    newest_first = sorted(made, reverse=True)
    page, more = await bench.batches.page(TENANT, "", 2)
    assert ([batch.id for batch in page], more) == (newest_first[:2], True)
    page, more = await bench.batches.page(TENANT, newest_first[1], 2)
    assert ([batch.id for batch in page], more) == (newest_first[2:], False)


@pytest.mark.parametrize(
    ("wishes", "error"),
    [
        ({"endpoint": "/v1/images"}, e.InvalidRequest),
        ({"window_s": 10**9}, e.InvalidRequest),
        ({"metadata": {str(n): "x" for n in range(17)}}, e.InvalidRequest),
        ({"metadata": {"k" * 65: "x"}}, e.InvalidRequest),
        ({"input_file_id": "file_0"}, e.NotFound),
    ],
)
async def test_a_batch_out_of_its_limits_is_refused(
    bench: BatchBench, wishes: dict[str, Any], error: type[e.PenstockError]
) -> None:
    file = await bench.upload(jsonl(1))
    fields: dict[str, Any] = {"input_file_id": file.id, "endpoint": COMPLETIONS, **wishes}
    with pytest.raises(error):
        await bench.batches.create(TENANT, NewBatch(**fields))


async def test_results_come_shard_by_shard_and_continue_after_those_received(
    bench: BatchBench,
) -> None:
    batch = await bench.submit(jsonl(20))

    async def received(skip: int) -> list[str]:
        return [a.custom_id async for a in bench.batches.results(TENANT, batch.id, skip)]

    early = asyncio.create_task(received(0))
    await bench.run_all()
    async with asyncio.timeout(10):
        lines = await early
        assert Counter(lines) == every_id(20)
        assert await received(9) == lines[9:]
        assert await received(20) == []


async def test_a_lost_queue_is_filled_again_from_the_facts(bench: BatchBench) -> None:
    batch = await bench.submit(jsonl(20))
    await bench.run_next()
    await bench.run_next()
    bench.queue.waiting.clear()
    await bench.reconciler.look()
    assert bench.queue.waiting == []  # their leases tell that they wait
    await bench.board._redis.flushdb()
    await bench.reconciler.look()
    assert sorted(step.name for _, step in bench.queue.waiting) == ["shard-1", "shard-2"]
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert ids(await bench.output(batch)) == every_id(20)


async def test_two_finalizers_leave_one_outcome_and_its_files(bench: BatchBench) -> None:
    batch = await bench.submit(jsonl(8))
    await bench.run_next()
    await bench.run_next()
    await asyncio.gather(*(bench.jobs.finalizer.run(batch.id) for _ in range(3)))
    batch = await bench.batches.get(TENANT, batch.id)
    assert batch.status is Status.COMPLETED
    outputs = await bench.files.page(TENANT, "", 10, "batch_output")
    assert [file.id for file in outputs] == [batch.output_file_id]


async def test_one_damaged_batch_keeps_no_other_from_going_on(bench: BatchBench) -> None:
    damaged = await bench.submit(jsonl(1))
    healthy = await bench.submit(jsonl(1))
    await bench.objects.put(f"batches/{damaged.id}/facts/planned.json", b"garbage")
    bench.queue.waiting.clear()
    await bench.board._redis.flushdb()
    await bench.reconciler.look()
    assert [batch_id for batch_id, _ in bench.queue.waiting] == [healthy.id]


async def test_the_batch_with_the_least_time_left_goes_first(bench: BatchBench) -> None:
    await bench.submit(jsonl(1))
    urgent = await bench.submit(jsonl(1), window_s=600)
    bench.queue.waiting.clear()
    await bench.board._redis.flushdb()
    await bench.reconciler.look()
    assert bench.queue.waiting[0][0] == urgent.id
    assert bench.queue.levels[-2] < bench.queue.levels[-1]


async def test_an_index_entry_without_a_batch_is_forgotten_in_time(bench: BatchBench) -> None:
    await bench.objects.put("open/batch_0190000000000123456789abcdef", b"")
    await bench.reconciler.look()
    assert await bench.store.open_batches() == []


async def test_an_empty_file_can_be_stored_and_fails_its_batch(bench: BatchBench) -> None:
    batch = await bench.submit(b"")
    await bench.run_all()
    batch = await bench.batches.get(TENANT, batch.id)
    assert [problem.code for problem in batch.problems] == ["empty_file"]


async def test_the_queue_is_never_filled_beyond_its_window(bench: BatchBench) -> None:
    await bench.submit(jsonl(80 * 8))
    await bench.run_next()
    assert len(bench.queue.waiting) == 64
    await bench.run_next()
    assert len(bench.queue.waiting) == 64


async def test_damaged_answers_are_never_handed_out(bench: BatchBench) -> None:
    batch = await bench.submit(jsonl(8))
    await bench.run_next()
    await bench.run_next()
    (name,) = await bench.objects.names(f"batches/{batch.id}/answers")
    await bench.objects.put(f"batches/{batch.id}/answers/{name}", b"{}\n")
    with pytest.raises(e.InternalError, match="damaged"):
        await bench.jobs.finalize(batch.id)
    assert (await bench.batches.get(TENANT, batch.id)).status is Status.FINALIZING
