"""Whether two checkpoints can work as model and draft model, told before anything is loaded.

Owns the comparison of vocabularies and tokenizers. Reads files, knows no tensors.
"""

import json
from pathlib import Path

from penstock_core.errors import InvalidRequest


def check_pair(model: Path, draft: Path, vocab_sizes: tuple[int, int]) -> None:
    """Refuse a draft model whose token ids mean something else than the model's.

    Raises:
        InvalidRequest: the vocabularies differ in size, or the tokenizers in any token.
    """
    own, its = vocab_sizes
    if own != its:
        raise InvalidRequest(
            f"draft model {draft} has a vocabulary of {its} tokens and {model} one of {own}: "
            "it must be made with the same tokenizer",
            field="draft_model",
        )
    paths = (model / "tokenizer.json", draft / "tokenizer.json")
    if all(path.exists() for path in paths) and _tokens(paths[0]) != _tokens(paths[1]):
        raise InvalidRequest(
            f"draft model {draft} has another tokenizer than {model}: its token ids mean other "
            "texts (model or added_tokens of tokenizer.json differ)",
            field="draft_model",
        )


def _tokens(path: Path) -> tuple[object, object]:
    """What decides which text a token id stands for, and which ids a text is cut into."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content.get("model"), content.get("added_tokens")
