"""What the index and the pending table say about a prompt, worker by worker."""

from penstock_core import blocks
from penstock_router.demand import deepest
from penstock_router.facts import Match, RoutingRequest
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
        chain = prepared.hashes(facts)[: usable * blocks.HASH_BYTES]
        found = _match(picture, members, chain, block_tokens)
        matches |= found
        hashes = memoryview(chain).cast("Q")
        if len(hashes) > num_blocks:
            num_blocks = len(hashes)
            divergent = first_divergent(hashes, list(found.values()), block_tokens)
            hot = deepest(hashes, found, block_tokens)
            names = [w.worker_id for w in members]
            replicas = picture.demand.replicas(hot.key, hot.holders, names, picture.clock())
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
    block_tokens = facts.block_tokens
    usable = blocks.reusable_blocks(prepared.prefix_tokens, block_tokens)
    chain = prepared.hashes(facts)[: usable * blocks.HASH_BYTES]
    found = _match(picture, members, chain, block_tokens)
    hot = deepest(memoryview(chain).cast("Q"), found, block_tokens)
    holder = next((w for w in members if w.worker_id in hot.holders), None)
    if hot.key is not None and holder is not None:
        base_s, slope_s = holder.load.prefill_line()
        work_s = base_s + slope_s * (prepared.prefix_tokens - hot.blocks * block_tokens)
        picture.demand.observe(hot.key, work_s, picture.clock())


def _match(
    picture: Picture, members: list[TrackedWorker], chain: bytes, block_tokens: int
) -> dict[str, Match]:
    depths = picture.index.match(chain).tolist()
    pending = picture.pending
    matches: dict[str, Match] = {}
    for worker in members:
        slot, worker_id = worker.sync.slot, worker.worker_id
        depth = depths[slot] if slot is not None else 0
        extent = pending.extent(worker_id, chain, depth)
        if depth or extent.blocks:
            matches[worker_id] = Match(
                depth * block_tokens,
                extent.blocks * block_tokens,
                extent.eta,
                extent.request_ids,
            )
    return matches
