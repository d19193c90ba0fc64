"""One simulated worker: a first-in first-out prefill, a decoding batch, a block cache.

A fluid model: prompts are computed one after the other, all decoding requests gain tokens at one
common rate, and both rates hold between two events. Rates depend on the batch and its contexts:

    step_s = step + step_per_request * b + step_per_token * context
    decode rate = tokens_per_step / step_s * (1 - stall * [a prompt is computed])
    prefill rate = 1 / (1 + slowdown * b / max_active)
    work(U, H) = (U + attention * (U * H + U**2 / 2)) / prefill_rate

Time comes in from outside; every change is told to a listener, as a worker's state stream tells it.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

from penstock_core.errors import InvalidRequest
from penstock_router.simulate.cache import BlockCache
from penstock_router.simulate.trace import TraceRequest

_SOON = 1e-9


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What a worker can do. The defaults of the last six leave a plain server with a queue.

    Attributes:
        prefill_rate: prompt tokens a second.
        step_s: seconds of a decode step; ``step_per_request_s`` and ``step_per_token_s`` more for
            each request and each token of context in the batch.
        attention: share by which a token behind 1 token of context costs more than a first one.
        slowdown: how much a full batch slows a prefill; ``stall`` how much a prefill slows decoding.
        tokens_per_step: mean accepted tokens of a speculative step.
    """

    cache_blocks: int = 3000
    block_tokens: int = 512
    prefill_rate: float = 8000.0
    step_s: float = 0.025
    max_active: int = 64
    step_per_request_s: float = 0.0
    step_per_token_s: float = 0.0
    attention: float = 0.0
    slowdown: float = 0.0
    stall: float = 0.0
    tokens_per_step: float = 1.0

    def __post_init__(self) -> None:
        """Raises InvalidRequest for a figure that no clock can follow."""
        for figure in fields(self):
            if not math.isfinite(value := getattr(self, figure.name)):
                raise InvalidRequest(f"{figure.name} cannot be {value}", field=figure.name)

    def at_speed(self, factor: float) -> "EngineModel":
        """The same worker, this much faster."""
        return replace(
            self,
            prefill_rate=self.prefill_rate * factor,
            step_s=self.step_s / factor,
            step_per_request_s=self.step_per_request_s / factor,
            step_per_token_s=self.step_per_token_s / factor,
        )

    def prefill_s(self, uncached: float, cached: float) -> float:
        """Seconds of a prefill that has the worker's prefill to itself."""
        pairs = uncached * cached + uncached * uncached / 2
        return (uncached + self.attention * pairs) / self.prefill_rate


@dataclass(slots=True, eq=False)
class Job:
    """A request on a worker and what became of it."""

    request: TraceRequest
    worker: int = -1
    sent_s: float = 0.0
    started_s: float = 0.0
    first_token_s: float = 0.0
    finished_s: float = 0.0
    cached_tokens: int = 0
    rejected: bool = False
    depth: int = 0
    private: int = 0


class Listener(Protocol):
    """Hears what a worker's state stream would say."""

    def admitted(self, job: Job, now: float) -> None:
        """A request's prefill begins; ``job.cached_tokens`` were found."""

    def stored(self, worker: int, parent: int, blocks: Sequence[int]) -> None:
        """Blocks are there now; the first hangs on ``parent``, 0 for none."""

    def removed(self, worker: int, blocks: Sequence[int]) -> None:
        """Blocks are gone."""

    def prefill_done(self, job: Job, now: float) -> None:
        """A request has its first token."""

    def finished(self, job: Job, now: float) -> None:
        """A request has its last token."""


