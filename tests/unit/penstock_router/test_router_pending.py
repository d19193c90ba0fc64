"""Blocks under way: seen by siblings, gone when stored, cancelled or late."""

from penstock_core.blocks import pack_hashes
from penstock_router.index.pending import NOTHING, PendingTable, Times

CHAIN = pack_hashes(range(10, 20))


def part(begin: int, end: int) -> bytes:
    """Some of the chain's blocks."""
    return CHAIN[begin * 8 : end * 8]


def table() -> PendingTable:
    pending = PendingTable()
    pending.add("w1", "first", (part(0, 6), 2), Times(eta=5.0, expires=50.0))
    return pending


def test_blocks_under_way_extend_what_a_worker_holds() -> None:
    match = table().extent("w1", CHAIN, 2)
    assert (match.blocks, match.eta) == (4, 5.0)
    assert match.request_ids == {"first"}


def test_they_extend_no_other_worker_and_no_other_prefix() -> None:
    assert table().extent("w2", CHAIN, 2) == NOTHING
    assert table().extent("w1", CHAIN, 1) == NOTHING
    assert table().extent("w1", part(0, 2) + pack_hashes([99]) + part(3, 10), 2) == NOTHING


def test_a_second_request_goes_on_where_the_first_one_ends() -> None:
    pending = table()
    pending.add("w1", "second", (part(0, 8), 6), Times(eta=7.0, expires=50.0))
    match = pending.extent("w1", CHAIN, 2)
    assert (match.blocks, match.eta) == (6, 7.0)
    assert match.request_ids == {"first", "second"}


def test_the_earlier_of_two_that_compute_the_same_counts() -> None:
    pending = table()
    pending.add("w1", "slower", (part(0, 6), 2), Times(eta=9.0, expires=50.0))
    assert pending.extent("w1", CHAIN, 2).eta == 5.0


def test_stored_blocks_are_no_longer_under_way() -> None:
    pending = table()
    assert not pending.stored("w2", CHAIN)
    assert pending.stored("w1", part(2, 4))
    assert pending.extent("w1", CHAIN, 4).blocks == 2
    assert pending.is_open(["first"])
    pending.stored("w1", part(4, 6))
    assert not pending.is_open(["first"])
    assert len(pending) == 0


def test_an_entry_ends_with_its_request_its_worker_or_its_time() -> None:
    ended, left, late = table(), table(), table()
    ended.cancel("first")
    left.drop_worker("w1")
    late.expire(50.0)
    for pending in (ended, left, late):
        assert pending.extent("w1", CHAIN, 2) == NOTHING
        assert len(pending) == 0


def test_a_first_token_shortens_the_wait_and_admission_lengthens_it() -> None:
    pending = table()
    pending.keep("first", 100.0)
    pending.expire(99.0)
    assert len(pending) == 1
    pending.settle("first", 99.5)
    pending.expire(99.5)
    assert len(pending) == 0


def test_a_request_routed_again_is_under_way_once() -> None:
    pending = table()
    pending.add("w2", "first", (part(0, 3), 0), Times(eta=1.0, expires=50.0))
    assert pending.extent("w1", CHAIN, 2) == NOTHING
    assert pending.extent("w2", CHAIN, 0).blocks == 3
