"""A small model that guesses what the large one will say, for all sequences of a batch at once.

Owns the draft model's KV pages and how far each sequence's are computed. It follows the large
model lazily: a sequence costs nothing until drafts are wanted for it, and then its tokens are
caught up with in chunks. Its own page tables, because its KV is wanted for other tokens than the
large model's: not for a prompt that nobody drafts behind, but for guesses that did not stand.
Nothing here can make an output wrong; stale KV would only make for worse guesses.

Proposals are drawn as the large model draws: same temperature, truncation, penalties and the same
number for the position, so that equal distributions give equal tokens (see ``accept``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from penstock_engine.native.execution.runner import Runner
from penstock_engine.native.execution.sampling import Sampler
from penstock_engine.native.kv.pages import PageAllocator
from penstock_engine.native.scheduling.plan import Chunk, StepPlan
from penstock_engine.native.scheduling.request import Phase, Sample

_CATCH_UP_TOKENS = 512
"""Known tokens computed in one call; a long prompt is caught up with over several steps."""

_STEADY_TOKENS = 2
"""Known tokens to compute when the last step's drafts all stood: the last of them and one more."""


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """Bounds of a draft model: its context, and the KV pages it may fill."""

    max_context: int
    num_pages: int
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Up to ``count`` drafts for a sequence."""

    sample: Sample
    count: int


@dataclass(frozen=True, slots=True)
class Guesses:
    """Drafts of each sequence; ``is_steady`` unless more than the last step's tokens had to be computed."""

    drafts: Sequence[tuple[int, ...]]
    is_steady: bool


@dataclass(eq=False, slots=True)
class _Shadow:
    """The draft model's view of a sequence: its first ``known`` tokens are certain, the rest guesses."""

    sequence: Sample
    known: int = 0


class DraftModel:
    """A loaded draft model; its sequences shadow those of the large one."""

    def __init__(self, runner: Runner, limits: DraftLimits) -> None:
        self._runner = runner
        self._limits = limits
        self._pages = PageAllocator(limits.num_pages)
        self._shadows: dict[Sample, _Shadow] = {}
        self._sampler = Sampler()

    @property
    def used_pages(self) -> int:
        """Pages that hold some sequence's KV."""
        return self._limits.num_pages - self._pages.num_free

    def propose(self, wanted: Sequence[Wanted]) -> Guesses:
        """Drafts for each, none for a sequence that is still being caught up with or has no room."""
        self._drop_ended()
        shadows = [self._follow(want) for want in wanted]
        steady = all(shadow.sequence.uncomputed <= _STEADY_TOKENS for shadow in shadows)
        ready = self._catch_up([shadow.sequence for shadow in shadows])
        counts = {shadow.sequence: want.count for shadow, want in zip(shadows, wanted, strict=True)}
        for depth in range(1, max(counts.values(), default=0)):
            going = [sequence for sequence in ready if counts[sequence] > depth]
            self._draw([Chunk(one, one.computed, 1, 1, (one,)) for one in going])
        drafts = [tuple(shadow.sequence.tokens[shadow.known :]) for shadow in shadows]
        return Guesses(drafts, steady and any(drafts))

    def release(self) -> None:
        """Forget all sequences."""
        for sample in list(self._shadows):
            self._forget(sample)

    def _drop_ended(self) -> None:
        for sample in [s for s in self._shadows if s.phase is not Phase.RUNNING]:
            self._forget(sample)

    def _forget(self, sample: Sample) -> None:
        for page in self._shadows.pop(sample).sequence.pages:
            self._pages.release(page)

    def _follow(self, want: Wanted) -> _Shadow:
        """The sequence's shadow with its tokens, and pages for as many drafts as possible."""
        sample = want.sample
        shadow = self._shadows.get(sample)
        if shadow is None:
            shadow = _Shadow(Sample(sample.request, sample.choice_index, sample.rank))
            self._shadows[sample] = shadow
        sequence, same = shadow.sequence, _agreement(shadow, sample)
        del sequence.tokens[same:]
        sequence.tokens.extend(sample.tokens[same:])
        shadow.known = len(sample.tokens)
        sequence.computed = min(sequence.computed, same, shadow.known - 1)
        self._grow(sequence, shadow.known + want.count - 1)
        return shadow

    def _grow(self, sequence: Sample, num_tokens: int) -> None:
        size = self._limits.block_tokens
        while len(sequence.pages) * size < num_tokens and self._pages.can_allocate():
            sequence.pages.append(self._pages.allocate())

    def _catch_up(self, sequences: Sequence[Sample]) -> list[Sample]:
        """Compute known tokens and draw the first drafts; returns the sequences that have one."""
        budget, chunks = _CATCH_UP_TOKENS, []
        for sequence in sequences:
            count = min(sequence.uncomputed, budget)
            if count == 0 or not self._fits(sequence, sequence.computed + count):
                continue
            budget -= count
            draws = (sequence,) if count == sequence.uncomputed else ()
            chunks.append(Chunk(sequence, sequence.computed, count, len(draws), draws))
        self._draw(chunks)
        return [chunk.sample for chunk in chunks if chunk.draws]

    def _fits(self, sequence: Sample, num_tokens: int) -> bool:
        room = min(len(sequence.pages) * self._limits.block_tokens, self._limits.max_context)
        return num_tokens <= room

    def _draw(self, chunks: Sequence[Chunk]) -> None:
        """Compute chunks that have room and append what is drawn behind them."""
        chunks = [c for c in chunks if self._fits(c.sample, c.start + c.count)]
        if not chunks:
            return
        with torch.inference_mode():
            logits = self._runner.logits(StepPlan(tuple(chunks)))
            drawers = [chunk.sample for chunk in chunks if chunk.draws]
            drawn = self._sampler.draw(logits, drawers) if drawers else []
        for chunk in chunks:
            chunk.sample.computed += chunk.count
        for sequence, one in zip(drawers, drawn, strict=True):
            sequence.tokens.append(one.token_ids[0])


def _agreement(shadow: _Shadow, sample: Sample) -> int:
    """Length of the common beginning; they can differ in nothing but the shadow's guesses."""
    guesses, tokens = shadow.sequence.tokens, sample.tokens
    at, count = shadow.known, min(len(guesses), len(tokens))
    while at < count and guesses[at] == tokens[at]:
        at += 1
    return at
