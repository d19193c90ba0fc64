"""One model's tokenizer: text to ids by the ``tokenizers`` library, ids to text by their bytes.

A token stands for fixed bytes, so decoding is joining bytes and reading them as UTF-8; that is
what makes decoding one token at a time exact and cheap. Covers what generative models use:
byte-level BPE, and SentencePiece vocabularies with byte fallback or metaspace.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tokenizers

from penstock_core.errors import NotFound, NotSupported
from penstock_text.chunks import PieceCache, can_be_cut
from penstock_text.files import JsonObject, read_object, token_text

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_METASPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class _Decoder:
    """What a tokenizer.json says about turning a token into text."""

    is_byte_level: bool
    has_byte_fallback: bool
    strips_first_space: bool

    @classmethod
    def read(cls, spec: JsonObject) -> Self:
        parts = _flatten(spec.get("decoder"))
        kinds = {part.get("type") for part in parts}
        if not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
            found = ", ".join(sorted(str(kind) for kind in kinds)) or "none"
            raise NotSupported(f"a tokenizer with this decoder is not supported: {found}")
        return cls(
            is_byte_level="ByteLevel" in kinds,
            has_byte_fallback="ByteFallback" in kinds,
            strips_first_space=any(map(_strips_first_space, parts)),
        )

    def to_bytes(self, token: str) -> bytes:
        """The bytes that an ordinary token of the vocabulary stands for."""
        if self.is_byte_level:
            return _byte_level(token)
        match = _BYTE_FALLBACK.fullmatch(token) if self.has_byte_fallback else None
        if match:
            return bytes.fromhex(match[1])
        return token.replace(_METASPACE, " ").encode()


class Tokenizer:
    """A loaded tokenizer; immutable, safe to use from several threads."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        spec: JsonObject,
        eos: frozenset[int],
        cache_chars: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.digest: str = _digest(spec)
        self.eos_token_ids: frozenset[int] = eos
        decoder = _Decoder.read(spec)
        self._adds_special = self._tokenizer.num_special_tokens_to_add(is_pair=False) > 0
        self.strips_first_space: bool = decoder.strips_first_space
        added = self._tokenizer.get_added_tokens_decoder()
        self._special: frozenset[int] = frozenset(i for i, t in added.items() if t.special)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        table = [b""] * self.vocab_size
        for token, token_id in vocabulary.items():
            table[token_id] = token.encode() if token_id in added else decoder.to_bytes(token)
        self._bytes: list[bytes] = table
        self._pieces: PieceCache | None = None
        if cache_chars and can_be_cut(spec, self._encode_plain):
            self._pieces = PieceCache(self._encode_plain, cache_chars)

    @classmethod
    def load(cls, path: Path, *, cache_chars: int = 0) -> Self:
        """Read a model directory.

        Args:
            path: the directory.
            cache_chars: characters of texts whose tokens are remembered.

        Raises:
            NotFound: it holds no tokenizer.json.
            NotSupported: the tokenizer is of a kind whose tokens have no fixed bytes.
        """
        file = path / "tokenizer.json"
        if not file.is_file():
            raise NotFound(f"{path} holds no tokenizer.json")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise NotSupported(f"{file} is no tokenizer that can be read: {error}") from error
        return cls(tokenizer, read_object(file), _eos_token_ids(path, tokenizer), cache_chars)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. A rendered chat has its special tokens already: pass False."""
        if self._pieces is not None and not (add_special_tokens and self._adds_special):
            return self._pieces.encode(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD, special tokens are left out."""
        of = self.token_bytes if keep_special else self.text_bytes
        text = b"".join(map(of, token_ids)).decode("utf-8", errors="replace")
        return text[1:] if self.strips_first_space and text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token, special ones too; none for an id that only pads the model's vocabulary."""
        return self._bytes[token_id] if token_id < self.vocab_size else b""

    def text_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text: its bytes, or nothing if it is special."""
        return b"" if token_id in self._special else self.token_bytes(token_id)


def _digest(spec: JsonObject) -> str:
    """SHA-256 of the content, whatever the file's layout."""
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _eos_token_ids(path: Path, tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
    """Every id that one of the model's files names as an end of sequence."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = read_object(path / name).get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        found.update(v for v in values if isinstance(v, int) and not isinstance(v, bool))
    named = token_text(read_object(path / "tokenizer_config.json").get("eos_token"))
    token_id = tokenizer.token_to_id(named) if named else None
    return frozenset(found if token_id is None else found | {token_id})


def _flatten(decoder: object) -> list[JsonObject]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [part for inner in decoder.get("decoders", ()) for part in _flatten(inner)]
    return [decoder]


def _strips_first_space(part: JsonObject) -> bool:
    if part.get("type") == "Strip":
        return part.get("content") == " " and bool(part.get("start"))
    if part.get("type") != "Metaspace":
        return False
    never = part.get("prepend_scheme") == "never" or part.get("add_prefix_space") is False
    return not never


def _byte_level(token: str) -> bytes:
    try:
        return token.translate(_BYTE_OF_CHAR).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Source: ``bytes_to_unicode`` of GPT-2, https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(stand_ins)) for b in range(256)]


_BYTE_OF_CHAR = {ord(char): byte for byte, char in enumerate(byte_alphabet())}
