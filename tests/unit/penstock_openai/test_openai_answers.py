"""Wire events as OpenAI's answers."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.common.v1 import tokens_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.cost.pricing import Price
from penstock_openai.formats import ChatFormat, CompletionFormat
from penstock_openai.json_object import Json
from penstock_openai.logprobs import chat_logprobs, completion_logprobs, token_text
from penstock_openai.responses import Chunks, Collector, Head, Shape

Event = generate_pb2.GenerateResponse
HEAD = Head("id-1", "m", 7)
ONE = Shape(prompts=1, samples=1)


def delta(text: str, index: int = 0) -> Event:
    return Event(delta=generate_pb2.Delta(choice_index=index, text=text))


def finished(index: int = 0, reason: int = generate_pb2.FINISH_REASON_STOP) -> Event:
    return Event(finished=generate_pb2.Finished(choice_index=index, reason=reason))  # type: ignore[arg-type]


def completed(**usage: int) -> Event:
    return Event(completed=generate_pb2.Completed(usage=usage_pb2.Usage(**usage)))


def token(raw: bytes, logprob: float = -1.0) -> tokens_pb2.TokenLogprob:
    return tokens_pb2.TokenLogprob(token_bytes=raw, logprob=logprob)


def content_of(chunks: list[Json]) -> list[object]:
    found = []
    for chunk in chunks:
        choices = chunk["choices"]
        assert isinstance(choices, list)
        found += [choice["delta"] for choice in choices]
    return found


def test_tokens_without_text_make_no_chunk() -> None:
    chunks = Chunks(CompletionFormat(logprobs=False), ONE, HEAD, usage=False)

    assert chunks.render(0, Event(started=generate_pb2.Started())) == []
    assert chunks.render(0, delta("")) == []
    assert len(chunks.render(0, delta("x"))) == 1


def test_a_choice_that_ends_without_a_token_still_opens_and_ends() -> None:
    chunks = Chunks(ChatFormat(logprobs=False), ONE, HEAD, usage=False)

    rendered = chunks.render(0, finished())

    assert content_of(rendered) == [{"role": "assistant", "content": ""}, {}]


def test_chunks_carry_a_null_usage_only_if_usage_will_follow() -> None:
    with_usage = Chunks(CompletionFormat(logprobs=False), ONE, HEAD, usage=True)
    without = Chunks(CompletionFormat(logprobs=False), ONE, HEAD, usage=False)

    assert with_usage.render(0, delta("x"))[0]["usage"] is None
    assert "usage" not in without.render(0, delta("x"))[0]
    assert without.closing() == []


def test_an_unfinished_tool_call_reason_is_named_as_openai_does() -> None:
    chunks = Chunks(ChatFormat(logprobs=False), ONE, HEAD, usage=False)

    (_, last) = chunks.render(0, finished(reason=generate_pb2.FINISH_REASON_TOOL_CALLS))

    assert last["choices"][0]["finish_reason"] == "tool_calls"  # type: ignore[index]


def test_usage_adds_up_over_prompts() -> None:
    collector = Collector(CompletionFormat(logprobs=False), Shape(2, 1))
    for prompt, tokens in ((0, 3), (1, 4)):
        collector.add(prompt, delta(f"t{prompt}"))
        collector.add(prompt, finished())
        collector.add(
            prompt, completed(prompt_tokens=10, completion_tokens=tokens, cached_tokens=5)
        )

    answer = collector.answer(HEAD)

    usage = answer["usage"]
    assert isinstance(usage, dict)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        20,
        7,
        27,
    )
    assert usage["prompt_tokens_details"] == {"cached_tokens": 10}


def test_a_masked_tokens_logprob_is_still_json() -> None:
    rendered = chat_logprobs([token(b"a", float("-inf"))])

    assert rendered["content"][0]["logprob"] == -9999.0  # type: ignore[index]


def test_part_of_a_character_is_shown_as_its_bytes() -> None:
    assert token_text("é".encode()) == "é"
    assert token_text(b"\xc3") == "bytes:\\xc3"


@given(st.text(min_size=1, max_size=40), st.data())
def test_text_offsets_point_into_the_text(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw)), max_size=10)) | {len(raw)})
    pieces = [raw[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]

    offsets = completion_logprobs([token(piece) for piece in pieces], 5)["text_offset"]

    # A token that begins with whole characters begins at its text.
    assert isinstance(offsets, list)
    for piece, offset in zip(pieces, offsets, strict=True):
        shown = token_text(piece)
        if not shown.startswith("bytes:\\x"):
            assert text[offset - 5 :].startswith(shown)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.text(min_size=1, max_size=4)), max_size=20),
)
def test_a_stream_and_a_whole_answer_hold_the_same_text(
    deltas: list[tuple[int, str]],
) -> None:
    shape = Shape(prompts=1, samples=3)
    collector = Collector(ChatFormat(logprobs=False), shape)
    chunks = Chunks(ChatFormat(logprobs=False), shape, HEAD, usage=False)
    events = [delta(text, index) for index, text in deltas] + [finished(i) for i in range(3)]

    streamed = ["", "", ""]
    for event in events:
        collector.add(0, event)
        for chunk in chunks.render(0, event):
            choice: Any = chunk["choices"][0]  # type: ignore[index]
            streamed[choice["index"]] += choice["delta"].get("content", "")

    choices: Any = collector.answer(HEAD)["choices"]
    whole = [choice["message"]["content"] for choice in choices]
    assert streamed == whole


def test_costs_of_several_prompts_are_told_one_by_one_and_together() -> None:
    collector = Collector(CompletionFormat(logprobs=False), Shape(prompts=2, samples=1))
    for prompt, seconds in enumerate((1.0, 2.0)):
        event = completed(prompt_tokens=1)
        event.completed.cost.CopyFrom(Price(3600.0, "USD").cost(seconds, 0.5))
        collector.add(prompt, event)

    extension: Any = collector.answer(HEAD)["penstock"]
    assert [each["cost"]["micros"] for each in extension["prompts"]] == [1_500_000, 2_500_000]
    assert extension["cost"]["micros"] == 4_000_000
    assert (extension["cost"]["prefill_s"], extension["cost"]["decode_s"]) == (3.0, 1.0)


def test_without_a_price_answers_have_no_cost() -> None:
    collector = Collector(CompletionFormat(logprobs=False), ONE)
    collector.add(0, completed(prompt_tokens=1))

    extension: Any = collector.answer(HEAD)["penstock"]
    assert "cost" not in extension
    assert collector.cost() is None
