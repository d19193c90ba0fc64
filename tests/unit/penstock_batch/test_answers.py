import pytest

from penstock.common.v1 import tokens_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_batch.answers import Generation, Job, answered, failed, not_run
from penstock_batch.facts import Ending, Tokens
from penstock_batch.translate import CHAT, COMPLETIONS
from penstock_batch.validator import InputLine
from penstock_core import errors as e

LINE = InputLine(3, "mine", {"model": "demo"})
TEXT_JOB = Job("batch_1", COMPLETIONS, 100)
CHAT_JOB = Job("batch_1", CHAT, 100)
Event = generate_pb2.GenerateResponse


def generation() -> Generation:
    logprob = tokens_pb2.TokenLogprob(token_id=1, logprob=-0.5, token_bytes="é".encode())
    logprob.top.add(token_id=2, logprob=-1.5, token_bytes=b"b")
    usage = usage_pb2.Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=4)
    made = Generation()
    for event in (
        Event(started=generate_pb2.Started(request_id="req_1", model="demo")),
        Event(delta=generate_pb2.Delta(text="hel", logprobs=[logprob])),
        Event(delta=generate_pb2.Delta(text="lo", logprobs=[logprob])),
        Event(finished=generate_pb2.Finished(reason=generate_pb2.FINISH_REASON_LENGTH)),
        Event(completed=generate_pb2.Completed(usage=usage)),
    ):
        made.add(event)
    return made


def test_an_answered_completion_has_openais_shape() -> None:
    answer = answered(TEXT_JOB, LINE, generation())
    assert (answer.number, answer.custom_id, answer.is_error) == (3, "mine", False)
    assert answer.result["custom_id"] == "mine"
    assert answer.result["error"] is None
    response = answer.result["response"]
    assert (response["status_code"], response["request_id"]) == (200, "req_1")
    body = response["body"]
    assert (body["object"], body["model"], body["created"]) == ("text_completion", "demo", 100)
    assert body["choices"] == [
        {"index": 0, "text": "hello", "logprobs": None, "finish_reason": "length"}
    ]
    assert body["usage"]["total_tokens"] == 9
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


def test_an_answered_chat_has_openais_shape() -> None:
    body = answered(CHAT_JOB, LINE, generation()).result["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "hello"


def test_log_probabilities_come_if_they_were_asked_for() -> None:
    text = answered(TEXT_JOB, LINE, generation(), with_logprobs=True).result
    logprobs = text["response"]["body"]["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["é", "é"]
    assert logprobs["text_offset"] == [0, 1]
    assert logprobs["top_logprobs"][0] == {"b": -1.5}
    chat = answered(CHAT_JOB, LINE, generation(), with_logprobs=True).result
    entry = chat["response"]["body"]["choices"][0]["logprobs"]["content"][0]
    assert (entry["token"], entry["bytes"]) == ("é", [0xC3, 0xA9])


def test_every_attempt_gives_a_line_the_same_id_and_other_lines_another() -> None:
    first, second = (answered(TEXT_JOB, LINE, generation()).result["id"] for _ in range(2))
    assert first == second
    assert not_run(TEXT_JOB, InputLine(4, "x", {}), Ending.EXPIRED).result["id"] != first


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (e.InvalidRequest("no", field="stop.max_tokens"), 400),
        (e.NotSupported("no"), 400),
        (e.ModelNotFound("no"), 404),
        (e.QuotaExceeded("no"), 429),
        (e.WorkerLost("no"), 503),
        (e.DeadlineExceeded("no"), 504),
        (e.InternalError("no"), 500),
    ],
)
def test_a_failed_line_has_the_status_that_http_would_have_had(
    error: e.PenstockError, status: int
) -> None:
    answer = failed(TEXT_JOB, LINE, error, "req_1")
    assert answer.is_error
    response = answer.result["response"]
    assert response["status_code"] == status
    assert response["body"]["error"]["code"] == error.slug


def test_a_failed_line_names_the_field() -> None:
    error = e.InvalidRequest("no", field="stop.max_tokens")
    response = failed(TEXT_JOB, LINE, error).result["response"]
    assert response["body"]["error"]["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("ending", "code"),
    [(Ending.EXPIRED, "batch_expired"), (Ending.CANCELLED, "batch_cancelled")],
)
def test_a_line_that_was_not_run_says_how_the_batch_ended(ending: Ending, code: str) -> None:
    result = not_run(TEXT_JOB, LINE, ending).result
    assert result["response"] is None
    assert result["error"]["code"] == code


def test_an_aborted_generation_is_no_answer() -> None:
    aborted = generate_pb2.Finished(reason=generate_pb2.FINISH_REASON_ABORTED)
    with pytest.raises(e.Evicted):
        Generation().add(Event(finished=aborted))


def test_tokens_are_taken_from_the_usage() -> None:
    assert generation().tokens() == Tokens(7, 2, 4)
