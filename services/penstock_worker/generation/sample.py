"""One sample of a request: its text so far, what of it was not sent yet, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from penstock.common.v1 import sampling_pb2
from penstock.inference.v1 import generate_pb2
from penstock_engine.api import Logprob, TokenOut
from penstock_text.detokenizer import IncrementalDetokenizer
from penstock_text.tokenizer import Tokenizer
from penstock_worker import translate

_DELTA_TOKENS = 1024
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Ends:
    """What ends a sample besides its engine, and what its messages carry."""

    strings: tuple[str, ...]
    token_ids: frozenset[int]
    min_tokens: int
    max_tokens: int
    sends_logprobs: bool
    ranks: bool
    keeps_text: bool

    @classmethod
    def of(cls, request: generate_pb2.GenerateRequest, max_tokens: int, num_drawn: int) -> Self:
        """Read from a request."""
        votes = request.aggregation == sampling_pb2.AGGREGATION_MAJORITY_VOTE
        return cls(
            strings=tuple(request.stop.strings),
            token_ids=frozenset(request.stop.token_ids),
            min_tokens=request.stop.min_tokens,
            max_tokens=max_tokens,
            sends_logprobs=request.output.HasField("logprobs"),
            ranks=num_drawn > (request.sampling.n or 1),
            keeps_text=votes,
        )


class Sample:
    """Takes the engine's outputs of one choice index and gives the messages about them."""

    def __init__(self, index: int, tokenizer: Tokenizer, ends: Ends) -> None:
        self.index = index
        self.num_tokens = 0  # emitted over all attempts
        self.cumulative_logprob = 0.0
        self.finished: generate_pb2.Finished | None = None
        self._ends = ends
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer, ends.strings, follows_text=True)
        self._text: list[str] = []
        self._skip_chars = 0  # of the text to come, which an earlier attempt sent
        self._num_resumed = 0
        self._sent_tokens = 0
        self._pending_ids: list[int] = []
        self._pending_text: list[str] = []
        self._pending_logprobs: list[Logprob] = []
        self._told_end = False

    @property
    def num_pending(self) -> int:
        """Tokens that were not sent yet."""
        return len(self._pending_ids)

    @property
    def num_new_tokens(self) -> int:
        """Tokens of this attempt."""
        return self.num_tokens - self._num_resumed

    @property
    def mean_logprob(self) -> float:
        """Log-probability a token, by which samples of different lengths compare."""
        return self.cumulative_logprob / max(self.num_tokens, 1)

    @property
    def text(self) -> str:
        """The whole text, if ``Ends.keeps_text``."""
        return "".join(self._text)

    def resume(self, state: generate_pb2.ChoiceState, emitted: Sequence[int]) -> None:
        """Continue behind what an earlier attempt sent; it may have ended there already."""
        self._skip_chars = state.emitted_chars
        self.num_tokens = self._push(emitted)
        self._pending_ids.clear()
        self._sent_tokens = self._num_resumed = self.num_tokens
        self.cumulative_logprob = state.cumulative_logprob
        if state.finish_reason:
            self.finished = generate_pb2.Finished(reason=state.finish_reason)
            self._pending_text.clear()
            self._told_end = True
        elif self._detokenizer.matched_stop is not None:
            self._end(generate_pb2.FINISH_REASON_STOP)
        elif self.num_tokens >= self._ends.max_tokens:
            self._end(generate_pb2.FINISH_REASON_LENGTH)

    def take(self, out: TokenOut) -> bool:
        """Take an output of the engine. True if a stop string ended the sample: abort it there."""
        if self.finished is not None:
            return False
        used = self._push(out.token_ids)
        self.num_tokens += used
        self.cumulative_logprob += sum(value.logprob for value in out.logprobs[:used])
        if self._ends.sends_logprobs:
            self._pending_logprobs.extend(out.logprobs[:used])
        if self._detokenizer.matched_stop is not None:
            self._end(generate_pb2.FINISH_REASON_STOP)
            return out.finish is None
        if out.finish is not None:
            self._end(translate.FINISH_REASONS[out.finish], out.matched_token)
        return False

    def messages(self, index: int | None = None) -> list[generate_pb2.GenerateResponse]:
        """What is to be sent now; ``index`` renumbers the sample."""
        shown = self.index if index is None else index
        messages = []
        while self._pending_ids or self._pending_text:
            messages.append(generate_pb2.GenerateResponse(delta=self._delta(shown)))
        if self.finished is not None and not self._told_end:
            self._told_end = True
            self.finished.choice_index = shown
            messages.append(generate_pb2.GenerateResponse(finished=self.finished))
        return messages

    def _delta(self, index: int) -> generate_pb2.Delta:
        ids, self._pending_ids = _cut(self._pending_ids)
        logprobs, self._pending_logprobs = _cut(self._pending_logprobs)
        text, self._pending_text = "".join(self._pending_text), []
        delta = generate_pb2.Delta(
            choice_index=index,
            first_position=self._sent_tokens,
            tokens=translate.token_ids(ids),
            text=text,
            logprobs=[translate.logprob(value, self._tokenizer) for value in logprobs],
        )
        self._sent_tokens += len(ids)
        return delta

    def _push(self, token_ids: Sequence[int]) -> int:
        """Take tokens until a stop string ends the sample; returns how many that are."""
        # A stop string may not end it before min_tokens tokens are there.
        unarmed = max(self._ends.min_tokens - 1 - self.num_tokens, 0)
        before = self._detokenizer.push(token_ids[:unarmed], armed=False)
        after = self._detokenizer.push(token_ids[unarmed:])
        self._add_text(before.text + after.text)
        used = before.num_tokens + after.num_tokens
        self._pending_ids.extend(token_ids[:used])
        return used

    def _add_text(self, text: str) -> None:
        if self._ends.keeps_text:
            self._text.append(text)
        new = text[self._skip_chars :]
        self._skip_chars -= min(self._skip_chars, len(text))
        if new:
            self._pending_text.append(new)

    def _end(
        self, reason: generate_pb2.FinishReason.ValueType, matched_token: int | None = None
    ) -> None:
        self._add_text(self._detokenizer.flush())
        matched = self._detokenizer.matched_stop
        self.finished = generate_pb2.Finished(
            reason=reason if matched is None else generate_pb2.FINISH_REASON_STOP,
            completion_tokens=self.num_tokens,
        )
        if matched is not None:
            self.finished.matched_string = matched
        elif matched_token is not None and matched_token in self._ends.token_ids:
            self.finished.matched_token_id = matched_token
        if self._ends.sends_logprobs or self._ends.ranks:
            self.finished.cumulative_logprob = self.cumulative_logprob


def _cut(items: list[_Item]) -> tuple[list[_Item], list[_Item]]:
    return items[:_DELTA_TOKENS], items[_DELTA_TOKENS:]
