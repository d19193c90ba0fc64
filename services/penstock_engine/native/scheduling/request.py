"""One request's lifecycle and that of each of its samples.

Owns what is known of a sequence (its tokens, how far they are computed, which pages hold
them) and what happens when a token is drawn. Decides nothing about time or memory: that is
the scheduler's. Pure Python; no torch, no asyncio.
"""

from array import array
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from penstock_core.blocks import chain, pack_tokens, reusable_blocks
from penstock_engine.api import (
    EngineOutput,
    EngineRequest,
    FinishReason,
    Logprob,
    Priority,
    RequestDone,
    Share,
    TokenOut,
)

Rank = tuple[int, int, int]


class Phase(Enum):
    """Where a sample is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Drawn(NamedTuple):
    """What a step drew for one sample; several tokens if drafts were accepted.

    ``finish`` says why nothing could be drawn behind them, if so.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[Logprob, ...] = ()
    finish: FinishReason | None = None

    @property
    def num_accepted(self) -> int:
        """Drafts that stood: all tokens but the last, which was drawn."""
        return len(self.token_ids) - (self.finish is None)


class Matcher(Protocol):
    """A constraint as far as a sample has followed it."""

    @property
    def ended(self) -> FinishReason | None:
        """Why nothing more may follow, if nothing may."""
        ...

    def advance(self, token: int) -> None:
        """The sample has one token more."""
        ...

    def permitted(self, tokens: Sequence[int]) -> int:
        """How many of these tokens could follow, in order."""
        ...

    def foreseen(self, limit: int) -> Sequence[int]:
        """The next tokens where the constraint leaves one each, in order; none where it leaves more."""
        ...


class Sample:
    """One sequence: prompt and output tokens, of which the first ``computed`` have their KV."""

    __slots__ = (
        "chain_broken",
        "choice_index",
        "computed",
        "hashes",
        "matcher",
        "num_prompt",
        "pages",
        "phase",
        "rank",
        "request",
        "stored",
        "tokens",
        "waits_for",
    )

    def __init__(self, request: "Request", choice_index: int, rank: Rank) -> None:
        emitted = request.spec.emitted
        output = emitted[choice_index] if choice_index < len(emitted) else ()
        self.request = request
        self.choice_index = choice_index
        self.rank = rank
        self.tokens = array("I", request.spec.prompt)
        self.num_prompt = len(self.tokens)
        self.tokens.extend(output)
        self.phase = Phase.WAITING
        self.computed = 0
        self.pages: list[int] = []
        self.hashes: list[int] = []
        self.stored = 0
        self.chain_broken = False
        self.waits_for: int | None = None
        self.matcher: Matcher | None = None

    @property
    def is_batch(self) -> bool:
        """Whether it is of the class that has what the others leave; such are ranked last."""
        return self.rank[0] == Priority.BATCH.value

    @property
    def num_output(self) -> int:
        """Output tokens so far, those of before a resume included."""
        return len(self.tokens) - self.num_prompt

    @property
    def uncomputed(self) -> int:
        """Known tokens without KV; one while decoding, more while prefilling."""
        return len(self.tokens) - self.computed

    @property
    def is_decoding(self) -> bool:
        """Whether only its last drawn token is uncomputed."""
        known = len(self.tokens)
        return known - self.computed == 1 and known > self.num_prompt

    @property
    def is_complete(self) -> bool:
        """Whether it has all the tokens it may have (a resumed one may from the start)."""
        return self.ending is not None

    @property
    def ending(self) -> FinishReason | None:
        """Why it has all the tokens it may have, if it has."""
        if self.matcher is not None and (ended := self.matcher.ended) is not None:
            return ended
        is_full = len(self.tokens) - self.num_prompt >= self.request.spec.max_tokens
        return FinishReason.LENGTH if is_full else None

    def permitted(self, drafts: Sequence[int]) -> Sequence[int]:
        """The drafts up to the first that its constraint forbids."""
        return drafts if self.matcher is None else drafts[: self.matcher.permitted(drafts)]

    def extend_hashes(self, block_tokens: int) -> None:
        """Bring the hash chain up to the last full block of known tokens."""
        first, last = len(self.hashes), len(self.tokens) // block_tokens
        if first < last:
            parent = self.parent_hash(first)
            packed = pack_tokens(self.tokens[first * block_tokens : last * block_tokens])
            self.hashes += chain(packed, parent, block_tokens)

    def parent_hash(self, block: int) -> int:
        """The hash that a block hangs on."""
        return self.hashes[block - 1] if block else self.request.spec.chain_start

    def reusable_hashes(self, block_tokens: int) -> list[int]:
        """Hashes of the blocks a cache may serve: never the last token, which gives the logits."""
        return self.hashes[: reusable_blocks(len(self.tokens), block_tokens)]

    def forget_pages(self) -> None:
        """Back to nothing computed, after its pages were released."""
        self.pages = []
        self.computed = self.stored = 0
        self.chain_broken = False
        self.waits_for = None

    def take(self, drawn: Drawn) -> TokenOut:
        """Append drawn tokens up to a stop token or the limit; tells whether that ended it."""
        request, spec = self.request, self.request.spec
        first, finish, matched, kept = self.num_output, drawn.finish, None, 0
        for token in drawn.token_ids:
            if token in spec.stop_token_ids and first + kept >= spec.min_tokens:
                finish, matched = FinishReason.STOP, token
                break
            self._append(token)
            kept += 1
            if (ending := self.ending) is not None:
                finish = ending
                break
        ids, logprobs = drawn.token_ids[:kept], drawn.logprobs[:kept]
        share = Share(request.prefill_share_s, request.decode_share_s)
        return TokenOut(self.choice_index, first, ids, logprobs, finish, matched, share)

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        if self.matcher is not None:
            self.matcher.advance(token)


