"""Whether the routing index is in order: every invariant, by a walk over everything."""

from collections import Counter

from penstock_core.blocks import HASH_BYTES
from penstock_router.index.index import PrefixIndex
from penstock_router.index.run_tree import RunTree
from penstock_router.index.runs import WHOLE, Run, digest_of


def check_integrity(index: PrefixIndex) -> None:
    """Raise AssertionError if an invariant is broken."""
    tree = index.tree
    _check_links(tree)
    for run in tree.heads.values():
        _check_masks(run, tree.width)
    for slot, holder in tree.holders.items():
        if holder.leaving is None:
            _check_holder(tree, slot)


def _check_links(tree: RunTree) -> None:
    children = Counter(id(run.parent) for run in tree.heads.values() if run.parent is not None)
    starts = Counter(run.start for run in tree.heads.values() if run.parent is None)
    assert tree.size == sum(run.size for run in tree.heads.values())
    assert tree.starts == starts
    assert len(tree.ends) == len(tree.heads)
    for key, run in tree.heads.items():
        assert run.size == len(run.packed) > 0
        assert run.head == key
        assert tree.ends[run.end] is run
        assert run.children == children[id(run)]
        assert run.parent is None or tree.heads[run.parent.head] is run.parent


def _check_masks(run: Run, width: int) -> None:
    assert run.children or run.deepest() == run.size, "what nobody holds was kept"
    assert not run.full & run.part
    assert (run.depth is None) == (not run.part)
    if run.depth is not None:
        assert len(run.depth) == width
        for slot, depth in enumerate(run.depth.tolist()):
            held = run.held(slot) // HASH_BYTES
            assert depth == (WHOLE if run.full >> slot & 1 else held)


def _check_holder(tree: RunTree, slot: int) -> None:
    holder = tree.holders[slot]
    holder.settle()
    blocks, digest, tails = 0, 0, dict[bytes, Run]()
    for run in tree.heads.values():
        if not (run.full | run.part) & 1 << slot:
            continue
        held = run.held(slot)
        assert 0 < held <= run.size
        blocks += held // HASH_BYTES
        digest ^= digest_of(run.packed[:held])
        if held < run.size:
            tails[run.packed[held - HASH_BYTES : held]] = run
    assert (holder.blocks, holder.digest, holder.tails) == (blocks, digest, tails)
