"""Continuous batching: which tokens of which sequences the next step computes.

Owns requests from submission to their last output and what each step computes: decodes first,
then prefill in chunks with the tokens left. The BATCH class has what the others leave: while one of
them prefills it sits out, on the pages it has, and its own prompts are computed in short chunks, since
whoever arrives waits for the step to end. Who runs, and on which pages, is ``residency``'s. It is
told the time and what the runner drew; it computes nothing itself. Pure Python; no torch, no
asyncio.
"""

from collections.abc import Sequence

from penstock_core.errors import Conflict, Overloaded
from penstock_engine.api import (
    Admitted,
    EngineOutput,
    EngineRequest,
    FinishReason,
    TokenOut,
)
from penstock_engine.native.kv.memory import KvMemory
from penstock_engine.native.scheduling.batch_share import BatchShare
from penstock_engine.native.scheduling.drafts import NO_DRAFTS, DraftRoom, add_drafts
from penstock_engine.native.scheduling.limits import Counts, Limits, check_fits
from penstock_engine.native.scheduling.plan import Chunk, Drafts, StepPlan, StepResult, attribute
from penstock_engine.native.scheduling.request import Drawn, Matcher, Phase, Request, Sample
from penstock_engine.native.scheduling.residency import Copies, Residency

Output = tuple[str, EngineOutput]


class Scheduler:
    """Requests in, step plans out; step results in, outputs out."""

    def __init__(self, limits: Limits, memory: KvMemory) -> None:
        self.limits = limits
        self.memory = memory
        self._residency = Residency(limits.max_batch, memory)
        self._waiting, self._running = self._residency.waiting, self._residency.running
        self._batch_share = BatchShare(limits)
        self._requests: dict[str, Request] = {}
        self._num_unadmitted = 0
        self._arrivals = 0
        self._outputs: list[Output] = []

    # What it knows.

    @property
    def has_work(self) -> bool:
        """Whether there is a request to serve."""
        return bool(self._requests)

    @property
    def preemptions(self) -> int:
        """How often a running sequence lost its place since the start."""
        return self._residency.preemptions

    def counts(self) -> Counts:
        """Figures for the engine's state."""
        running = {id(sample.request) for sample in self._running}
        started = [s for s in self._running if s.uncomputed > 1]
        return Counts(
            running=len(running),
            waiting=len(self._requests) - len(running),
            queued_prefill_tokens=self._waiting.backlog_tokens + sum(s.uncomputed for s in started),
            queued_batch_tokens=self._waiting.batch_tokens
            + sum(s.uncomputed for s in started if s.is_batch),
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

    @property
    def has_outputs(self) -> bool:
        """Whether somebody has something to hear."""
        return bool(self._outputs)

    def take_outputs(self) -> list[Output]:
        """Outputs since the last call, each with its request's id."""
        outputs, self._outputs = self._outputs, []
        return outputs

    # One step.

    def decoding(self) -> list[Sample]:
        """Running sequences that the next step adds a token to, and for which drafts may be made."""
        return [sample for sample in self._taking_part() if sample.is_decoding]

    def plan(self, now: float, drafts: Drafts = NO_DRAFTS) -> StepPlan | None:
        """The next step, or None if nothing can run (then nothing waits either).

        Drafts are checked as far as tokens and pages are to spare; they displace nobody.
        """
        for sample in self._residency.admit():
            self._note_started(sample, now)
        budget = self.limits.max_batched_tokens
        copies: Copies = []
        chunks: list[Chunk] = []
        others, batch_rows = [], 0
        for sample in self._taking_part():
            if not sample.is_decoding:
                others.append(sample)
            elif self._residency.secure_next_page(sample, copies):
                chunks.append(Chunk(sample, sample.computed, 1, 1, (sample,)))
                budget -= 1
                batch_rows += sample.is_batch
        if drafts:
            spare = self.memory.available - len(self._running)
            budget -= add_drafts(chunks, drafts, DraftRoom(self.memory, budget // 2, spare))
        for sample in others:
            if sample.is_batch:  # ranked last, so that nobody else's budget is cut
                budget = min(budget, self._batch_share.tokens(batch_rows))
            if sample.phase is Phase.RUNNING and budget > 0:  # a page may have been taken from it
                chunks.append(self._prefill_chunk(sample, min(sample.uncomputed, budget)))
                budget -= chunks[-1].count
        assert chunks or not self._waiting, "requests wait and nothing runs"
        return StepPlan(tuple(chunks), tuple(copies)) if chunks else None

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """Take in what a step computed and drew."""
        attribute(plan, result.seconds)
        self._batch_share.note(plan, result.seconds, now)
        drawn = iter(result.drawn)
        for chunk in plan.chunks:
            if chunk.drafts:
                self._take_verified(chunk, next(drawn), now)
                continue
            for sample in chunk.draws or (chunk.sample,):
                sample.computed = chunk.start + chunk.count
                self._residency.store_blocks(sample)
            for sample in chunk.draws:
                self._draw(sample, next(drawn), now)

    def check_integrity(self) -> None:
        """Raise AssertionError unless memory, queues and phases agree. For tests and soaks."""
        self._residency.check_integrity()
        live = [s for r in self._requests.values() for s in r.samples if not s.is_complete]
        for sample in live:
            queue = {Phase.WAITING: self._waiting, Phase.RUNNING: self._running}.get(sample.phase)
            assert (sample in self._waiting) == (queue is self._waiting), "lost in the queue"
            assert (sample in self._running) == (queue is self._running), "lost in the batch"
            assert sample.phase is Phase.RUNNING or not sample.pages, "pages without a place"
            assert sample.computed <= len(sample.tokens), "more computed than known"
            assert len(sample.pages) >= self.memory.pages_for(sample.computed), "no page for KV"
        assert len(self._waiting) + len(self._running) <= len(live), "a sample is nobody's"

    # What callers hear of admission.

    def _note_started(self, sample: Sample, now: float) -> None:
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

    # Prefill and what follows a step.

    def _taking_part(self) -> list[Sample]:
        """Running samples that the next step computes: all, or none of BATCH while others prefill.

        Of those of BATCH that decode the first ones, if there are too many.
        """
        samples = self._running.snapshot()
        if not samples or not samples[-1].is_batch:  # ranked last
            return samples
        others = [sample for sample in samples if not sample.is_batch]
        if not all(sample.is_decoding for sample in others):
            return others
        rows = self._batch_share.rows(beside=bool(others))
        if not rows:
            return others
        batch = samples[len(others) :]
        left_out = set([sample for sample in batch if sample.is_decoding][rows:])
        return [s for s in samples if s not in left_out] if left_out else samples

    def _prefill_chunk(self, sample: Sample, count: int) -> Chunk:
        if count < sample.uncomputed:
            return Chunk(sample, sample.computed, count)
        draws = (sample,) if sample.num_output else (sample, *self._residency.fork(sample))
        return Chunk(sample, sample.computed, count, 1, draws)

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
        self._residency.store_blocks(sample)
        self._tell(sample, out, now)

    def _tell(self, sample: Sample, out: TokenOut, now: float) -> None:
        if out.finish is None:
            self._emit(sample.request, out)
        else:
            self._end(sample, out, now)

    def _end(self, sample: Sample, last: TokenOut, now: float) -> None:
        self._residency.vacate(sample)
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
