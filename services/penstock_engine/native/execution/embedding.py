"""Embeddings: whole texts through the decoder, a bounded piece between two steps.

Owns the texts that wait and the pages they are computed on, which the scheduler never sees: a text
can neither take memory from a generation nor wait for one to give memory back. Knows the decoder as a
callable and vectors as arrays.
"""

import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from penstock_core.errors import Overloaded
from penstock_engine.api import (
    NO_SHARE,
    Embedded,
    EmbedRequest,
    EngineRequest,
    Pooling,
    Priority,
    Share,
    Vector,
)
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Request

Compute = Callable[[StepPlan], Tensor]
"""Final hidden states, float32 ``(wanted positions, hidden size)``, of a plan's chunks."""
Answer = Callable[[Embedded], None]


@dataclass(frozen=True, slots=True)
class EmbedLimits:
    """What bounds embeddings.

    Attributes:
        pages: pages of the KV tensors that are theirs alone; any text fits them.
        block_tokens: tokens of a page.
        max_step_tokens: tokens of a piece while nothing else runs.
        max_waiting_tokens: tokens of all texts that wait or are being computed.
    """

    pages: range
    block_tokens: int
    max_step_tokens: int
    max_waiting_tokens: int

    @property
    def beside_step_tokens(self) -> int:
        """Tokens of a piece while requests decode, which it delays by its own length."""
        return max(self.max_step_tokens // 4, 1)


class _Job:
    """One request: its vectors as they come."""

    def __init__(self, request: EmbedRequest, pooling: Pooling, answer: Answer) -> None:
        self.request = request
        self.pooling = pooling
        self.answer = answer
        self._vectors: dict[int, Vector] = {}
        self.share = NO_SHARE

    def take(self, index: int, pooled: NDArray[np.float64]) -> None:
        """One text is done."""
        self._vectors[index] = normalised(pooled, self.request.dimensions)
        if len(self._vectors) == len(self.request.texts):
            vectors = [self._vectors[i] for i in range(len(self._vectors))]
            self.answer(Embedded(vectors, self.share))


class _Text:
    """One text on its way: which tokens are computed, and the sum of their vectors if that is wanted."""

    def __init__(self, job: _Job, index: int) -> None:
        spec = EngineRequest(job.request.request_id, job.request.texts[index], max_tokens=1)
        self.job = job
        self.index = index
        self.sample = Request(spec, 0, 0.0).samples[0]
        self.pooled: NDArray[np.float64] | None = None

    def chunk(self, max_tokens: int) -> Chunk:
        """What to compute next: every position's vector for a mean, else the last one's."""
        count = min(self.sample.uncomputed, max_tokens)
        is_last = count == self.sample.uncomputed
        wanted = count if self.job.pooling is Pooling.MEAN else int(is_last)
        return Chunk(self.sample, self.sample.computed, count, wanted)

    def take(self, chunk: Chunk, rows: NDArray[np.float32]) -> bool:
        """Take a computed chunk's vectors; whether the text is done."""
        self.sample.computed += chunk.count
        if chunk.num_logits:
            # In float64, so that where a text was cut does not show in float32.
            added = rows.sum(axis=0, dtype=np.float64)
            self.pooled = added if self.pooled is None else self.pooled + added
        return not self.sample.uncomputed


class Embeddings:
    """Texts in, vectors out. ``step`` is the step thread's, all else anybody's."""

    def __init__(self, limits: EmbedLimits, pooling: Pooling) -> None:
        self._limits = limits
        self._pooling = pooling
        self._free = list(limits.pages)
        self._lock = threading.Lock()
        self._waiting: dict[Priority, deque[_Text]] = {each: deque() for each in Priority}
        self._open: list[_Text] = []
        self._queued_tokens = 0
        self.busy_s = 0.0
        """Seconds of computing; requests' shares add up to them."""

    @property
    def has_work(self) -> bool:
        """Whether there is something to compute."""
        return self._queued_tokens > 0

    @property
    def queued_tokens(self) -> int:
        """Tokens to be computed, as of the last change."""
        return self._queued_tokens

    def submit(self, request: EmbedRequest, answer: Answer) -> None:
        """Take a request; ``answer`` is called in the step thread. Raises Overloaded."""
        tokens = sum(map(len, request.texts))
        job = _Job(request, request.pooling or self._pooling, answer)
        with self._lock:
            if self._queued_tokens and (
                self._queued_tokens + tokens > self._limits.max_waiting_tokens
            ):
                raise Overloaded(f"{self._queued_tokens} tokens wait to be embedded")
            texts = (_Text(job, index) for index in range(len(request.texts)))
            self._waiting[request.priority].extend(texts)
            self._queued_tokens += tokens

    def cancel(self, request_id: str) -> None:
        """Forget a request; what is being computed for it is freed with the piece at hand."""
        with self._lock:
            for text in [t for t in self._open if _is_of(t, request_id)]:
                self._close(text)
            for priority, texts in self._waiting.items():
                kept = deque(text for text in texts if not _is_of(text, request_id))
                self._waiting[priority] = kept
            left = chain(self._open, *self._waiting.values())
            self._queued_tokens = sum(text.sample.uncomputed for text in left)

    def step(self, compute: Compute, *, beside: bool) -> int:
        """Compute one piece, smaller if it is computed beside a generation; its tokens."""
        limits = self._limits
        budget = limits.beside_step_tokens if beside else limits.max_step_tokens
        with self._lock:
            texts = list(self._next(budget))
        if not texts:
            return 0
        plan, began = StepPlan(tuple(chunk for _, chunk in texts)), time.perf_counter()
        rows = compute(plan).numpy(force=True)
        seconds = time.perf_counter() - began
        self.busy_s += seconds
        for text, chunk in texts:
            text.job.share += Share(prefill_s=seconds * chunk.count / plan.num_tokens)
        with self._lock:
            self._take(texts, rows)
        return plan.num_tokens

    def _next(self, budget: int) -> Iterable[tuple[_Text, Chunk]]:
        """Texts that are open, then as many new ones as have room, with what of them fits the budget."""
        for text in self._open:
            if budget:
                chunk = text.chunk(budget)
                budget -= chunk.count
                yield text, chunk
        waiting = (texts for texts in self._waiting.values() if texts)
        best = next(waiting, None)
        while budget and best and self._pages_for(best[0]) <= len(self._free):
            text = best.popleft()
            best = best or next(waiting, None)
            text.sample.pages = [self._free.pop() for _ in range(self._pages_for(text))]
            self._open.append(text)
            chunk = text.chunk(budget)
            budget -= chunk.count
            yield text, chunk

    def _take(self, texts: Sequence[tuple[_Text, Chunk]], rows: NDArray[np.float32]) -> None:
        end = 0
        for text, chunk in texts:
            begin, end = end, end + chunk.num_logits
            if text not in self._open:
                continue  # cancelled meanwhile
            self._queued_tokens -= chunk.count
            if text.take(chunk, rows[begin:end]):
                self._close(text)
                assert text.pooled is not None, "a text has no token"
                text.job.take(text.index, text.pooled)

    def _close(self, text: _Text) -> None:
        self._open.remove(text)
        self._free.extend(text.sample.pages)

    def _pages_for(self, text: _Text) -> int:
        return -(-len(text.sample.tokens) // self._limits.block_tokens)


def normalised(pooled: NDArray[np.float64], dimensions: int | None = None) -> Vector:
    """The leading components at length 1, as float32; a vector of zeros stays one."""
    kept = pooled[:dimensions]
    length = float(np.linalg.norm(kept))
    return array("f", (kept / length if length else kept).astype(np.float32).tobytes())


def _is_of(text: _Text, request_id: str) -> bool:
    return text.job.request.request_id == request_id
