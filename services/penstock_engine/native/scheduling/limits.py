"""What bounds a scheduler, what it counts, and which requests can never fit.

Owns the refusals that need no queue. Pure Python; no torch, no asyncio.
"""

from dataclasses import dataclass

from penstock_core.errors import InvalidRequest, NotSupported, PromptTooLong
from penstock_engine.api import EmbedRequest, EngineInfo, EngineRequest
from penstock_engine.native.kv.memory import KvMemory


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a scheduler.

    Attributes:
        max_batch: sequences that run at once.
        max_batched_tokens: tokens of one step; more than ``max_batch``, so that prefill goes on.
        max_waiting: requests that wait for their first admission.
        max_context: prompt and output tokens of one sequence.
    """

    max_batch: int
    max_batched_tokens: int
    max_waiting: int
    max_context: int

    def __post_init__(self) -> None:
        if self.max_batched_tokens <= self.max_batch:
            raise ValueError(
                f"max_batched_tokens {self.max_batched_tokens} must exceed max_batch "
                f"{self.max_batch}: a full batch of decodes would leave nothing for prefill"
            )


@dataclass(frozen=True, slots=True)
class Counts:
    """What a scheduler holds now; see ``EngineState``."""

    running: int
    waiting: int
    queued_prefill_tokens: int
    queued_batch_tokens: int
    context_tokens: int


def check_fits(spec: EngineRequest, limits: Limits, memory: KvMemory) -> None:
    """Refuse what cannot be served even by an empty engine.

    Raises:
        PromptTooLong: it exceeds the context or the KV memory; both numbers are in the message.
    """
    total = len(spec.prompt) + spec.max_tokens
    if total > limits.max_context:
        raise PromptTooLong(
            f"prompt of {len(spec.prompt)} and max_tokens {spec.max_tokens} make {total} tokens, "
            f"and the context holds {limits.max_context}",
            field="max_tokens",
            metadata={"tokens": str(total), "limit": str(limits.max_context)},
        )
    blocks = memory.pages_for(max(total - 1, len(spec.prompt)))  # the last token needs no KV
    if blocks > memory.capacity:
        raise PromptTooLong(
            f"{total} tokens need {blocks} KV blocks, and there are {memory.capacity}",
            field="max_tokens",
            metadata={"blocks": str(blocks), "limit": str(memory.capacity)},
        )


def check_embed(request: EmbedRequest, info: EngineInfo) -> None:
    """Refuse what cannot be embedded.

    Raises:
        NotSupported: nothing can be.
        PromptTooLong: a text is longer than may be embedded; both numbers are in the message.
        InvalidRequest: a text is empty, a token unknown, or ``dimensions`` out of range.
    """
    if not info.embedding_dimensions:
        raise NotSupported("this engine computes no embeddings")
    size = info.embedding_dimensions
    if request.dimensions is not None and not 1 <= request.dimensions <= size:
        message = f"dimensions is {request.dimensions}; this model has {size}"
        raise InvalidRequest(message, field="dimensions")
    if not request.texts:
        raise InvalidRequest("there is nothing to embed", field="texts")
    for index, text in enumerate(request.texts):
        field = f"texts[{index}]"
        if not text:
            raise InvalidRequest("the text is empty", field=field)
        if len(text) > info.max_embed_tokens:
            raise PromptTooLong(
                f"{len(text)} tokens, and at most {info.max_embed_tokens} are embedded",
                field=field,
                metadata={"tokens": str(len(text)), "limit": str(info.max_embed_tokens)},
            )
        if not 0 <= min(text) <= max(text) < info.vocab_size:
            message = f"a token id is outside the vocabulary of {info.vocab_size}"
            raise InvalidRequest(message, field=field)
