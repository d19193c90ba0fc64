"""Golden vectors: a router and a worker of different versions must agree on every block's name."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_core import blocks

GOLDEN = json.loads((Path(__file__).parent / "block_hashes.json").read_text(encoding="utf-8"))
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=200)


@pytest.mark.parametrize("case", GOLDEN["starts"])
def test_chain_start_matches_the_golden_vectors(case: dict[str, str | int]) -> None:
    got = blocks.chain_start(
        str(case["revision"]), str(case["tokenizer"]), str(case["adapter"]), int(case["salt"])
    )

    assert got == case["h0"]


@pytest.mark.parametrize("case", GOLDEN["chains"])
def test_chains_match_the_golden_vectors(case: dict[str, list[int] | int]) -> None:
    tokens = case["tokens"]
    assert isinstance(tokens, list)

    got = blocks.chain(blocks.pack_tokens(tokens), int(str(case["start"])), 32)

    assert got == case["hashes"]


@pytest.mark.parametrize("case", GOLDEN["salts"])
def test_tenant_salts_match_the_golden_vectors(case: dict[str, str | int]) -> None:
    assert blocks.cache_salt(str(case["secret"]).encode(), str(case["tenant"])) == case["salt"]


@given(TOKENS, TOKENS, st.integers(1, 40))
def test_chains_agree_exactly_on_the_common_full_blocks(
    left: list[int], right: list[int], block_tokens: int
) -> None:
    a = blocks.chain(blocks.pack_tokens(left), 7, block_tokens)
    b = blocks.chain(blocks.pack_tokens(right), 7, block_tokens)

    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        upto = (index + 1) * block_tokens
        assert (x == y) == (left[:upto] == right[:upto])


@given(TOKENS)
def test_tokens_survive_packing(tokens: list[int]) -> None:
    assert blocks.unpack_tokens(blocks.pack_tokens(tokens)) == tokens


@given(st.integers(0, 500), st.integers(1, 64))
def test_the_last_prompt_token_is_never_reusable(num_tokens: int, block_tokens: int) -> None:
    reusable = blocks.reusable_blocks(num_tokens, block_tokens) * block_tokens

    assert reusable < num_tokens or num_tokens == 0
    assert num_tokens - reusable <= block_tokens


def test_half_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole number"):
        blocks.unpack_tokens(b"\x01\x02\x03")
    with pytest.raises(ValueError, match="no whole number"):
        blocks.unpack_hashes(b"\x01\x02\x03")


def test_fields_of_the_start_cannot_imitate_one_another() -> None:
    assert blocks.chain_start("ab", "c") != blocks.chain_start("a", "bc")
