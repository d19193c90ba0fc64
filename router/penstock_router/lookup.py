"""What the index and the pending table say about a prompt, worker by worker."""

from penstock_core import blocks
from penstock_router.facts import Match, RoutingRequest
from penstock_router.index import slots_of
from penstock_router.policy import first_divergent
from penstock_router.prompts import PreparedRequest
from penstock_router.tracked import Picture, TrackedWorker


def look_up(
    picture: Picture, prepared: PreparedRequest, excluded: frozenset[str]
) -> RoutingRequest:
    """What each worker holds and computes of the prompt."""
    groups: dict[tuple[str, int], list[TrackedWorker]] = {}
    for worker in prepared.workers:
        if worker.facts is not None:
            key = (worker.facts.model_revision, worker.facts.block_tokens)
            groups.setdefault(key, []).append(worker)
    matches: dict[str, Match] = {}
    num_blocks, divergent = 0, None
    for (_, block_tokens), members in groups.items():
        facts = members[0].facts
        assert facts is not None
        usable = blocks.reusable_blocks(prepared.prefix_tokens, block_tokens)
        hashes = prepared.hashes(facts)[:usable]
        found = _match(picture, members, hashes, block_tokens)
        matches |= found
        if len(hashes) > num_blocks:
            num_blocks = len(hashes)
            divergent = first_divergent(hashes, list(found.values()), block_tokens)
    return RoutingRequest(
        request_id=prepared.request.request_id,
        model=prepared.request.model,
        prompt_tokens=prepared.prefix_tokens,
        num_blocks=num_blocks,
        matches=matches,
        divergent=divergent,
        max_tokens=prepared.max_tokens,
        excluded=excluded,
    )


def _match(
    picture: Picture, members: list[TrackedWorker], hashes: list[int], block_tokens: int
) -> dict[str, Match]:
    by_slot = {w.sync.slot: w for w in members if w.sync.slot is not None}
    mask = 0
    for slot in by_slot:
        mask |= 1 << slot
    depths = {
        by_slot[slot].worker_id: depth
        for depth, group in picture.index.depths(hashes, mask)
        for slot in slots_of(group)
    }
    matches = {i: Match(depth * block_tokens) for i, depth in depths.items()}
    pending = picture.pending
    if len(pending) and hashes:
        for worker in members:
            depth = depths.get(worker.worker_id, 0)
            extent = pending.extent(worker.worker_id, hashes, depth)
            if extent.blocks:
                matches[worker.worker_id] = Match(
                    depth * block_tokens,
                    extent.blocks * block_tokens,
                    extent.eta,
                    extent.request_ids,
                )
    return matches
