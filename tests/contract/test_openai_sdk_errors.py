"""Failures reach the official SDK as its own exception classes, with code and parameter."""

import re
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from penstock_core import errors as e
from penstock_core.security.auth import KeyRing, Principal, digest
from penstock_testing.servers.gateway import running_gateway
from penstock_testing.servers.scripted_router import MODEL, Script, running_router

TOOLS = [{"type": "function", "function": {"name": "f"}}]
OTHER_TOOL = {"type": "function", "function": {"name": "g"}}
HELLO = [{"role": "user", "content": "hello"}]
GOOD_KEY = "pk-good"


# One gateway for the whole file: its cases are many and leave nothing behind.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def shared_script() -> Script:
    return Script()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(shared_script: Script) -> AsyncIterator[Any]:
    keys = KeyRing({digest(GOOD_KEY): Principal("acme")})
    async with (
        running_router(shared_script, keys) as router,
        running_gateway(router) as gateway,
        AsyncOpenAI(base_url=gateway.api, api_key=GOOD_KEY, max_retries=0) as client,
    ):
        yield client


@pytest.fixture
def script(shared_script: Script) -> Script:
    shared_script.error = None
    shared_script.requests.clear()
    return shared_script


@pytest.mark.parametrize(
    ("error", "wanted", "code"),
    [
        (e.PromptTooLong("3 + 4 > 5"), openai.BadRequestError, "context_length_exceeded"),
        (e.NotSupported("no grammar"), openai.BadRequestError, "not_supported"),
        (e.PermissionDenied("no"), openai.PermissionDeniedError, "permission_denied"),
        (e.Conflict("ended"), openai.ConflictError, "conflict"),
        (e.NoWorker("none"), openai.InternalServerError, "no_worker"),
        (e.DeadlineExceeded("late"), openai.InternalServerError, "deadline_exceeded"),
        (e.EngineFailed("broken"), openai.InternalServerError, "engine_failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_has_its_status(
    client: Any,
    script: Script,
    error: e.PenstockError,
    wanted: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    script.error = error

    with pytest.raises(wanted, match=re.escape(error.message)) as caught:
        await client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)

    assert caught.value.code == code


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_of_one_of_several_prompts_is_the_requests(
    client: Any, script: Script, stream: bool
) -> None:
    script.error = e.PromptTooLong("too long")

    with pytest.raises(openai.BadRequestError, match="too long"):
        await client.completions.create(model=MODEL, prompt=["a", "b", "c"], stream=stream)


async def test_a_rate_limit_says_when_to_try_again(client: Any, script: Script) -> None:
    script.error = e.QuotaExceeded("tokens", subject="tenant:acme", retry_after_s=2.5)

    with pytest.raises(openai.RateLimitError) as caught:
        await client.completions.create(model=MODEL, prompt="x")

    assert caught.value.response.headers["retry-after"] == "3"
    assert caught.value.response.headers["retry-after-ms"] == "2500"
    assert caught.value.code == "rate_limit_exceeded"


async def test_the_sdk_tries_again_after_a_rate_limit(client: Any, script: Script) -> None:
    script.error = e.Overloaded("full", retry_after_s=0.001)

    with pytest.raises(openai.RateLimitError):
        await client.with_options(max_retries=2).completions.create(model=MODEL, prompt="x")

    assert len(script.requests) == 3


async def test_the_sdk_does_not_try_again_what_cannot_succeed(client: Any, script: Script) -> None:
    script.error = e.Conflict("ended")

    with pytest.raises(openai.ConflictError):
        await client.with_options(max_retries=2).completions.create(model=MODEL, prompt="x")

    assert len(script.requests) == 1


async def test_a_wrong_key_is_an_authentication_error(client: Any, script: Script) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        await client.with_options(api_key="wrong").models.list()

    assert caught.value.code == "invalid_api_key"


async def test_an_unknown_model_is_not_found(client: Any, script: Script) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-9", messages=HELLO)

    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_p": 7.0}, "top_p"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": {"no": 1}}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"stop": 3}, "stop"),
        ({"stop": ["x", ""]}, "stop[1]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logprobs": 50}, "logprobs"),
        ({"n": 2**31 - 1}, "n"),
        ({"extra_body": {"promt": "x"}}, "promt"),
        ({"extra_headers": {"x-penstock-priority": "system"}}, "x-penstock-priority"),
    ],
)
async def test_a_wrong_parameter_of_a_completion_is_named(
    client: Any, script: Script, parameters: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(**{"model": MODEL, "prompt": "x", **parameters})

    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": OTHER_TOOL}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"n": 0}, "n"),
        ({"max_completion_tokens": 0}, "max_tokens"),
    ],
)
async def test_a_wrong_parameter_of_a_chat_is_named(
    client: Any, script: Script, parameters: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **parameters})

    assert caught.value.param == param


IMAGE = {"type": "image_url", "image_url": {}}


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
    ],
)
async def test_what_is_not_supported_is_refused_and_not_ignored(
    client: Any, script: Script, parameters: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **parameters})

    assert (caught.value.code, caught.value.param) == ("not_supported", param)


async def test_an_unknown_argument_is_named_as_openai_does(client: Any, script: Script) -> None:
    with pytest.raises(openai.BadRequestError, match="Unrecognized request argument supplied: foo"):
        await client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"foo": 1})
