"""From engine requests to sampling parameters, and from cumulative outputs to new tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from penstock_core.errors import InternalError, InvalidRequest, NotSupported, PromptTooLong
from penstock_engine.api import Constraint, EngineRequest, FinishReason, Sampling, TokenOut
from penstock_engine.trtllm.llm_args import Build
from penstock_engine.trtllm.sampling import Abilities, check, guide, sample_seed, sampling_params
from penstock_engine.trtllm.stream import SampleStream

ABLE = Abilities(vocab_size=100, max_context=64, eos_token_ids=frozenset({2, 3}))
EOS = frozenset({2, 3})


def ask(**changes: Any) -> EngineRequest:
    return replace(EngineRequest("r", [5, 6, 7], 10, stop_token_ids=EOS), **changes)


def arguments(request: EngineRequest, choice: int = 0) -> dict[str, object]:
    return dict(sampling_params(request, choice, ABLE).arguments)


@dataclass
class Completion:
    """As the package's: cumulative, changed in place."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: Sequence[object] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    request_perf_metrics: object = None


@dataclass
class Logprob:
    logprob: float


def test_every_end_token_is_named_and_max_tokens_never_left_to_the_default() -> None:
    given = arguments(ask(stop_token_ids=EOS | {9}))

    assert given["end_id"] == 2
    assert given["stop_token_ids"] == [3, 9]
    assert given["max_tokens"] == 10
    assert given["detokenize"] is False
    assert "stop" not in given


def test_greedy_sets_none_of_the_three_that_would_sample() -> None:
    given = arguments(ask(sampling=Sampling(temperature=0, top_p=0.5, top_k=4, seed=9)))

    assert not {"temperature", "top_p", "top_k", "seed"} & set(given)


def test_sampling_is_passed_on_where_it_differs_from_doing_nothing() -> None:
    drawn = Sampling(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, frequency_penalty=1,
        presence_penalty=2, repetition_penalty=1.5, seed=7,
    )  # fmt: skip
    given = arguments(ask(sampling=drawn))
    plain = arguments(ask(sampling=Sampling(seed=7)))

    names = ("temperature", "top_p", "top_k", "min_p", "seed")
    assert [given[name] for name in names] == [0.5, 0.9, 40, 0.1, 7]
    assert (given["frequency_penalty"], given["presence_penalty"]) == (1, 2)
    assert given["repetition_penalty"] == 1.5
    assert plain["temperature"] == 1.0
    assert not {"top_p", "top_k", "min_p", "repetition_penalty"} & set(plain)


def test_a_request_that_no_token_ends_ignores_the_end_token() -> None:
    given = arguments(ask(stop_token_ids=frozenset()))

    assert given["ignore_eos"] is True
    assert given["end_id"] == 2


def test_own_stop_tokens_end_a_request_that_ignores_the_models() -> None:
    given = arguments(ask(stop_token_ids=frozenset({9})))

    assert given["end_id"] == 9
    assert "ignore_eos" not in given


def test_before_min_tokens_only_the_masked_end_token_is_the_engines() -> None:
    given = arguments(ask(min_tokens=4))

    assert given["min_tokens"] == 4
    assert given["end_id"] == 2
    assert "stop_token_ids" not in given


def test_a_resumed_sample_asks_for_the_rest() -> None:
    resumed = ask(n=2, emitted=[[8, 8], []], min_tokens=5)

    assert (arguments(resumed, 0)["max_tokens"], arguments(resumed, 1)["max_tokens"]) == (8, 10)
    assert (arguments(resumed, 0)["min_tokens"], arguments(resumed, 1)["min_tokens"]) == (3, 5)


def test_logprobs_of_the_drawn_token_alone_still_ask_for_one() -> None:
    assert arguments(ask(logprobs=0))["logprobs"] == 1
    assert arguments(ask(logprobs=5))["logprobs"] == 5
    assert "logprobs" not in arguments(ask())


def test_a_bias_becomes_a_tensor_late() -> None:
    bias = arguments(ask(sampling=Sampling(logit_bias={4: -1.0})))["embedding_bias"]

    assert bias == Build("LogitBias", {"bias": {4: -1.0}, "vocab_size": 100})


def test_seeds_of_samples_differ_and_the_first_is_the_requests_own() -> None:
    assert sample_seed(11, 0) == 11
    assert len({sample_seed(11, choice) for choice in range(50)}) == 50
    assert all(0 <= sample_seed((1 << 64) - 1, choice) < 1 << 63 for choice in range(9))


