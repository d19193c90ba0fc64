"""The contract between a worker and an engine: token ids in, token ids out.

Owns the request as an engine sees it and everything an engine tells about itself.
Knows neither text (stop *strings* are matched by the worker, which then aborts the
sample) nor RPC. One conformance suite in ``tests/contract`` runs over every engine.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class FinishReason(Enum):
    """Why a sample ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORTED = "aborted"
    CONSTRAINT = "constraint"


class Priority(Enum):
    """Priority class; a smaller value goes first."""

    SYSTEM = 0
    INTERACTIVE = 1
    STANDARD = 2
    BATCH = 3


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Fields as in ``penstock.common.v1.SamplingParams``.

    Draws are keyed by ``(seed, choice_index, position)``: a resumed or batched request draws the
    numbers it would have drawn alone.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def truncates(self) -> bool:
        """Whether any token may be cut off by its rank or probability."""
        return bool(self.top_k or self.top_p < 1.0 or self.min_p)

    @property
    def penalises(self) -> bool:
        """Whether tokens that were there before count less, or more."""
        return bool(
            self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True, slots=True)
class Constraint:
    """A shape the output must have: ``kind`` is json_schema, json_object, regex, grammar or choice."""

    kind: str
    text: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt to continue, validated: every number is in range and the whole fits the context.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: new tokens a sample may have, counted from its first (resumed ones included).
        stop_token_ids: end a sample and are not emitted (end of sequence included, unless ignored).
        min_tokens: stop tokens are masked out before this many new tokens.
        n: samples; they share the prompt's KV pages.
        logprobs: None for none, else how many alternatives to report beside each token's own.
        chain_start: ``h0`` of the block hash chain (carries model, tokenizer, adapter and tenant salt).
        emitted: for a resumed request the tokens each sample has emitted already.
    """

    request_id: str
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    n: int = 1
    logprobs: int | None = None
    priority: Priority = Priority.STANDARD
    chain_start: int = 0
    adapter: str = ""
    constraint: Constraint | None = None
    speculation: bool | None = None
    emitted: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability (natural) of a token before temperature and truncation, with alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Admitted:
    """First output of a request: it has KV pages and its prefix was looked up.

    ``cached_tokens`` are prompt tokens whose KV is reused; ``queue_s`` is the wait until then. An
    engine that learns of it only with the first token says so ``late_s`` seconds late.
    """

    cached_tokens: int
    queue_s: float
    late_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """Seconds of an engine that were a request's own: its part of each step it was in, by tokens.

    Over all requests they add up to the time in which the engine was busy.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Both."""
        return self.prefill_s + self.decode_s

    def __add__(self, other: "Share") -> "Share":
        """The sum."""
        return Share(self.prefill_s + other.prefill_s, self.decode_s + other.decode_s)


NO_SHARE = Share()


@dataclass(frozen=True, slots=True)
class TokenOut:
    """New tokens of one sample, in order and without gaps: ``first_position`` counts its output from 0.

    The output that carries ``finish`` is the sample's last and may have no tokens.
    ``matched_token`` is the stop token that ended it, if one of ``stop_token_ids`` did. ``share`` is
    what the request, all its samples together, has taken of the engine so far.
    """

    choice_index: int
    first_position: int
    token_ids: Sequence[int]
    logprobs: Sequence[Logprob] = ()
    finish: FinishReason | None = None
    matched_token: int | None = None
    share: Share = NO_SHARE


@dataclass(frozen=True, slots=True)
class RequestDone:
    """Last output of a request. Times are seconds; ``share`` is its part of the steps it was in."""

    cached_tokens: int
    computed_prompt_tokens: int
    queue_s: float
    prefill_s: float
    share: Share
    drafted_tokens: int = 0
    accepted_draft_tokens: int = 0
    preemptions: int = 0

    @property
    def worker_s(self) -> float:
        """Seconds of the engine that were its own."""
        return self.share.seconds


EngineOutput = Admitted | TokenOut | RequestDone


class Pooling(Enum):
    """How the vectors of a text's tokens become the text's."""

    LAST = "last"
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts to embed, each alone.

    Attributes:
        texts: token ids of each, at least one and at most ``EngineInfo.max_embed_tokens``.
        pooling: None for the model's own.
        dimensions: leading components to keep; None for all.
    """

    request_id: str
    texts: Sequence[Sequence[int]]
    pooling: Pooling | None = None
    dimensions: int | None = None
    priority: Priority = Priority.STANDARD


