"""The tokeniser: byte-level BPE whose pieces suit indented code."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
"""Separates files; the only special token."""

# A line break and the indentation after it are separate pieces, so that a prompt that ends at
# either place is cut up the way training text was. Indentation runs become single tokens.
_PIECES = r" ?(?:__\p{L}+__|_*\p{L}+|_+)| ?\p{N}{1,3}|\n+| {2,}| ?[^\s\p{L}\p{N}_]+|\s"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary.

    Args:
        texts: The texts to learn from.
        vocab_size: Entries, with all 256 bytes and the separator.

    Returns:
        A tokeniser that adds nothing to what it encodes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
