"""The client's own types on their way to the wire and back."""

import math

import pytest

from penstock.common.v1 import sampling_pb2, tokens_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_client.options import Constraint, ConstraintKind, GenerateOptions, Message
from penstock_client.results import Completed, Delta, Finished, Started, Usage, Vote, collect
from penstock_client.translate import from_response, to_request
from penstock_core.blocks import pack_tokens, unpack_tokens
from penstock_core.errors import InvalidRequest

Response = generate_pb2.GenerateResponse


def test_absent_options_stay_absent_on_the_wire() -> None:
    request = to_request("demo", "hello", GenerateOptions())

    assert request.text == "hello"
    assert request.sampling == sampling_pb2.SamplingParams()
    assert not request.stop.HasField("max_tokens")
    assert not request.output.HasField("logprobs")
    assert not request.HasField("constraint")
    assert request.priority == sampling_pb2.PRIORITY_CLASS_STANDARD


def test_zero_is_a_value_and_not_an_absence() -> None:
    options = GenerateOptions(temperature=0.0, top_k=0, seed=0, logprobs=0, min_tokens=0)
    request = to_request("demo", "hello", options)

    for name in ("temperature", "top_k", "seed"):
        assert request.sampling.HasField(name)
    assert request.output.HasField("logprobs")
    assert request.stop.HasField("min_tokens")


def test_every_option_reaches_its_field() -> None:
    options = GenerateOptions(
        max_tokens=5, temperature=0.5, top_p=0.9, n=3, best_of=4, logit_bias={7: -1.5},
        ignore_eos=True, stop=("\n",), stop_token_ids=(9,), echo=True, adapter="lora",
        priority="batch", speculation=False, majority_vote=True, vote_field="answer",
        request_id="req_a",
    )  # fmt: skip
    request = to_request("demo", "hello", options)

    assert (request.stop.max_tokens, list(request.stop.strings)) == (5, ["\n"])
    assert list(request.stop.token_ids) == [9]
    assert math.isclose(request.sampling.top_p, 0.9, rel_tol=1e-6)
    assert (request.sampling.n, request.sampling.best_of) == (3, 4)
    assert dict(request.sampling.logit_bias) == {7: -1.5}
    assert request.sampling.ignore_eos
    assert request.output.echo
    assert request.priority == sampling_pb2.PRIORITY_CLASS_BATCH
    assert request.speculation == sampling_pb2.SPECULATION_MODE_OFF
    assert request.aggregation == sampling_pb2.AGGREGATION_MAJORITY_VOTE
    assert (request.adapter, request.vote_field, request.request_id) == ("lora", "answer", "req_a")


def test_prompt_is_text_tokens_or_turns_by_its_type() -> None:
    tokens = to_request("demo", [1, 2, 3], GenerateOptions())
    chat = to_request("demo", [Message("user", "hi"), Message("tool", "4")], GenerateOptions())

    assert unpack_tokens(tokens.tokens.ids) == [1, 2, 3]
    assert [(m.role, m.content) for m in chat.chat.messages] == [("user", "hi"), ("tool", "4")]


@pytest.mark.parametrize(
    ("prompt", "field"),
    [([-1], "tokens.ids"), ("\ud800", "text"), ([Message("user", "\ud800")], "chat.messages")],
)
def test_prompt_that_cannot_travel_names_its_field(
    prompt: str | list[int] | list[Message], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_request("demo", prompt, GenerateOptions())

    assert caught.value.field == field


@pytest.mark.parametrize("kind", ["json_schema", "json_object", "regex", "grammar", "choice"])
def test_each_constraint_is_the_kind_it_says(kind: ConstraintKind) -> None:
    constraint = Constraint(kind, text="x", options=("a", "b"))
    request = to_request("demo", "hello", GenerateOptions(constraint=constraint))

    assert request.constraint.WhichOneof("kind") == kind


def test_stream_folds_into_choices_in_order_whatever_the_interleaving() -> None:
    def delta(choice: int, position: int, text: str) -> Response:
        tokens = tokens_pb2.TokenIds(ids=pack_tokens([position]))
        return Response(
            delta=generate_pb2.Delta(
                choice_index=choice, first_position=position, tokens=tokens, text=text
            )
        )

    stop, length = generate_pb2.FINISH_REASON_STOP, generate_pb2.FINISH_REASON_LENGTH
    usage = usage_pb2.Usage(prompt_tokens=2, completion_tokens=3, accepted_draft_tokens=1)
    vote = generate_pb2.MajorityVote(choice_index=1, answer="4", votes=2, total=2)
    messages = [
        Response(started=generate_pb2.Started(request_id="req_a", seed=5)),
        delta(1, 0, "x"),
        delta(0, 0, "a"),
        delta(1, 1, "y"),
        Response(finished=generate_pb2.Finished(choice_index=1, reason=stop, matched_string="\n")),
        Response(finished=generate_pb2.Finished(choice_index=0, reason=length)),
        Response(completed=generate_pb2.Completed(usage=usage, vote=vote)),
    ]
    events = [event for m in messages if (event := from_response(m, "proxy")) is not None]
    whole = collect(events)

    assert [type(e) for e in events] == [
        Started, Delta, Delta, Delta, Finished, Finished, Completed,
    ]  # fmt: skip
    assert [(c.index, c.text, c.finish_reason) for c in whole.choices] == [
        (0, "a", "length"),
        (1, "xy", "stop"),
    ]
    assert whole.choices[1].matched_stop == "\n"
    assert whole.choices[1].token_ids == (0, 1)
    assert whole.usage.accepted_draft_tokens == 1
    assert whole.vote == Vote(1, "4", 2, 2)
    assert whole.started.seed == 5


def test_logprobs_keep_tokens_bytes_and_alternatives() -> None:
    entry = tokens_pb2.TokenLogprob(token_id=3, logprob=-0.5, token_bytes=b"\xc3")
    entry.top.add(token_id=4, logprob=-1.0)
    event = from_response(Response(delta=generate_pb2.Delta(logprobs=[entry])), "proxy")

    assert isinstance(event, Delta)
    assert event.logprobs[0].token_bytes == b"\xc3"
    assert event.logprobs[0].top == ((4, -1.0),)


def test_message_of_an_unknown_kind_is_passed_over() -> None:
    assert from_response(Response(), "proxy") is None


def test_stream_without_an_end_has_no_result() -> None:
    with pytest.raises(ValueError, match="not ended"):
        collect([Delta(0, 0, (1,), "a")])


def test_usage_tells_what_drafts_gained() -> None:
    drafted = Usage(completion_tokens=12, drafted_tokens=12, accepted_draft_tokens=8)
    plain = Usage(completion_tokens=12)

    assert (drafted.acceptance_rate, drafted.tokens_per_step) == (8 / 12, 3)
    assert (plain.acceptance_rate, plain.tokens_per_step) == (None, 1)
    assert Usage().tokens_per_step == 0
