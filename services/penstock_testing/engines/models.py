"""A model directory without weights, made in code: 256 byte tokens, an end token, a chat template."""

import json
from pathlib import Path

from penstock_text.tokenizer import byte_alphabet

BYTE_EOS = 256
BYTE_VOCAB_SIZE = 257
EOS_TOKEN = "<|end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}<{{ message.role }}>{{ message.content }}\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)


def write_byte_tokenizer(path: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Write a tokenizer whose token ids are the text's bytes into a directory, and return it."""
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = {char: byte for byte, char in enumerate(byte_alphabet())}
    end = {
        "id": BYTE_EOS, "content": EOS_TOKEN, "single_word": False, "lstrip": False,
        "rstrip": False, "normalized": False, "special": True,
    }  # fmt: skip
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False,
    }  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "added_tokens": [end],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    config: dict[str, object] = {"eos_token": EOS_TOKEN}
    if chat_template is not None:
        config["chat_template"] = chat_template
    for name, content in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config),
        ("generation_config.json", {"eos_token_id": BYTE_EOS}),
    ):
        (path / name).write_text(json.dumps(content), encoding="utf-8")
    return path
