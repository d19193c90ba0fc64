"""What the demonstration asks: Python code to continue, since that is what the demo model does."""

import json
from pathlib import Path

BATCH_LINES = 64
BATCH_MAX_TOKENS = 16
COMPLETIONS_URL = "/v1/completions"

# Long enough for several KV blocks of 32 tokens, so that the second run has something to find.
PROMPT = '''"""Helpers to read and write configuration files."""

import json
import os
import tempfile
from pathlib import Path


class ConfigError(Exception):
    """Raised when a configuration file cannot be read."""


def load_config(path, default=None):
    """Return the contents of a JSON file, or the default if it does not exist."""
    path = Path(path)
    if not path.exists():
        return default
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} is no valid JSON: {error}") from error


def save_config(path, config):
    """Write a configuration so that a reader never sees half of it."""
'''

_HEADER = '''"""Helpers for text: each takes a string and returns a new value."""

import re
import collections


def count_characters(text):
    """Return how often each character occurs."""
    counts = collections.Counter()
    for character in text:
        counts[character] += 1
    return counts


'''
_VERBS = ("count", "find", "remove", "replace", "split", "join", "sort", "group")
_NOUNS = ("words", "lines", "digits", "spaces", "items", "pairs", "names", "blocks")


def write_batch_file(path: Path, model: str) -> None:
    """Write 64 requests; they share a header, as requests of one job usually do."""
    with path.open("w", encoding="utf-8") as file:
        for verb in _VERBS:
            for noun in _NOUNS:
                file.write(json.dumps(_line(model, verb, noun)) + "\n")


def _line(model: str, verb: str, noun: str) -> dict[str, object]:
    name = f"{verb}_{noun}"
    prompt = f'{_HEADER}def {name}(text):\n    """{verb.capitalize()} the {noun} of a text."""\n'
    body = {"model": model, "prompt": prompt, "max_tokens": BATCH_MAX_TOKENS, "temperature": 0}
    return {"custom_id": name, "method": "POST", "url": COMPLETIONS_URL, "body": body}
