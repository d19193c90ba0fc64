"""Wire events as OpenAI's answers: collected into one object, or rendered as chunks. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.common.v1 import usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.ids import new_id
from penstock_openai.answer import Choice, Summary
from penstock_openai.formats import Format
from penstock_openai.json_object import Json
from penstock_openai.logprobs import count_chars


@dataclass(frozen=True, slots=True)
class Shape:
    """How many choices an answer has: sample j of prompt i is choice i * samples + j."""

    prompts: int
    samples: int


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one answer repeats."""

    id: str
    model: str
    created: int

    @classmethod
    def new(cls, form: Format, model: str, now_unix_s: float) -> "Head":
        """The head of a new answer."""
        return cls(new_id(form.id_prefix).replace("_", "-", 1), model, int(now_unix_s))

    def envelope(self, kind: str, choices: list[Json]) -> Json:
        """An object of this answer."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class _Choices:
    """The choices of an answer, made as they begin: how many are allowed the router decides."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._begun: dict[int, Choice] = {}

    def of(self, prompt: int, sample: int) -> Choice:
        """A sample of a prompt."""
        index = prompt * self._shape.samples + sample
        return self._begun.setdefault(index, Choice(index))

    def all(self) -> list[Choice]:
        """Every choice that the answer has, in order."""
        return [self.of(0, index) for index in range(self._shape.prompts * self._shape.samples)]


class Collector:
    """Collects an answer that is not streamed."""

    def __init__(self, form: Format, shape: Shape) -> None:
        self._form = form
        self._choices = _Choices(shape)
        self._summary = Summary(shape.prompts)

    def add(self, prompt: int, event: generate_pb2.GenerateResponse) -> None:
        """Take an event of a prompt."""
        self._summary.note(prompt, event)
        kind = event.WhichOneof("event")
        if kind == "delta":
            choice = self._choices.of(prompt, event.delta.choice_index)
            self._extend(choice, event.delta)
        elif kind == "finished":
            self._choices.of(prompt, event.finished.choice_index).finish(event.finished)

    def usage(self) -> usage_pb2.Usage:
        """Tokens used by all prompts."""
        return self._summary.total()

    def cost(self) -> usage_pb2.Cost | None:
        """What all prompts cost; None if workers have no price."""
        return self._summary.cost()

    @property
    def is_kept(self) -> bool:
        """Whether all of it came from memory."""
        return self._summary.is_kept

    def answer(self, head: Head) -> Json:
        """The whole answer under a head; several may share it."""
        choices = [self._rendered(choice) for choice in self._choices.all()]
        answer = head.envelope(self._form.whole_object, choices)
        answer["usage"] = self._summary.usage()
        answer["penstock"] = self._summary.extension()
        return answer

    def _rendered(self, choice: Choice) -> Json:
        rendered: Json = {"index": choice.index, **self._form.whole(choice)}
        return _ended(rendered, choice, self._form)

    @staticmethod
    def _extend(choice: Choice, delta: generate_pb2.Delta) -> None:
        choice.text.append(delta.text)
        choice.tokens.extend(delta.logprobs)
        if delta.is_echo:
            choice.echo_chars += len(delta.text)


class Chunks:
    """Renders a streamed answer; keeps positions, and text only where it may be a tool call."""

    def __init__(self, form: Format, shape: Shape, head: Head, *, usage: bool) -> None:
        self._form = form
        self._head = head
        self._usage = usage
        self._choices = _Choices(shape)
        self._summary = Summary(shape.prompts)

    def render(self, prompt: int, event: generate_pb2.GenerateResponse) -> list[Json]:
        """The chunks that an event of a prompt makes; none for most events that carry no text."""
        self._summary.note(prompt, event)
        kind = event.WhichOneof("event")
        if kind == "delta":
            choice = self._choices.of(prompt, event.delta.choice_index)
            return [self._chunk(part) for part in self._delta(choice, event.delta)]
        if kind == "finished":
            choice = self._choices.of(prompt, event.finished.choice_index)
            choice.finish(event.finished)
            return [self._chunk(part) for part in self._finish(choice)]
        return []

    def closing(self) -> list[Json]:
        """The chunk with the usage, if it was asked for."""
        if not self._usage:
            return []
        chunk = self._head.envelope(self._form.chunk_object, [])
        return [chunk | {"usage": self._summary.usage(), "penstock": self._summary.extension()}]

    def _delta(self, choice: Choice, delta: generate_pb2.Delta) -> Iterator[Json]:
        yield from self._begin(choice)
        if delta.text or delta.logprobs:
            for piece in self._form.pieces(choice, delta.text, delta.logprobs):
                yield {"index": choice.index, **piece, "finish_reason": None}
        # Text lags behind tokens, so offsets are counted over tokens; an echo has text only.
        if delta.is_echo and not delta.logprobs:
            choice.chars += len(delta.text)
        choice.chars += sum(count_chars(token.token_bytes) for token in delta.logprobs)

    def _finish(self, choice: Choice) -> Iterator[Json]:
        yield from self._begin(choice)
        *pieces, last = self._form.pieces(choice, "", ())
        for piece in pieces:
            yield {"index": choice.index, **piece, "finish_reason": None}
        yield _ended({"index": choice.index, **last}, choice, self._form)

    def _begin(self, choice: Choice) -> Iterator[Json]:
        opening = None if choice.has_begun else self._form.opening()
        choice.has_begun = True
        if opening is not None:
            yield {"index": choice.index, **opening, "finish_reason": None}

    def _chunk(self, choice: Json) -> Json:
        chunk = self._head.envelope(self._form.chunk_object, [choice])
        return chunk | {"usage": None} if self._usage else chunk


def _ended(rendered: Json, choice: Choice, form: Format) -> Json:
    rendered["finish_reason"] = form.finish_reason(choice)
    if choice.matched_stop is not None:
        rendered["stop_reason"] = choice.matched_stop
    return rendered
