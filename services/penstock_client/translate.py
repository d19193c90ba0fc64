"""Between the client's own types and the wire's; nothing else in the client builds messages."""

from collections.abc import Sequence
from typing import cast

from penstock.common.v1 import chat_pb2, sampling_pb2, tokens_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2
from penstock_client import results
from penstock_client.options import (
    Constraint,
    GenerateOptions,
    Inputs,
    Message,
    Pooling,
    Prompt,
)
from penstock_core.blocks import pack_tokens, unpack_tokens
from penstock_core.errors import InvalidRequest

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "n",
    "best_of",
)
_RESPONSE_CACHE = {
    "off": generate_pb2.RESPONSE_CACHE_MODE_UNSPECIFIED,
    "use": generate_pb2.RESPONSE_CACHE_MODE_USE,
    "refresh": generate_pb2.RESPONSE_CACHE_MODE_REFRESH,
}


def to_request(
    model: str, prompt: Prompt, options: GenerateOptions
) -> generate_pb2.GenerateRequest:
    """The wire form of a request.

    Raises:
        InvalidRequest: a value does not fit its field, with the field's path.
    """
    request = generate_pb2.GenerateRequest(
        request_id=options.request_id,
        model=model,
        stop=_stop(options),
        output=sampling_pb2.OutputOptions(logprobs=options.logprobs, echo=options.echo),
        adapter=options.adapter,
        priority=sampling_pb2.PriorityClass.Value(f"PRIORITY_CLASS_{options.priority.upper()}"),
        speculation=_speculation(options.speculation),
        vote_field=options.vote_field,
        response_cache=_RESPONSE_CACHE[options.response_cache],
    )
    _set_sampling(request.sampling, options)
    _set_prompt(request, prompt)
    if options.majority_vote:
        request.aggregation = sampling_pb2.AGGREGATION_MAJORITY_VOTE
    if options.constraint is not None:
        request.constraint.CopyFrom(_constraint(options.constraint))
    return request


def to_embed_request(
    model: str, inputs: Inputs, pooling: Pooling | None, dimensions: int | None
) -> inference_service_pb2.EmbedRequest:
    """The wire form of texts to embed. Raises InvalidRequest as ``to_request`` does."""
    request = inference_service_pb2.EmbedRequest(model=model)
    if pooling is not None:
        request.pooling = inference_service_pb2.Pooling.Value(f"POOLING_{pooling.upper()}")
    if dimensions is not None:
        try:
            request.dimensions = dimensions
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"dimensions: {error}", field="dimensions") from error
    for index, given in enumerate([inputs] if isinstance(inputs, str) else inputs):
        if isinstance(given, str):
            request.texts.append(_utf8(given, f"texts[{index}]"))
        else:
            ids = cast("Sequence[int]", given)  # a list holds texts or tokens, never both
            request.token_inputs.append(to_tokens(ids, f"token_inputs[{index}]"))
    return request


def from_embed_response(wire: inference_service_pb2.EmbedResponse) -> results.Embeddings:
    """The vectors of an answer."""
    return results.Embeddings(
        tuple(tuple(embedding.values) for embedding in wire.embeddings),
        wire.prompt_tokens,
        tuple(wire.worker_ids),
        wire.request_id,
        _cost(wire.cost) if wire.HasField("cost") else None,
    )


def from_response(message: generate_pb2.GenerateResponse, mode: str) -> results.StreamEvent | None:
    """The event in a message; None for a kind this version does not know."""
    match message.WhichOneof("event"):
        case "started":
            return _started(message.started, mode)
        case "delta":
            return _delta(message.delta)
        case "finished":
            return _finished(message.finished)
        case "completed":
            return _completed(message.completed)
    return None


def to_tokens(token_ids: Sequence[int], field: str) -> tokens_pb2.TokenIds:
    """Packed token ids. Raises InvalidRequest naming ``field``."""
    try:
        return tokens_pb2.TokenIds(ids=pack_tokens(token_ids))
    except (OverflowError, TypeError) as error:
        raise InvalidRequest(f"token ids lie in [0, 2**32): {error}", field=field) from error


