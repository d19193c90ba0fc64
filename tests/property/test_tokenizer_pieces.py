"""Tokens put together from remembered pieces are those of the whole text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_models import DEMO
from penstock_text import chunks
from penstock_text.tokenizer import Tokenizer

PLAIN = Tokenizer.load(DEMO)
CACHED = Tokenizer.load(DEMO, cache_chars=100_000)

lines = st.text(
    alphabet=st.one_of(
        st.sampled_from("ab 1.,;:'\"()[]{}#\n\n\n\t\r é你"),
        st.characters(codec="utf-8"),
    ),
    max_size=60,
)
texts = st.lists(lines, max_size=300).map("\n".join)


@settings(max_examples=200, deadline=None)
@given(texts, texts, st.integers(0, 3))
def test_pieces_make_up_the_whole(prefix: str, rest: str, turns: int) -> None:
    for turn in range(turns + 1):
        text = prefix * (turn + 1) + rest
        assert CACHED.encode(text, add_special_tokens=False) == PLAIN.encode(
            text, add_special_tokens=False
        )


@settings(max_examples=300, deadline=None)
@given(texts)
def test_every_single_cut_is_one_of_the_tokenizers(text: str) -> None:
    pieces = list(chunks._pieces(text, 1))
    assert "".join(pieces) == text
    whole = PLAIN.encode(text, add_special_tokens=False)
    assert whole == [i for p in pieces for i in PLAIN.encode(p, add_special_tokens=False)]
