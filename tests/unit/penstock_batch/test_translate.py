from typing import Any

import pytest

from penstock_batch.translate import CHAT, COMPLETIONS, to_request
from penstock_core.blocks import unpack_tokens
from penstock_core.errors import InvalidRequest, NotSupported, PenstockError

USER = {"role": "user", "content": "hi"}


def completion(**body: Any) -> Any:
    return to_request(COMPLETIONS, {"model": "demo", "prompt": "x", **body})


def chat(**body: Any) -> Any:
    return to_request(CHAT, {"model": "demo", "messages": [USER], **body})


def test_a_completion_becomes_text_with_its_sampling_and_stops() -> None:
    request = completion(
        temperature=0.5, top_p=0.9, top_k=4, seed=-1, n=2, stop="END", max_tokens=9, logprobs=3,
        logit_bias={"17": -100}, presence_penalty=1, echo=True, ignore_eos=True, user="me",
    )  # fmt: skip
    assert (request.model, request.text) == ("demo", "x")
    assert (request.sampling.temperature, request.sampling.top_k) == (0.5, 4)
    assert request.sampling.seed == 2**64 - 1
    assert dict(request.sampling.logit_bias) == {17: -100}
    assert (list(request.stop.strings), request.stop.max_tokens) == (["END"], 9)
    assert (request.output.logprobs, request.output.echo) == (3, True)


def test_what_is_absent_stays_absent() -> None:
    request = completion(temperature=None)
    assert not request.sampling.HasField("temperature")
    assert not request.stop.HasField("max_tokens")
    assert not request.output.HasField("logprobs")


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2]]])
def test_a_prompt_may_be_token_ids(prompt: list[Any]) -> None:
    assert unpack_tokens(completion(prompt=prompt).tokens.ids) == [1, 2]


def test_a_prompt_may_be_a_list_of_one_text() -> None:
    assert completion(prompt=["x"]).text == "x"


def test_a_chat_becomes_messages_tools_and_a_constraint() -> None:
    request = chat(
        messages=[{"role": "system", "content": [{"type": "text", "text": "be"}]}, USER],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        tool_choice={"type": "function", "function": {"name": "f"}},
        max_completion_tokens=5,
        logprobs=True,
        top_logprobs=2,
        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    )
    assert [(m.role, m.content) for m in request.chat.messages] == [
        ("system", "be"),
        ("user", "hi"),
    ]
    assert request.chat.tools[0].parameters_json == '{"type": "object"}'
    assert request.chat.tool_choice == "f"
    assert request.stop.max_tokens == 5
    assert request.output.logprobs == 2
    assert request.constraint.json_schema == '{"type": "object"}'


def test_the_calls_of_an_assistant_turn_are_kept() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    request = chat(messages=[USER, turn, {"role": "tool", "content": "3", "tool_call_id": "c1"}])
    assert request.chat.messages[1].tool_calls[0].arguments_json == "{}"
    assert request.chat.messages[2].tool_call_id == "c1"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"frobnicate": 1}, "frobnicate"),
        ({"messages": []}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 1e999}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"stop": 7}, "stop"),
        ({"stop": [7]}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"logit_bias": []}, "logit_bias"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [2**32]}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**body)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [7]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "name": 1}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "tool_calls": [1]}]}, "messages[0].tool_calls"),
        ({"prompt": "x"}, "prompt"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": "poem"}, "response_format"),
    ],
)
def test_a_wrong_field_of_a_chat_is_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**body)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["suffix", "stream", "stream_options"])
def test_what_a_batch_cannot_do_is_refused_by_name(name: str) -> None:
    with pytest.raises(NotSupported, match=name):
        completion(**{name: {"x": 1}})


def test_every_refusal_is_a_typed_error_even_for_nonsense() -> None:
    for value in (None, True, 1, 1.5, "x", [], [1], {}, {"a": 1}, [None], {"type": 1}):
        for field in ("prompt", "stop", "logit_bias", "seed", "model", "temperature", "echo"):
            try:
                completion(**{field: value})
            except PenstockError as error:
                assert error.message  # noqa: PT017 - any refusal will do, but no other failure