class SimWorker:
    """One worker. ``next_event`` says when to call ``advance`` next."""

    def __init__(self, number: int, model: EngineModel, listener: Listener) -> None:
        self.number = number
        self.model = model
        self.cache = BlockCache(model.cache_blocks)
        self.busy_s = 0.0
        self.waiting: deque[Job] = deque()
        self.decoding: list[tuple[float, int, Job]] = []
        self.context_tokens = 0
        self._listener = listener
        self._now = 0.0
        self._prefilling: Job | None = None
        self._left_s = 0.0
        # Tokens that a request decoding since the beginning would have by now.
        self._progress = 0.0
        self._count = 0

    @property
    def active(self) -> int:
        """Requests that decode or are computed."""
        return len(self.decoding) + (self._prefilling is not None)

    def submit(self, job: Job, now: float) -> None:
        """A request arrives."""
        self.advance(now)
        job.worker, job.sent_s = self.number, now
        self.waiting.append(job)
        self._begin()

    def next_event(self) -> float:
        """When something will happen here if nothing else arrives; infinite if nothing will."""
        ends = []
        if self._prefilling is not None:
            ends.append(self._left_s / self._prefill_speed())
        if self.decoding:
            ends.append((self.decoding[0][0] - self._progress) / self._decode_rate())
        return self._now + max(min(ends), 0.0) if ends else float("inf")

    def advance(self, now: float) -> None:
        """Let time pass until ``now``, at most to the next event, and let what is due happen."""
        passed = now - self._now
        if passed > 0:
            self._progress += passed * self._decode_rate()
            if self._prefilling is not None:
                self._left_s -= passed * self._prefill_speed()
                self.busy_s += passed
            self._now = now
        if self._prefilling is not None and self._left_s <= _SOON:
            self._first_token(self._prefilling)
        while self.decoding and self.decoding[0][0] <= self._progress + _SOON:
            self._finish(heapq.heappop(self.decoding)[2])
        self._begin()

    def queued_tokens(self) -> int:
        """Prompt tokens of waiting requests, cached or not; what an engine without a look-up sees."""
        return sum(job.request.prompt_tokens for job in self.waiting)

    def _begin(self) -> None:
        while self._prefilling is None and self.waiting and self.active < self.model.max_active:
            job, size = self.waiting[0], self.model.block_tokens
            blocks, asked = job.request.blocks, job.request
            total = -(-(asked.prompt_tokens + asked.output_tokens) // size)
            job.depth = self.cache.depth(blocks)
            job.private = max(total - job.depth, 0)
            held = blocks[: job.depth]
            if not self.cache.fits(held, job.private) and self.active:
                return
            self.waiting.popleft()
            gone = self.cache.pin(held, job.private)
            if gone:
                self._listener.removed(self.number, gone)
            job.started_s, job.cached_tokens = self._now, job.depth * size
            self._prefilling = job
            uncached = asked.prompt_tokens - job.cached_tokens
            self._left_s = self.model.prefill_s(uncached, job.cached_tokens)
            self.context_tokens += asked.prompt_tokens
            self._listener.admitted(job, self._now)

    def _first_token(self, job: Job) -> None:
        self._prefilling = None
        job.first_token_s = self._now
        blocks = job.request.blocks
        new, gone = self.cache.fill(blocks[job.depth :])
        job.private -= len(blocks) - job.depth
        if gone:
            self._listener.removed(self.number, gone)
        if new:
            first = len(blocks) - len(new)
            self._listener.stored(self.number, blocks[first - 1] if first else 0, new)
        self._listener.prefill_done(job, self._now)
        self._count += 1
        end = self._progress + job.request.output_tokens - 1
        heapq.heappush(self.decoding, (end, self._count, job))

    def _finish(self, job: Job) -> None:
        job.finished_s = self._now
        self.context_tokens -= job.request.prompt_tokens
        self.cache.release(job.request.blocks, job.private)
        self._listener.finished(job, self._now)

    def _prefill_speed(self) -> float:
        return 1 / (1 + self.model.slowdown * len(self.decoding) / self.model.max_active)

    def step_seconds(self) -> float:
        """Seconds of a decode step now."""
        model = self.model
        batch = len(self.decoding) * model.step_per_request_s
        return model.step_s + batch + self.context_tokens * model.step_per_token_s

    def _decode_rate(self) -> float:
        stall = self.model.stall if self._prefilling is not None else 0.0
        return self.model.tokens_per_step / self.step_seconds() * (1 - stall)
