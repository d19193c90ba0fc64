"""Continuous batching: which tokens of which sequences the next step computes.

Owns requests from submission to their last output, and every decision about order and memory:
decode first, prefill in chunks with the tokens left, priority class then arrival, preemption by
recompute. It is told the time and what the runner drew; it computes nothing itself. Pure
Python; no torch, no asyncio.

Why it never livelocks: pages are only ever taken from sequences of a worse rank, so the best
ranked one keeps what it has, and any one sequence fits the memory alone. Finished, it leaves.
"""

from collections.abc import Sequence

from penstock_core.blocks import pack_tokens
from penstock_core.errors import Conflict, Overloaded
from penstock_engine.api import (
    Admitted,
    EngineOutput,
    EngineRequest,
    FinishReason,
    TokenOut,
)
from penstock_engine.native.drafts import NO_DRAFTS, DraftRoom, add_drafts
from penstock_engine.native.limits import Counts, Limits, check_fits
from penstock_engine.native.memory import KvMemory
from penstock_engine.native.plan import Chunk, Drafts, StepPlan, StepResult
from penstock_engine.native.queues import PendingBlocks, RankedSamples
from penstock_engine.native.request import Drawn, Matcher, Phase, Request, Sample

Output = tuple[str, EngineOutput]


class Scheduler:
    """Requests in, step plans out; step results in, outputs out."""

    def __init__(self, limits: Limits, memory: KvMemory) -> None:
        self.limits = limits
        self.memory = memory
        self.preemptions = 0
        self._requests: dict[str, Request] = {}
        self._waiting = RankedSamples()
        self._running = RankedSamples()
        self._pending = PendingBlocks()
        self._num_unadmitted = 0
        self._arrivals = 0
        self._outputs: list[Output] = []

    # What it knows.

    @property
    def has_work(self) -> bool:
        """Whether there is a request to serve."""
        return bool(self._requests)

    def counts(self) -> Counts:
        """Figures for the engine's state."""
        running = {id(sample.request) for sample in self._running}
        started = sum(s.uncomputed for s in self._running if s.uncomputed > 1)
        return Counts(
            running=len(running),
            waiting=len(self._requests) - len(running),
            queued_prefill_tokens=self._waiting.backlog_tokens + started,
            context_tokens=sum(len(sample.tokens) for sample in self._running),
        )

    # Requests come and go.

    def submit(self, spec: EngineRequest, now: float, matchers: Sequence[Matcher] = ()) -> None:
        """Take a request, with a matcher for each sample if it is constrained.

        Raises:
            PromptTooLong: it can never fit the context or the KV memory.
            Overloaded: the queue is full.
            Conflict: a request of this id is here already.
        """
        check_fits(spec, self.limits, self.memory)
        if spec.request_id in self._requests:
            raise Conflict(f"request {spec.request_id} is being served already")
        if self._num_unadmitted >= self.limits.max_waiting:
            raise Overloaded(f"{self._num_unadmitted} requests wait, and no more may")
        self._arrivals += 1
        request = Request(spec, self._arrivals, now, matchers)
        self._requests[spec.request_id] = request
        self._num_unadmitted += 1
        unfinished = [sample for sample in request.samples if not sample.is_complete]
        for sample in unfinished:
            self._waiting.add(sample)
        if not unfinished:
            self._note_admitted(request, now)
            self._finish_request(request, now)

    def abort(self, request_id: str, choice_index: int | None, now: float) -> bool:
        """End a request or one of its samples. False if there is nothing to end."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        ended = [
            sample
            for sample in request.samples
            if sample.phase is not Phase.FINISHED
            and not sample.is_complete  # ends by itself when the request does
            and choice_index in (None, sample.choice_index)
        ]
        for sample in ended:
            last = TokenOut(sample.choice_index, sample.num_output, (), finish=FinishReason.ABORTED)
            self._end(sample, last, now)
        return bool(ended)

    def take_outputs(self) -> list[Output]:
        """Outputs since the last call, each with its request's id."""
        outputs, self._outputs = self._outputs, []
        return outputs

    # One step.

    def decoding(self) -> list[Sample]:
        """Running sequences that the next step adds a token to, and for which drafts may be made."""
        return [sample for sample in self._running if sample.is_decoding]

    def plan(self, now: float, drafts: Drafts = NO_DRAFTS) -> StepPlan | None:
        """The next step, or None if nothing can run (then nothing waits either).

        Drafts are checked as far as tokens and pages are to spare; they displace nobody.
        """
        self._admit(now)
        budget = self.limits.max_batched_tokens
        copies: list[tuple[int, int]] = []
        chunks: list[Chunk] = []
        for sample in self._running.snapshot():
            if sample.is_decoding and self._secure_next_page(sample, copies):
                chunks.append(Chunk(sample, sample.computed, 1, 1, (sample,)))
                budget -= 1
        if drafts:
            spare = self.memory.available - len(self._running)
            budget -= add_drafts(chunks, drafts, DraftRoom(self.memory, budget // 2, spare))
        for sample in self._running.snapshot():
            if not sample.is_decoding and budget > 0:
                chunks.append(self._prefill_chunk(sample, min(sample.uncomputed, budget)))
                budget -= chunks[-1].count
        assert chunks or not self._waiting, "requests wait and nothing runs"
        return StepPlan(tuple(chunks), tuple(copies)) if chunks else None

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """Take in what a step computed and drew."""
        per_token_s = result.seconds / plan.num_tokens
        drawn = iter(result.drawn)
        for chunk in plan.chunks:
            chunk.sample.request.worker_s += per_token_s * chunk.count
            if chunk.drafts:
                self._take_verified(chunk, next(drawn), now)
                continue
            for sample in chunk.draws or (chunk.sample,):
                sample.computed = chunk.start + chunk.count
                self._store_blocks(sample)
            for sample in chunk.draws:
                self._draw(sample, next(drawn), now)

    def check_integrity(self) -> None:
        """Raise AssertionError unless memory, queues and phases agree. For tests and soaks."""
        self.memory.check_integrity(page for s in self._running for page in s.pages)
        self._waiting.check_integrity()
        self._running.check_integrity()
        self._pending.check_integrity(self._running)
        assert len(self._running) <= self.limits.max_batch, "the batch is over its limit"
        live = [s for r in self._requests.values() for s in r.samples if not s.is_complete]
        for sample in live:
            queue = {Phase.WAITING: self._waiting, Phase.RUNNING: self._running}.get(sample.phase)
            assert (sample in self._waiting) == (queue is self._waiting), "lost in the queue"
            assert (sample in self._running) == (queue is self._running), "lost in the batch"
            assert sample.phase is Phase.RUNNING or not sample.pages, "pages without a place"
            assert sample.computed <= len(sample.tokens), "more computed than known"
            assert len(sample.pages) >= self.memory.pages_for(sample.computed), "no page for KV"
        assert len(self._waiting) + len(self._running) <= len(live), "a sample is nobody's"

    # Admission.

    def _admit(self, now: float) -> None:
        for sample in self._waiting.snapshot():
            if not self._has_place(sample):
                return
            if self._must_wait(sample):
                continue
            matched = self._match(sample)
            if self._defer_to_computing(sample, len(matched)):
                continue
            if not self._make_room(sample, matched):
                return
            self._start(sample, matched, now)

    def _has_place(self, sample: Sample) -> bool:
        """Whether the batch has a place, or somebody of a worse class would have to leave it."""
        worst = self._running.worst()
        full = len(self._running) >= self.limits.max_batch
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
        victims = [s for s in self._running if s.rank[0] > sample.rank[0]]
        while not self._fits(sample, matched):
            most = self.memory.available + sum(len(victim.pages) for victim in victims)
            if not victims or self.memory.pages_for(len(sample.tokens)) > most + len(matched):
                return False
            self._preempt(victims.pop())
        return True

    def _fits(self, sample: Sample, matched: Sequence[int]) -> bool:
        if self._running:
            places = len(self._running) + self._promised_places(sample.request) + 1
            if places > self.limits.max_batch:
                return False
        # A page for each running sequence is left, or the next steps would preempt at once.
        num_new = self.memory.pages_for(len(sample.tokens)) - len(matched) + len(self._running)
        return self.memory.can_take(matched, num_new)

    def _promised_places(self, besides: Request) -> int:
        """Places for the siblings of samples that compute their prompt, another request's."""
        leading = {id(s.request): s.request for s in self._running if not s.num_output}
        leading.pop(id(besides), None)
        return sum(len(request.fresh_waiting()) for request in leading.values())

    def _start(self, sample: Sample, matched: Sequence[int], now: float) -> None:
        self._waiting.discard(sample)
        num_new = self.memory.pages_for(len(sample.tokens)) - len(matched)
        sample.pages = self.memory.take(matched, num_new)
        sample.stored = len(matched)
        sample.computed = len(matched) * self.memory.block_tokens
        sample.phase = Phase.RUNNING
        self._running.add(sample)
        self._pending.add(sample)
        request = sample.request
        if request.admitted_at is None:
            request.cached_tokens = min(sample.computed, sample.num_prompt)
            self._note_admitted(request, now)

    def _note_admitted(self, request: Request, now: float) -> None:
        request.admitted_at = now
        self._num_unadmitted -= 1
        self._emit(request, Admitted(request.cached_tokens, now - request.arrived_at))
        self._end_complete(request)

    def _end_complete(self, request: Request) -> None:
        """Resumed samples that had all their tokens already end without a step."""
        for sample in request.samples:
            if sample.is_complete and sample.phase is Phase.WAITING:
                sample.phase = Phase.FINISHED
                last = TokenOut(sample.choice_index, sample.num_output, (), finish=sample.ending)
                self._emit(request, last)

    # Memory of running sequences.

    def _secure_next_page(self, sample: Sample, copies: list[tuple[int, int]]) -> bool:
        """A page of its own for the next token; False if it had to be preempted itself."""
        block = sample.computed // self.memory.block_tokens
        while sample.phase is Phase.RUNNING and not self._owns(sample, block):
            if not self.memory.can_allocate():
                worst = self._running.worst()
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

    def _owns(self, sample: Sample, block: int) -> bool:
        return block < len(sample.pages) and not self.memory.is_shared(sample.pages[block])

    def _preempt(self, sample: Sample) -> None:
        self._vacate(sample)
        sample.phase = Phase.WAITING
        self._waiting.add(sample)
        self.preemptions += 1
        sample.request.preemptions += 1

    def _vacate(self, sample: Sample) -> None:
        """Take it out of its queue and free what it holds."""
        if sample.phase is Phase.RUNNING:
            self._running.discard(sample)
            self._pending.remove(sample)
            self.memory.release(sample.pages)
        else:
            self._waiting.discard(sample)
        sample.forget_pages()

    # Prefill and what follows a step.

    def _prefill_chunk(self, sample: Sample, count: int) -> Chunk:
        if count < sample.uncomputed:
            return Chunk(sample, sample.computed, count)
        draws = (sample,) if sample.num_output else (sample, *self._fork(sample))
        return Chunk(sample, sample.computed, count, 1, draws)

    def _fork(self, leader: Sample) -> list[Sample]:
        """Fresh siblings that fit the batch share the prompt's pages and draw from its logits."""
        room = self.limits.max_batch - len(self._running)
        forks = leader.request.fresh_waiting()[:room]
        for sample in forks:
            self._waiting.discard(sample)
            sample.hashes = list(leader.hashes)
            sample.pages = self.memory.share(leader.pages)
            sample.stored = leader.stored
            sample.chain_broken = leader.chain_broken
            sample.phase = Phase.RUNNING
            sample.waits_for = None
            self._running.add(sample)
        return forks

    def _store_blocks(self, sample: Sample) -> None:
        """Make its newly full blocks findable; a page whose block was there already is swapped."""
        size = self.memory.block_tokens
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

    def _draw(self, sample: Sample, drawn: Drawn, now: float) -> None:
        request = sample.request
        if request.prefilled_at is None:
            request.prefilled_at = now
        self._tell(sample, sample.take(drawn), now)

    def _take_verified(self, chunk: Chunk, drawn: Drawn, now: float) -> None:
        """Tokens that stood have their KV already; that of the others will be overwritten."""
        sample, request = chunk.sample, chunk.sample.request
        if request.prefilled_at is None:  # resumed with all its KV cached
            request.prefilled_at = now
        out = sample.take(drawn)
        accepted = min(drawn.num_accepted, len(out.token_ids))
        request.drafted_tokens += len(chunk.drafts)
        request.accepted_draft_tokens += accepted
        sample.computed = chunk.start + 1 + accepted
        self._store_blocks(sample)
        self._tell(sample, out, now)

    def _tell(self, sample: Sample, out: TokenOut, now: float) -> None:
        if out.finish is None:
            self._emit(sample.request, out)
        else:
            self._end(sample, out, now)

    def _end(self, sample: Sample, last: TokenOut, now: float) -> None:
        self._vacate(sample)
        sample.phase = Phase.FINISHED
        self._emit(sample.request, last)
        if sample.request.is_finished:
            self._finish_request(sample.request, now)

    def _finish_request(self, request: Request, now: float) -> None:
        if request.admitted_at is None:
            self._num_unadmitted -= 1
            self._end_complete(request)
        del self._requests[request.spec.request_id]
        self._emit(request, request.done(now))

    def _emit(self, request: Request, output: EngineOutput) -> None:
        self._outputs.append((request.spec.request_id, output))
