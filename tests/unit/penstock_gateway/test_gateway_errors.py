"""Errors in OpenAI's shape."""

import pytest

from penstock_core import errors as e
from penstock_gateway.errors import FACES, body_of, param_of, response_of


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


@pytest.mark.parametrize("cls", e.all_errors())
def test_the_sdk_is_told_whether_to_try_again(cls: type[e.PenstockError]) -> None:
    response = response_of(cls("x"))

    if response.status_code >= 409:
        wanted = "true" if cls.retryable else "false"
        assert response.headers["x-should-retry"] == wanted
    assert ("retry-after" in response.headers) == (response.status_code in (429, 503))


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


def test_the_wait_is_rounded_up_for_clients_that_read_whole_seconds() -> None:
    headers = response_of(e.Overloaded("x", retry_after_s=0.0105)).headers

    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "11")
