"""Traces that ship with Penstock; ``README.md`` beside them says where they come from."""

from pathlib import Path

CONVERSATION = Path(__file__).with_name("conversation_600.jsonl")
