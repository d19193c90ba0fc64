"""What of an output is a call, what is text, and when that is told."""

from typing import Any

import pytest

from penstock.common.v1 import tokens_pb2
from penstock.inference.v1 import generate_pb2
from penstock_openai.formats import ChatFormat, ToolCallFormat, WrittenCallFormat
from penstock_openai.generations import CHAT, generation_of
from penstock_openai.responses import Chunks, Collector, Head
from penstock_openai.written_calls import WrittenCall, WrittenCalls

HEAD = Head("chatcmpl-1", "m", 0)
STOP, LENGTH = generate_pb2.FINISH_REASON_STOP, generate_pb2.FINISH_REASON_LENGTH
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
F = '{"name": "f", "arguments": {"a": 1}}'
G = '{"name": "g", "arguments": {}}'
TWO = f"I look.\n<tool_call>\n{F}\n</tool_call>\n<tool_call>\n{G}\n</tool_call>"


def events(
    pieces: list[str], reason: Any = STOP, choice: int = 0
) -> list[generate_pb2.GenerateResponse]:
    logprob = tokens_pb2.TokenLogprob(logprob=-0.5, token_bytes=b"t")
    deltas = [
        generate_pb2.Delta(text=piece, logprobs=[logprob], choice_index=choice) for piece in pieces
    ]
    end = generate_pb2.Finished(reason=reason, choice_index=choice)
    return [
        *(generate_pb2.GenerateResponse(delta=delta) for delta in deltas),
        generate_pb2.GenerateResponse(finished=end),
    ]


def whole(text: str, reason: Any = STOP, **body: Any) -> Any:
    generation = generation_of(CHAT, ASK | body)
    collector = Collector(generation.form, generation.shape)
    for event in events([text], reason):
        collector.add(0, event)
    answer: Any = collector.answer(HEAD)
    return answer["choices"][0]


def streamed(stream: list[generate_pb2.GenerateResponse], **body: Any) -> list[Any]:
    generation = generation_of(CHAT, ASK | body)
    chunks = Chunks(generation.form, generation.shape, HEAD, usage=False)
    found: list[Any] = [chunk for event in stream for chunk in chunks.render(0, event)]
    return [chunk["choices"][0] for chunk in found]


def functions(message: Any) -> list[Any]:
    return [call["function"] for call in message["tool_calls"]]


def test_a_whole_answer_has_its_text_and_its_calls() -> None:
    choice = whole(TWO)

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    assert functions(choice["message"]) == [
        {"name": "f", "arguments": '{"a": 1}'},
        {"name": "g", "arguments": "{}"},
    ]
    first, second = choice["message"]["tool_calls"]
    assert first["type"] == "function"
    assert first["id"] != second["id"]


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{G}</tool_call>\n",
        f"\n{G}\n",
        '{"type": "function", "name": "g", "parameters": {}}',
        f"<|python_tag|>{G}",
        f"[{G}]",
        f"\n[TOOL_CALLS] [{G}]",
        '[{"name": "g", "arguments": {}, "id": "abc123def"}]',
        f"<tool_call>{G}",
    ],
)
def test_an_answer_that_is_only_a_call_has_no_content(text: str) -> None:
    message = whole(text)["message"]

    assert message["content"] is None
    assert functions(message) == [{"name": "g", "arguments": "{}"}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text ",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "\\x"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f"}</tool_call>',
        f"<tool_call>{F} and more</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"a": -Infinity}}</tool_call>',
        f"{F}</tool_call>",
        f"{F} is how I would call it",
        f"It would be {F}",
        f"[{F}, 7]",
        "[]",
        "[TOOL_CALLS][]",
        f"<think>I could <tool_call>{F}</tool_call>",
        '{"city": "Ulm"}',
        "[1] a footnote",
        "<thi",
    ],
)
def test_what_is_not_quite_a_call_is_text_to_the_letter(text: str) -> None:
    choice = whole(text)

    assert choice["message"]["content"] == text
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_a_call_behind_a_broken_one_is_found() -> None:
    broken = '<tool_call>{"name": "f", "arguments": {"a": "b"c"}}</tool_call>'
    message = whole(f"{broken}\n<tool_call>{G}</tool_call>")["message"]

    assert message["content"] == broken
    assert [made["name"] for made in functions(message)] == ["g"]


def test_a_call_that_ran_out_of_tokens_is_text_and_those_before_it_are_calls() -> None:
    cut = TWO.removesuffix("}\n</tool_call>")
    choice = whole(cut, LENGTH)

    assert choice["finish_reason"] == "length"
    assert [made["name"] for made in functions(choice["message"])] == ["f"]
    assert choice["message"]["content"] == (
        'I look.\n<tool_call>\n{"name": "g", "arguments": {}'
    )  # fmt: skip


