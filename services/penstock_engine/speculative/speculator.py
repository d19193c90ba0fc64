"""Who guesses, for whom and how much: brings drafters, acceptance rates and the policy together.

Owns what is remembered of each sequence between steps. Runs in the step thread, before a step
(``propose``) and after it (``note``). Where a constraint leaves no choice its tokens are drafts that
cannot fail, whether there is other speculation or not. Else a sequence's drafts come from its own text
where it repeats itself and, if there is one, from the draft model where that does better.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock_engine.native.scheduling.drafts import NO_DRAFTS, most_drafts
from penstock_engine.native.scheduling.plan import Drafts, StepPlan, StepResult
from penstock_engine.native.scheduling.request import Phase, Sample
from penstock_engine.speculative.draft import DraftModel, Wanted
from penstock_engine.speculative.ngram import Match, NgramIndex, continuation
from penstock_engine.speculative.policy import DraftPolicy, Option
from penstock_engine.speculative.rates import Rates

_MODEL, _CONSTRAINT = 0, 1
"""Kinds of the draft model's drafts and of a constraint's; those of a match are called by its size."""
_SELDOM, _AT_TIMES = 8, 4
"""Plain steps in a row of which one is noted: where nothing is drafted but what constraints leave no choice
about, and else."""


@dataclass(slots=True)
class _Track:
    """What is remembered of a sequence; ``kind`` is that of its latest drafts."""

    rates: Rates
    index: NgramIndex = field(default_factory=NgramIndex)
    kind: int = _MODEL


@dataclass(frozen=True, slots=True)
class _Source:
    """Where drafts of a sequence come from: its constraint, a match in its own text, or the model."""

    kind: int
    rate: float
    match: Match | None = None
    tokens: Sequence[int] = ()

    def draft(self, sample: Sample, count: int) -> Sequence[int]:
        """Up to ``count`` tokens; not the model's."""
        return continuation(sample.tokens, self.match, count) if self.match else self.tokens[:count]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sequence and its possible sources, without and with the draft model; None if it has none."""

    sample: Sample
    cheap: _Source | None
    better: _Source | None

    @property
    def insists(self) -> bool:
        """Whether its request asked for drafts whatever they cost."""
        return self.sample.request.spec.speculation is True


class Speculator:
    """Drafts for the sequences of an engine; see ``plan.Drafting``."""

    def __init__(self, max_tokens: int, model: DraftModel | None, *, looks_up: bool) -> None:
        """Draft up to ``max_tokens`` at once, by prompt lookup, by a model, or by the better of both.

        With neither, drafts are what constraints leave no choice about.
        """
        self._policy = DraftPolicy(max_tokens)
        self._max_tokens = max_tokens
        self._model = model
        self._looks_up = looks_up
        self._guesses = looks_up or model is not None
        self._rests = False
        self._plain_steps = 0  # in a row
        self._rates = Rates()
        self._tracks: dict[Sample, _Track] = {}

    def propose(self, samples: Sequence[Sample]) -> Drafts:
        """Guesses for those of the decoding sequences where they pay."""
        batch = len(samples)
        self._rests = not (self._guesses or any(s.matcher is not None for s in samples))
        if self._rests or not batch:
            return NO_DRAFTS
        foreseen = self._foreseen(samples)
        if not (self._guesses or foreseen):
            return NO_DRAFTS
        insist = any(sample.request.spec.speculation for sample in samples)
        needs_model = not (self._looks_up or foreseen)
        if not (insist or self._policy.may_pay(batch, needs_model=needs_model)):
            return NO_DRAFTS  # most steps of a batch end here, so little was done for each sample
        self._drop_ended()
        allowed = [s for s in samples if s.request.spec.speculation is not False and most_drafts(s)]
        found = (self._candidate(sample, foreseen.get(sample, ())) for sample in allowed)
        candidates = [candidate for candidate in found if candidate is not None]
        if not candidates:
            return NO_DRAFTS
        return self._draft(batch, self._wanted(batch, candidates))

    def _foreseen(self, samples: Sequence[Sample]) -> Drafts:
        """What constraints leave no choice about."""
        return {
            sample: tokens
            for sample in samples
            if sample.matcher is not None and (tokens := sample.matcher.foreseen(self._max_tokens))
        }

    def note(self, plan: StepPlan, result: StepResult, seconds: float) -> None:
        """Learn from a step: what stood, and what it cost if it did nothing but decode."""
        steps = self._noted_steps(plan)
        if self._rests or not steps:
            return
        num_drafted = num_tokens = 0
        if plan.has_drafts:
            num_drafted, num_tokens = self._note_drafts(plan, result)
        if plan.num_prefill_tokens == 0:
            self._policy.note_step(len(plan.chunks), num_drafted, num_tokens, seconds, steps)

    def _noted_steps(self, plan: StepPlan) -> int:
        """Steps that this one stands for; 0 if another does. Telling takes a part of a small model's step."""
        if plan.has_drafts:
            self._plain_steps = 0
            return 1
        self._plain_steps += 1
        if self._plain_steps == 1:
            return 1
        every = _AT_TIMES if self._guesses else _SELDOM
        return 0 if (self._plain_steps - 1) % every else every

    def _note_drafts(self, plan: StepPlan, result: StepResult) -> tuple[int, int]:
        """Learn what stood; how many tokens were drafted, and how many the step gave."""
        drawn = iter(result.drawn)
        num_drafted = num_tokens = 0
        for chunk in plan.chunks:
            outcomes = [next(drawn) for _ in chunk.draws]
            num_tokens += sum(len(outcome.token_ids) for outcome in outcomes)
            if chunk.drafts:
                num_drafted += len(chunk.drafts)
                track = self._tracks[chunk.sample]
                track.rates.note(track.kind, len(chunk.drafts), outcomes[0].num_accepted)
        return num_drafted, num_tokens

    def _candidate(self, sample: Sample, foreseen: Sequence[int]) -> _Candidate | None:
        track = self._tracks.get(sample)
        if track is None:
            track = self._tracks[sample] = _Track(Rates(self._rates))
        if foreseen:
            certain = _Source(_CONSTRAINT, 1.0, tokens=foreseen)
            return _Candidate(sample, certain, certain)
        match = track.index.find(sample.tokens) if self._looks_up else None
        cheap = None if match is None else _Source(match.size, track.rates.of(match.size), match)
        better = cheap
        if self._model is not None:
            guessed = _Source(_MODEL, track.rates.of(_MODEL))
            better = cheap if cheap is not None and cheap.rate >= guessed.rate else guessed
        return _Candidate(sample, cheap, better) if better is not None else None

    def _wanted(
        self, batch: int, candidates: Sequence[_Candidate]
    ) -> list[tuple[Sample, _Source, int]]:
        """Who drafts from where, and how much."""
        ways = [[c.cheap for c in candidates], [c.better for c in candidates]]
        verdict = self._policy.decide(batch, [_option(way) for way in ways])
        wanted = []
        for candidate, source in zip(candidates, ways[verdict.option], strict=True):
            chosen, depth = source, verdict.depth
            if candidate.insists:
                chosen, depth = candidate.better, self._max_tokens
            elif source is None or source.rate < verdict.least_rate:
                continue
            count = min(depth, most_drafts(candidate.sample))
            if chosen is not None and count:
                wanted.append((candidate.sample, chosen, count))
        return wanted

    def _draft(self, batch: int, wanted: Sequence[tuple[Sample, _Source, int]]) -> Drafts:
        drafts: dict[Sample, Sequence[int]] = {}
        guesses: list[Wanted] = []
        for sample, source, count in wanted:
            self._tracks[sample].kind = source.kind
            if source.kind == _MODEL:
                guesses.append(Wanted(sample, count))
            else:
                drafts[sample] = source.draft(sample, count)
        if guesses:
            drafts |= self._guess(batch, guesses)
        return drafts

    def _guess(self, batch: int, wanted: Sequence[Wanted]) -> Drafts:
        assert self._model is not None, "a draft model is wanted and none is there"
        began = time.perf_counter()
        guessed = self._model.propose(wanted)
        seconds, depth = time.perf_counter() - began, max(map(len, guessed.drafts))
        self._policy.note_draft(batch, depth, seconds, is_steady=guessed.is_steady)
        pairs = zip(wanted, guessed.drafts, strict=True)
        return {want.sample: drafts for want, drafts in pairs if drafts}

    def _drop_ended(self) -> None:
        for sample in [s for s in self._tracks if s.phase is Phase.FINISHED]:
            del self._tracks[sample]


def _option(sources: Sequence[_Source | None]) -> Option:
    found = [source for source in sources if source is not None]
    uses_model = any(source.kind == _MODEL for source in found)
    return Option([source.rate for source in found], uses_model)
