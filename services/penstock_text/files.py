"""Reading the small JSON files that lie beside a model's weights."""

import json
from collections.abc import Mapping
from pathlib import Path

from penstock_core.errors import NotSupported

JsonObject = Mapping[str, object]


def read_object(path: Path) -> JsonObject:
    """A JSON object from a file; empty if there is no file. Raises NotSupported if it is no object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NotSupported(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise NotSupported(f"{path} holds no JSON object")
    return value


def token_text(value: object) -> str:
    """A special token as configurations write it: a string, or an object with ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
