"""What the index and the pending table say about a chain of blocks, worker by worker. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from penstock_router.facts import Match
from penstock_router.index import PrefixIndex
from penstock_router.pending import PendingTable


@dataclass(frozen=True, slots=True)
class Known:
    """What workers hold, and what they are computing."""

    index: PrefixIndex
    pending: PendingTable


def match(
    known: Known, chain: bytes, places: Iterable[tuple[str, int | None]], block_tokens: int
) -> dict[str, Match]:
    """Leading tokens of a chain that each worker holds or computes; those without any are left out.

    Args:
        known: the tables.
        chain: packed hashes.
        places: workers, each with its slot in the index; None if what it holds is not known.
        block_tokens: tokens of a block.
    """
    depths, busy = known.index.match(chain).tolist(), known.pending.workers
    found: dict[str, Match] = {}
    for worker_id, slot in places:
        depth = 0 if slot is None else depths[slot]
        if worker_id in busy:
            more, eta, requests = known.pending.extent(worker_id, chain, depth)
            if depth or more:
                found[worker_id] = Match(depth * block_tokens, more * block_tokens, eta, requests)
        elif depth:
            found[worker_id] = Match(depth * block_tokens)
    return found
