from typing import Any

import pytest

from penstock.common.v1 import tokens_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_batch.planning.validator import InputLine
from penstock_batch.running.answers import Generated, Job, answered, failed, not_run
from penstock_batch.running.runner import tokens_of
from penstock_batch.state.facts import Ending, Tokens
from penstock_core import errors as e
from penstock_openai.errors import FACES
from penstock_openai.generations import CHAT, COMPLETIONS, generation_of
from penstock_openai.responses import Collector

LINE = InputLine(3, "mine", {"model": "demo"})
JOB = Job("batch_1", COMPLETIONS, 100)
Event = generate_pb2.GenerateResponse


def generated(endpoint: str = COMPLETIONS, **body: Any) -> Generated:
    least: dict[str, Any] = {"prompt": "x"} if endpoint == COMPLETIONS else {"messages": []}
    generation = generation_of(endpoint, {"model": "demo", **least, **body})
    collector = Collector(generation.form, generation.shape)
    logprob = tokens_pb2.TokenLogprob(logprob=-0.5, token_bytes="é".encode())
    usage = usage_pb2.Usage(
        prompt_tokens=7,
        completion_tokens=2,
        cached_tokens=4,
        drafted_tokens=5,
        accepted_draft_tokens=3,
    )
    for index in range(len(generation.requests)):
        for event in (
            Event(delta=generate_pb2.Delta(text="hel", logprobs=[logprob])),
            Event(delta=generate_pb2.Delta(text="lo", logprobs=[logprob])),
            Event(finished=generate_pb2.Finished(reason=generate_pb2.FINISH_REASON_LENGTH)),
            Event(completed=generate_pb2.Completed(usage=usage)),
        ):
            collector.add(index, event)
    return Generated("req_1", generation, collector)


def body_of(made: Generated) -> Any:
    response: Any = answered(JOB, LINE, made).result["response"]
    return response["body"]


def test_an_answered_line_carries_the_answer_that_the_body_would_have_got_online() -> None:
    answer = answered(JOB, LINE, generated())

    assert (answer.number, answer.custom_id, answer.is_error) == (3, "mine", False)
    assert (answer.result["custom_id"], answer.result["error"]) == ("mine", None)
    response: Any = answer.result["response"]
    assert (response["status_code"], response["request_id"]) == (200, "req_1")
    body = response["body"]
    assert (body["object"], body["model"], body["created"]) == ("text_completion", "demo", 100)
    assert body["choices"] == [
        {"index": 0, "text": "hello", "logprobs": None, "finish_reason": "length"}
    ]
    usage = body["usage"]
    assert (usage["total_tokens"], usage["prompt_tokens_details"]) == (9, {"cached_tokens": 4})
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] == 3


def test_several_prompts_of_a_line_are_choices_of_one_answer() -> None:
    body = body_of(generated(prompt=["a", "b"]))

    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["usage"]["prompt_tokens"] == 14


def test_an_answered_chat_looks_like_a_chat() -> None:
    body = body_of(generated(CHAT, logprobs=True))

    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "hello"
    assert body["choices"][0]["logprobs"]["content"][0]["bytes"] == [0xC3, 0xA9]


def test_every_attempt_gives_a_line_the_same_ids_and_other_lines_others() -> None:
    twin = InputLine(4, "x", {})
    first, second, other = (answered(JOB, line, generated()).result for line in (LINE, LINE, twin))

    assert first == second
    assert other["id"] != first["id"]
    assert other["response"]["body"]["id"] != first["response"]["body"]["id"]  # type: ignore[index]


@pytest.mark.parametrize("cls", e.all_errors())
def test_a_failed_line_has_the_status_that_http_would_have_had(cls: type[e.PenstockError]) -> None:
    answer = failed(JOB, LINE, cls("no"), "req_1")

    assert answer.is_error
    response: Any = answer.result["response"]
    assert (response["status_code"], response["request_id"]) == (FACES[cls].status, "req_1")
    assert response["body"]["error"]["code"] == FACES[cls].code


def test_a_failed_line_names_the_parameter() -> None:
    response: Any = failed(JOB, LINE, e.InvalidRequest("no", field="stop.max_tokens"), "").result

    assert response["response"]["body"]["error"]["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("ending", "code"),
    [(Ending.EXPIRED, "batch_expired"), (Ending.CANCELLED, "batch_cancelled")],
)
def test_a_line_that_was_not_run_says_how_the_batch_ended(ending: Ending, code: str) -> None:
    result: Any = not_run(JOB, LINE, ending).result

    assert result["response"] is None
    assert result["error"]["code"] == code


def test_tokens_are_taken_from_the_usage_of_every_prompt() -> None:
    assert tokens_of(generated().collector.usage()) == Tokens(7, 2, 4, 5, 3)
    assert tokens_of(generated(prompt=["a", "b"]).collector.usage()) == Tokens(14, 4, 8, 10, 6)
