"""A request is refused with the path of what is wrong, before any work."""

import math
from dataclasses import dataclass

import pytest
from google.protobuf import text_format

from penstock.inference.v1.generate_pb2 import GenerateRequest
from penstock_core.errors import InvalidRequest, PromptTooLong
from penstock_core.validation import check_fit, check_request, check_token_ids


@dataclass(frozen=True)
class Limits:
    max_context_tokens: int = 100
    vocab_size: int = 1000


def request(text: str) -> GenerateRequest:
    return text_format.Parse(text, GenerateRequest(model="m"))


BAD = {
    "text": 'text: ""',
    "prompt": "",
    "tokens.ids": 'tokens { ids: "abc" }',
    "chat.messages": "chat {}",
    "stop.max_tokens": 'text: "a" stop { max_tokens: -1 }',
    "stop.min_tokens": 'text: "a" stop { min_tokens: -1 }',
    "stop.strings[1]": 'text: "a" stop { strings: "x" strings: "" }',
    "sampling.temperature": 'text: "a" sampling { temperature: -0.5 }',
    "sampling.top_p": 'text: "a" sampling { top_p: 0 }',
    "sampling.top_k": 'text: "a" sampling { top_k: -1 }',
    "sampling.min_p": 'text: "a" sampling { min_p: 1.5 }',
    "sampling.presence_penalty": 'text: "a" sampling { presence_penalty: 3 }',
    "sampling.n": 'text: "a" sampling { n: 0 }',
    "sampling.best_of": 'text: "a" sampling { n: 3 best_of: 2 }',
    "sampling.logit_bias[5]": 'text: "a" sampling { logit_bias { key: 5 value: 101 } }',
    "output.logprobs": 'text: "a" output { logprobs: 21 }',
    "request_id": 'text: "a" request_id: "a b"',
    "coalescing.group": 'text: "a" coalescing { group: "' + "g" * 257 + '" }',
}


@pytest.mark.parametrize("field", BAD)
def test_each_bad_field_is_named(field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_request(request(BAD[field]))

    assert caught.value.field == field


def test_a_number_that_is_none_is_refused() -> None:
    bad = request('text: "a"')
    bad.sampling.temperature = math.nan

    with pytest.raises(InvalidRequest) as caught:
        check_request(bad)

    assert caught.value.field == "sampling.temperature"


def test_the_model_must_be_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_request(GenerateRequest(text="a"))

    assert caught.value.field == "model"


@pytest.mark.parametrize(("tools", "choice"), [("", "required"), ('tools { name: "a" }', "b")])
def test_a_call_of_a_tool_that_is_not_there_is_refused(tools: str, choice: str) -> None:
    forced = request(f'chat {{ messages {{ role: "user" }} {tools} tool_choice: "{choice}" }}')

    with pytest.raises(InvalidRequest, match="tool_choice") as caught:
        check_request(forced)

    assert caught.value.field == "chat.tool_choice"


@pytest.mark.parametrize("choice", ["", "none", "auto", "required", "a"])
def test_a_choice_among_the_tools_passes(choice: str) -> None:
    tools = f'tools {{ name: "a" }} tool_choice: "{choice}"'
    check_request(request(f'chat {{ messages {{ role: "user" }} {tools} }}'))


def test_an_ordinary_request_passes() -> None:
    check_request(
        request('text: "a" sampling { temperature: 0 n: 2 best_of: 4 } stop { max_tokens: 5 }')
    )


def test_a_request_that_fits_gets_what_it_asked_for_or_the_room_there_is() -> None:
    assert check_fit(60, request("stop { max_tokens: 40 }"), Limits()) == 40
    assert check_fit(60, request(""), Limits()) == 40


@pytest.mark.parametrize(
    ("prompt", "stop", "field"),
    [(61, "max_tokens: 40", "stop.max_tokens"), (100, "", "text"), (200, "max_tokens: 1", "text")],
)
def test_a_request_over_the_context_names_both_numbers(prompt: int, stop: str, field: str) -> None:
    with pytest.raises(PromptTooLong) as caught:
        check_fit(prompt, request(f'text: "a" stop {{ {stop} }}'), Limits())

    assert caught.value.field == field
    assert str(prompt) in caught.value.message
    assert "100" in caught.value.message
    assert caught.value.metadata["max_context_tokens"] == "100"


def test_ids_outside_the_vocabulary_are_refused() -> None:
    check_token_ids([0, 999], Limits(), "tokens.ids")

    with pytest.raises(InvalidRequest, match="1000"):
        check_token_ids([0, 1000], Limits(), "tokens.ids")
