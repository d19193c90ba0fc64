"""JSON of wire messages, for ``--json``."""

import json
from collections.abc import Iterable

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


def to_dict(message: Message) -> dict[str, object]:
    """A message with all its fields, under the names of the .proto file."""
    document: dict[str, object] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return document


def to_json(document: object) -> str:
    """A document as JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False)


def messages_to_json(messages: Iterable[Message]) -> str:
    """Messages as one JSON list."""
    return to_json([to_dict(message) for message in messages])
