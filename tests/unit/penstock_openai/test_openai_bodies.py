"""Every body that is wrong is refused with the name of the parameter, in OpenAI's words."""

from typing import Any

import pytest

from penstock_core.errors import InvalidRequest, NotSupported, PenstockError
from penstock_openai.bodies import validated
from penstock_openai.generations import CHAT, COMPLETIONS, generation_of
from penstock_openai.schemas import BatchBody

USER = {"role": "user", "content": "hi"}


def completion(**body: Any) -> Any:
    return generation_of(COMPLETIONS, {"model": "demo", "prompt": "x", **body})


def chat(**body: Any) -> Any:
    return generation_of(CHAT, {"model": "demo", "messages": [USER], **body})


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
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
        ({"logit_bias": []}, "logit_bias"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [2**32]}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"stream_options": {}}, "stream_options"),
        ({"model": ""}, "model"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**body)

    assert caught.value.field == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": "hi"}, "messages"),
        ({"messages": [7]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "name": 1}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "tool_calls": [1]}]}, "messages[0].tool_calls[0]"),
        ({"prompt": "x"}, "prompt"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": "poem"}, "response_format"),
    ],
)
def test_a_wrong_field_of_a_chat_is_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**body)

    assert caught.value.field == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content"),
        ({"tools": [{"type": "custom"}]}, "tools[0]"),
        ({"functions": []}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
)
def test_what_is_not_supported_is_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(NotSupported) as caught:
        chat(**body)

    assert caught.value.field.startswith(field)


def test_refusals_speak_as_openai_does() -> None:
    with pytest.raises(InvalidRequest, match="Unrecognized request argument supplied: foo"):
        completion(foo=1)
    with pytest.raises(InvalidRequest, match="Missing required parameter: 'endpoint'"):
        validated({"input_file_id": "f", "completion_window": "24h"}, BatchBody)
    with pytest.raises(InvalidRequest, match="'stop': it must be a string or an array of strings"):
        completion(stop={})


@pytest.mark.parametrize("body", [None, [], "x", 7])
def test_what_is_no_object_is_no_body(body: object) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        generation_of(COMPLETIONS, body)


def test_every_refusal_is_a_typed_error_even_for_nonsense() -> None:
    for value in (None, True, 1, 1.5, "x", [], [1], {}, {"a": 1}, [None], {"type": 1}):
        for field in ("prompt", "stop", "logit_bias", "seed", "model", "temperature", "echo"):
            try:
                completion(**{field: value})
            except PenstockError as error:
                assert error.message  # noqa: PT017 - any refusal will do, but no other failure
