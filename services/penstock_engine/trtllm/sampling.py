"""From an engine request to TensorRT-LLM's sampling parameters, and what it cannot be asked. Pure.

Owns the choice of end token and stop tokens, seeds of samples and guides. String stops are never
passed on: with an explicit ``end_id`` the package refuses them, and the worker matches them anyway.
Parameters are built anew for each request, since the package changes them.
"""

import re
from dataclasses import dataclass

import xxhash

from penstock_core.errors import InvalidRequest, NotSupported, PromptTooLong
from penstock_engine.api import Constraint, EngineRequest
from penstock_engine.trtllm.llm_args import Build

_SEED_BITS = (1 << 63) - 1
_SPECIAL = re.compile(r"([\\.^$*+?{}\[\]|()/-])")
_GUIDES = {"json_schema": "json", "regex": "regex", "grammar": "grammar"}


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the engine was built for."""

    vocab_size: int
    max_context: int
    eos_token_ids: frozenset[int]
    adapters: frozenset[str] = frozenset()
    is_guided: bool = True
    ignores_sampling: bool = False


def check(request: EngineRequest, abilities: Abilities) -> None:
    """Refuse what the engine would fail at, or silently do otherwise, before it is asked.

    Raises:
        PromptTooLong: prompt and output exceed the context; the engine itself does not look.
        InvalidRequest: a token is outside the vocabulary, or the prompt is empty.
        NotSupported: the engine was not built for it.
    """
    size = len(request.prompt) + request.max_tokens
    if not request.prompt or request.max_tokens < 1:
        raise InvalidRequest("there is no prompt, or nothing to generate", field="prompt")
    if size > abilities.max_context:
        raise PromptTooLong(
            f"prompt and output of {size} tokens exceed the context of {abilities.max_context}"
        )
    _check_tokens(request, abilities.vocab_size)
    if request.adapter and request.adapter not in abilities.adapters:
        raise NotSupported(f"adapter {request.adapter!r}: this engine was not built with it")
    if abilities.ignores_sampling and request.sampling.temperature > 0:
        raise NotSupported(
            "this worker's kind of speculation draws greedily: ask for temperature 0",
            field="sampling.temperature",
        )
    if request.constraint is not None:
        _check_constraint(request, abilities)


def _check_tokens(request: EngineRequest, vocab_size: int) -> None:
    emitted = (token for sample in request.emitted for token in sample)
    named = (*request.sampling.logit_bias, *request.stop_token_ids, *emitted)
    for path, tokens in (("prompt", request.prompt), ("sampling", named)):
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:
            raise InvalidRequest(
                f"a token id is outside the vocabulary of {vocab_size}", field=path
            )


def _check_constraint(request: EngineRequest, abilities: Abilities) -> None:
    if not abilities.is_guided:
        raise NotSupported("constraint: this worker's configuration has guided_decoding off")
    if any(request.emitted):
        # The package's matcher starts behind the prompt, and emitted tokens are prompt to it.
        raise NotSupported("constraint: this engine cannot resume a constrained output")
    assert request.constraint is not None
    guide(request.constraint)


def sampling_params(request: EngineRequest, choice: int, abilities: Abilities) -> Build:
    """``SamplingParams`` of one sample; each sample is a request of its own to the engine.

    That is what lets one sample be aborted, resumed or drawn as if it were alone; they share the
    prompt's KV cache by its reuse.
    """
    emitted = len(request.emitted[choice]) if request.emitted else 0
    end = ends(request, abilities)
    arguments: dict[str, object] = {
        "max_tokens": request.max_tokens - emitted,
        "detokenize": False,
        "add_special_tokens": False,
        "return_perf_metrics": True,
        **end,
        **_draws(request, choice),
    }
    if request.min_tokens > emitted:
        arguments["min_tokens"] = request.min_tokens - emitted
    if request.logprobs is not None:
        arguments["logprobs"] = max(request.logprobs, 1)
    if request.sampling.logit_bias:
        bias = {"bias": dict(request.sampling.logit_bias), "vocab_size": abilities.vocab_size}
        arguments["embedding_bias"] = Build("LogitBias", bias)
    if request.constraint is not None:
        arguments["guided_decoding"] = guide(request.constraint)
    return Build("SamplingParams", arguments)


def ends(request: EngineRequest, abilities: Abilities) -> dict[str, object]:
    """With ``end_id`` given the package adds none of the model's other end tokens: we name all."""
    stops = request.stop_token_ids
    known = sorted(stops & abilities.eos_token_ids) or sorted(stops)
    if not known:
        # A request that no token ends; the package wants an end_id all the same.
        return {"end_id": min(abilities.eos_token_ids, default=0), "ignore_eos": True}
    others = sorted(stops - {known[0]})
    if request.min_tokens or not others:
        # Only end_id is masked out before min_tokens. The others end the sample on our side, which
        # looks at the position.
        return {"end_id": known[0]}
    return {"end_id": known[0], "stop_token_ids": others}


def _draws(request: EngineRequest, choice: int) -> dict[str, object]:
    s = request.sampling
    given: dict[str, object] = {}
    if s.temperature > 0:  # without any of these three the package is greedy
        given["temperature"] = s.temperature
        given["seed"] = sample_seed(s.seed, choice)
        if s.top_p < 1:
            given["top_p"] = s.top_p
        if s.top_k > 0:
            given["top_k"] = s.top_k
        if s.min_p > 0:
            given["min_p"] = s.min_p
    if s.frequency_penalty:
        given["frequency_penalty"] = s.frequency_penalty
    if s.presence_penalty:
        given["presence_penalty"] = s.presence_penalty
    if s.repetition_penalty != 1:
        given["repetition_penalty"] = s.repetition_penalty
    return given


def sample_seed(seed: int, choice: int) -> int:
    """The seed of a sample: the request's own for the first, so that it is as if alone."""
    if choice == 0:
        return seed & _SEED_BITS
    mixed = xxhash.xxh3_64_intdigest(choice.to_bytes(8, "little"), seed & _SEED_BITS)
    return mixed & _SEED_BITS


def guide(constraint: Constraint) -> Build:
    """``GuidedDecodingParams``. The package has no choice: it becomes a regular expression."""
    name = _GUIDES.get(constraint.kind)
    if name is not None:
        return Build("GuidedDecodingParams", {name: constraint.text})
    if constraint.kind == "json_object":
        return Build("GuidedDecodingParams", {"json_object": True})
    if constraint.kind == "choice" and constraint.options:
        options = "|".join(_SPECIAL.sub(r"\\\1", option) for option in constraint.options)
        return Build("GuidedDecodingParams", {"regex": f"({options})"})
    if constraint.kind == "choice":
        raise InvalidRequest("there is nothing to choose from", field="constraint.choice")
    raise NotSupported(f"constraint {constraint.kind!r} is not supported")
