"""The index on cases that a reader can check by hand."""

from penstock_core.blocks import pack_hashes
from penstock_router.index.index import PrefixIndex
from penstock_router.index.runs import slots_of
from penstock_testing.state.index_check import check_integrity


def pack(*hashes: int) -> bytes:
    """Hashes as the index takes them."""
    return pack_hashes(hashes)


START = pack(1)


def test_a_prefix_is_as_deep_as_its_leading_blocks() -> None:
    index = PrefixIndex()
    near, far, without = index.acquire(), index.acquire(), index.acquire()
    index.store(near, START, pack(10, 11, 12))
    index.store(far, START, pack(10))
    depths = index.match(pack(10, 11, 12, 13))
    assert (depths[near], depths[far], depths[without]) == (3, 1, 0)
    assert index.match(pack(10, 11))[near] == 2
    assert not index.match(pack(99, 11)).any()
    assert not index.match(b"").any()


def test_branches_of_one_prefix_are_kept_apart() -> None:
    index = PrefixIndex()
    left, right = index.acquire(), index.acquire()
    index.store(left, START, pack(10, 11, 12))
    index.store(right, START, pack(10, 21, 22))
    assert index.match(pack(10, 11, 12)).tolist()[:2] == [3, 1]
    assert index.match(pack(10, 21, 22)).tolist()[:2] == [1, 3]


def test_a_hole_in_the_middle_ends_the_prefix_until_it_is_filled() -> None:
    index = PrefixIndex()
    slot = index.acquire()
    index.store(slot, START, pack(10, 11, 12))
    index.remove(slot, pack(11))
    assert index.match(pack(10, 11, 12))[slot] == 1
    index.store(slot, pack(10), pack(11))
    assert index.match(pack(10, 11, 12))[slot] == 3


def test_a_block_whose_parents_are_unknown_does_not_count_until_they_come() -> None:
    index = PrefixIndex()
    whole, torn = index.acquire(), index.acquire()
    chain = pack(10, 11, 12, 13, 14)
    index.store(torn, START, pack(10))
    index.store(torn, pack(12), pack(13, 14))
    index.store(whole, START, pack(10, 11))
    assert index.match(chain).tolist()[:2] == [2, 1]
    index.store(torn, pack(10), pack(11, 12))
    assert index.match(chain).tolist()[:2] == [2, 5]


def test_storing_and_removing_twice_changes_nothing() -> None:
    index = PrefixIndex()
    slot = index.acquire()
    index.store(slot, START, pack(10, 11))
    index.store(slot, START, pack(10, 11))
    assert (index.blocks(slot), index.digest(slot)) == (2, 10 ^ 11)
    index.remove(slot, pack(11, 11, 99))
    assert (index.blocks(slot), index.digest(slot)) == (1, 10)


def test_blocks_are_removed_from_either_end_and_from_the_middle() -> None:
    for gone in ((14, 13, 12), (12, 13, 14), (13, 12, 14), (13, 14, 12)):
        index = PrefixIndex()
        one, other = index.acquire(), index.acquire()
        for slot in (one, other):
            index.store(slot, START, pack(10, 11, 12, 13, 14))
        index.remove(one, pack(*gone))
        assert index.match(pack(10, 11, 12, 13, 14)).tolist()[:2] == [2, 5]
        check_integrity(index)


def test_a_cycle_is_refused() -> None:
    index = PrefixIndex()
    slot = index.acquire()
    index.store(slot, pack(10), pack(11))
    index.store(slot, pack(11), pack(10))
    index.store(slot, pack(12), pack(12))
    check_integrity(index)
    assert index.blocks(slot) == 1


def test_what_nobody_holds_costs_no_memory() -> None:
    index = PrefixIndex()
    slot = index.acquire()
    for number in range(10, 500):
        index.store(slot, START, pack(number, 1000 + number))
    assert not index.drop(slot, 100)
    assert index.drop(slot, 1000)
    assert len(index) == 0
    assert index.acquire() == slot


def test_a_thousand_workers_fit() -> None:
    index, chain = PrefixIndex(), list(range(10, 1010))
    for _ in chain:
        slot = index.acquire()
        index.store(slot, START, pack(*chain[: slot + 1]))
    assert index.match(pack(*chain)).tolist()[:1000] == list(range(1, 1001))
    check_integrity(index)


def test_the_parent_of_a_block_is_a_block_or_the_chain_start() -> None:
    index = PrefixIndex()
    slot, other = index.acquire(), index.acquire()
    index.store(slot, START, pack(10, 11))
    assert index.parent(slot, pack(10)) == START
    assert index.parent(slot, pack(11)) == pack(10)
    assert index.parent(other, pack(10)) is None
    index.store(slot, pack(10), pack(12))
    assert index.parent(slot, pack(12)) == pack(10)


def test_slots_of_a_mask_are_its_set_bits() -> None:
    assert list(slots_of(0b1001 | 1 << 300)) == [0, 3, 300]
