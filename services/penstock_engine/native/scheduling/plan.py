"""What the scheduler asks of the runner for one step, and what the runner answers.

Owns the two messages between policy and tensors; the only thing both sides know of each other.
Pure Python; no torch, no asyncio.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penstock_engine.native.scheduling.request import Drawn, Sample

Drafts = Mapping[Sample, Sequence[int]]
"""Guesses of the next tokens of decoding sequences, to be checked by the next step."""


@dataclass(
    slots=True
)  # not frozen: freezing trebles what making one takes, for each sequence and step
class Chunk:
    """Compute tokens ``[start, start + count)`` of a sequence into its pages.

    The last ``num_logits`` positions get logits (none while a prompt is still cut short, one for a
    plain draw, more to verify drafts). ``draws`` are the samples that draw from them: the sequence
    itself and those that fork from it. ``drafts`` are computed behind the sequence's known tokens and
    are part of ``count``.
    """

    sample: Sample
    start: int
    count: int
    num_logits: int = 0
    draws: tuple[Sample, ...] = ()
    drafts: tuple[int, ...] = ()

    @property
    def is_decode(self) -> bool:
        """Whether it only adds the token drawn last, and perhaps drafts behind it."""
        count, start = self.count, self.start
        known = count - len(self.drafts)
        return known == 1 and self.num_logits == count and start >= self.sample.num_prompt

    @property
    def tokens(self) -> Sequence[int]:
        """The ids to compute."""
        known = self.sample.tokens[self.start : self.start + self.count - len(self.drafts)]
        return [*known, *self.drafts] if self.drafts else known


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: page copies first (all read before any is written), then the chunks as one batch.

    ``num_tokens`` are those that it computes, ``num_prefill_tokens`` those of them that are no decode
    steps. ``has_drafts`` tells whether there are any to check.
    """

    chunks: tuple[Chunk, ...]
    copies: tuple[tuple[int, int], ...] = ()
    num_tokens: int = field(init=False)
    num_prefill_tokens: int = field(init=False)
    has_drafts: bool = field(init=False)

    def __post_init__(self) -> None:
        """Count once: it is asked several times a step, in a small model's each microsecond is seen."""
        total = prefill = 0
        has_drafts = False
        for chunk in self.chunks:
            total += chunk.count
            if not chunk.is_decode:
                prefill += chunk.count
            has_drafts = has_drafts or bool(chunk.drafts)
        object.__setattr__(self, "num_tokens", total)
        object.__setattr__(self, "num_prefill_tokens", prefill)
        object.__setattr__(self, "has_drafts", has_drafts)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What each draw of the plan drew, in the plan's order, and how long the step took.

    ``seconds`` are the model's; a turn around it with drafting and planning takes longer.
    """

    drawn: Sequence[Drawn]
    seconds: float


def attribute(plan: StepPlan, seconds: float) -> None:
    """Divide a step's time among the requests in it, by the tokens each had computed.

    Tokens of a step cost about the same whatever they are: they go through the same products together.
    """
    per_token_s = seconds / plan.num_tokens
    for chunk in plan.chunks:
        request, own = chunk.sample.request, per_token_s * chunk.count
        if chunk.is_decode:
            request.decode_share_s += own
        else:
            request.prefill_share_s += own


class Drafting(Protocol):
    """Who guesses tokens for the steps to check."""

    def propose(self, samples: Sequence[Sample]) -> Drafts:
        """Guesses for some of the sequences, all of which are decoding."""
        ...

    def note(self, plan: StepPlan, result: StepResult, seconds: float) -> None:
        """What became of them, and how long the turn took, from ``propose`` to here."""
        ...