Vector = Sequence[float]
"""Float32 components of Euclidean length 1."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector for each text, in order, and what reading them took of the engine (all of it prefill)."""

    vectors: Sequence[Vector]
    share: Share = NO_SHARE


@dataclass(frozen=True, slots=True)
class KvStored:
    """A run of new full blocks, each the child of the one before; the first hangs on ``parent``."""

    parent: int
    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KvRemoved:
    """Blocks that are gone, children before parents."""

    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KvMoved:
    """Blocks that changed their memory tier (``device``, ``host``, ``storage``)."""

    hashes: tuple[int, ...]
    from_tier: str
    to_tier: str


KvEvent = KvStored | KvRemoved | KvMoved


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What does not change while an engine runs. Without dimensions it computes no embeddings."""

    engine: str
    model_revision: str
    device: str
    block_tokens: int
    capacity_blocks: int
    max_context_tokens: int
    max_batch: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    speculation: str = "none"
    adapters: tuple[str, ...] = ()
    stores_per_chunk: bool = True
    embedding_dimensions: int = 0
    max_embed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine does now. Rates are smoothed (EWMA); see ``penstock.worker.v1.WorkerLoad``.

    ``busy_s`` are the seconds since the start in which it computed; requests' shares add up to them.
    ``figures_age_s`` is how old they are where they come from elsewhere; None if they are its own.
    ``cache_losses`` counts how often its picture of its cache was lost and began anew.
    ``adapters`` are those in memory, of which loading one took ``adapter_load_s``; 0 if unknown.
    """

    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    queued_batch_tokens: int = 0
    context_tokens: int = 0
    used_blocks: int = 0
    cached_blocks: int = 0
    step_s: float = 0.0
    tokens_per_step: float = 1.0
    prefill_tokens_per_s: float = 0.0
    preemptions: int = 0
    failed: bool = False
    busy_s: float = 0.0
    figures_age_s: float | None = None
    cache_losses: int = 0
    adapters: tuple[str, ...] = ()
    adapter_load_s: float = 0.0


class Engine(Protocol):
    """Continues prompts. All methods are called from one event loop."""

    def info(self) -> EngineInfo:
        """What does not change while it runs."""
        ...

    async def start(self) -> None:
        """Begin to serve. Raises EngineFailed if it cannot."""
        ...

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Continue a prompt: Admitted, then TokenOut..., then RequestDone.

        Closing the iterator early ends the request and frees what it held.

        Raises:
            InvalidRequest: it can never fit (both numbers in the message).
            Overloaded: the bounded queue is full.
            EngineFailed: the engine stopped.
        """
        ...

    async def embed(self, request: EmbedRequest) -> Embedded:
        """A vector for each text, in order; cancelling frees what the request held.

        Raises:
            InvalidRequest: a text is empty or too long, or there are fewer dimensions than asked for.
            NotSupported: this engine computes no embeddings.
            Overloaded: too many tokens wait to be embedded.
            EngineFailed: the engine stopped.
        """
        ...

    def abort(self, request_id: str, choice_index: int | None = None) -> bool:
        """End a request, or one sample of it; its last TokenOut carries ABORTED. False if unknown."""
        ...

    def state(self) -> EngineState:
        """What it does now; cheap, never waits for a step."""
        ...

    def kv_events(self) -> AsyncIterator[Sequence[KvEvent]]:
        """Batches of cache changes in order, for a single consumer; complete from the start."""
        ...

    async def close(self) -> None:
        """End what runs (outputs end with EngineFailed or ABORTED) and free everything."""
        ...
