"""What the index and the pending table say about a prompt, worker by worker."""

from typing import NamedTuple

from penstock_core import blocks
from penstock_router.decisions.book import Prefix
from penstock_router.fleet.adapters import usual_load_s
from penstock_router.fleet.tracked import Picture, TrackedWorker
from penstock_router.index.matching import Known, match
from penstock_router.policy.demand import NOTHING_HELD, Deepest, deepest, first_divergent
from penstock_router.policy.facts import Match, RoutingRequest
from penstock_router.prompts import PreparedRequest


class _Found(NamedTuple):
    """What a look-up gave, and the chains that were looked up."""

    chains: list[bytes]
    matches: dict[str, Match]
    num_blocks: int
    divergent: int | None
    hot: Deepest
    members: tuple[TrackedWorker, ...]


class PromptLookup:
    """One request's look-ups. The last answer is kept while none of its blocks has changed."""

    def __init__(self, picture: Picture, prepared: PreparedRequest) -> None:
        self._picture = picture
        self._prepared = prepared
        self._known = Known(picture.index, picture.pending)
        self._found: _Found | None = None
        self._versions = (0, 0)

    def request(self, excluded: frozenset[str]) -> RoutingRequest:
        """What each worker holds and computes of the prompt."""
        found, prepared, demand = self._look(), self._prepared, self._picture.demand
        replicas: frozenset[str] = frozenset()
        now = self._picture.clock()
        if found.hot.key in demand:
            names = [w.worker_id for w in found.members]
            replicas = demand.replicas(found.hot.key, found.hot.holders, names, now)
        return RoutingRequest(
            request_id=prepared.request.request_id,
            model=prepared.request.model,
            prompt_tokens=prepared.prefix_tokens,
            num_blocks=found.num_blocks,
            matches=found.matches,
            divergent=found.divergent,
            max_tokens=prepared.max_tokens,
            excluded=excluded,
            replicas=replicas,
            adapter_loads=_adapter_loads(prepared, now) if prepared.request.adapter else {},
        )

    def arrived(self) -> float:
        """The request is new: its prefix is asked for. Returns the least seconds of its prefill."""
        found, prepared = self._look(), self._prepared
        holders = found.hot.holders
        worker = next((w for w in found.members if not holders or w.worker_id in holders), None)
        if worker is None or worker.facts is None:
            return 0.0
        held = found.hot.blocks * worker.facts.block_tokens
        base_s, slope_s = worker.load.prefill_line()
        work_s = base_s + slope_s * (prepared.prefix_tokens - held)
        if found.hot.key is not None:
            self._picture.demand.observe(found.hot.key, work_s, self._picture.clock())
        return work_s

    def prefix(self) -> Prefix:
        """What a record keeps of the prompt, to tell later what it shares with others."""
        chains = self._prepared.chains
        if not chains:
            return Prefix()
        (_, block_tokens), chain = max(chains.items(), key=lambda item: len(item[1]))
        return Prefix.of(chain, block_tokens)

    def _look(self) -> _Found:
        versions, since = self._known.versions(), self._versions
        if self._found is None or (
            versions != since and any(self._known.touched(c, since) for c in self._found.chains)
        ):
            self._found = _look_up(self._known, self._prepared)
        self._versions = versions
        return self._found


def _adapter_loads(prepared: PreparedRequest, now: float) -> dict[str, float]:
    """Who would have to load the request's adapter first, and for how long.

    A worker that has loaded none yet takes as long as others of its engine; if nobody knows, no time.
    """
    engines: dict[str, list[TrackedWorker]] = {}
    for worker in prepared.workers:
        engines.setdefault(worker.facts.engine if worker.facts else "", []).append(worker)
    waits: dict[str, float] = {}
    for members in engines.values():
        usual_s = usual_load_s(worker.load.report.adapter_load_s for worker in members)
        for worker in members:
            name, report = prepared.request.adapter, worker.load.report
            waits[worker.worker_id] = worker.adapters.wait_s(name, report, now, usual_s)
    return {worker_id: wait_s for worker_id, wait_s in waits.items() if wait_s}


def _look_up(known: Known, prepared: PreparedRequest) -> _Found:
    groups: dict[tuple[str, int], list[TrackedWorker]] = {}
    for worker in prepared.workers:
        facts = worker.facts
        if facts is not None:
            groups.setdefault((facts.model_revision, facts.block_tokens), []).append(worker)
    matches, chains = dict[str, Match](), list[bytes]()
    longest, hot, most = memoryview(b"").cast("Q"), NOTHING_HELD, list[TrackedWorker]()
    for (_, block_tokens), members in groups.items():
        facts = members[0].facts
        assert facts is not None
        usable = blocks.reusable_blocks(prepared.prefix_tokens, block_tokens)
        chain = prepared.hashes(facts)[: usable * blocks.HASH_BYTES]
        places = [(worker.worker_id, worker.sync.slot) for worker in members]
        chains.append(chain)
        found = match(known, chain, places, block_tokens)
        matches |= found
        hashes = memoryview(chain).cast("Q")
        if len(hashes) > len(longest) or not most:
            longest, most = hashes, members
            hot = deepest(hashes, found, block_tokens)
    divergent = first_divergent(longest, hot)
    return _Found(chains, matches, len(longest), divergent, hot, tuple(most))