class Ahead:
    """A sample as it will be if ``drafts`` stand; what a draw behind them has to know of it."""

    __slots__ = ("choice_index", "drafts", "num_prompt", "request", "sample")

    def __init__(self, sample: Sample, drafts: tuple[int, ...]) -> None:
        self.sample = sample
        self.request = sample.request
        self.choice_index = sample.choice_index
        self.num_prompt = sample.num_prompt
        self.drafts = drafts

    @property
    def num_output(self) -> int:
        """Output tokens, drafts included."""
        return self.sample.num_output + len(self.drafts)

    @property
    def tokens(self) -> "array[int]":
        """Prompt, output and drafts."""
        return self.sample.tokens + array("I", self.drafts)


class Request:
    """One request: its samples, and the times and counts its last output tells."""

    __slots__ = (
        "accepted_draft_tokens",
        "admitted_at",
        "arrived_at",
        "cached_tokens",
        "decode_share_s",
        "drafted_tokens",
        "outputs",
        "plain_temperature",
        "preemptions",
        "prefill_share_s",
        "prefilled_at",
        "samples",
        "spec",
    )

    def __init__(
        self, spec: EngineRequest, arrival: int, now: float, matchers: Sequence[Matcher] = ()
    ) -> None:
        self.spec = spec
        self.arrived_at = now
        self.admitted_at: float | None = None
        self.prefilled_at: float | None = None
        self.cached_tokens = 0
        self.prefill_share_s = self.decode_share_s = 0.0
        self.plain_temperature = spec.sampling.temperature if _is_plain(spec) else None
        """At which its tokens are drawn if nothing else decides about them, as with most."""
        self.preemptions = 0
        self.drafted_tokens = 0
        self.accepted_draft_tokens = 0
        self.outputs: list[EngineOutput] = []
        priority = spec.priority.value
        self.samples = [Sample(self, i, (priority, arrival, i)) for i in range(spec.n)]
        for sample, matcher in zip(self.samples, matchers, strict=False):
            sample.matcher = matcher

    @property
    def is_finished(self) -> bool:
        """Whether no sample has a token to come."""
        return all(s.phase is Phase.FINISHED or s.is_complete for s in self.samples)

    def fresh_waiting(self) -> list[Sample]:
        """Samples without a token that could fork from one that computes the prompt."""
        return [s for s in self.samples if s.phase is Phase.WAITING and not s.num_output]

    def prompt_leader(self) -> Sample | None:
        """The running sample whose prompt, once computed, the fresh ones fork from."""
        for sample in self.samples:
            if sample.phase is Phase.RUNNING and not sample.num_output:
                return sample
        return None

    def done(self, now: float) -> RequestDone:
        """Its last output."""
        admitted = now if self.admitted_at is None else self.admitted_at
        prefilled = now if self.prefilled_at is None else self.prefilled_at
        computed = 0 if self.prefilled_at is None else len(self.spec.prompt) - self.cached_tokens
        return RequestDone(
            cached_tokens=self.cached_tokens,
            computed_prompt_tokens=max(computed, 0),
            queue_s=admitted - self.arrived_at,
            prefill_s=prefilled - admitted if self.admitted_at is not None else 0.0,
            share=Share(self.prefill_share_s, self.decode_share_s),
            drafted_tokens=self.drafted_tokens,
            accepted_draft_tokens=self.accepted_draft_tokens,
            preemptions=self.preemptions,
        )


def _is_plain(spec: EngineRequest) -> bool:
    sampling = spec.sampling
    changed = sampling.truncates or sampling.penalises or sampling.logit_bias or spec.min_tokens
    return not changed and spec.logprobs is None
