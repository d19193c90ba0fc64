"""What a batch's line gets: the answer or error that its body would have got online, in its line.

Pure. OpenAI's shapes come from ``penstock_openai``; here are only the ids and the line around them.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

from penstock.common.v1 import usage_pb2
from penstock.inference.v1 import inference_service_pb2
from penstock_batch.planning.records import Answer
from penstock_batch.planning.validator import InputLine
from penstock_batch.state.facts import Ending
from penstock_core.errors import PenstockError
from penstock_openai.embeddings import embedding_answer
from penstock_openai.errors import body_of, face_of
from penstock_openai.generations import Generation
from penstock_openai.json_object import Json
from penstock_openai.responses import Collector, Head
from penstock_openai.schemas import EmbeddingBody

_OK = 200
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


class Answered(Protocol):
    """What was run for a line, and what came of it."""

    @property
    def request_id(self) -> str:
        """The request's id."""
        ...

    def body(self, unique: str, created: int) -> Json:
        """The answer as it would have come online; ``unique`` is part of its id if it has one."""
        ...

    def usage(self) -> usage_pb2.Usage:
        """Tokens that it took."""
        ...

    def cost(self) -> usage_pb2.Cost | None:
        """What it cost; None if workers have no price."""
        ...


@dataclass(frozen=True, slots=True)
class Generated:
    """A generation that was run, with all that came of it."""

    request_id: str
    generation: Generation
    collector: Collector

    def body(self, unique: str, created: int) -> Json:
        """See ``Answered.body``."""
        name = f"{self.generation.form.id_prefix}-{unique}"
        return self.collector.answer(Head(name, self.generation.model, created))

    def usage(self) -> usage_pb2.Usage:
        """See ``Answered.usage``."""
        return self.collector.usage()

    def cost(self) -> usage_pb2.Cost | None:
        """See ``Answered.cost``."""
        return self.collector.cost()


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors that were computed."""

    request_id: str
    wanted: EmbeddingBody
    response: inference_service_pb2.EmbedResponse

    def body(self, unique: str, created: int) -> Json:
        """See ``Answered.body``."""
        return embedding_answer(self.wanted, self.response)

    def usage(self) -> usage_pb2.Usage:
        """See ``Answered.usage``."""
        return usage_pb2.Usage(prompt_tokens=self.response.prompt_tokens)

    def cost(self) -> usage_pb2.Cost | None:
        """See ``Answered.cost``."""
        return self.response.cost if self.response.HasField("cost") else None


def answered(job: Job, line: InputLine, came: Answered) -> Answer:
    """The output line of an answered request; lines that share an answer differ in their ids."""
    body = came.body(_unique(job, line), job.created)
    return _line(job, line, _response(_OK, came.request_id, body), None)


def failed(job: Job, line: InputLine, error: PenstockError, request_id: str) -> Answer:
    """The error line of a request that was refused or failed, with the status HTTP would have had."""
    response = _response(face_of(error).status, request_id, body_of(error))
    return _line(job, line, response, None)


def not_run(job: Job, line: InputLine, ending: Ending) -> Answer:
    """The error line of a request that a stopped batch never answered."""
    code, message = _NOT_RUN[ending]
    return _line(job, line, None, {"code": code, "message": message})


def _response(status: int, request_id: str, body: Json) -> Json:
    return {"status_code": status, "request_id": request_id, "body": body}


def _line(job: Job, line: InputLine, response: Json | None, error: Json | None) -> Answer:
    result: Json = {
        "id": f"batch_req_{_unique(job, line)}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    is_error = response is None or response["status_code"] != _OK
    return Answer(line.number, line.custom_id, is_error, result)


def _unique(job: Job, line: InputLine) -> str:
    """The same for every attempt: whichever attempt wins, the line has one id."""
    return hashlib.sha256(f"{job.batch_id}:{line.number}".encode()).hexdigest()[:24]
