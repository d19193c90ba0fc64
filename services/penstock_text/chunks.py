"""Remembers the tokens of pieces of text, so that a prompt's known beginning is not tokenized again.

Conversations and shared documents begin alike. A text is cut at the same places wherever it goes on,
so its known pieces are looked up and only the rest is tokenized. A place is a line's first letter
behind a line that ends in one: byte-level tokenizers always cut there, which is checked on a sample
before it is relied on; other tokenizers do without.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from penstock_text.files import JsonObject

Encode = Callable[[str], list[int]]

_PIECE_CHARS = 2048
_CUT = re.compile(r"(?<=\S\n)(?=\S)")
_SAMPLE = (
    "def f(x):\n    return x  # it's 12345 \n\n\nclass A:\n\ta = ['b', \"c\"];\nb\n\n- item one,\n"
    "- item two!!\nLe cœur déçu\n你好\n世界\r\n  end.\n<b>\n</b>\n\U0001f600\n1\n2 3\nx"
)


class PieceCache:
    """Tokens by piece of text, the longest unused forgotten first. Safe to use from several threads."""

    def __init__(self, encode: Encode, max_chars: int) -> None:
        """Args: ``encode`` adds no special tokens; ``max_chars`` bounds the text that is kept."""
        self._encode = encode
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._pieces: OrderedDict[str, list[int]] = OrderedDict()
        self._chars = 0
        self.hit_chars = 0

    def encode(self, text: str) -> list[int]:
        """Token ids, equal to those of the text as a whole."""
        ids: list[int] = []
        for piece in _pieces(text, _PIECE_CHARS):
            ids += self._ids(piece)
        return ids

    def _ids(self, piece: str) -> list[int]:
        with self._lock:
            known = self._pieces.get(piece)
            if known is not None:
                self._pieces.move_to_end(piece)
                self.hit_chars += len(piece)
                return known
        ids = self._encode(piece)
        with self._lock:
            if self._pieces.setdefault(piece, ids) is ids:
                self._chars += len(piece)
            while self._chars > self._max_chars:
                forgotten, _ = self._pieces.popitem(last=False)
                self._chars -= len(forgotten)
        return ids


def can_be_cut(spec: JsonObject, encode: Encode) -> bool:
    """Whether texts may be cut for a tokenizer; ``spec`` is its tokenizer.json."""
    normalizer = spec.get("normalizer")
    if isinstance(normalizer, Mapping) and normalizer.get("type") != "NFC":
        return False
    added = spec.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if token.get("lstrip") or token.get("rstrip") or "\n" in str(token.get("content")):
            return False
    return encode(_SAMPLE) == [i for piece in _pieces(_SAMPLE, 1) for i in encode(piece)]


def _pieces(text: str, least_chars: int) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        found = _CUT.search(text, begin + least_chars)
        end = found.start() if found else len(text)
        yield text[begin:end]
        begin = end
