"""What the index and the pending table say about a prompt, worker by worker."""

from penstock_core import blocks
from penstock_router.demand import deepest
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
    replicas: frozenset[str] = frozenset()
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
            key, holders = deepest(hashes, found, block_tokens)
            names = [w.worker_id for w in members]
            replicas = picture.demand.replicas(key, holders, names, picture.clock())
    return RoutingRequest(
        request_id=prepared.request.request_id,
        model=prepared.request.model,
        prompt_tokens=prepared.prefix_tokens,
        num_blocks=num_blocks,
        matches=matches,
        divergent=divergent,
        max_tokens=prepared.max_tokens,
        excluded=excluded,
        replicas=replicas,
    )


def observe_demand(picture: Picture, prepared: PreparedRequest) -> None:
    """A request came: its prefix is asked for, and will cost its holders what nobody holds."""
    members = [w for w in prepared.workers if w.facts is not None]
    if not members or members[0].facts is None:
        return
    facts = members[0].facts
    usable = blocks.reusable_blocks(prepared.prefix_tokens, facts.block_tokens)
    hashes = prepared.hashes(facts)[:usable]
    key, holders = deepest(
        hashes, _match(picture, members, hashes, facts.block_tokens), facts.block_tokens
    )
    holder = next((w for w in members if w.worker_id in holders), None)
    if key is not None and holder is not None:
        held = (hashes.index(key) + 1) * facts.block_tokens
        base_s, slope_s = holder.load.prefill_line()
        work_s = base_s + slope_s * (prepared.prefix_tokens - held)
        picture.demand.observe(key, work_s, picture.clock())


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
