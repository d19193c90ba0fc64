"""The type of JSON objects that go out."""

from typing import TypeAlias

Json: TypeAlias = dict[str, object]
