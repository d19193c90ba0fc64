"""OpenAI's request bodies as wire requests. Pure.

A body with several prompts becomes several requests; sample j of prompt i is choice i * n + j.
"""

from collections.abc import Sequence

from penstock.common.v1 import sampling_pb2, tokens_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.blocks import pack_tokens
from penstock_core.errors import InvalidRequest, NotSupported
from penstock_openai.chat_prompt import chat_prompt, json_text
from penstock_openai.schemas import ChatBody, CompletionBody, GenerationBody, ResponseFormat

MAX_PROMPTS = 2048
# OpenAI's default for completions. Chat completions use what the context has room for.
DEFAULT_COMPLETION_TOKENS = 16
RESPONSE_CACHE_MODES = {
    "off": generate_pb2.RESPONSE_CACHE_MODE_UNSPECIFIED,
    "use": generate_pb2.RESPONSE_CACHE_MODE_USE,
    "refresh": generate_pb2.RESPONSE_CACHE_MODE_REFRESH,
}
_UINT64 = 2**64 - 1
_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "n",
)


def completion_requests(body: CompletionBody) -> list[generate_pb2.GenerateRequest]:
    """One wire request for each prompt.

    Raises:
        InvalidRequest: a parameter contradicts another or cannot be expressed.
        NotSupported: a parameter asks for what Penstock does not do.
    """
    if body.suffix:
        raise NotSupported(
            "suffix is not supported: models are not asked to fill in the middle", field="suffix"
        )
    samples = body.n or 1
    if body.stream and body.best_of is not None and body.best_of > samples:
        raise InvalidRequest("best_of greater than n cannot be streamed", field="best_of")
    request = _request(body)
    if body.max_tokens is None:
        request.stop.max_tokens = DEFAULT_COMPLETION_TOKENS
    if body.best_of is not None:
        request.sampling.best_of = body.best_of
    if body.logprobs is not None:
        request.output.logprobs = body.logprobs
    request.output.echo = bool(body.echo)
    return [_with_prompt(request, prompt) for prompt in _prompts(body)]


def chat_request(body: ChatBody) -> generate_pb2.GenerateRequest:
    """The wire request of a conversation. Raises like ``completion_requests``."""
    _refuse_unsupported(body)
    request = _request(body)
    request.chat.CopyFrom(chat_prompt(body))
    if body.max_completion_tokens is not None:
        request.stop.max_tokens = body.max_completion_tokens
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", field="top_logprobs")
    if body.logprobs:
        request.output.logprobs = body.top_logprobs or 0
    constraint = _constraint(body.response_format)
    if constraint is not None:
        request.constraint.CopyFrom(constraint)
    return request


def _refuse_unsupported(body: ChatBody) -> None:
    for name in ("audio", "functions", "function_call", "web_search_options", "moderation"):
        if getattr(body, name) is not None:
            raise NotSupported(f"{name} is not supported", field=name)
    if body.modalities not in (None, ["text"]):
        raise NotSupported("modalities: only ['text'] is supported", field="modalities")


def _request(body: GenerationBody) -> generate_pb2.GenerateRequest:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true", field="stream_options")
    if body.vote_field is not None and not body.majority_vote:
        raise InvalidRequest("vote_field needs majority_vote to be true", field="vote_field")
    votes = sampling_pb2.AGGREGATION_MAJORITY_VOTE
    none = sampling_pb2.AGGREGATION_UNSPECIFIED
    return generate_pb2.GenerateRequest(
        model=body.model,
        aggregation=votes if body.majority_vote else none,
        vote_field=body.vote_field or "",
        sampling=_sampling(body),
        stop=_stop(body),
        response_cache=RESPONSE_CACHE_MODES[body.response_cache or "off"],
    )


def _sampling(body: GenerationBody) -> sampling_pb2.SamplingParams:
    given = {name: getattr(body, name) for name in _SAME_NAME}
    params = sampling_pb2.SamplingParams(
        ignore_eos=bool(body.ignore_eos), **{k: v for k, v in given.items() if v is not None}
    )
    if body.seed is not None:
        # OpenAI's seeds are signed; two's complement keeps different seeds different.
        params.seed = body.seed & _UINT64
    for token, bias in (body.logit_bias or {}).items():
        if not token.isascii() or not token.isdecimal() or int(token) >= 2**32:
            raise InvalidRequest(f"logit_bias: {token[:32]!r} is no token id", field="logit_bias")
        params.logit_bias[int(token)] = bias
    return params


def _stop(body: GenerationBody) -> sampling_pb2.StopConditions:
    strings = [body.stop] if isinstance(body.stop, str) else body.stop
    stop = sampling_pb2.StopConditions(strings=strings, token_ids=body.stop_token_ids)
    if body.max_tokens is not None:
        stop.max_tokens = body.max_tokens
    if body.min_tokens is not None:
        stop.min_tokens = body.min_tokens
    return stop


def _prompts(body: CompletionBody) -> Sequence[str | Sequence[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("the prompt is empty", field="prompt")
    if isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(
            f"{len(prompt)} prompts; a request has at most {MAX_PROMPTS}", field="prompt"
        )
    return [part for part in prompt if not isinstance(part, int)]


def _with_prompt(
    template: generate_pb2.GenerateRequest, prompt: str | Sequence[int]
) -> generate_pb2.GenerateRequest:
    request = generate_pb2.GenerateRequest()
    request.CopyFrom(template)
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.tokens.CopyFrom(tokens_pb2.TokenIds(ids=pack_tokens(prompt)))
    return request


def _constraint(form: ResponseFormat | None) -> sampling_pb2.Constraint | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return sampling_pb2.Constraint(json_object=True)
    if form.json_schema is None:
        raise InvalidRequest(
            "response_format of type json_schema needs json_schema",
            field="response_format.json_schema",
        )
    schema = form.json_schema.schema_
    text = json_text({} if schema is None else schema, "response_format.json_schema.schema")
    return sampling_pb2.Constraint(json_schema=text)
