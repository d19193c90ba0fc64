"""OpenAI's bodies as wire requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_core.blocks import unpack_tokens
from penstock_core.errors import InvalidRequest, NotSupported
from penstock_openai.schemas import ChatBody, CompletionBody
from penstock_openai.translate import MAX_PROMPTS, chat_request, completion_requests

USER = {"role": "user", "content": "x"}


def completion(**values: object) -> CompletionBody:
    return CompletionBody.model_validate({"model": "m", "prompt": "x", **values})


def chat(**values: object) -> ChatBody:
    return ChatBody.model_validate({"model": "m", "messages": [USER], **values})


def test_what_is_not_given_stays_absent() -> None:
    (request,) = completion_requests(completion())

    for name in ("temperature", "top_p", "top_k", "n", "best_of", "seed", "presence_penalty"):
        assert not request.sampling.HasField(name)
    assert not request.output.HasField("logprobs")


def test_null_means_absent_as_with_openai() -> None:
    nulls = dict.fromkeys(("temperature", "n", "stop", "seed", "logprobs", "stream", "user"))

    assert completion_requests(completion(**nulls)) == completion_requests(completion())


def test_a_chat_has_no_default_length() -> None:
    assert not chat_request(chat()).stop.HasField("max_tokens")


def test_max_completion_tokens_wins_over_the_older_name() -> None:
    assert chat_request(chat(max_tokens=5, max_completion_tokens=3)).stop.max_tokens == 3


def test_chat_logprobs_without_alternatives_are_logprobs_zero() -> None:
    assert chat_request(chat(logprobs=True)).output.logprobs == 0
    assert not chat_request(chat(logprobs=False)).output.HasField("logprobs")


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_different_seeds_stay_different(first: int, second: int) -> None:
    seeds = [chat_request(chat(seed=seed)).sampling.seed for seed in (first, second)]

    assert (seeds[0] == seeds[1]) == (first == second)


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1), min_size=1, max_size=5))
def test_token_prompts_arrive_as_they_were(prompts: list[list[int]]) -> None:
    requests = completion_requests(completion(prompt=prompts))

    assert [unpack_tokens(request.tokens.ids) for request in requests] == prompts


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_text_prompts_arrive_as_they_were(prompts: list[str]) -> None:
    assert [r.text for r in completion_requests(completion(prompt=prompts))] == prompts


def test_too_many_prompts_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        completion_requests(completion(prompt=["x"] * (MAX_PROMPTS + 1)))


def test_a_suffix_is_refused_and_an_empty_one_ignored() -> None:
    with pytest.raises(NotSupported, match="suffix"):
        completion_requests(completion(suffix="end"))
    assert completion_requests(completion(suffix=""))


@pytest.mark.parametrize("token", ["-1", "x", "", "٣", str(2**32), "1.5"])
def test_a_bias_for_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest, match="logit_bias"):
        completion_requests(completion(logit_bias={token: 1}))


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json_object"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}, "json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "n", "strict": True}}, "json_schema"),
    ],
)
def test_response_formats_become_constraints(form: object, kind: str | None) -> None:
    assert chat_request(chat(response_format=form)).constraint.WhichOneof("kind") == kind


def test_a_forced_tool_must_be_offered() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    forced = {"type": "function", "function": {"name": "g"}}

    with pytest.raises(InvalidRequest, match="'g'"):
        chat_request(chat(tools=tools, tool_choice=forced))
    assert chat_request(chat(tools=tools, tool_choice="required")).chat.tool_choice == "required"
    assert chat_request(chat(tool_choice="none")).chat.tool_choice == "none"


def test_an_answers_message_can_be_handed_back() -> None:
    answer: dict[str, object] = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }

    assert chat_request(chat(messages=[USER, answer, USER])).chat.messages[1].content == "hi"


def test_a_number_that_json_has_not_is_refused_wherever_it_hides() -> None:
    function = {"name": "f", "parameters": {"maximum": float("inf")}}
    schema = {"name": "n", "schema": {"maximum": float("inf")}}

    with pytest.raises(InvalidRequest, match=r"tools\[0\]"):
        chat_request(chat(tools=[{"type": "function", "function": function}]))
    with pytest.raises(InvalidRequest, match="response_format"):
        chat_request(chat(response_format={"type": "json_schema", "json_schema": schema}))
