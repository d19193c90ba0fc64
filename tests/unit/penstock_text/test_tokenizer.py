"""Tokenizers: the same text as the Hugging Face library gives, token by token in bytes."""

import json
from pathlib import Path

import pytest
import tokenizers

from penstock_core.errors import NotFound, NotSupported
from penstock_models import DEMO
from penstock_testing.engines.models import BYTE_EOS, EOS_TOKEN, write_byte_tokenizer
from penstock_text.tokenizer import Tokenizer

SENTENCEPIECE_DECODERS: dict[str, dict[str, object]] = {
    "llama": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
    "gemma": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
    "t5": {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always",
        "split": True,
    },
}
PIECES = ["<s>", "▁", "▁Hello", "▁world", "H", "é", "▁▁▁"] + [f"<0x{b:02X}>" for b in range(256)]


def write_sentencepiece(path: Path, decoder: dict[str, object]) -> Path:
    special = {
        "id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }  # fmt: skip
    model = {
        "type": "BPE", "byte_fallback": True, "merges": [],
        "vocab": {piece: index for index, piece in enumerate(PIECES)},
    }  # fmt: skip
    spec = {"version": "1.0", "added_tokens": [special], "decoder": decoder, "model": model}
    (path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text", ["", "x", "def f(a):\n    return a\n", "naïve café", "日本語 😀!", " \t\r\n  "]
)
def test_text_survives_the_round_trip(text: str) -> None:
    tokenizer = Tokenizer.load(DEMO)

    assert tokenizer.decode(tokenizer.encode(text)) == text


ORDINARY = (["▁Hello", "▁world"], ["<s>", "▁Hello", "▁world"], ["▁", "▁", "H"], ["H", "▁▁▁", "H"])
IN_BYTES = (["H", "<0xC3>", "<0xA9>", "▁world"], ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "é"])


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        *((name, pieces) for name in SENTENCEPIECE_DECODERS for pieces in ORDINARY),
        *((name, pieces) for name in ("llama", "gemma") for pieces in IN_BYTES),
    ],
)
def test_sentencepiece_text_equals_the_librarys(
    tmp_path: Path, name: str, pieces: list[str]
) -> None:
    path = write_sentencepiece(tmp_path, SENTENCEPIECE_DECODERS[name])
    library = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    ids = [PIECES.index(piece) for piece in pieces]

    assert Tokenizer.load(path).decode(ids) == library.decode(ids, skip_special_tokens=True)


def test_byte_fallback_tokens_stand_for_their_byte(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_sentencepiece(tmp_path, SENTENCEPIECE_DECODERS["llama"]))

    assert tokenizer.token_bytes(PIECES.index("<0xF0>")) == b"\xf0"
    assert tokenizer.token_bytes(PIECES.index("▁world")) == b" world"


def test_byte_level_tokens_may_hold_part_of_a_character() -> None:
    tokenizer = Tokenizer.load(DEMO)

    parts = [tokenizer.token_bytes(token) for token in tokenizer.encode("😀")]

    assert len(parts) > 1
    assert b"".join(parts) == "😀".encode()


def test_bytes_that_are_no_text_become_replacement_characters(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))

    assert tokenizer.decode([0x61, 0xFF, 0xF0, 0x9F, 0x62]) == "a\ufffd\ufffdb"


def test_special_tokens_have_bytes_but_no_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))

    assert tokenizer.token_bytes(BYTE_EOS) == EOS_TOKEN.encode()
    assert tokenizer.decode([0x61, BYTE_EOS]) == "a"
    assert tokenizer.decode([0x61, BYTE_EOS], keep_special=True) == f"a{EOS_TOKEN}"


def test_ids_that_pad_the_models_vocabulary_have_no_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))

    assert tokenizer.decode([0x61, tokenizer.vocab_size + 5]) == "a"


def test_ends_of_sequence_are_gathered_from_every_file(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 9}')

    assert Tokenizer.load(tmp_path).eos_token_ids == {7, 8, 9, BYTE_EOS}


def test_digest_is_of_the_content_and_not_of_the_layout(tmp_path: Path) -> None:
    before = Tokenizer.load(write_byte_tokenizer(tmp_path)).digest
    file = tmp_path / "tokenizer.json"
    spec = json.loads(file.read_text())

    file.write_text(json.dumps(dict(reversed(spec.items())), indent=4))
    relaid = Tokenizer.load(tmp_path).digest
    spec["model"]["vocab"]["new"] = 257
    file.write_text(json.dumps(spec))
    changed = Tokenizer.load(tmp_path).digest

    assert before == relaid
    assert before != changed


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path) -> None:
    file = write_byte_tokenizer(tmp_path) / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(file))
    library.enable_truncation(max_length=4)
    library.enable_padding(length=8)
    library.save(str(file))

    assert len(Tokenizer.load(tmp_path).encode("hello world")) == 11


def test_a_directory_without_tokenizer_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": 5}'])
def test_a_broken_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(NotSupported, match="no tokenizer that can be read"):
        Tokenizer.load(tmp_path)


def test_a_decoder_without_fixed_bytes_is_refused(tmp_path: Path) -> None:
    path = write_sentencepiece(tmp_path, {"type": "WordPiece", "prefix": "##", "cleanup": True})

    with pytest.raises(NotSupported, match="WordPiece"):
        Tokenizer.load(path)
