"""However tokens are split into pushes, the pieces are the whole text up to the first stop string."""

import json
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock_testing.engines.models import write_byte_tokenizer
from penstock_text.detokenizer import IncrementalDetokenizer
from penstock_text.stops import StopMatcher
from penstock_text.tokenizer import Tokenizer

PIECES = ["▁a", "b", "▁", "é", "ab"] + [f"<0x{b:02X}>" for b in range(256)]


def _tokenizers() -> list[Tokenizer]:
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    model = {"type": "BPE", "byte_fallback": True, "merges": [], "vocab": vocabulary}
    with tempfile.TemporaryDirectory() as directory:
        byte_level = Tokenizer.load(write_byte_tokenizer(Path(directory) / "bytes"))
        path = Path(directory) / "tokenizer.json"
        path.write_text(json.dumps({"version": "1.0", "decoder": decoder, "model": model}))
        return [byte_level, Tokenizer.load(path.parent)]


TOKENIZERS = _tokenizers()
# Few letters, so that stop strings occur and overlap; bytes of cut and broken characters between.
BYTES = [*b"aab b", 0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80, 0xFF]
SENTENCE = [0, 0, 1, 1, 2, 3, 4, *(5 + byte for byte in BYTES)]
STOPS = st.lists(st.text("ab é", min_size=1, max_size=4), max_size=4)


def first_stop(text: str, stops: list[str]) -> tuple[str, str] | None:
    """The stop string complete first (of several at once the longest), and the text before it."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return stop, text[: end - len(stop)]
    return None


@given(kind=st.integers(0, 1), data=st.data(), stops=STOPS)
def test_pieces_are_the_text_up_to_the_first_stop(
    kind: int, data: st.DataObject, stops: list[str]
) -> None:
    tokens = data.draw(st.lists(st.sampled_from([BYTES, SENTENCE][kind]), max_size=30))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(tokens)))))
    tokenizer = TOKENIZERS[kind]
    detokenizer = IncrementalDetokenizer(tokenizer, stops)

    pieces = []
    for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        piece = detokenizer.push(tokens[start:end])
        pieces.append(piece.text)
        assert not any(stop in "".join(pieces) for stop in stops)
    text = "".join(pieces) + detokenizer.flush()

    expected = first_stop(tokenizer.decode(tokens), stops)
    assert detokenizer.matched_stop == (expected[0] if expected else None)
    assert text == (expected[1] if expected else tokenizer.decode(tokens))


@settings(max_examples=300)
@given(
    text=st.text("ab", max_size=16),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    disarmed=st.integers(0, 8),
)
def test_overlapping_stops_are_found_where_they_first_end(
    text: str, stops: list[str], disarmed: int
) -> None:
    matcher = StopMatcher(tuple(stops))
    early, late = text[:disarmed], text[disarmed:]

    assert matcher.feed(early, armed=False) is None
    found = matcher.feed(late)

    expected = None
    for end in range(len(early) + 1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            expected = max(complete, key=len), end - len(early)
            break
    assert found == expected
    if found is None:
        partial = (n for s in stops for n in range(len(s)) if text.endswith(s[:n]))
        assert matcher.held_chars == max(partial)


@given(st.text(max_size=20), st.integers(1, 5))
@example("😀é", 1)
def test_no_piece_holds_half_a_character(text: str, size: int) -> None:
    tokens = list(text.encode())
    detokenizer = IncrementalDetokenizer(TOKENIZERS[0])

    pieces = [detokenizer.push(tokens[i : i + size]).text for i in range(0, len(tokens), size)]

    assert "".join(pieces) == text
    assert detokenizer.flush() == ""


@given(st.lists(st.sampled_from(SENTENCE), max_size=20), STOPS)
def test_only_what_may_begin_a_stop_is_held_back(tokens: list[int], stops: list[str]) -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZERS[1], stops)
    released = ""
    for count, token in enumerate(tokens, start=1):
        released += detokenizer.push([token]).text
        if detokenizer.matched_stop is not None:
            return
        so_far = TOKENIZERS[1].decode(tokens[:count])
        held = so_far.rstrip("\ufffd")[len(released) :]
        assert not held or any(stop.startswith(held) for stop in stops)
