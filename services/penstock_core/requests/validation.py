"""What a request must satisfy before anybody spends work on it.

Router and worker check the same: a worker may be called without a router. Every refusal names the
field by its path in the message, so that a caller finds the culprit.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from penstock.common.v1 import chat_pb2, sampling_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2
from penstock_core.blocks import TOKEN_BYTES
from penstock_core.errors import InvalidRequest, NotSupported, PromptTooLong
from penstock_core.ids import MAX_ID_LENGTH, is_safe_id
from penstock_core.requests.bounds import check_bounds, check_name
from penstock_core.requests.tool_calls import FREE_CHOICES, REQUIRED

MAX_SAMPLES = 64
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIAS = 1024
MAX_MESSAGES = 4096
# As OpenAI's: inputs of a request, and tokens over all of them.
MAX_EMBED_INPUTS = 2048
MAX_EMBED_TOKENS = 300_000
# What an answer's vectors may take; gRPC messages end at 16 MiB.
MAX_VECTOR_BYTES = 15 * 1024 * 1024
_FLOAT_BYTES = 4


class _Limits(Protocol):
    """The two numbers of a model that bound a request."""

    @property
    def max_context_tokens(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


class _EmbedBounds(Protocol):
    """The numbers of a model that bound what it embeds."""

    @property
    def embedding_dimensions(self) -> int: ...
    @property
    def max_embed_tokens(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


def check_request(request: generate_pb2.GenerateRequest) -> None:
    """Check everything that needs no tokenizer. Raises InvalidRequest with the field's path."""
    _check_names(request.request_id, request.model)
    check_bounds(request)
    sampling = _sampling(request.sampling) if request.HasField("sampling") else iter(())
    chat = _tool_choice(request.chat) if request.HasField("chat") else iter(())
    for problems in (_prompt(request), chat, sampling, _ends(request)):
        for field, message in problems:
            raise InvalidRequest(message, field=field)


def check_fit(prompt_tokens: int, request: generate_pb2.GenerateRequest, limits: _Limits) -> int:
    """The most new tokens each sample may have.

    Raises:
        InvalidRequest: the prompt has no token.
        PromptTooLong: prompt plus requested output exceed the context; both numbers are told.
    """
    if prompt_tokens == 0:
        raise InvalidRequest("the prompt is empty", field=prompt_field(request))
    context = limits.max_context_tokens
    asked = request.stop.max_tokens if request.stop.HasField("max_tokens") else None
    room = context - prompt_tokens
    if room < (asked or 1):
        facts = {
            "prompt_tokens": str(prompt_tokens),
            "max_tokens": str(asked or 0),
            "max_context_tokens": str(context),
        }
        wish = f" plus {asked} new tokens" if asked else ""
        raise PromptTooLong(
            f"{prompt_tokens} prompt tokens{wish} exceed the model's context of {context} tokens",
            field="stop.max_tokens" if room > 0 else prompt_field(request),
            metadata=facts,
        )
    return asked if asked is not None else room


def check_token_ids(token_ids: list[int], limits: _Limits, field: str) -> None:
    """Raise InvalidRequest if an id lies outside the vocabulary."""
    largest = max(token_ids, default=0)
    if largest >= limits.vocab_size:
        raise InvalidRequest(
            f"token id {largest} is outside the vocabulary of {limits.vocab_size}", field=field
        )


def check_embed(request: inference_service_pb2.EmbedRequest) -> None:
    """Check everything that needs no tokenizer. Raises InvalidRequest with the field's path."""
    _check_names(request.request_id, request.model)
    if request.texts and request.token_inputs:
        raise InvalidRequest("texts and token_inputs exclude each other", field="token_inputs")
    count = len(request.texts) + len(request.token_inputs)
    if not 1 <= count <= MAX_EMBED_INPUTS:
        message = f"{count} inputs; a request has 1 to {MAX_EMBED_INPUTS}"
        raise InvalidRequest(message, field="texts")
    for index, text in enumerate(request.texts):
        if not text:
            raise InvalidRequest("the text is empty", field=f"texts[{index}]")
    for index, tokens in enumerate(request.token_inputs):
        size, field = len(tokens.ids), f"token_inputs[{index}]"
        if size == 0:
            raise InvalidRequest("the text is empty", field=field)
        if size % TOKEN_BYTES:
            message = f"{size} bytes are no whole number of uint32 token ids"
            raise InvalidRequest(message, field=field)


def check_embed_fit(
    inputs: Sequence[Sequence[int]],
    request: inference_service_pb2.EmbedRequest,
    limits: _EmbedBounds,
) -> None:
    """Check a request's token ids against a model.

    Raises:
        NotSupported: the model computes no embeddings.
        PromptTooLong: an input has more tokens than are embedded; both numbers are told.
        InvalidRequest: an unknown token, more dimensions than there are, too much at once.
    """
    size = limits.embedding_dimensions
    if not size:
        raise NotSupported(f"{request.model!r} computes no embeddings", field="model")
    if request.HasField("dimensions") and not 1 <= request.dimensions <= size:
        message = f"dimensions is {request.dimensions}; it lies in [1, {size}]"
        raise InvalidRequest(message, field="dimensions")
    path = "texts[{}]" if request.texts else "token_inputs[{}]"
    for index, tokens in enumerate(inputs):
        _check_embed_input(tokens, limits, path.format(index))
    total = sum(map(len, inputs))
    if total > MAX_EMBED_TOKENS:
        message = f"{total} tokens; a request has at most {MAX_EMBED_TOKENS}"
        raise InvalidRequest(message, field="texts")
    answer = len(inputs) * (request.dimensions or size) * _FLOAT_BYTES
    if answer > MAX_VECTOR_BYTES:
        raise InvalidRequest(
            f"{len(inputs)} vectors take {answer} bytes; an answer has at most {MAX_VECTOR_BYTES}",
            field="texts",
        )


