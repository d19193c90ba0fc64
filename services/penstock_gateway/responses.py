"""Wire events as OpenAI's answers: collected into one object, or rendered as chunks. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.inference.v1 import generate_pb2
from penstock_core.ids import new_id
from penstock_gateway.answer import Choice, Summary
from penstock_gateway.formats import Format
from penstock_gateway.json_object import Json
from penstock_gateway.logprobs import count_chars


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


class Collector:
    """Collects an answer that is not streamed."""

    def __init__(self, form: Format, shape: Shape, head: Head) -> None:
        self._form = form
        self._head = head
        self._samples = shape.samples
        self._choices = [Choice(i) for i in range(shape.prompts * shape.samples)]
        self._summary = Summary(shape.prompts)

    async def take(self, prompt: int, event: generate_pb2.GenerateResponse) -> None:
        """Add an event of a prompt."""
        self._summary.note(prompt, event)
        kind = event.WhichOneof("event")
        if kind == "delta":
            self._add(self._choices[prompt * self._samples + event.delta.choice_index], event.delta)
        elif kind == "finished":
            index = prompt * self._samples + event.finished.choice_index
            self._choices[index].finish(event.finished)

    def answer(self) -> Json:
        """The whole answer."""
        choices = [self._rendered(choice) for choice in self._choices]
        answer = self._head.envelope(self._form.whole_object, choices)
        answer["usage"] = self._summary.usage()
        answer["penstock"] = self._summary.extension()
        return answer

    def _rendered(self, choice: Choice) -> Json:
        rendered: Json = {"index": choice.index, **self._form.whole(choice)}
        return _ended(rendered, choice)

    @staticmethod
    def _add(choice: Choice, delta: generate_pb2.Delta) -> None:
        choice.text.append(delta.text)
        choice.tokens.extend(delta.logprobs)
        if delta.is_echo:
            choice.echo_chars += len(delta.text)


class Chunks:
    """Renders a streamed answer; keeps only positions, no text."""

    def __init__(self, form: Format, shape: Shape, head: Head, *, usage: bool) -> None:
        self._form = form
        self._head = head
        self._samples = shape.samples
        self._usage = usage
        self._choices = [Choice(i) for i in range(shape.prompts * shape.samples)]
        self._summary = Summary(shape.prompts)

    def render(self, prompt: int, event: generate_pb2.GenerateResponse) -> list[Json]:
        """The chunks that an event of a prompt makes; none for most events that carry no text."""
        self._summary.note(prompt, event)
        kind = event.WhichOneof("event")
        if kind == "delta":
            choice = self._choices[prompt * self._samples + event.delta.choice_index]
            return [self._chunk(part) for part in self._delta(choice, event.delta)]
        if kind == "finished":
            choice = self._choices[prompt * self._samples + event.finished.choice_index]
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
            piece = self._form.piece(delta.text, delta.logprobs, choice.chars)
            yield {"index": choice.index, **piece, "finish_reason": None}
        # Text lags behind tokens, so offsets are counted over tokens; an echo has text only.
        if delta.is_echo and not delta.logprobs:
            choice.chars += len(delta.text)
        choice.chars += sum(count_chars(token.token_bytes) for token in delta.logprobs)

    def _finish(self, choice: Choice) -> Iterator[Json]:
        yield from self._begin(choice)
        yield _ended({"index": choice.index, **self._form.piece("", (), choice.chars)}, choice)

    def _begin(self, choice: Choice) -> Iterator[Json]:
        opening = None if choice.has_begun else self._form.opening()
        choice.has_begun = True
        if opening is not None:
            yield {"index": choice.index, **opening, "finish_reason": None}

    def _chunk(self, choice: Json) -> Json:
        chunk = self._head.envelope(self._form.chunk_object, [choice])
        return chunk | {"usage": None} if self._usage else chunk


def _ended(rendered: Json, choice: Choice) -> Json:
    rendered["finish_reason"] = choice.finish_reason
    if choice.matched_stop is not None:
        rendered["stop_reason"] = choice.matched_stop
    return rendered
