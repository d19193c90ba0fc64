"""Pages, the prefix tree and the event log, one rule at a time."""

import pytest

from penstock_core.blocks import pack_tokens
from penstock_engine.api import KvEvent, KvRemoved, KvStored
from penstock_engine.cache_log import KvEventLog, net_effect
from penstock_engine.native.kv.memory import KvMemory
from penstock_engine.native.kv.pages import PageAllocator

START = 77
A, B, C = (pack_tokens([i, i]) for i in range(3))


def hold(memory: KvMemory, *blocks: tuple[int, bytes]) -> list[int]:
    """Take a page for each block and store it; blocks are (hash, tokens), chained in order."""
    pages = memory.take([], len(blocks))
    parent = START
    for depth, (key, tokens) in enumerate(blocks):
        resident = memory.store(parent, key, tokens, pages[depth])
        assert resident is not None
        pages[depth] = resident
        parent = key
    return pages


def test_a_page_cannot_be_freed_twice() -> None:
    pages = PageAllocator(2)
    page = pages.allocate()
    pages.release(page)

    with pytest.raises(AssertionError, match="freed twice"):
        pages.release(page)


def test_integrity_notices_a_leak() -> None:
    pages = PageAllocator(2)
    pages.allocate()

    with pytest.raises(AssertionError, match="1 counted, 0 held"):
        pages.check_integrity([])


def test_a_prefix_is_found_after_its_owner_left() -> None:
    memory = KvMemory(4, 2)
    pages = hold(memory, (1, A), (2, B))
    memory.release(pages)

    assert memory.match(START, [1, 2, 3], A + B + C) == pages
    assert memory.used_pages == 0
    assert memory.idle_pages == 2


def test_a_hash_with_other_tokens_is_no_match() -> None:
    memory = KvMemory(4, 2)
    hold(memory, (1, A))

    assert memory.match(START, [1], B) == []


def test_a_hash_under_another_parent_is_no_match() -> None:
    memory = KvMemory(4, 2)
    hold(memory, (1, A))

    assert memory.match(START + 1, [1], A) == []


def test_a_collision_is_not_stored() -> None:
    memory = KvMemory(4, 2)
    hold(memory, (1, A))
    [page] = memory.take([], 1)

    assert memory.store(START, 1, B, page) is None
    memory.release([page])
    assert memory.used_pages == 1


def test_a_block_computed_twice_ends_on_one_page_with_one_event() -> None:
    memory = KvMemory(4, 2)
    first, second = hold(memory, (1, A)), hold(memory, (1, A))

    assert first == second
    assert memory.used_pages == 1
    assert memory.take_events() == [KvStored(START, (1,))]


def test_leaves_are_evicted_first_and_the_least_recent_of_them() -> None:
    memory = KvMemory(4, 2)
    old = hold(memory, (1, A), (2, B))
    young = hold(memory, (3, C), (4, C))
    memory.release(old)
    memory.release(young)
    memory.take_events()

    memory.take([], 3)

    assert memory.take_events() == [KvRemoved((2, 1, 4))]


def test_use_makes_a_block_recent() -> None:
    memory = KvMemory(2, 2)
    memory.release(hold(memory, (1, A)))
    memory.release(hold(memory, (2, B)))
    memory.release(memory.take(memory.match(START, [1], A), 0))

    memory.take([], 1)

    assert memory.resident_hashes() == {1}


def test_held_blocks_are_never_evicted() -> None:
    memory = KvMemory(2, 2)
    pages = hold(memory, (1, A))

    assert not memory.can_take([], 2)
    assert not memory.can_take(pages, 2)
    assert memory.can_take(pages, 1)


def test_matched_pages_are_not_counted_as_available_twice() -> None:
    memory = KvMemory(2, 2)
    memory.release(hold(memory, (1, A), (2, B)))
    matched = memory.match(START, [1, 2], A + B)

    assert memory.available == 2
    assert not memory.can_take(matched, 1)


def test_a_run_of_blocks_is_one_event() -> None:
    memory = KvMemory(4, 2)
    hold(memory, (1, A), (2, B), (3, C))

    assert memory.take_events() == [KvStored(START, (1, 2, 3))]
    assert memory.take_events() == []


def test_an_unread_log_keeps_the_net_effect() -> None:
    before = {10, 11}
    events: list[KvEvent] = [
        KvStored(0, (1, 2, 3)),
        KvRemoved((11, 3)),
        KvStored(2, (4,)),
        KvRemoved((10,)),
        KvStored(0, (10,)),
        KvStored(2, (3,)),
    ]

    kept = net_effect(events)

    assert kept == [
        KvRemoved((11,)),
        KvStored(0, (1,)),
        KvStored(1, (2,)),
        KvStored(2, (4,)),
        KvStored(2, (3,)),
    ]
    assert _replay(before, kept) == _replay(before, events) == {1, 2, 3, 4, 10}


def test_an_unread_log_stays_small() -> None:
    log = KvEventLog(capacity_blocks=1)
    for _ in range(5000):
        log.append([KvStored(0, (1,)), KvRemoved((1,))])
    log.append([KvStored(0, (1,))])

    events = log.take()
    assert len(events) < 1100
    assert _replay(set(), events) == {1}
    assert log.take() == []


def _replay(resident: set[int], events: list[KvEvent]) -> set[int]:
    result = set(resident)
    for event in events:
        if isinstance(event, KvStored):
            result |= set(event.hashes)
        else:
            result -= set(event.hashes)
    return result
