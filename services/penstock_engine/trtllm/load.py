"""What the engine does now, counted on our side, and what each request's share of it is. Pure.

The engine tells of no request's time. So each moment is divided among the samples inside by the
tokens that each has in a step: those of its prompt, at most a step's, until its first token, then one.
Our own counts come first, since the engine's figures exist only while it computes; those come
second, with their age. Time comes in.
"""

from dataclasses import dataclass

from penstock_engine.api import EngineState, Share
from penstock_engine.sharing import Part, Sharing
from penstock_engine.trtllm.figures import IterationFigures, Rates

_FRESH_S = 1.0


@dataclass(slots=True, eq=False)
class Resident:
    """A sample in the engine. ``prefill_tokens``: of its prompt, until its first token is there."""

    prompt_tokens: int
    part: Part
    prefill_tokens: int
    new_tokens: int = 0


class Load:
    """Samples in the engine. ``step_tokens``: most tokens in one step."""

    def __init__(self, block_tokens: int, step_tokens: int = 8192) -> None:
        self.rates = Rates()
        self._block_tokens = block_tokens
        self._residents: set[Resident] = set()
        self._sharing = Sharing(step_tokens)
        self._heard_at = 0.0

    def enter(self, prompt_tokens: int, now: float) -> Resident:
        """A sample was submitted."""
        if not self._residents:
            self._heard_at = now
        part = self._sharing.enter(prompt_tokens, now)
        resident = Resident(prompt_tokens, part, prompt_tokens)
        self._residents.add(resident)
        return resident

    def heard(self, resident: Resident, new_tokens: int, now: float) -> Share:
        """A sample had a response; what it has taken of the engine so far."""
        self._heard_at = now
        resident.new_tokens += new_tokens
        if resident.prefill_tokens:
            resident.prefill_tokens = 0
            self._sharing.decodes(resident.part, now)
        return self._sharing.add_up(resident.part, now)

    def leave(self, resident: Resident, now: float) -> Share:
        """A sample left; the whole of what it took of the engine."""
        self._residents.discard(resident)
        return self._sharing.leave(resident.part, now)

    def note(self, figures: IterationFigures, now: float) -> None:
        """The engine told of an iteration."""
        self._heard_at = now
        self.rates.note(figures, now)

    def silence_s(self, now: float) -> float:
        """Seconds for which requests ran and nothing was heard."""
        return now - self._heard_at if self._residents else 0.0

    def state(self, waiting: "Waiting", num_cached: int, now: float) -> EngineState:
        """The whole."""
        rates, age = self.rates, self.rates.age_s(now)
        own = sum(-(-_tokens(r) // self._block_tokens) for r in self._residents)
        told = rates.latest.used_blocks
        # With nothing running nothing is in use, whatever the last figure said.
        is_fresh = age is not None and age < _FRESH_S and bool(self._residents)
        used = told if is_fresh and told is not None else own
        prefill = sum(r.prefill_tokens for r in self._residents)
        return EngineState(
            running=len(self._residents),
            waiting=waiting.samples,
            queued_prefill_tokens=prefill + waiting.tokens,
            queued_batch_tokens=waiting.batch_tokens,
            context_tokens=sum(map(_tokens, self._residents)),
            used_blocks=used,
            cached_blocks=max(num_cached - used, 0),
            step_s=rates.step_s,
            tokens_per_step=rates.tokens_per_step,
            prefill_tokens_per_s=rates.prefill_tokens_per_s,
            preemptions=rates.preemptions,
            busy_s=self._sharing.busy_s(now),
            figures_age_s=age,
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits before the engine, and how much of it is of class BATCH."""

    samples: int
    tokens: int
    batch_tokens: int = 0


def _tokens(resident: Resident) -> int:
    return resident.prompt_tokens + resident.new_tokens
