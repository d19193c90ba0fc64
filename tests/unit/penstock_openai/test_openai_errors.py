"""Errors in OpenAI's shape."""

import pytest

from penstock_core import errors as e
from penstock_openai.errors import FACES, body_of, param_of


def test_every_error_has_a_face() -> None:
    assert set(FACES) == set(e.all_errors())


def test_no_error_is_a_422() -> None:
    assert 422 not in {face.status for face in FACES.values()}


@pytest.mark.parametrize("cls", e.all_errors())
def test_every_error_has_openais_shape(cls: type[e.PenstockError]) -> None:
    error = body_of(cls("what happened"))["error"]

    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] == "what happened"


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("stop.max_tokens", "max_tokens"),
        ("sampling.top_p", "top_p"),
        ("sampling.logit_bias[7]", "logit_bias[7]"),
        ("stop.strings", "stop"),
        ("stop.strings[2]", "stop[2]"),
        ("stop.token_ids", "stop_token_ids"),
        ("text", "prompt"),
        ("tokens.ids", "prompt"),
        ("chat.messages", "messages"),
        ("chat.messages[1].content", "messages[1].content"),
        ("chat.tools[0].parameters_json", "tools[0].parameters_json"),
        ("constraint.json_schema", "response_format"),
        ("constraint", "response_format"),
        ("output.logprobs", "logprobs"),
        ("completion_window_s", "completion_window"),
        ("description.purpose", "purpose"),
        ("output_expires_after", "output_expires_after"),
        ("model", "model"),
        ("textual", "textual"),
        ("", None),
    ],
)
def test_field_paths_become_openais_parameters(field: str, param: str | None) -> None:
    assert param_of(field) == param


@pytest.mark.parametrize("cls", [e.InvalidRequest, e.PromptTooLong, e.NotSupported])
def test_an_error_about_a_field_names_the_parameter(cls: type[e.InvalidRequest]) -> None:
    error = body_of(cls("no", field="chat.tool_choice"))["error"]

    assert isinstance(error, dict)
    assert error["param"] == "tool_choice"
