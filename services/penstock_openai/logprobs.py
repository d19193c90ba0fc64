"""Log-probabilities in OpenAI's two shapes. Pure."""

from collections.abc import Sequence

from penstock.common.v1 import tokens_pb2
from penstock_openai.json_object import Json

# JSON has no infinity; OpenAI and vLLM show a masked token like this.
_LOWEST = -9999.0
_CONTINUATION_MASK = 0b1100_0000
_CONTINUATION = 0b1000_0000


def token_text(raw: bytes) -> str:
    r"""A token as text; one that is only part of a character as OpenAI's ``bytes:\xNN``."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def count_chars(raw: bytes) -> int:
    """Characters that begin in these UTF-8 bytes."""
    return sum(byte & _CONTINUATION_MASK != _CONTINUATION for byte in raw)


def chat_logprobs(tokens: Sequence[tokens_pb2.TokenLogprob]) -> Json:
    """The ``logprobs`` object of a chat choice."""
    content = [
        {**_entry(token), "top_logprobs": [_entry(top) for top in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[tokens_pb2.TokenLogprob], offset: int) -> Json:
    """The ``logprobs`` object of a completion choice.

    Args:
        tokens: the tokens, in order.
        offset: characters of the choice's text before the first of them.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += count_chars(token.token_bytes)
    return {
        "tokens": [token_text(token.token_bytes) for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [_alternatives(token) for token in tokens],
        "text_offset": offsets,
    }


def _alternatives(token: tokens_pb2.TokenLogprob) -> dict[str, float]:
    # Two tokens can read the same; the likelier one comes first and stays.
    found: dict[str, float] = {}
    for top in token.top:
        found.setdefault(token_text(top.token_bytes), _finite(top.logprob))
    return found


def _entry(token: tokens_pb2.TokenLogprob | tokens_pb2.TopLogprob) -> Json:
    return {
        "token": token_text(token.token_bytes),
        "logprob": _finite(token.logprob),
        "bytes": list(token.token_bytes),
    }


def _finite(logprob: float) -> float:
    return logprob if logprob > _LOWEST else _LOWEST