@pytest.mark.parametrize(
    ("constraint", "given"),
    [
        (Constraint("json_schema", "{}"), {"json": "{}"}),
        (Constraint("json_object"), {"json_object": True}),
        (Constraint("regex", "a+"), {"regex": "a+"}),
        (Constraint("grammar", "root ::= x"), {"grammar": "root ::= x"}),
        (Constraint("choice", options=("a.b", "c|d")), {"regex": r"(a\.b|c\|d)"}),
    ],
)
def test_each_constraint_has_its_guide(constraint: Constraint, given: dict[str, object]) -> None:
    assert guide(constraint) == Build("GuidedDecodingParams", given)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"max_tokens": 62}, PromptTooLong, "65.*64"),
        ({"prompt": []}, InvalidRequest, "prompt"),
        ({"prompt": [100]}, InvalidRequest, "vocabulary of 100"),
        ({"sampling": Sampling(logit_bias={-1: 1.0})}, InvalidRequest, "vocabulary"),
        ({"adapter": "x"}, NotSupported, "adapter"),
        ({"constraint": Constraint("choice")}, InvalidRequest, "nothing to choose"),
        ({"constraint": Constraint("mood", "x")}, NotSupported, "mood"),
        ({"constraint": Constraint("regex", "a"), "emitted": [[5]]}, NotSupported, "resume"),
    ],
)
def test_what_the_engine_would_fail_at_is_refused_before(
    changes: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        check(ask(**changes), ABLE)


def test_an_engine_without_guides_or_sampling_says_so() -> None:
    unguided = replace(ABLE, is_guided=False)
    with pytest.raises(NotSupported, match="guided_decoding"):
        check(ask(constraint=Constraint("json_object")), unguided)
    greedy = replace(ABLE, ignores_sampling=True)
    with pytest.raises(NotSupported, match="temperature 0"):
        check(ask(), greedy)
    check(ask(sampling=Sampling(temperature=0)), greedy)


def test_each_token_is_sent_once_however_many_come() -> None:
    stream, completion = SampleStream(ask(), 0, 2), Completion()
    outs: list[TokenOut | None] = []
    for new in ([5], [], [6, 7, 8], [9]):
        completion.token_ids += new
        outs.append(stream.take(completion))

    assert [out and list(out.token_ids) for out in outs] == [[5], None, [6, 7, 8], [9]]
    assert [out.first_position for out in outs if out] == [0, 1, 4]


def test_a_resumed_sample_goes_on_counting() -> None:
    stream = SampleStream(ask(emitted=[[8, 8]]), 0, 2)

    out = stream.take(Completion([5]))

    assert out is not None
    assert out.first_position == 2


def test_the_end_token_that_the_engine_leaves_in_is_not_sent() -> None:
    stream = SampleStream(ask(), 0, 2)

    out = stream.take(Completion([5, 2], finish_reason="stop"))

    assert out == TokenOut(0, 0, [5], (), FinishReason.STOP, 2)


def test_a_stop_token_that_the_engine_takes_back_was_never_sent() -> None:
    stream, completion = SampleStream(ask(), 0, 2), Completion([5, 3])
    first = stream.take(completion)
    completion.token_ids = completion.token_ids[:-1]
    completion.finish_reason, completion.stop_reason = "stop", 3

    assert first == TokenOut(0, 0, [5], (), FinishReason.STOP, 3)
    assert stream.take(completion) is None


def test_a_stop_token_is_a_token_like_any_other_before_min_tokens() -> None:
    stream = SampleStream(ask(min_tokens=2), 0, 2)

    out = stream.take(Completion([3, 5, 3, 6]))

    assert out == TokenOut(0, 0, [3, 5], (), FinishReason.STOP, 3)


@pytest.mark.parametrize(
    ("told", "finish"),
    [
        ("length", FinishReason.LENGTH),
        ("cancelled", FinishReason.ABORTED),
        ("timeout", FinishReason.ABORTED),
        ("not_finished", None),
    ],
)
def test_reasons_are_ours(told: str, finish: FinishReason | None) -> None:
    out = SampleStream(ask(), 0, 2).take(Completion([5], finish_reason=told))

    assert out is not None
    assert out.finish is finish


def test_more_tokens_than_were_asked_for_are_not_sent() -> None:
    out = SampleStream(ask(max_tokens=2), 0, 2).take(Completion([5, 6, 7]))

    assert out is not None
    assert (list(out.token_ids), out.finish) == ([5, 6], FinishReason.LENGTH)


def test_logprobs_follow_their_tokens_best_first() -> None:
    stream = SampleStream(ask(logprobs=2), 0, 2)
    entry = {9: Logprob(-3.0), 5: Logprob(-1.0), 8: Logprob(-2.0)}

    out = stream.take(Completion([5], [entry]))

    assert out is not None
    assert out.logprobs[0].logprob == -1.0
    assert out.logprobs[0].top == ((5, -1.0), (8, -2.0))


def test_logprobs_may_be_bare_numbers_but_not_missing() -> None:
    out = SampleStream(ask(logprobs=0), 0, 2).take(Completion([5], [-0.5]))
    assert out is not None
    assert out.logprobs[0].logprob == -0.5

    with pytest.raises(InternalError, match="token 5"):
        SampleStream(ask(logprobs=0), 0, 2).take(Completion([5], []))
