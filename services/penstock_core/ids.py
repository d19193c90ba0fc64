"""Random ids with a prefix that says what they name."""

import secrets
from typing import NewType

WorkerId = NewType("WorkerId", str)
RequestId = NewType("RequestId", str)
DecisionId = NewType("DecisionId", str)

MAX_ID_LENGTH = 128


def new_id(prefix: str) -> str:
    """``prefix_`` and 96 random bits in hex."""
    return f"{prefix}_{secrets.token_hex(12)}"


def is_safe_id(text: str) -> bool:
    """Whether a caller's id is fit for logs, metadata and object names."""
    return 0 < len(text) <= MAX_ID_LENGTH and all(c.isalnum() or c in "-_.:" for c in text)
