"""What the engine knows of text: the bytes behind its token ids, handed in by its host.

Owns the padding to the model's vocabulary and the cutting of forced bytes into tokens. Knows no
tokenizer, files or templates. Pure Python.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The bytes that each token adds to an output, and how a tokenizer would cut a text.

    Attributes:
        tokens: bytes by token id; empty for special tokens, which no constraint can ask for.
        encode: token ids of a text, without special ones; None cuts greedily.
    """

    tokens: Sequence[bytes]
    encode: Callable[[str], Sequence[int]] | None = None

    def padded(self, size: int) -> list[bytes]:
        """Bytes of ``size`` tokens; ids behind the tokenizer's stand for nothing."""
        return [*self.tokens[:size], *[b""] * (size - len(self.tokens))]


class Cutter:
    """Cuts bytes into tokens as the model learnt to read them, as far as that gives these bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = vocabulary.tokens
        self._encode = vocabulary.encode
        self._ids = {text: i for i, text in reversed(list(enumerate(vocabulary.tokens))) if text}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens whose bytes are those of the text; up to the first byte that no token has."""
        raw = text if isinstance(text, bytes) else text.encode()
        if self._encode is not None:
            ids = list(self._encode(raw.decode("utf-8", errors="replace")))
            # Some tokenizers put a space in front: what they say is taken only if it is exact.
            if b"".join(self._tokens[i] for i in ids) == raw:
                return ids
        return self._greedy(raw)

    def _greedy(self, raw: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(raw):
            ends = range(min(at + self._longest, len(raw)), at, -1)
            end = next((end for end in ends if raw[at:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[raw[at:end]])
            at = end
        return ids
