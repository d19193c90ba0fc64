"""Who guesses, for whom and how much: brings drafters, acceptance rates and the policy together.

Owns what is remembered of each sequence between steps. Runs in the step thread, before a step
(``propose``) and after it (``note``). A sequence's drafts come from its own text where it repeats
itself and, if there is one, from the draft model where that does better.
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

_MODEL = 0
"""Kind of the draft model's drafts; those of a match are called by its size."""


@dataclass(slots=True)
class _Track:
    """What is remembered of a sequence; ``kind`` is that of its latest drafts."""

    rates: Rates
    index: NgramIndex = field(default_factory=NgramIndex)
    kind: int = _MODEL


@dataclass(frozen=True, slots=True)
class _Source:
    """Where drafts of a sequence come from: a match in its own text, or None for the model."""

    match: Match | None
    rate: float


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sequence and its possible sources, without and with the draft model; None if it has none."""

    sample: Sample
    cheap: _Source | None
    better: _Source | None

    @property
    def is_forced(self) -> bool:
        """Whether its request asked for drafts whatever they cost."""
        return self.sample.request.spec.speculation is True


class Speculator:
    """Drafts for the sequences of an engine; see ``plan.Drafting``."""

    def __init__(self, max_tokens: int, model: DraftModel | None, *, looks_up: bool) -> None:
        """Draft up to ``max_tokens`` at once, by prompt lookup, by a model, or by the better of both."""
        self._policy = DraftPolicy(max_tokens)
        self._max_tokens = max_tokens
        self._model = model
        self._looks_up = looks_up
        self._rates = Rates()
        self._tracks: dict[Sample, _Track] = {}

    def propose(self, samples: Sequence[Sample]) -> Drafts:
        """Guesses for those of the decoding sequences where they pay."""
        batch = len(samples)
        forced = any(sample.request.spec.speculation for sample in samples)
        needs_model = not self._looks_up
        if not batch or not (forced or self._policy.may_pay(batch, needs_model=needs_model)):
            return NO_DRAFTS  # most steps of a batch end here, so nothing was done for each sample
        allowed = [s for s in samples if s.request.spec.speculation is not False and most_drafts(s)]
        self._drop_ended()
        candidates = [c for sample in allowed if (c := self._candidate(sample)) is not None]
        if not candidates:
            return NO_DRAFTS
        return self._draft(batch, self._wanted(batch, candidates))

    def note(self, plan: StepPlan, result: StepResult, seconds: float) -> None:
        """Learn from a step: what stood, and what it cost if it did nothing but decode."""
        num_drafted = num_tokens = 0
        if any(chunk.drafts for chunk in plan.chunks):
            num_drafted, num_tokens = self._note_drafts(plan, result)
        if plan.num_prefill_tokens == 0:
            self._policy.note_step(len(plan.chunks), num_drafted, num_tokens, seconds)

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

    def _candidate(self, sample: Sample) -> _Candidate | None:
        track = self._tracks.get(sample)
        if track is None:
            track = self._tracks[sample] = _Track(Rates(self._rates))
        match = track.index.find(sample.tokens) if self._looks_up else None
        cheap = None if match is None else _Source(match, track.rates.of(match.size))
        better = cheap
        if self._model is not None:
            guessed = _Source(None, track.rates.of(_MODEL))
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
            if candidate.is_forced:
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
            match = source.match
            self._tracks[sample].kind = _MODEL if match is None else match.size
            if match is None:
                guesses.append(Wanted(sample, count))
            else:
                drafts[sample] = continuation(sample.tokens, match, count)
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
    uses_model = any(source.match is None for source in found)
    return Option([source.rate for source in found], uses_model)
