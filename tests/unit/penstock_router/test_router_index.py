"""The index on cases that a reader can check by hand."""

from penstock_router.index import PrefixIndex, slots_of

START = 1


def test_a_prefix_is_as_deep_as_its_leading_blocks() -> None:
    index = PrefixIndex()
    near, far = index.acquire(), index.acquire()
    index.store(near, START, [10, 11, 12])
    index.store(far, START, [10])
    assert sorted(index.depths([10, 11, 12, 13], 0b11)) == [(1, 1 << far), (3, 1 << near)]


def test_slots_outside_the_mask_are_not_answered() -> None:
    index = PrefixIndex()
    hidden = index.acquire()
    index.store(hidden, START, [10])
    assert index.depths([10], ~(1 << hidden)) == []


def test_a_hole_in_the_middle_ends_the_prefix_until_it_is_filled() -> None:
    index = PrefixIndex()
    slot = index.acquire()
    index.store(slot, START, [10, 11, 12])
    index.remove(slot, [11])
    assert index.depths([10, 11, 12], 1) == [(1, 1)]
    index.store(slot, 10, [11])
    assert index.depths([10, 11, 12], 1) == [(3, 1)]


def test_a_block_whose_parents_are_unknown_does_not_count() -> None:
    index = PrefixIndex()
    whole, torn = index.acquire(), index.acquire()
    index.store(torn, START, [10])
    index.store(torn, 12, [13, 14])
    index.store(whole, START, [10, 11])
    assert sorted(index.depths([10, 11, 12, 13, 14], 0b11)) == [(1, 1 << torn), (2, 1 << whole)]


def test_storing_and_removing_twice_changes_nothing() -> None:
    index = PrefixIndex()
    slot = index.acquire()
    index.store(slot, START, [10, 11])
    index.store(slot, START, [10, 11])
    assert (index.blocks(slot), index.digest(slot)) == (2, 10 ^ 11)
    index.remove(slot, [11, 11, 99])
    assert (index.blocks(slot), index.digest(slot)) == (1, 10)


def test_a_cycle_is_refused() -> None:
    index = PrefixIndex()
    slot = index.acquire()
    index.store(slot, 10, [11])
    index.store(slot, 11, [10])
    index.store(slot, 12, [12])
    index.check_integrity()
    assert index.blocks(slot) == 1


def test_what_nobody_holds_costs_no_memory() -> None:
    index = PrefixIndex()
    slot = index.acquire()
    index.store(slot, START, range(10, 500))
    assert not index.drop(slot, 100)
    assert index.drop(slot, 1000)
    assert len(index) == 0
    assert index.acquire() == slot


def test_slots_of_a_mask_are_its_set_bits() -> None:
    assert list(slots_of(0b1001 | 1 << 300)) == [0, 3, 300]
