"""A forced call is read from the output however it is cut."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.inference.v1 import generate_pb2
from penstock_openai.formats import ToolCallFormat
from penstock_openai.responses import Chunks, Collector, Head, Shape
from penstock_openai.tool_calls import CallReader

ONE = Shape(prompts=1, samples=1)
HEAD = Head("chatcmpl-1", "m", 0)
STOP, LENGTH = generate_pb2.FINISH_REASON_STOP, generate_pb2.FINISH_REASON_LENGTH


def events(pieces: list[str], reason: Any = STOP) -> list[generate_pb2.GenerateResponse]:
    deltas = [
        generate_pb2.GenerateResponse(delta=generate_pb2.Delta(text=piece)) for piece in pieces
    ]
    end = generate_pb2.GenerateResponse(finished=generate_pb2.Finished(reason=reason))
    return [*deltas, end]


def whole(text: str, reason: Any = STOP) -> Any:
    collector = Collector(ToolCallFormat(logprobs=False), ONE)
    for event in events([text], reason):
        collector.add(0, event)
    answer: Any = collector.answer(HEAD)
    return answer["choices"][0]


def streamed(pieces: list[str], reason: Any = STOP) -> list[Any]:
    chunks = Chunks(ToolCallFormat(logprobs=False), ONE, HEAD, usage=False)
    found: list[Any] = [c for e in events(pieces, reason) for c in chunks.render(0, e)]
    return [chunk["choices"][0] for chunk in found]


@given(st.data())
def test_a_call_is_the_same_however_its_text_is_cut(data: st.DataObject) -> None:
    values = st.recursive(
        st.none() | st.integers() | st.text(alphabet='ab"\\{} ,:é'),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    )
    name = data.draw(st.text(alphabet='ab"\\{}é', min_size=1))
    arguments = data.draw(st.dictionaries(st.text(max_size=3), values))
    indent = data.draw(st.sampled_from([None, 2]))
    space = data.draw(st.sampled_from(["", " ", "\n \t"]))
    call = {"name": name, "arguments": arguments}
    text = json.dumps(call, indent=indent, separators=(",", f":{space}")) + "\n"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})

    reader = CallReader()
    pieces = [text[start:stop] for start, stop in pairwise(cuts)]
    read = "".join([reader.read(piece) for piece in pieces]) + reader.end(is_whole=True)

    at_once = CallReader()
    assert read == at_once.read(text) + at_once.end(is_whole=True)
    assert reader.name == name
    assert json.loads(read) == arguments


def test_white_space_around_the_arguments_is_dropped_wherever_it_is_cut() -> None:
    text = '{"name": "f", "arguments":  \n {"a": [{}]} \n } '
    for cut in range(len(text) + 1):
        reader = CallReader()
        read = reader.read(text[:cut]) + reader.read(text[cut:]) + reader.end(is_whole=True)
        assert (reader.name, read) == ("f", '{"a": [{}]}')


def test_a_whole_answer_carries_the_call_and_no_content() -> None:
    choice = whole('{"name": "weather", "arguments": {"city": "Ulm"}}')

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Ulm"}'}
    assert call["id"]


def test_a_stream_gives_id_and_name_once_and_then_arguments() -> None:
    choices = streamed(['{"na', 'me": "weather", "argu', 'ments": {"a": {', "}}", "}"])

    calls = [c["delta"]["tool_calls"][0] for c in choices if "tool_calls" in c["delta"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": None}
    assert calls[0]["function"]["name"] == "weather"
    assert calls[0]["id"]
    assert all("id" not in call and "name" not in call["function"] for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a": {}}'
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["tool_calls"]


@pytest.mark.parametrize("text", ['{"name": "weather", "arguments": {"a": {}'])
def test_a_call_cut_short_says_so_and_keeps_what_there_is(text: str) -> None:
    choice = whole(text, LENGTH)
    calls = [
        c["delta"]["tool_calls"][0] for c in streamed([text], LENGTH) if "tool_calls" in c["delta"]
    ]

    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": {}'
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a": {}'


def test_an_output_without_a_name_stays_text() -> None:
    choice = whole('{"na', LENGTH)

    assert choice["message"]["content"] == '{"na'
    assert "tool_calls" not in choice["message"]
