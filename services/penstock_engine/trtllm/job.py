"""One request on its way: a sample each as a request of its own to the engine.

Owns the life of each sample: a place, a submission, responses, and always an end in the engine:
nothing there ends by itself when nobody listens any more. Further samples are submitted once the first
had a response, so that they find its prompt in the cache.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from penstock_core.errors import InternalError, PenstockError
from penstock_engine.api import (
    NO_SHARE,
    Admitted,
    EngineOutput,
    EngineRequest,
    FinishReason,
    Priority,
    RequestDone,
    Share,
)
from penstock_engine.trtllm.admission import Admission
from penstock_engine.trtllm.feed import CacheFeed
from penstock_engine.trtllm.figures import RequestFigures
from penstock_engine.trtllm.load import Load, Resident
from penstock_engine.trtllm.package import Output
from penstock_engine.trtllm.roots import Claim
from penstock_engine.trtllm.stream import SampleStream

logger = logging.getLogger(__name__)


class Submitter(Protocol):
    """Gives a sample to the engine."""

    @property
    def has_failed(self) -> bool:
        """Whether the engine is dead, so that nothing in it can be waited for."""
        ...

    def submit(self, request: EngineRequest, choice: int, trace: Mapping[str, str]) -> Output:
        """Submit it on the running loop. Raises PenstockError if the engine refuses."""
        ...

    def end_id(self, request: EngineRequest) -> int:
        """The token that ends it without being named as a stop token."""
        ...

    def failure(self, error: Exception) -> PenstockError:
        """What an exception from the engine means; a fatal one ends the engine."""
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """What every request uses."""

    submitter: Submitter
    admission: Admission
    feed: CacheFeed
    load: Load
    drain_timeout_s: float
    draft_tokens: int = 0
    """Most drafts of a step; 0 if there are none, or nobody knows."""


@dataclass(slots=True)
class _Sample:
    """One sample. ``place`` while it waits; ``output`` and ``share`` while it is in the engine."""

    choice: int
    is_aborted: bool = False
    is_ended: bool = False
    place: "asyncio.Future[bool] | None" = None
    output: Output | None = None
    deadline: asyncio.Timeout | None = None
    share: Share = NO_SHARE


@dataclass(frozen=True, slots=True)
class _Listening:
    """A sample in the engine, as it is listened to."""

    sample: _Sample
    output: Output
    stream: SampleStream
    resident: Resident
    claim: Claim


class Job:
    """Runs one request. ``items`` is what comes of it: the last is RequestDone or an error."""

    def __init__(
        self, request: EngineRequest, arrival: int, desk: Desk, trace: Mapping[str, str]
    ) -> None:
        self.items: asyncio.Queue[EngineOutput | PenstockError] = asyncio.Queue()
        self.request = request
        self._desk = desk
        self._trace = trace
        self._arrival = arrival
        self._arrived_s = time.monotonic()
        self._samples = [_Sample(choice) for choice in range(request.n)]
        self._leads = asyncio.Event()
        self._admitted: Admitted | None = None
        self._figures: list[RequestFigures] = []
        self._share = NO_SHARE
        self._prefill_s = 0.0
        self._ask_for_place(
            self._samples[0]
        )  # at once, so that the next one to come sees it waiting
        self._tasks = [asyncio.create_task(self._run(sample)) for sample in self._samples]

    @property
    def is_batch(self) -> bool:
        """Whether it gives way to others, as long as it waits: the package knows no classes."""
        return self.request.priority is Priority.BATCH

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens that have no place yet; further samples find theirs in the cache."""
        place = self._samples[0].place
        return len(self.request.prompt) if place is not None and not place.done() else 0

    def abort(self, choice: int | None) -> bool:
        """End it, or one sample of it. False if there is nothing to end."""
        live = (s for s in self._samples if not s.is_ended and choice in (None, s.choice))
        found = [s for s in live if not s.is_aborted]
        for sample in found:
            self._abort(sample)
        return bool(found)

    def fail(self, error: PenstockError) -> None:
        """End it with an error."""
        self.items.put_nowait(error)

    async def close(self) -> None:
        """Make sure that nothing of it is left in the engine."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sample in self._samples:
            self._give_back(sample)

    def _abort(self, sample: _Sample) -> None:
        if sample.is_aborted:
            return
        sample.is_aborted = True
        if sample.place is not None and not sample.place.done():
            sample.place.set_result(False)
        if sample.output is not None:
            sample.output.abort()
            if sample.deadline is not None:
                now = asyncio.get_running_loop().time()
                sample.deadline.reschedule(now + self._desk.drain_timeout_s)

    async def _run(self, sample: _Sample) -> None:
        try:
            if sample.choice:
                await self._leads.wait()
            if sample.is_aborted and sample.place is None:
                self._end_early(sample)
            else:
                await self._take_place(sample)
            self._give_back(sample)
            sample.is_ended = True
            if all(s.is_ended for s in self._samples):
                self.items.put_nowait(self._done())
        except PenstockError as error:
            self.items.put_nowait(error)
        except Exception as error:  # noqa: BLE001 - the engine's own, or ours: the caller must hear
            self.items.put_nowait(self._desk.submitter.failure(error))
        finally:
            self._leads.set()

    async def _take_place(self, sample: _Sample) -> None:
        place = sample.place or self._ask_for_place(sample)
        # Shielded: whoever cancels the task must not cancel a place that was just given.
        if not await asyncio.shield(place) or sample.is_aborted:
            return self._end_early(sample)
        await self._in_engine(sample)

    def _give_back(self, sample: _Sample) -> None:
        place, sample.place = sample.place, None
        if place is None:
            return
        if not place.done():
            place.set_result(False)
        elif place.result():
            self._desk.admission.leave()

    def _ask_for_place(self, sample: _Sample) -> "asyncio.Future[bool]":
        rank = (self.request.priority.value, self._arrival, sample.choice)
        sample.place = self._desk.admission.enter(rank)
        return sample.place

    def _end_early(self, sample: _Sample) -> None:
        stream = SampleStream(self.request, sample.choice, end_id=-1)
        self.items.put_nowait(stream.end(FinishReason.ABORTED))

    async def _in_engine(self, sample: _Sample) -> None:
        desk, prompt = self._desk, self._prompt(sample.choice)
        stream = SampleStream(self.request, sample.choice, desk.submitter.end_id(self.request))
        claim = desk.feed.expect(lambda: [*prompt, *stream.tokens], self.request.chain_start)
        resident = desk.load.enter(len(prompt), time.monotonic())
        try:
            output = desk.submitter.submit(self.request, sample.choice, self._trace)
            await self._listen(sample, _Listening(sample, output, stream, resident, claim))
            self._note(output)
        finally:
            now = time.monotonic()
            self._share += desk.load.leave(resident, now)
            sample.share = NO_SHARE
            claim.end(now)

    async def _listen(self, sample: _Sample, listening: "_Listening") -> None:
        output, stream = listening.output, listening.stream
        sample.output = output
        is_over = False
        try:
            async with asyncio.timeout(None) as sample.deadline:
                async for _ in output:
                    self._hear(listening)
                    if stream.finish is not None:
                        break
        except Exception as error:
            # After an error, or an abort that was not heeded, the output is never finished: to
            # iterate it again would wait for ever.
            is_over = True
            if not (isinstance(error, TimeoutError) and sample.is_aborted):
                raise
            logger.warning("request %s: an abort was not heeded in time", self.request.request_id)
        finally:
            sample.output, sample.deadline = None, None
            if stream.finish is None and sample.is_aborted:
                self.items.put_nowait(stream.end(FinishReason.ABORTED))
            if not is_over:
                await self._drain(output, was_aborted=sample.is_aborted)
        if stream.finish is None:
            raise InternalError("the engine ended a request without saying how")

    async def _drain(self, output: Output, *, was_aborted: bool) -> None:
        """See a request out of the engine: it would go on by itself, and hold its place."""
        if output.finished or self._desk.submitter.has_failed:
            return
        if not was_aborted:
            output.abort()
        try:
            async with asyncio.timeout(self._desk.drain_timeout_s):
                async for _ in output:
                    pass
        except TimeoutError:
            logger.warning("request %s did not leave the engine in time", self.request.request_id)

    def _hear(self, listening: "_Listening") -> None:
        output, stream, resident = listening.output, listening.stream, listening.resident
        completion = output.outputs[0]
        is_first, before = resident.prefill_tokens > 0, len(stream.tokens)
        was_computed = bool(completion.token_ids) or completion.finish_reason != "cancelled"
        out = stream.take(completion)
        new_tokens, now = len(stream.tokens) - before, time.monotonic()
        listening.sample.share = self._desk.load.heard(resident, new_tokens, now)
        if is_first and was_computed:
            self._lead(output)
            if output.cached_tokens >= self._desk.feed.block_tokens:
                listening.claim.settle()
        if out is not None:
            self.items.put_nowait(replace(out, share=self._share_so_far()))

    def _share_so_far(self) -> Share:
        return sum((sample.share for sample in self._samples), self._share)

    def _prompt(self, choice: int) -> list[int]:
        emitted = self.request.emitted[choice] if self.request.emitted else ()
        return [*self.request.prompt, *emitted]

    def _lead(self, output: Output) -> None:
        """The first response of a sample: the engine looked its prompt up and computed it."""
        self._leads.set()
        if self._admitted is not None:
            return
        figures = RequestFigures.of(output.outputs[0].request_perf_metrics)
        since = time.monotonic() - self._arrived_s
        # The engine's own words for queue and prefill; without them all of it counts as prefill.
        self._prefill_s = min(figures.prefill_s if figures.prefill_s is not None else since, since)
        cached = min(output.cached_tokens, len(self.request.prompt))
        self._admitted = Admitted(cached, since - self._prefill_s, late_s=self._prefill_s)
        self.items.put_nowait(self._admitted)

    def _note(self, output: Output) -> None:
        completion = output.outputs[0]
        told = RequestFigures.of(completion.request_perf_metrics)
        steps = output.decoding_iter
        self._figures.append(
            told.with_drafts(len(completion.token_ids), steps, self._desk.draft_tokens)
        )
        speed = getattr(output, "avg_decoded_tokens_per_iter", None)
        if isinstance(speed, int | float) and speed > 0:
            self._desk.load.rates.note_speed(float(speed))

    def _done(self) -> RequestDone:
        cached = self._admitted.cached_tokens if self._admitted else 0
        return RequestDone(
            cached_tokens=cached,
            computed_prompt_tokens=len(self.request.prompt) - cached if self._admitted else 0,
            queue_s=self._admitted.queue_s if self._admitted else 0.0,
            prefill_s=self._prefill_s,
            share=self._share,
            drafted_tokens=sum(f.drafted_tokens or 0 for f in self._figures),
            accepted_draft_tokens=sum(f.accepted_draft_tokens or 0 for f in self._figures),
        )
