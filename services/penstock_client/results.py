"""What a generation gives back: events of a stream, and the whole. Knows no wire types."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of an emitted token, with the likeliest alternatives by token id."""

    token_id: int
    logprob: float
    token_bytes: bytes
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted and its prefix looked up; exactly one, before everything else.

    Attributes:
        request_id: id for logs, traces and ``explain``.
        worker_id: worker that serves it.
        decision_id: routing decision; empty if no router was involved.
        model: model that serves it.
        prompt_tokens: tokens of the prompt.
        cached_tokens: prompt tokens whose KV came from the prefix cache.
        seed: what the samples are drawn with.
        mode: ``lookaside`` or ``proxy``: the way the tokens take.
    """

    request_id: str
    worker_id: str
    decision_id: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    seed: int
    mode: str


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of one sample. Text may lag behind tokens while a character is incomplete."""

    choice_index: int
    first_position: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    is_echo: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """One sample ended: ``reason`` is stop, length, tool_calls, aborted or constraint."""

    choice_index: int
    reason: str
    matched_stop: str | int | None = None
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request used; ``cached_tokens`` of the prompt came from the prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_draft_tokens: int = 0

    @property
    def acceptance_rate(self) -> float | None:
        """Share of drafts that were accepted; None if there were none."""
        return self.accepted_draft_tokens / self.drafted_tokens if self.drafted_tokens else None

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a sample gained in a decode step: its own and the accepted drafts."""
        return self.completion_tokens / max(self.completion_tokens - self.accepted_draft_tokens, 1)


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went on the worker, in seconds."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    total_s: float = 0.0
    worker_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request cost: ``amount`` in whole units of the currency, and the workers' seconds."""

    amount: float
    currency: str
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Vote:
    """Result of a majority vote over the samples."""

    choice_index: int
    answer: str
    votes: int
    total: int


@dataclass(frozen=True, slots=True)
class Completed:
    """All samples ended; always the last event. A kept answer is ``response_age_s`` old.

    ``cost`` is None if workers have no price.
    """

    usage: Usage
    timing: Timing
    vote: Vote | None = None
    from_response_cache: bool = False
    response_age_s: float = 0.0
    cost: Cost | None = None


StreamEvent = Started | Delta | Finished | Completed


@dataclass(frozen=True, slots=True)
class Choice:
    """One sample."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    matched_stop: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole generation. ``text`` and ``token_ids`` are the first choice's."""

    started: Started
    choices: tuple[Choice, ...]
    usage: Usage
    timing: Timing
    vote: Vote | None = None
    from_response_cache: bool = False
    cost: Cost | None = None

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens of the first choice."""
        return self.choices[0].token_ids

    @property
    def worker_id(self) -> str:
        """Worker that served it."""
        return self.started.worker_id

    @property
    def request_id(self) -> str:
        """Id for logs, traces and ``explain``."""
        return self.started.request_id

    @property
    def decision_id(self) -> str:
        """Routing decision; empty if no router was involved."""
        return self.started.decision_id


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of length 1, in the order of the inputs, with the tokens that were read for them."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    worker_ids: tuple[str, ...] = ()
    request_id: str = ""
    cost: Cost | None = None


@dataclass(slots=True)
class _Parts:
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None

    def choice(self, index: int) -> Choice:
        end = self.end or Finished(index, "aborted")
        return Choice(
            index,
            "".join(self.text),
            tuple(self.tokens),
            end.reason,
            end.matched_stop,
            tuple(self.logprobs),
        )


class Collector:
    """Folds a stream's events into a Generation."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._completed: Completed | None = None
        self._parts: dict[int, _Parts] = {}

    def add(self, event: StreamEvent) -> None:
        """Take the next event."""
        match event:
            case Started():
                self._started = event
            case Delta():
                parts = self._parts.setdefault(event.choice_index, _Parts())
                parts.text.append(event.text)
                parts.tokens.extend(event.token_ids)
                parts.logprobs.extend(event.logprobs)
            case Finished():
                self._parts.setdefault(event.choice_index, _Parts()).end = event
            case Completed():
                self._completed = event

    def result(self) -> Generation:
        """The whole. Raises ValueError if the stream had not ended."""
        if self._started is None or self._completed is None:
            raise ValueError("the stream has not ended")
        choices = tuple(self._parts[i].choice(i) for i in sorted(self._parts))
        done = self._completed
        return Generation(
            started=self._started,
            choices=choices,
            usage=done.usage,
            timing=done.timing,
            vote=done.vote,
            from_response_cache=done.from_response_cache,
            cost=done.cost,
        )


def collect(events: Iterable[StreamEvent]) -> Generation:
    """Fold the events of a whole stream. Raises ValueError if it had not ended."""
    collector = Collector()
    for event in events:
        collector.add(event)
    return collector.result()
