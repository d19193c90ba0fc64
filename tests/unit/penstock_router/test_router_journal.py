"""What was found out about a prompt is kept while none of its blocks is touched."""

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_core.blocks import pack_hashes
from penstock_router.index.index import PrefixIndex
from penstock_router.index.journal import Journal
from penstock_router.index.matching import Known, match
from penstock_router.index.pending import PendingTable, Times

START = pack_hashes([1])
# Chains that branch: a hash names all that comes before it.
CHAINS = [
    pack_hashes([100, 101, 102, 103, 104]),
    pack_hashes([100, 101, 202, 203]),
    pack_hashes([100, 301, 302]),
    pack_hashes([400, 401]),
]
WORKERS = ("w0", "w1", "w2")

changes = st.tuples(
    st.sampled_from(["store", "remove", "begin", "end", "arrive"]),
    st.sampled_from(CHAINS),
    st.integers(0, 2),
    st.integers(0, 4),
)


def test_a_touched_block_is_told_to_those_that_have_it() -> None:
    journal = Journal()
    since = journal.version
    journal.note(pack_hashes([102]))
    assert journal.touched(CHAINS[0], since)
    assert not journal.touched(CHAINS[1], since)
    assert not journal.touched(CHAINS[0], journal.version)


def test_who_was_away_too_long_must_look_again() -> None:
    journal = Journal()
    since = journal.version
    for number in range(1000, 2000):
        journal.note(pack_hashes([number]))
    assert journal.touched(CHAINS[0], since)
    assert not journal.touched(CHAINS[0], journal.version - 10)


def test_a_change_of_anything_is_one_of_everything() -> None:
    journal = Journal()
    journal.note_any()
    assert all(journal.touched(chain, 0) for chain in CHAINS)


def change(known: Known, kind: str, chain: bytes, slot: int, blocks: int) -> None:
    """One event of a worker."""
    part, name = chain[: blocks * 8], f"r{slot}{blocks}"
    match kind:
        case "store":
            known.index.store(slot, START, part)
        case "remove":
            known.index.remove(slot, chain[blocks * 8 :])
        case "begin":
            known.pending.add(WORKERS[slot], name, (chain, blocks), Times(5.0 + blocks, 99.0))
        case "end":
            known.pending.cancel(name)
        case "arrive":
            known.pending.stored(WORKERS[slot], part)


@settings(max_examples=200, deadline=None)
@given(st.lists(changes, max_size=30))
def test_an_untouched_prompt_is_matched_as_before(
    told: list[tuple[str, bytes, int, int]],
) -> None:
    index = PrefixIndex()
    places = [(name, index.acquire()) for name in WORKERS]
    known = Known(index, PendingTable())
    kept = {chain: match(known, chain, places, 32) for chain in CHAINS}
    for kind, chain, slot, blocks in told:
        since = known.versions()
        change(known, kind, chain, slot, blocks)
        for each in CHAINS:
            found = match(known, each, places, 32)
            assert known.touched(each, since) or found == kept[each]
            kept[each] = found