@pytest.mark.parametrize("text", [TWO, f"[{F}, {G}]"])
def test_without_parallel_calls_what_follows_the_first_is_text(text: str) -> None:
    message = whole(text, parallel_tool_calls=False)["message"]

    assert [made["name"] for made in functions(message)] == ["f"]
    assert G in message["content"]


@pytest.mark.parametrize("pieces", [list(TWO), [TWO]])
def test_a_stream_gives_the_text_then_each_call_by_name_and_arguments(pieces: list[str]) -> None:
    choices = streamed(events(pieces))

    deltas = [choice["delta"] for choice in choices]
    assert deltas[0] == {"role": "assistant", "content": None}
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look."
    made = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in made] == [0, 0, 1, 1]
    assert [call["function"] for call in made] == [
        {"name": "f", "arguments": ""},
        {"arguments": '{"a": 1}'},
        {"name": "g", "arguments": ""},
        {"arguments": "{}"},
    ]
    assert made[0]["type"] == "function"
    assert made[0]["id"] != made[2]["id"]
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "tool_calls"]
    assert deltas[-1] == {}


def test_every_tokens_logprob_is_told_once_and_when_it_comes() -> None:
    pieces = [TWO[i : i + 3] for i in range(0, len(TWO), 3)]
    choices = streamed(events(pieces), logprobs=True)

    told = [len(choice["logprobs"]["content"]) if choice["logprobs"] else 0 for choice in choices]
    assert sum(told) == len(pieces)
    assert set(told) == {0, 1}
    assert len(whole(TWO, logprobs=True)["logprobs"]["content"]) == 1


def test_samples_are_read_each_for_itself() -> None:
    first, second = events(["<tool_", f"call>{F}</tool_call>"]), events(["<tool_", "box>"], STOP, 1)
    turns = [event for pair in zip(first, second, strict=True) for event in pair]
    choices = streamed(turns, n=2)

    ends = {c["index"]: c["finish_reason"] for c in choices if c["finish_reason"]}
    texts = [c["delta"].get("content") or "" for c in choices if c["index"] == 1]
    assert ends == {0: "tool_calls", 1: "stop"}
    assert "".join(texts) == "<tool_box>"


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        (["Hel", "lo ", "you"], ["Hel", "lo", " you"]),
        (["a <", "b"], ["a", " <b"]),
        (["a <tool_", "box"], ["a", " <tool_box"]),
        (["{", '"city', '": 1', "}"], ["", "", '{"city": 1', "}"]),
        (['{"name": "f', 'oo"', ": 1"], ["", '{"name": "foo"', ": 1"]),
        (["[", "1]"], ["", "[1]"]),
        (["<tool_call>{", "}"], ["", "<tool_call>{}"]),
        ([F, " ", "not"], ["", "", f"{F} not"]),
        ([F, " ", "<", "not"], ["", "", F, " <not"]),
        (["<think>", "hm", "m</", "think>", "\n\n", "So"],
         ["<think>", "hm", "m", "</think>", "", "\n\nSo"]),
    ],
)  # fmt: skip
def test_text_is_held_back_no_longer_than_it_may_be_a_call(
    pieces: list[str], told: list[str]
) -> None:
    reader = WrittenCalls({"f", "g"})

    assert ["".join(map(str, reader.read(piece))) for piece in pieces] == told


def test_a_tagged_call_is_told_with_the_last_character_of_its_tag() -> None:
    reader = WrittenCalls({"f"})

    assert reader.read(f"<tool_call>{F}</tool_call") == []
    (call,) = reader.read(">")
    assert isinstance(call, WrittenCall)
    assert (call.name, call.arguments) == ("f", '{"a": 1}')


def test_ids_are_such_that_mistrals_templates_take_them_back() -> None:
    (call,) = whole(G)["message"]["tool_calls"]

    assert len(call["id"]) == 9
    assert call["id"].isalnum()


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ({}, WrittenCallFormat),
        ({"tool_choice": "auto"}, WrittenCallFormat),
        ({"response_format": {"type": "text"}}, WrittenCallFormat),
        ({"tool_choice": "none"}, ChatFormat),
        ({"tools": None}, ChatFormat),
        ({"response_format": {"type": "json_object"}}, ChatFormat),
        ({"tool_choice": "required"}, ToolCallFormat),
    ],
)
def test_calls_are_looked_for_where_the_model_may_choose_to_make_them(
    body: dict[str, Any], form: type
) -> None:
    assert type(generation_of(CHAT, ASK | body).form) is form
