"""Written calls are found however the output comes in pieces, and what is none stays as it was."""

import json
import re
from itertools import groupby, pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from penstock_openai.written_calls import Part, WrittenCall, WrittenCalls

NAMES = frozenset({"f", 'odd "name"'})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a"\\{}[]<> ,:\n\u00e9'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=3) | st.just("</tool_call>"), JSON, max_size=3)
SPACE = st.text(alphabet=" \n", max_size=3)
CALLS = st.tuples(st.sampled_from(sorted(NAMES)), ARGUMENTS)
# Of these anything may be made: calls, what almost is one, and text.
SCRAPS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "<|python_tag|>",
        "<tool", "[TOOL", "<", "[", "]", "{", "}", ",", ";", " ", "\n", "text", '"', "\\",
        '{"name": "f", "arguments": {}}', '{"name": "f", "parameters": {"a": [1, {}]}}',
        '{"name": "other", "arguments": {}}', '{"name": "f"', ', "arguments": {"a": "', '"}}',
    ]
)  # fmt: skip
OUTPUTS = st.lists(SCRAPS, max_size=12).map("".join)
PLAIN = st.text(alphabet="ab .,{}\n", max_size=8).map(lambda text: f"x{text}x")


def read(pieces: list[str], most: int | None = None) -> list[str | tuple[str, str]]:
    """What was found, without ids, neighbouring texts as one."""
    reader = WrittenCalls(NAMES, most=most)
    parts = [part for piece in pieces for part in reader.read(piece)] + reader.end()
    assert reader.count == sum(isinstance(part, WrittenCall) for part in parts)
    return merged(parts)


def merged(parts: list[Part]) -> list[str | tuple[str, str]]:
    found: list[str | tuple[str, str]] = []
    for is_text, run in groupby(parts, key=lambda part: isinstance(part, str)):
        if is_text:
            found.append("".join(part for part in run if isinstance(part, str)))
        else:
            found += [(p.name, p.arguments) for p in run if isinstance(p, WrittenCall)]
    return found


def cut(text: str, data: st.DataObject) -> list[str]:
    cuts = data.draw(st.sets(st.integers(0, len(text))))
    return [text[start:stop] for start, stop in pairwise(sorted(cuts | {0, len(text)}))]


def written(call: tuple[str, object], key: str = "arguments", indent: int | None = None) -> str:
    return json.dumps({"name": call[0], key: call[1]}, indent=indent)


@given(OUTPUTS, st.none() | st.integers(0, 2), st.data())
def test_pieces_tell_the_same_as_the_whole(
    output: str, most: int | None, data: st.DataObject
) -> None:
    whole = read([output], most)

    assert read(cut(output, data), most) == whole
    assert read(list(output), most) == whole


@given(OUTPUTS, st.none() | st.integers(0, 2))
@example('<tool_call>{"name": "f", "arguments": {}}</tool_call>\n', None)
@example('[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]', 1)
def test_nothing_is_lost_but_the_notation_of_calls(output: str, most: int | None) -> None:
    """Between two parts of text lie, in the output, white space, marks and the calls found there."""
    pattern = ""
    for part in read([output], most):
        if isinstance(part, str):
            pattern += re.escape(part)
            continue
        name, arguments = (re.escape(each) for each in (json.dumps(part[0]), part[1]))
        # An array, a mark or a tag may stand around the object, other fields in it.
        around = r"[\s\[,]*(?:<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>)?[\s\[]*"
        behind = r"[\s\]]*(?:</tool_call>|<?/?\w{0,9})?\s*?"
        pattern += rf'{around}\{{\s*"name":\s*{name},\s*"\w+":\s*{arguments}\}}{behind}'

    assert re.fullmatch(pattern + r"\s*", output)


@given(st.lists(CALLS, min_size=1, max_size=3), st.none() | PLAIN, st.data())
def test_tagged_calls_are_found_with_the_text_before_them(
    calls: list[tuple[str, object]], text: str | None, data: st.DataObject
) -> None:
    indent = data.draw(st.none() | st.just(2))
    output = "" if text is None else text
    for call in calls:
        before, inner, after = (data.draw(SPACE) for _ in range(3))
        json_text = written(call, data.draw(st.sampled_from(["arguments", "parameters"])), indent)
        output += f"{before}<tool_call>{inner}{json_text}{after}</tool_call>"

    found = read(cut(output + data.draw(SPACE), data))

    assert [part for part in found if isinstance(part, str)] == ([] if text is None else [text])
    made = [part for part in found if not isinstance(part, str)]
    assert [(name, json.loads(arguments)) for name, arguments in made] == calls


@given(st.lists(CALLS, min_size=1, max_size=3), st.booleans(), st.data())
def test_a_whole_answer_of_calls_is_found_behind_thoughts(
    calls: list[tuple[str, object]], thinks: bool, data: st.DataObject
) -> None:
    mark = data.draw(st.sampled_from(["", "[TOOL_CALLS]", "<|python_tag|>"]))
    objects = [written(call, "parameters") for call in calls]
    values = objects[0] if len(calls) == 1 else f"[{', '.join(objects)}]"
    thought = "<think>\nuse <tool_call>?\n</think>" if thinks else ""
    space = data.draw(SPACE)

    found = read(cut(f"{thought}{space}{mark}{space}{values}{space}", data))

    assert found[: int(thinks)] == ([thought] if thinks else [])
    made = [(p[0], json.loads(p[1])) for p in found[int(thinks) :] if not isinstance(p, str)]
    assert made == calls


@given(CALLS, st.data())
def test_a_call_that_is_cut_stays_as_it_was_written(
    call: tuple[str, object], data: st.DataObject
) -> None:
    text = data.draw(st.sampled_from(["", "Well.\n<tool_call>\n", "<tool_call>", "[TOOL_CALLS]["]))
    whole = text + written(call)
    output = whole[: data.draw(st.integers(0, len(whole) - 1))]

    assert read(cut(output, data)) == ([output] if output else [])
