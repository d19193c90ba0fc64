"""Turns a sample's tokens into text as they come.

Never emits half a character, and holds back text that may begin a stop string until it is known.
Knows neither requests nor messages.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from penstock_text.stops import StopMatcher
from penstock_text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became certain.

    ``num_tokens`` of the pushed tokens were used: those behind a stop string are not.
    """

    text: str
    matched_stop: str | None = None
    num_tokens: int = 0


class IncrementalDetokenizer:
    """Text of one sample; O(1) amortised for each token.

    All pieces together are ``tokenizer.decode`` of all tokens, cut before the first stop string
    that is complete. ``follows_text`` says that the tokens continue a text: a SentencePiece model's
    first space is then part of it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_strings: Sequence[str] = (),
        *,
        follows_text: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopMatcher(tuple(stop_strings))
        self._held = ""
        self._strip_next = tokenizer.strips_first_space and not follows_text
        self.matched_stop: str | None = None

    def push(self, token_ids: Sequence[int], *, armed: bool = True) -> Piece:
        """Take new tokens. While not ``armed``, stop strings do not end the sample."""
        released: list[str] = []
        used = 0
        for token_id in token_ids:
            if self.matched_stop is not None:
                break
            used += 1
            text = self._utf8.decode(self._tokenizer.text_bytes(token_id))
            released.append(self._release(text, armed=armed))
        return Piece("".join(released), self.matched_stop, used)

    def flush(self) -> str:
        """What is left at the end: held-back text, and U+FFFD for a character that never ended."""
        if self.matched_stop is not None:
            return ""
        text = self._release(self._utf8.decode(b"", final=True), armed=True)
        held, self._held = self._held, ""
        return text if self.matched_stop is not None else text + held

    def _release(self, text: str, *, armed: bool) -> str:
        if not text:
            return ""
        if self._strip_next:
            self._strip_next = False
            text = text.removeprefix(" ")
        match = self._stops.feed(text, armed=armed)
        whole = self._held + text
        if match is not None:
            self.matched_stop, end = match
            cut = len(self._held) + end - len(self.matched_stop)
            self._held = ""
            return whole[:cut]
        certain = len(whole) - self._stops.held_chars
        self._held = whole[certain:]
        return whole[:certain]