def _check_embed_input(tokens: Sequence[int], limits: _EmbedBounds, field: str) -> None:
    if not tokens:
        raise InvalidRequest("the text is empty", field=field)
    limit = limits.max_embed_tokens
    if len(tokens) > limit:
        raise PromptTooLong(
            f"the input has {len(tokens)} tokens; at most {limit} are embedded",
            field=field,
            metadata={"tokens": str(len(tokens)), "limit": str(limit)},
        )
    largest = max(tokens)
    if largest >= limits.vocab_size:
        message = f"token id {largest} is outside the vocabulary of {limits.vocab_size}"
        raise InvalidRequest(message, field=field)


def _check_names(request_id: str, model: str) -> None:
    if request_id and not is_safe_id(request_id):
        raise InvalidRequest(
            f"request_id must be 1 to {MAX_ID_LENGTH} letters, digits, '-', '_', '.' or ':'",
            field="request_id",
        )
    if not model:
        raise InvalidRequest("model must be named", field="model")
    check_name(model)


def prompt_field(request: generate_pb2.GenerateRequest) -> str:
    """Path of the prompt that was given."""
    kind = request.WhichOneof("prompt")
    return {"text": "text", "tokens": "tokens.ids", "chat": "chat.messages"}.get(
        kind or "", "prompt"
    )


_Problems = Iterator[tuple[str, str]]


def _prompt(request: generate_pb2.GenerateRequest) -> _Problems:
    kind = request.WhichOneof("prompt")
    if kind is None or (kind == "text" and not request.text):
        yield prompt_field(request), "the prompt is empty"
    if kind == "tokens":
        size = len(request.tokens.ids)
        if size == 0:
            yield "tokens.ids", "the prompt is empty"
        if size % TOKEN_BYTES:
            yield "tokens.ids", f"{size} bytes are no whole number of uint32 token ids"
    if kind == "chat":
        if not request.chat.messages:
            yield "chat.messages", "the conversation is empty"
        if len(request.chat.messages) > MAX_MESSAGES:
            yield "chat.messages", f"more than {MAX_MESSAGES} messages"


def _tool_choice(chat: chat_pb2.ChatPrompt) -> _Problems:
    choice = chat.tool_choice
    if choice == REQUIRED and not chat.tools:
        yield "chat.tool_choice", "tool_choice needs tools"
    if choice not in FREE_CHOICES | {REQUIRED, *(tool.name for tool in chat.tools)}:
        yield "chat.tool_choice", f"tool_choice: no tool is called {choice[:64]!r}"


def _sampling(s: sampling_pb2.SamplingParams) -> _Problems:
    ranges: tuple[tuple[str, float, float], ...] = (
        ("temperature", 0.0, 10.0),
        ("top_p", 1e-9, 1.0),
        ("top_k", 0, 2**31 - 1),
        ("min_p", 0.0, 1.0),
        ("frequency_penalty", -2.0, 2.0),
        ("presence_penalty", -2.0, 2.0),
        ("repetition_penalty", 1e-3, 10.0),
        ("n", 1, MAX_SAMPLES),
        ("best_of", 1, MAX_SAMPLES),
    )
    for name, low, high in ranges:
        value = getattr(s, name)
        # Written so that NaN, which compares false with everything, is refused too.
        if s.HasField(name) and not low <= value <= high:  # type: ignore[arg-type]
            yield f"sampling.{name}", f"{name} is {value:g}; it must lie in [{low:g}, {high:g}]"
    if s.HasField("best_of") and s.best_of < (s.n or 1):
        yield "sampling.best_of", f"best_of is {s.best_of}, less than n, which is {s.n or 1}"
    if len(s.logit_bias) > MAX_LOGIT_BIAS:
        yield "sampling.logit_bias", f"more than {MAX_LOGIT_BIAS} entries"
    for token, bias in s.logit_bias.items():
        if not -100 <= bias <= 100:
            yield f"sampling.logit_bias[{token}]", f"{bias:g} does not lie in [-100, 100]"


def _ends(request: generate_pb2.GenerateRequest) -> _Problems:
    stop, output = request.stop, request.output
    if stop.HasField("max_tokens") and stop.max_tokens < 1:
        yield "stop.max_tokens", f"max_tokens is {stop.max_tokens}; it must be at least 1"
    if stop.HasField("min_tokens") and stop.min_tokens < 0:
        yield "stop.min_tokens", f"min_tokens is {stop.min_tokens}; it must not be negative"
    if len(stop.strings) > MAX_STOP_STRINGS:
        yield "stop.strings", f"{len(stop.strings)} stop strings; at most {MAX_STOP_STRINGS}"
    for index, text in enumerate(stop.strings):
        if not 0 < len(text) <= MAX_STOP_CHARS:
            yield f"stop.strings[{index}]", f"a stop string has 1 to {MAX_STOP_CHARS} characters"
    if len(stop.token_ids) > MAX_STOP_TOKENS:
        yield "stop.token_ids", f"{len(stop.token_ids)} stop tokens; at most {MAX_STOP_TOKENS}"
    if output.HasField("logprobs") and not 0 <= output.logprobs <= MAX_LOGPROBS:
        yield "output.logprobs", f"logprobs is {output.logprobs}; it lies in [0, {MAX_LOGPROBS}]"