def _set_prompt(request: generate_pb2.GenerateRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        request.text = _utf8(prompt, "text")
        return
    if prompt and isinstance(prompt[0], Message):
        # The union is told apart by its first element: a prompt mixes no turns with token ids.
        turns = cast("Sequence[Message]", prompt)
        request.chat.SetInParent()
        request.chat.messages.extend(
            chat_pb2.ChatMessage(
                role=turn.role, content=_utf8(turn.content, "chat.messages"), name=turn.name
            )
            for turn in turns
        )
        return
    request.tokens.CopyFrom(to_tokens(cast("Sequence[int]", prompt), "tokens.ids"))


def _utf8(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the text is no valid Unicode: {error}", field=field) from error
    return text


def _set_sampling(target: sampling_pb2.SamplingParams, options: GenerateOptions) -> None:
    for name in _SAMPLING:
        value = getattr(options, name)
        if value is not None:
            try:
                setattr(target, name, value)
            except (TypeError, ValueError) as error:
                raise InvalidRequest(f"{name}: {error}", field=f"sampling.{name}") from error
    target.ignore_eos = options.ignore_eos
    target.logit_bias.update(options.logit_bias)


def _stop(options: GenerateOptions) -> sampling_pb2.StopConditions:
    return sampling_pb2.StopConditions(
        max_tokens=options.max_tokens,
        min_tokens=options.min_tokens,
        strings=options.stop,
        token_ids=options.stop_token_ids,
    )


def _speculation(wanted: bool | None) -> sampling_pb2.SpeculationMode.ValueType:
    if wanted is None:
        return sampling_pb2.SPECULATION_MODE_UNSPECIFIED
    return sampling_pb2.SPECULATION_MODE_ON if wanted else sampling_pb2.SPECULATION_MODE_OFF


def _constraint(constraint: Constraint) -> sampling_pb2.Constraint:
    match constraint.kind:
        case "json_object":
            return sampling_pb2.Constraint(json_object=True)
        case "json_schema":
            return sampling_pb2.Constraint(json_schema=constraint.text)
        case "regex":
            return sampling_pb2.Constraint(regex=constraint.text)
        case "grammar":
            return sampling_pb2.Constraint(grammar=constraint.text)
        case "choice":
            choice = sampling_pb2.ChoiceConstraint(options=constraint.options)
            return sampling_pb2.Constraint(choice=choice)


def _started(wire: generate_pb2.Started, mode: str) -> results.Started:
    return results.Started(
        request_id=wire.request_id,
        worker_id=wire.worker_id,
        decision_id=wire.decision_id,
        model=wire.model,
        prompt_tokens=wire.prompt_tokens,
        cached_tokens=wire.cached_tokens,
        seed=wire.seed,
        mode=mode,
    )


def _delta(wire: generate_pb2.Delta) -> results.Delta:
    return results.Delta(
        choice_index=wire.choice_index,
        first_position=wire.first_position,
        token_ids=tuple(unpack_tokens(wire.tokens.ids)),
        text=wire.text,
        logprobs=tuple(_logprob(entry) for entry in wire.logprobs),
        is_echo=wire.is_echo,
    )


def _logprob(wire: tokens_pb2.TokenLogprob) -> results.TokenLogprob:
    top = tuple((entry.token_id, entry.logprob) for entry in wire.top)
    return results.TokenLogprob(wire.token_id, wire.logprob, wire.token_bytes, top)


def _finished(wire: generate_pb2.Finished) -> results.Finished:
    matched: str | int | None = None
    if wire.HasField("matched_string"):
        matched = wire.matched_string
    elif wire.HasField("matched_token_id"):
        matched = wire.matched_token_id
    reason = generate_pb2.FinishReason.Name(wire.reason).removeprefix("FINISH_REASON_").lower()
    return results.Finished(wire.choice_index, reason, matched, wire.completion_tokens)


def _completed(wire: generate_pb2.Completed) -> results.Completed:
    u, t = wire.usage, wire.timing
    usage = results.Usage(
        u.prompt_tokens,
        u.completion_tokens,
        u.cached_tokens,
        u.drafted_tokens,
        u.accepted_draft_tokens,
    )
    timing = results.Timing(t.queue_s, t.prefill_s, t.ttft_s, t.tpot_s, t.total_s, t.worker_s)
    vote = None
    if wire.HasField("vote"):
        v = wire.vote
        vote = results.Vote(v.choice_index, v.answer, v.votes, v.total)
    cost = _cost(wire.cost) if wire.HasField("cost") else None
    kept = wire.from_response_cache
    return results.Completed(usage, timing, vote, kept, wire.response_age_s, cost)


def _cost(wire: usage_pb2.Cost) -> results.Cost:
    return results.Cost(wire.amount, wire.currency, wire.prefill_s, wire.decode_s)
