"""Who is in the batch and on which KV pages: admission, preemption, forks, a page of one's own.

Owns the samples from their arrival in the queue until they leave: waiting or running, ranked by
priority class, then arrival. What a step computes of the running ones is the scheduler's to
decide, and so is what their callers hear. Pure Python; no torch, no asyncio.

Why it never livelocks: pages are only ever taken from sequences of a worse rank, so the best
ranked one keeps what it has, and any one sequence fits the memory alone. Finished, it leaves.
"""

from collections.abc import Sequence

from penstock_core.blocks import pack_tokens
from penstock_engine.native.kv.memory import KvMemory
from penstock_engine.native.scheduling.queues import PendingBlocks, RankedSamples
from penstock_engine.native.scheduling.request import Phase, Request, Sample

Copies = list[tuple[int, int]]
"""Pages to copy before a step, from and to."""


class Residency:
    """Samples wait, run and leave; ``running`` ones hold pages of ``memory``."""

    def __init__(self, max_batch: int, memory: KvMemory) -> None:
        self.memory = memory
        self.waiting = RankedSamples()
        self.running = RankedSamples()
        self.preemptions = 0
        self._max_batch = max_batch
        self._pending = PendingBlocks()

    def check_integrity(self) -> None:
        """Raise AssertionError unless memory and queues agree. For tests and soaks."""
        self.memory.check_integrity(page for s in self.running for page in s.pages)
        self.waiting.check_integrity()
        self.running.check_integrity()
        self._pending.check_integrity(self.running)
        assert len(self.running) <= self._max_batch, "the batch is over its limit"

    # Who runs.

    def admit(self) -> list[Sample]:
        """Start waiting samples, best rank first, as far as places and pages go; those started."""
        started: list[Sample] = []
        for sample in self.waiting.snapshot():
            if not self._has_place(sample):
                break
            if self._must_wait(sample):
                continue
            matched = self._match(sample)
            if self._defer_to_computing(sample, len(matched)):
                continue
            if not self._make_room(sample, matched):
                break
            self._start(sample, matched)
            started.append(sample)
        return started

    def fork(self, leader: Sample) -> list[Sample]:
        """Fresh siblings that fit the batch share the prompt's pages and draw from its logits."""
        room = self._max_batch - len(self.running)
        forks = leader.request.fresh_waiting()[:room]
        for sample in forks:
            self.waiting.discard(sample)
            sample.hashes = list(leader.hashes)
            sample.pages = self.memory.share(leader.pages)
            sample.stored = leader.stored
            sample.chain_broken = leader.chain_broken
            sample.phase = Phase.RUNNING
            sample.waits_for = None
            self.running.add(sample)
        return forks

    def vacate(self, sample: Sample) -> None:
        """Take it out of its queue and free what it holds."""
        if sample.phase is Phase.RUNNING:
            self.running.discard(sample)
            self._pending.remove(sample)
            self.memory.release(sample.pages)
        else:
            self.waiting.discard(sample)
        sample.forget_pages()

    # Pages of running sequences.

    def secure_next_page(self, sample: Sample, copies: Copies) -> bool:
        """A page of its own for the next token; False if it had to be preempted itself."""
        block = sample.computed // self.memory.block_tokens
        while sample.phase is Phase.RUNNING and not self._owns(sample, block):
            if not self.memory.can_allocate():
                worst = self.running.worst()
                assert worst is not None, "a running sample is not in the batch"
                self._preempt(worst)  # perhaps the last one that shares the page
                continue
            page = self.memory.allocate()
            if block == len(sample.pages):
                sample.pages.append(page)
            else:
                copies.append((sample.pages[block], page))
                self.memory.release((sample.pages[block],))
                sample.pages[block] = page
        return sample.phase is Phase.RUNNING

    def store_blocks(self, sample: Sample) -> None:
        """Make its newly full blocks findable; a page whose block was there already is swapped."""
        size = self.memory.block_tokens
        if sample.chain_broken or sample.stored >= sample.computed // size:
            return
        sample.extend_hashes(size)
        while not sample.chain_broken and sample.stored < sample.computed // size:
            block = sample.stored
            tokens = pack_tokens(sample.tokens[block * size : (block + 1) * size])
            key = sample.hashes[block]
            page = self.memory.store(sample.parent_hash(block), key, tokens, sample.pages[block])
            self._pending.discard(key, sample)
            if page is None:
                sample.chain_broken = True
                self._pending.remove(sample)
                return
            sample.pages[block] = page
            sample.stored += 1

    # Admission.

    def _has_place(self, sample: Sample) -> bool:
        """Whether the batch has a place, or somebody of a worse class would have to leave it."""
        worst = self.running.worst()
        full = len(self.running) >= self._max_batch
        return worst is None or not full or worst.rank[0] > sample.rank[0]

    def _must_wait(self, sample: Sample) -> bool:
        """A block it needs is being computed, or a sibling computes the prompt it forks from."""
        if sample.waits_for is not None and self._pending.is_computed(sample.waits_for, sample):
            return True
        sample.waits_for = None
        return not sample.num_output and sample.request.prompt_leader() is not None

    def _match(self, sample: Sample) -> list[int]:
        sample.extend_hashes(self.memory.block_tokens)
        hashes = sample.reusable_hashes(self.memory.block_tokens)
        tokens = pack_tokens(sample.tokens[: len(hashes) * self.memory.block_tokens])
        return self.memory.match(sample.request.spec.chain_start, hashes, tokens)

    def _defer_to_computing(self, sample: Sample, num_matched: int) -> bool:
        """Wait for the first missing block if a running sequence computes it right now."""
        hashes = sample.reusable_hashes(self.memory.block_tokens)
        if num_matched == len(hashes):
            return False
        if not self._pending.is_computed(hashes[num_matched], sample):
            return False
        sample.waits_for = hashes[num_matched]
        return True

    def _make_room(self, sample: Sample, matched: Sequence[int]) -> bool:
        """Whether it can start now; running sequences of worse classes are preempted for it."""
        victims = [s for s in self.running if s.rank[0] > sample.rank[0]]
        while not self._fits(sample, matched):
            most = self.memory.available + sum(len(victim.pages) for victim in victims)
            if not victims or self.memory.pages_for(len(sample.tokens)) > most + len(matched):
                return False
            self._preempt(victims.pop())
        return True

    def _fits(self, sample: Sample, matched: Sequence[int]) -> bool:
        if self.running:
            places = len(self.running) + self._promised_places(sample.request) + 1
            if places > self._max_batch:
                return False
        # A page for each running sequence is left, or the next steps would preempt at once.
        num_new = self.memory.pages_for(len(sample.tokens)) - len(matched) + len(self.running)
        return self.memory.can_take(matched, num_new)

    def _promised_places(self, besides: Request) -> int:
        """Places for the siblings of samples that compute their prompt, another request's."""
        leading = {id(s.request): s.request for s in self.running if not s.num_output}
        leading.pop(id(besides), None)
        return sum(len(request.fresh_waiting()) for request in leading.values())

    def _start(self, sample: Sample, matched: Sequence[int]) -> None:
        self.waiting.discard(sample)
        num_new = self.memory.pages_for(len(sample.tokens)) - len(matched)
        sample.pages = self.memory.take(matched, num_new)
        sample.stored = len(matched)
        sample.computed = len(matched) * self.memory.block_tokens
        sample.phase = Phase.RUNNING
        self.running.add(sample)
        self._pending.add(sample)

    def _owns(self, sample: Sample, block: int) -> bool:
        return block < len(sample.pages) and not self.memory.is_shared(sample.pages[block])

    def _preempt(self, sample: Sample) -> None:
        self.vacate(sample)
        sample.phase = Phase.WAITING
        self.waiting.add(sample)
        self.preemptions += 1
        sample.request.preemptions += 1
