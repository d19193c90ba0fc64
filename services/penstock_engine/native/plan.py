"""What the scheduler asks of the runner for one step, and what the runner answers.

Owns the two messages between policy and tensors; the only thing both sides know of each other.
Pure Python; no torch, no asyncio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock_engine.native.request import Drawn, Sample


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute tokens ``[start, start + count)`` of a sequence into its pages.

    The last ``num_logits`` positions get logits (none while a prompt is still cut short, one for a
    plain draw, more to verify drafts). ``draws`` are the samples that draw from them: the sequence
    itself and those that fork from it.
    """

    sample: Sample
    start: int
    count: int
    num_logits: int = 0
    draws: tuple[Sample, ...] = ()

    @property
    def is_decode(self) -> bool:
        """Whether it only adds the token drawn last."""
        return self.count == 1 and self.num_logits == 1 and self.start >= self.sample.num_prompt


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: page copies first (all read before any is written), then the chunks as one batch."""

    chunks: tuple[Chunk, ...]
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return sum(chunk.count for chunk in self.chunks)

    @property
    def num_prefill_tokens(self) -> int:
        """Those of them that are no decode steps."""
        return sum(chunk.count for chunk in self.chunks if not chunk.is_decode)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What each draw of the plan drew, in the plan's order, and how long the step took."""

    drawn: Sequence[Drawn]
    seconds: float
