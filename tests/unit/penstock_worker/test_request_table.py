"""The table of running requests: no two of one id, and an orderly end."""

import asyncio

import pytest

from penstock_core.errors import Conflict, Draining, Evicted, PenstockError
from penstock_worker.intake.running import DrainResult, RequestTable


class Request:
    """A request that ends when told to."""

    def __init__(self) -> None:
        self.error: PenstockError | None = None
        self.ended = asyncio.Event()

    def evict(self, error: PenstockError) -> None:
        self.error = error
        self.ended.set()


async def hold(table: RequestTable, request_id: str, request: Request) -> None:
    with table.running(request_id, request):
        await request.ended.wait()


def test_an_id_can_run_once_at_a_time() -> None:
    table = RequestTable()

    with table.running("a", Request()), pytest.raises(Conflict), table.running("a", Request()):
        pass

    with table.running("a", Request()):
        assert table.ids == ["a"]


async def test_draining_waits_for_what_runs_and_takes_nothing_new() -> None:
    table, request = RequestTable(), Request()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(table, "a", request))
        await asyncio.sleep(0)
        draining = tasks.create_task(table.drain(grace_s=60))
        await asyncio.sleep(0)

        with pytest.raises(Draining), table.running("b", Request()):
            pass
        request.ended.set()

    assert draining.result() == DrainResult(finished=1, aborted=0)
    assert request.error is None


async def test_what_outlasts_the_grace_period_is_ended_for_another_worker_to_continue() -> None:
    table, request = RequestTable(), Request()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(table, "a", request))
        await asyncio.sleep(0)
        draining = tasks.create_task(table.drain(grace_s=0))

    assert draining.result() == DrainResult(finished=0, aborted=1)
    assert isinstance(request.error, Evicted)
    assert request.error.retryable


async def test_two_drains_at_once_both_end() -> None:
    table, request = RequestTable(), Request()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(table, "a", request))
        await asyncio.sleep(0)
        tasks.create_task(table.drain(grace_s=60))
        tasks.create_task(table.drain(grace_s=0))

    assert table.ids == []
