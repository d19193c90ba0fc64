"""The most frequent answer of several samples. Pure."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vote:
    """``answer`` as it was counted; ``total`` counts the samples that gave one at all."""

    index: int
    answer: str
    votes: int
    total: int


def majority(texts: Sequence[str], field: str = "") -> Vote:
    """Vote over texts or, if ``field`` is given, over that field of the JSON object in each.

    Texts are equal that differ only in case and white space. A sample without the field has no
    vote. Of equally frequent answers the one that came first wins.
    """
    answers = [_field_of(text, field) if field else _normalised(text) for text in texts]
    counted = Counter(answer for answer in answers if answer is not None)
    if not counted:
        return Vote(0, "", 0, 0)
    answer, votes = counted.most_common(1)[0]
    return Vote(answers.index(answer), answer, votes, counted.total())


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()


def _field_of(text: str, field: str) -> str | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or field not in value:
        return None
    answer = value[field]
    if isinstance(answer, str):
        return _normalised(answer)
    return json.dumps(answer, sort_keys=True, ensure_ascii=False)
