"""Generations and failures into OpenAI's output lines: the batch's edge for what a line gets.

``Generation`` gathers the events of one stream; ``answered`` and ``failed`` make the lines.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from penstock.common.v1 import tokens_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_batch.facts import Ending, Tokens
from penstock_batch.records import Answer
from penstock_batch.translate import CHAT
from penstock_batch.validator import InputLine
from penstock_core import errors as e

_FINISH = {
    generate_pb2.FINISH_REASON_STOP: "stop",
    generate_pb2.FINISH_REASON_LENGTH: "length",
    generate_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    generate_pb2.FINISH_REASON_CONSTRAINT: "stop",
}
_HTTP_STATUS: tuple[tuple[type[e.PenstockError], int], ...] = (
    (e.InvalidRequest, 400),
    (e.NotSupported, 400),
    (e.Unauthenticated, 401),
    (e.PermissionDenied, 403),
    (e.NotFound, 404),
    (e.Conflict, 409),
    (e.Overloaded, 429),
    (e.Rejected, 503),
    (e.Evicted, 503),
    (e.DeadlineExceeded, 504),
)
_NOT_RUN = {
    Ending.CANCELLED: ("batch_cancelled", "This request was not run: the batch was cancelled."),
    Ending.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
}


@dataclass(frozen=True, slots=True)
class Job:
    """What the lines of one batch have in common. ``created`` is in Unix seconds."""

    batch_id: str
    endpoint: str
    created: int


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: list[tokens_pb2.TokenLogprob] = field(default_factory=list)
    finish: str = ""


class Generation:
    """One request's answer, gathered from its events."""

    def __init__(self) -> None:
        self.request_id = ""
        self.model = ""
        self.usage: usage_pb2.Usage | None = None
        self._choices: dict[int, _Choice] = {}

    def add(self, event: generate_pb2.GenerateResponse) -> None:
        """Take one event."""
        kind = event.WhichOneof("event")
        if kind == "started":
            self.request_id, self.model = event.started.request_id, event.started.model
        elif kind == "delta":
            choice = self._choice(event.delta.choice_index)
            choice.text.append(event.delta.text)
            choice.logprobs.extend(event.delta.logprobs)
        elif kind == "finished":
            if event.finished.reason == generate_pb2.FINISH_REASON_ABORTED:
                raise e.Evicted("the generation was aborted by the server")
            self._choice(event.finished.choice_index).finish = _FINISH.get(
                event.finished.reason, "stop"
            )
        elif kind == "completed":
            self.usage = event.completed.usage

    def tokens(self) -> Tokens:
        """Tokens used."""
        u = self.usage or usage_pb2.Usage()
        return Tokens(
            u.prompt_tokens,
            u.completion_tokens,
            u.cached_tokens,
            u.drafted_tokens,
            u.accepted_draft_tokens,
        )

    def choices(self, endpoint: str, with_logprobs: bool) -> list[dict[str, Any]]:
        """The choices in OpenAI's shape."""
        shape = _chat_choice if endpoint == CHAT else _text_choice
        return [
            shape(index, choice, with_logprobs) for index, choice in sorted(self._choices.items())
        ]

    def _choice(self, index: int) -> _Choice:
        return self._choices.setdefault(index, _Choice())


def answered(
    job: Job, line: InputLine, generation: Generation, with_logprobs: bool = False
) -> Answer:
    """The output line of an answered request."""
    unique = _unique(job, line)
    chat = job.endpoint == CHAT
    used = generation.tokens()
    body = {
        "id": f"chatcmpl-{unique}" if chat else f"cmpl-{unique}",
        "object": "chat.completion" if chat else "text_completion",
        "created": job.created,
        "model": generation.model or line.body["model"],
        "choices": generation.choices(job.endpoint, with_logprobs),
        "usage": {
            "prompt_tokens": used.prompt,
            "completion_tokens": used.completion,
            "total_tokens": used.prompt + used.completion,
            "prompt_tokens_details": {"cached_tokens": used.cached},
        },
    }
    return _line(job, line, _response(200, generation.request_id, body), None)


def failed(job: Job, line: InputLine, error: e.PenstockError, request_id: str = "") -> Answer:
    """The error line of a request that was run and refused, with the status HTTP would have had."""
    status = next((code for cls, code in _HTTP_STATUS if isinstance(error, cls)), 500)
    param = error.field if isinstance(error, e.InvalidRequest) else error.metadata.get("field")
    body = {
        "error": {
            "message": error.message,
            "type": "invalid_request_error" if status < 429 else "server_error",
            "param": param.rpartition(".")[2] or None if param else None,
            "code": error.slug,
        }
    }
    return _line(job, line, _response(status, request_id, body), None)


def not_run(job: Job, line: InputLine, ending: Ending) -> Answer:
    """The error line of a request that a stopped batch never answered."""
    code, message = _NOT_RUN[ending]
    return _line(job, line, None, {"code": code, "message": message})


def _response(status: int, request_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": request_id, "body": body}


def _line(
    job: Job,
    line: InputLine,
    response: dict[str, Any] | None,
    error: dict[str, str] | None,
) -> Answer:
    result = {
        "id": f"batch_req_{_unique(job, line)}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    is_error = response is None or response["status_code"] != 200
    return Answer(line.number, line.custom_id, is_error, result)


def _unique(job: Job, line: InputLine) -> str:
    """The same for every attempt: whichever attempt wins, the line has one id."""
    return hashlib.sha256(f"{job.batch_id}:{line.number}".encode()).hexdigest()[:24]


def _text_choice(index: int, choice: _Choice, with_logprobs: bool) -> dict[str, Any]:
    logprobs = None
    if with_logprobs:
        tokens = [_text(entry.token_bytes) for entry in choice.logprobs]
        offsets, position = [], 0
        for token in tokens:
            offsets.append(position)
            position += len(token)
        logprobs = {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in choice.logprobs],
            "top_logprobs": [
                {_text(top.token_bytes): top.logprob for top in entry.top}
                for entry in choice.logprobs
            ],
            "text_offset": offsets,
        }
    return {
        "index": index,
        "text": "".join(choice.text),
        "logprobs": logprobs,
        "finish_reason": choice.finish,
    }


def _chat_choice(index: int, choice: _Choice, with_logprobs: bool) -> dict[str, Any]:
    entries = [
        {**_token(entry), "top_logprobs": [_token(top) for top in entry.top]}
        for entry in choice.logprobs
    ]
    return {
        "index": index,
        "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
        "logprobs": {"content": entries, "refusal": None} if with_logprobs else None,
        "finish_reason": choice.finish,
    }


def _token(entry: tokens_pb2.TokenLogprob | tokens_pb2.TopLogprob) -> dict[str, Any]:
    return {
        "token": _text(entry.token_bytes),
        "logprob": entry.logprob,
        "bytes": list(entry.token_bytes),
    }


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
