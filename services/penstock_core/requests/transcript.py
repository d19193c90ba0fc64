"""What of a generation reached the client, and how another worker is told to go on from there.

Owns the fold of a stream's events into a ``ResumeState`` and the check that a later attempt repeats
and skips nothing. Knows neither calls nor clocks; router and client use the same.
"""

from dataclasses import dataclass, field

from penstock.common.v1 import usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.blocks import TOKEN_BYTES
from penstock_core.cost.pricing import add_costs
from penstock_core.errors import WorkerLost

Response = generate_pb2.GenerateResponse


@dataclass(slots=True)
class _Choice:
    """One sample as far as the client has it; ``known_*`` is what a replay has yet to give again."""

    ids: bytearray = field(default_factory=bytearray)
    chars: int = 0
    logprob: float = 0.0
    echo_chars: int = 0
    finished: generate_pb2.FinishReason.ValueType = generate_pb2.FINISH_REASON_UNSPECIFIED
    known_chars: int = 0
    known_echo: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.ids) // TOKEN_BYTES


class Transcript:
    """The events of one request, over all its attempts."""

    def __init__(self, request: generate_pb2.GenerateRequest) -> None:
        # Samples that are ranked are numbered anew at the end: what their workers knew is lost, so
        # the whole is drawn again, with the same seed, and what the client has is left out.
        self.replays = request.sampling.best_of > (request.sampling.n or 1)
        # A caller may go on with what it got by way of another router.
        self._before = request.resume
        self._choices = {state.choice_index: _had(state) for state in self._before.choices}
        self._started: generate_pb2.Started | None = None
        # What earlier attempts took of workers, and the one at hand so far.
        self._cost = self._before.cost
        self._spent = usage_pb2.Cost()
        self.has_begun = False
        self.is_completed = False

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples."""
        return sum(choice.num_tokens for choice in self._choices.values())

    def note(self, message: Response) -> None:
        """This event goes to the client."""
        self.has_begun = self.has_begun or message.WhichOneof("event") != "started"
        match message.WhichOneof("event"):
            case "started":
                self._started = self._started or message.started
            case "delta":
                self._note_delta(message.delta)
            case "finished":
                end = message.finished
                choice = self._choices.setdefault(end.choice_index, _Choice())
                choice.finished = end.reason
            case "completed":
                self.is_completed = True

    def resume(self, attempt: int, elapsed: usage_pb2.Timing) -> generate_pb2.ResumeState:
        """What the next attempt goes on from; ``elapsed`` holds ``ttft_s`` and ``total_s`` so far."""
        for choice in self._choices.values():
            choice.known_chars, choice.known_echo = choice.chars, choice.echo_chars
        told, before = self._started or generate_pb2.Started(), self._before
        self._cost, self._spent = add_costs(self._cost, self._spent), usage_pb2.Cost()
        state = generate_pb2.ResumeState(
            seed=told.seed,
            attempt=before.attempt + attempt,
            resume_token=before.resume_token,
            cost=self._cost,
            usage=usage_pb2.Usage(cached_tokens=told.cached_tokens),
            timing=usage_pb2.Timing(
                ttft_s=before.timing.ttft_s or elapsed.ttft_s,
                total_s=before.timing.total_s + elapsed.total_s,
                worker_s=self._cost.prefill_s + self._cost.decode_s,
            ),
        )
        if before.HasField("usage"):
            state.usage.CopyFrom(before.usage)
        for index, choice in sorted(self._choices.items()) if not self.replays else ():
            entry = state.choices.add(
                choice_index=index,
                cumulative_logprob=choice.logprob,
                finish_reason=choice.finished,
                emitted_chars=choice.chars,
            )
            entry.emitted.ids = bytes(choice.ids)
        return state

    def admit(self, message: Response) -> Response | None:
        """What of a later attempt's event the client has not had yet; None if it had all of it.

        Raises:
            WorkerLost: the attempt goes on somewhere else than where the one before stopped.
        """
        match message.WhichOneof("event"):
            case "started":
                return message if self._started is None else None
            case "finished":
                choice = self._choices.get(message.finished.choice_index)
                return None if choice is not None and choice.finished else message
            case "delta":
                return self._admit_delta(message)
        return message

    def _note_delta(self, delta: generate_pb2.Delta) -> None:
        self._note_spent(delta)
        choice = self._choices.setdefault(delta.choice_index, _Choice())
        if delta.is_echo:
            choice.echo_chars += len(delta.text)
            return
        choice.ids += delta.tokens.ids
        choice.chars += len(delta.text)
        choice.logprob += sum(entry.logprob for entry in delta.logprobs)

    def _note_spent(self, delta: generate_pb2.Delta) -> None:
        if delta.HasField("spent"):
            self._spent = delta.spent

    def _admit_delta(self, message: Response) -> Response | None:
        delta = message.delta
        self._note_spent(delta)
        choice = self._choices.get(delta.choice_index, _Choice())
        if delta.is_echo:
            given = min(len(delta.text), choice.known_echo)
            choice.known_echo -= given
            delta.text = delta.text[given:]
            return message if delta.text else None
        if delta.first_position > choice.num_tokens:
            raise WorkerLost(
                f"the worker went on at position {delta.first_position} instead of "
                f"{choice.num_tokens}"
            )
        self._cut_replayed(delta, choice)
        return message if delta.tokens.ids or delta.text else None

    def _cut_replayed(self, delta: generate_pb2.Delta, choice: _Choice) -> None:
        """Leave out what the client has; text is only given again where all is drawn again."""
        known = min(choice.num_tokens - delta.first_position, len(delta.tokens.ids) // TOKEN_BYTES)
        if known:
            delta.tokens.ids = delta.tokens.ids[known * TOKEN_BYTES :]
            delta.first_position += known
            del delta.logprobs[:known]
        if self.replays:
            given = min(len(delta.text), choice.known_chars)
            choice.known_chars -= given
            delta.text = delta.text[given:]


def _had(state: generate_pb2.ChoiceState) -> _Choice:
    return _Choice(
        ids=bytearray(state.emitted.ids),
        chars=state.emitted_chars,
        logprob=state.cumulative_logprob,
        finished=state.finish_reason,
    )
