"""Chat templates: Hugging Face's conventions, inside a sandbox, with the caller's mistakes told."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.common.v1 import chat_pb2
from penstock_core.errors import InvalidRequest, NotSupported
from penstock_testing.engines.models import write_byte_tokenizer
from penstock_text import chat as chat_module
from penstock_text.chat import ChatTemplate

USER = chat_pb2.ChatMessage(role="user", content="Hi")


def template(path: Path, source: str) -> ChatTemplate:
    loaded = ChatTemplate.load(
        write_byte_tokenizer(path, chat_template=source),
        now=lambda: datetime(2030, 5, 6, tzinfo=UTC),
    )
    assert loaded is not None
    return loaded


def test_it_renders_turns_and_opens_the_assistants(tmp_path: Path) -> None:
    loaded = ChatTemplate.load(write_byte_tokenizer(tmp_path))
    assert loaded is not None

    opened = loaded.render(chat_pb2.ChatPrompt(messages=[USER]))
    closed = loaded.render(chat_pb2.ChatPrompt(messages=[USER], add_generation_prompt=False))

    assert opened == "<user>Hi\n<assistant>"
    assert closed == "<user>Hi\n"


def test_blocks_leave_no_white_space_behind(tmp_path: Path) -> None:
    source = "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n"

    assert template(tmp_path, source).render(chat_pb2.ChatPrompt(messages=[USER])) == "Hi\n"


def test_special_tokens_dates_and_variables_are_there(tmp_path: Path) -> None:
    source = "{{ eos_token }} {{ strftime_now('%d %b %Y') }} {{ mood }} {% generation %}x{% endgeneration %}"
    prompt = chat_pb2.ChatPrompt(messages=[USER], template_variables_json='{"mood": "calm"}')

    assert template(tmp_path, source).render(prompt) == "<|end|> 06 May 2030 calm x"


def test_variables_cannot_replace_the_conversation(tmp_path: Path) -> None:
    prompt = chat_pb2.ChatPrompt(messages=[USER], template_variables_json='{"messages": []}')

    assert template(tmp_path, "{{ messages[0].content }}").render(prompt) == "Hi"


def test_tools_and_calls_keep_their_structure(tmp_path: Path) -> None:
    source = "{{ tools | tojson }}|{{ messages[0].tool_calls[0].function.arguments.x + 1 }}"
    call = chat_pb2.ToolCall(id="c1", name="f", arguments_json='{"x": 41}')
    prompt = chat_pb2.ChatPrompt(
        messages=[chat_pb2.ChatMessage(role="assistant", tool_calls=[call])],
        tools=[chat_pb2.Tool(name="f", description="é<d>", parameters_json='{"type": "object"}')],
    )

    tools, _, result = template(tmp_path, source).render(prompt).partition("|")

    function = {"name": "f", "description": "é<d>", "parameters": {"type": "object"}}
    assert json.loads(tools) == [{"type": "function", "function": function}]
    assert "é<d>" in tools, "neither ASCII nor HTML escapes may reach the model"
    assert result == "42"


def test_a_model_may_have_a_template_of_its_own_for_tools(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    write_byte_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    loaded = ChatTemplate.load(tmp_path)
    assert loaded is not None

    assert loaded.render(chat_pb2.ChatPrompt(messages=[USER])) == "plain"
    with_tools = chat_pb2.ChatPrompt(messages=[USER], tools=[chat_pb2.Tool(name="f")])
    assert loaded.render(with_tools) == "tools"


def test_a_template_file_comes_before_the_configuration(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path, chat_template="configured")
    (tmp_path / "chat_template.jinja").write_text("file")
    loaded = ChatTemplate.load(tmp_path)
    assert loaded is not None

    assert loaded.render(chat_pb2.ChatPrompt(messages=[USER])) == "file"


def test_a_model_may_have_none(tmp_path: Path) -> None:
    assert ChatTemplate.load(write_byte_tokenizer(tmp_path, chat_template=None)) is None


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{% for i in range(1000000) %}x{% endfor %}", "Range too big"),
    ],
)
def test_what_a_template_refuses_is_an_invalid_request(
    tmp_path: Path, source: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        template(tmp_path, source).render(chat_pb2.ChatPrompt(messages=[USER]))

    assert caught.value.field == "chat.messages"


def test_output_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "MAX_RENDERED_CHARS", 100)
    source = "{% for i in range(1000) %}{{ messages[0].content }}{% endfor %}"

    with pytest.raises(InvalidRequest, match="more than 100 characters"):
        template(tmp_path, source).render(chat_pb2.ChatPrompt(messages=[USER]))


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_variables_that_are_no_object_are_named(tmp_path: Path, text: str) -> None:
    prompt = chat_pb2.ChatPrompt(messages=[USER], template_variables_json=text)

    with pytest.raises(InvalidRequest) as caught:
        template(tmp_path, "x").render(prompt)

    assert caught.value.field == "chat.template_variables_json"


def test_arguments_that_are_no_json_are_named(tmp_path: Path) -> None:
    call = chat_pb2.ToolCall(name="f", arguments_json="x=1")
    turn = chat_pb2.ChatMessage(role="assistant", tool_calls=[call])

    with pytest.raises(InvalidRequest) as caught:
        template(tmp_path, "x").render(chat_pb2.ChatPrompt(messages=[USER, turn]))

    assert caught.value.field == "chat.messages[1].tool_calls[0].arguments_json"


def test_a_template_that_does_not_compile_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="does not compile"):
        template(tmp_path, "{% for %}")
