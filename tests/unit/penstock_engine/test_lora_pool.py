"""Adapters in memory: loaded once, kept while used, dropped when idle and others need the room."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from penstock_core.errors import Conflict, EngineFailed, NotFound, Overloaded
from penstock_engine.native.lora.pool import AdapterPool, PoolLimits
from penstock_engine.native.lora.reading import LoraWeights


@dataclass
class Disk:
    """Where adapters come from; also the shelf they go to, and the clock."""

    now: float = 0.0
    reads: list[str] = field(default_factory=list)
    shelf: dict[str, LoraWeights] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    open: threading.Event = field(default_factory=threading.Event)

    def read(self, name: str) -> LoraWeights:
        self.reads.append(name)
        assert self.open.wait(10)
        if name in self.broken:
            raise NotFound(f"{name} is gone")
        return LoraWeights(self.digests.get(name, name), ())

    def put(self, name: str, weights: LoraWeights) -> int:
        self.shelf[name] = weights
        return 0

    def drop(self, name: str) -> None:
        del self.shelf[name]


@pytest.fixture
async def disk() -> AsyncIterator[Disk]:
    disk = Disk()
    disk.open.set()
    yield disk
    disk.open.set()


def pool_of(disk: Disk, resident: int = 2, waiting: int = 8) -> AdapterPool:
    return AdapterPool(disk.read, disk, PoolLimits(resident, waiting), lambda: disk.now)


async def settled(task: "asyncio.Task[None]") -> bool:
    """Whether it is done once everything that could happen has."""
    for _ in range(20):
        await asyncio.sleep(0)
    return task.done()


async def test_an_adapter_is_loaded_once_for_all_that_want_it(disk: Disk) -> None:
    pool = pool_of(disk)
    disk.open.clear()
    users = [asyncio.create_task(pool.acquire("a")) for _ in range(3)]
    assert not await settled(users[0])
    users[0].cancel()
    disk.open.set()
    results = await asyncio.gather(*users, return_exceptions=True)

    assert [type(result) for result in results] == [asyncio.CancelledError, type(None), type(None)]
    assert disk.reads == ["a"]
    assert list(disk.shelf) == ["a"]
    await pool.close()


async def test_the_one_that_is_idle_for_longest_makes_room(disk: Disk) -> None:
    pool = pool_of(disk)
    for name in ("a", "b"):
        await pool.acquire(name)
    for name in ("b", "a"):
        pool.release(name)
    await pool.acquire("c")

    assert sorted(disk.shelf) == ["a", "c"]
    await pool.acquire("a")
    assert disk.reads == ["a", "b", "c"]
    await pool.close()


async def test_what_is_in_memory_is_told_once_it_is_there_with_the_time_that_it_took(
    disk: Disk,
) -> None:
    pool = pool_of(disk)
    assert (pool.loaded, pool.load_s) == ((), 0.0)
    disk.open.clear()
    loading = asyncio.create_task(pool.acquire("a"))
    assert not await settled(loading)
    assert (pool.residents, pool.loaded) == (("a",), ())
    disk.now = 2.0
    disk.open.set()
    await loading
    assert (pool.loaded, pool.load_s) == (("a",), 2.0)
    await pool.acquire("b")  # takes no time, by this clock
    assert pool.loaded == ("a", "b")
    assert 0.0 < pool.load_s < 2.0
    await pool.close()


async def test_a_load_that_failed_is_no_adapter_in_memory(disk: Disk) -> None:
    pool = pool_of(disk)
    disk.broken.add("a")
    with pytest.raises(NotFound):
        await pool.acquire("a")
    assert (pool.loaded, pool.load_s) == ((), 0.0)
    await pool.close()


async def test_who_needs_room_waits_until_some_adapter_is_idle(disk: Disk) -> None:
    pool = pool_of(disk, resident=1)
    await pool.acquire("a")
    await pool.acquire("a")
    waiting = asyncio.create_task(pool.acquire("b"))
    pool.release("a")
    assert not await settled(waiting)
    assert list(disk.shelf) == ["a"]
    pool.release("a")
    await waiting

    assert list(disk.shelf) == ["b"]
    await pool.close()


async def test_nobody_overtakes_one_who_has_waited_for_long(disk: Disk) -> None:
    pool = pool_of(disk, resident=1)
    await pool.acquire("a")
    waiting = asyncio.create_task(pool.acquire("b"))
    assert not await settled(waiting)
    await pool.acquire("a")  # overtakes
    disk.now += 5
    late = asyncio.create_task(pool.acquire("a"))
    assert not await settled(late)
    pool.release("a")
    pool.release("a")
    await waiting
    assert not await settled(late)
    pool.release("b")
    await late

    assert disk.reads == ["a", "b", "a"]
    await pool.close()


async def test_who_stops_waiting_holds_nothing(disk: Disk) -> None:
    pool = pool_of(disk, resident=1)
    await pool.acquire("a")
    gone = asyncio.create_task(pool.acquire("b"))
    waiting = asyncio.create_task(pool.acquire("c"))
    assert not await settled(gone)
    gone.cancel()
    pool.release("a")
    await waiting
    pool.release("c")
    await pool.acquire("b")

    assert disk.reads == ["a", "c", "b"]
    await pool.close()


async def test_too_many_do_not_wait(disk: Disk) -> None:
    pool = pool_of(disk, resident=1, waiting=1)
    await pool.acquire("a")
    waiting = asyncio.create_task(pool.acquire("b"))
    assert not await settled(waiting)

    with pytest.raises(Overloaded):
        await pool.acquire("c")
    await pool.close()
    with pytest.raises(EngineFailed):
        await waiting


async def test_a_failed_load_is_tried_again_and_takes_no_room(disk: Disk) -> None:
    pool = pool_of(disk, resident=1)
    disk.broken.add("a")
    for _ in range(2):
        with pytest.raises(NotFound):
            await pool.acquire("a")
    assert pool.residents == ()
    disk.broken.clear()
    await pool.acquire("a")

    assert disk.reads == ["a"] * 3
    await pool.close()


async def test_a_load_that_nobody_waited_for_is_forgotten_if_it_failed(disk: Disk) -> None:
    pool = pool_of(disk, resident=1)
    disk.broken.add("a")
    disk.open.clear()
    gone = asyncio.create_task(pool.acquire("a"))
    assert not await settled(gone)
    gone.cancel()
    waiting = asyncio.create_task(pool.acquire("b"))
    assert not await settled(waiting)
    disk.open.set()
    await waiting

    assert pool.residents == ("b",)
    await pool.close()


async def test_an_adapter_that_changed_on_disk_is_refused(disk: Disk) -> None:
    """Its name stands for KV blocks that the old one computed."""
    pool = pool_of(disk, resident=1)
    await pool.acquire("a")
    pool.release("a")
    await pool.acquire("b")
    pool.release("b")
    disk.digests["a"] = "another"

    with pytest.raises(Conflict, match="changed on disk"):
        await pool.acquire("a")
    assert disk.shelf == {}
    await pool.close()
