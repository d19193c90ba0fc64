"""One sample's tokens on their way out of TensorRT-LLM. Pure.

Owns how much was sent. The package gives the same object with everything so far after each
response, several tokens more or none, and takes a matched stop token back off the end: only our own
count tells what is new. Its ``*_diff`` fields tell of the last response, seen or not, and are never
read.
"""

from collections.abc import Mapping, Sequence

from penstock_core.errors import InternalError
from penstock_engine.api import EngineRequest, FinishReason, Logprob, TokenOut
from penstock_engine.trtllm.package import Completion

_FINISHED = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "cancelled": FinishReason.ABORTED,
    "timeout": FinishReason.ABORTED,
}


class SampleStream:
    """What of one sample was sent, and how it ended.

    ``end_id`` is what the package was told as end of sequence; it names no stop token when that is
    what ended a sample.
    """

    def __init__(self, request: EngineRequest, choice: int, end_id: int) -> None:
        self.choice = choice
        self.finish: FinishReason | None = None
        self.tokens: list[int] = []
        """Tokens of this attempt, as sent."""
        self._request = request
        self._end_id = end_id
        self._offset = len(request.emitted[choice]) if request.emitted else 0

    @property
    def position(self) -> int:
        """Of the next token, counted over all attempts."""
        return self._offset + len(self.tokens)

    def take(self, completion: Completion) -> TokenOut | None:
        """What is new in the engine's current answer; None if nothing is.

        Raises:
            InternalError: log-probabilities were asked for and do not tell the tokens'.
        """
        if self.finish is not None:
            return None
        new = completion.token_ids[len(self.tokens) :]
        room = self._request.max_tokens - self.position
        kept, matched = self._until_stop(new[:room])
        if matched is not None:
            return self._out(kept, completion, FinishReason.STOP, matched)
        finish = _FINISHED.get(completion.finish_reason or "")
        if finish is None and len(new) >= room:
            finish = FinishReason.LENGTH
        if finish is FinishReason.STOP:
            reason = completion.stop_reason
            matched = reason if isinstance(reason, int) else self._end_id
        if not kept and finish is None:
            return None
        return self._out(kept, completion, finish, matched)

    def end(self, finish: FinishReason) -> TokenOut:
        """End it on our side: the engine will not."""
        self.finish = finish
        return TokenOut(self.choice, self.position, (), (), finish)

    def _until_stop(self, new: Sequence[int]) -> tuple[list[int], int | None]:
        """Tokens before the first one that ends the sample, and that one.

        The package leaves the end token in, and takes other stop tokens out.
        """
        stops, first = self._request.stop_token_ids, self.position
        for index, token in enumerate(new):
            if token in stops and first + index >= self._request.min_tokens:
                return list(new[:index]), token
        return list(new), None

    def _out(
        self,
        kept: list[int],
        completion: Completion,
        finish: FinishReason | None,
        matched: int | None,
    ) -> TokenOut:
        start, position = len(self.tokens), self.position
        logprobs: Sequence[Logprob] = ()
        if self._request.logprobs is not None:
            told = (completion.logprobs or ())[start : start + len(kept)]
            logprobs = [self._logprob(t, told, i) for i, t in enumerate(kept)]
        self.tokens += kept
        self.finish = finish
        return TokenOut(self.choice, position, kept, logprobs, finish, matched)

    def _logprob(self, token: int, told: Sequence[object], index: int) -> Logprob:
        entry = told[index] if index < len(told) else None
        if isinstance(entry, int | float):
            return Logprob(token, float(entry))
        if not isinstance(entry, Mapping) or token not in entry:
            raise InternalError(f"the engine told no log-probability of token {token}")
        alternatives = sorted(
            ((other, float(value.logprob)) for other, value in entry.items()),
            key=lambda pair: (-pair[1], pair[0]),
        )
        own = float(entry[token].logprob)
        return Logprob(token, own, tuple(alternatives[: self._request.logprobs]))
