"""What a resume is told, and what of a later attempt is new."""

import pytest

from penstock.common.v1 import tokens_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.blocks import pack_tokens, unpack_tokens
from penstock_core.cost.pricing import Price
from penstock_core.errors import WorkerLost
from penstock_core.requests.transcript import Response, Transcript

ELAPSED = usage_pb2.Timing(ttft_s=0.5, total_s=2.0)


def delta(first: int, tokens: list[int], text: str, index: int = 0) -> Response:
    """Tokens with a log-probability of -0.5 each."""
    logprobs = [tokens_pb2.TokenLogprob(token_id=t, logprob=-0.5) for t in tokens]
    ids = tokens_pb2.TokenIds(ids=pack_tokens(tokens))
    return Response(
        delta=generate_pb2.Delta(
            choice_index=index, first_position=first, tokens=ids, text=text, logprobs=logprobs
        )
    )


def echo(text: str) -> Response:
    """The prompt's text."""
    return Response(delta=generate_pb2.Delta(text=text, is_echo=True))


def finished(index: int = 0) -> Response:
    """The end of a sample."""
    return Response(
        finished=generate_pb2.Finished(choice_index=index, reason=generate_pb2.FINISH_REASON_LENGTH)
    )


STARTED = Response(started=generate_pb2.Started(seed=9, cached_tokens=64))


def transcript(*messages: Response, best_of: int = 0) -> Transcript:
    """One of a request that has had these messages."""
    request = generate_pb2.GenerateRequest()
    if best_of:
        request.sampling.best_of = best_of
    made = Transcript(request)
    for message in messages:
        made.note(message)
    return made


def test_a_resume_tells_tokens_characters_ends_and_what_was_used() -> None:
    had = transcript(STARTED, echo("prompt"), delta(0, [1, 2], "a\U0001f600"), delta(0, [7], "", 1),
                     finished(1))  # fmt: skip

    state = had.resume(2, ELAPSED)

    assert [c.choice_index for c in state.choices] == [0, 1]
    assert unpack_tokens(state.choices[0].emitted.ids) == [1, 2]
    assert state.choices[0].emitted_chars == 2, "characters, not bytes; the echo not counted"
    assert state.choices[0].cumulative_logprob == -1.0
    assert state.choices[1].finish_reason == generate_pb2.FINISH_REASON_LENGTH
    assert (state.seed, state.attempt, state.usage.cached_tokens) == (9, 2, 64)
    assert (state.timing.ttft_s, state.timing.total_s) == (0.5, 2.0)


def test_an_attempt_that_was_a_resume_itself_is_added_to() -> None:
    request = generate_pb2.GenerateRequest()
    request.resume.attempt = 3
    request.resume.usage.cached_tokens = 5
    request.resume.timing.ttft_s, request.resume.timing.total_s = 0.1, 7.0
    request.resume.choices.add(emitted_chars=1).emitted.ids = pack_tokens([4])
    made = Transcript(request)
    made.note(delta(1, [5], "b"))

    state = made.resume(1, ELAPSED)

    assert unpack_tokens(state.choices[0].emitted.ids) == [4, 5]
    assert state.choices[0].emitted_chars == 2
    assert state.attempt == 4
    assert state.usage.cached_tokens == 5
    assert (state.timing.ttft_s, state.timing.total_s) == (0.1, 9.0)


def test_a_second_start_and_a_second_end_are_no_news() -> None:
    had = transcript(STARTED, delta(0, [1], "a"), finished())

    assert had.admit(STARTED) is None
    assert had.admit(finished()) is None
    assert had.admit(finished(1)) is not None


def test_a_gap_between_attempts_is_a_lost_worker() -> None:
    had = transcript(STARTED, delta(0, [1], "a"))

    with pytest.raises(WorkerLost, match="position 2"):
        had.admit(delta(2, [3], "c"))


def test_tokens_that_come_again_are_cut_off() -> None:
    had = transcript(STARTED, delta(0, [1, 2], ""))

    new = had.admit(delta(1, [2, 3], "c"))

    assert new is not None
    assert unpack_tokens(new.delta.tokens.ids) == [3]
    assert new.delta.first_position == 2
    assert [p.token_id for p in new.delta.logprobs] == [3]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranked_samples_are_replayed_whatever_the_messages_sizes(size: int) -> None:
    had = transcript(STARTED, echo("prompt"), delta(0, [1, 2], "ab"), best_of=2)
    tokens, text = [1, 2, 3, 4, 5], "abcde"
    assert not had.resume(1, ELAPSED).choices
    new_tokens: list[int] = []
    new_text = ""

    assert had.admit(echo("prompt")) is None
    for at in range(0, len(tokens), size):
        new = had.admit(delta(at, tokens[at : at + size], text[at : at + size]))
        if new is not None:
            had.note(new)
            new_tokens += unpack_tokens(new.delta.tokens.ids)
            new_text += new.delta.text

    assert (new_tokens, new_text) == ([3, 4, 5], "cde")


def told_spent(first: int, seconds: float) -> Response:
    """A token, and what its attempt has taken so far."""
    message = delta(first, [1], "a")
    message.delta.spent.CopyFrom(Price(3600.0, "USD").cost(seconds, 0.0))
    return message


def test_what_attempts_took_adds_up_and_is_told_once() -> None:
    made = transcript(STARTED, told_spent(0, 1.0), told_spent(1, 2.0))
    first = made.resume(1, ELAPSED)
    assert made.resume(1, ELAPSED).cost == first.cost, "asking again changes nothing"
    made.note(told_spent(2, 0.5))
    second = made.resume(2, ELAPSED)

    assert (first.cost.amount, first.timing.worker_s) == (2.0, 2.0)
    assert (second.cost.amount, second.cost.prefill_s, second.cost.currency) == (2.5, 2.5, "USD")


def test_a_callers_own_resume_counts_in() -> None:
    request = generate_pb2.GenerateRequest()
    request.resume.attempt = 1
    request.resume.cost.CopyFrom(Price(3600.0, "USD").cost(1.0, 1.0))
    made = Transcript(request)
    made.note(told_spent(0, 0.5))

    assert made.resume(1, ELAPSED).cost.amount == 2.5
