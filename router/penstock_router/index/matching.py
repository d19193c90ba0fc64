"""What the index and the pending table say about a chain of blocks, worker by worker. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from penstock_router.index.index import PrefixIndex
from penstock_router.index.pending import PendingTable, extent
from penstock_router.policy.facts import Match


@dataclass(frozen=True, slots=True)
class Known:
    """What workers hold, and what they are computing."""

    index: PrefixIndex
    pending: PendingTable

    def versions(self) -> tuple[int, int]:
        """Of both; equal ones, equal matches."""
        return self.index.journal.version, self.pending.journal.version

    def touched(self, chain: bytes, since: tuple[int, int]) -> bool:
        """Whether a chain's match may have changed since these versions."""
        held, coming = since
        return self.pending.journal.touched(chain, coming) or self.index.journal.touched(
            chain, held
        )


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
    depths, near = known.index.match(chain).tolist(), known.pending.near(chain)
    found: dict[str, Match] = {}
    # Many workers hold as much: the first blocks, say, which all prompts share.
    alone: dict[int, Match] = {}
    for worker_id, slot in places:
        depth = 0 if slot is None else depths[slot]
        if worker_id in near:
            more, eta, requests = extent(near[worker_id], chain, depth)
            if more:
                tokens = depth * block_tokens
                found[worker_id] = Match(tokens, more * block_tokens, eta, requests)
                continue
        if depth:
            plain = alone.get(depth)
            if plain is None:
                plain = alone[depth] = Match(depth * block_tokens)
            found[worker_id] = plain
    return found
