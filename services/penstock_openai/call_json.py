"""Follows the JSON of tool calls while it comes, and says at the first character that it is none.

Owns what such JSON is: ``{"name": ..., "arguments": {...}}`` with the name of a tool (Llama says
``parameters``; an ``id`` or a ``type`` beside them tells nothing new), or an array of these. What
stands around it is not its business. Pure.
"""

import json
import re
from collections.abc import Set
from dataclasses import dataclass
from enum import Enum, auto
from typing import NoReturn

_ARGUMENTS = frozenset({"arguments", "parameters"})
_KEYS = _ARGUMENTS | {"name", "id", "type"}
# Where the keys of a call stand: in the whole value, or in an item of the array that it is.
_CALL_LEVELS = (["{"], ["[", "{"])
_CLOSED_BY = {"{": "}", "[": "]"}
_SPACE = re.compile(r"[ \t\n\r]*+")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*+')
# Numbers and words are only bounded here; json reads the arguments once they are whole.
_SCALAR = re.compile(r"[-+.\w]*+")
_SCALAR_BEGINS = frozenset("-0123456789tfn")
_ESCAPED = frozenset('"\\/bfnrtu')


@dataclass(frozen=True, slots=True)
class CallText:
    """A call as it was written; ``end`` is where its object ends, counted from the JSON's begin."""

    name: str
    arguments: str
    end: int


class _Next(Enum):
    VALUE = auto()
    FIRST_VALUE = auto()
    KEY = auto()
    FIRST_KEY = auto()
    COLON = auto()
    AFTER = auto()
    STRING = auto()
    ESCAPED = auto()
    SCALAR = auto()
    NOTHING = auto()
    BROKEN = auto()


class CallJson:
    """One value. ``size``: characters taken. ``calls``: those that are whole."""

    def __init__(self, names: Set[str]) -> None:
        self.size = 0
        self.calls: list[CallText] = []
        self._names = names
        self._next = _Next.VALUE
        self._open: list[str] = []
        self._begin = 0  # of the string at call level, or of the arguments
        self._is_key = False
        self._fields: dict[str, str] = {}
        self._key = ""

    @property
    def is_whole(self) -> bool:
        """Whether it has ended, with calls and nothing else in it."""
        return self._next is _Next.NOTHING

    @property
    def is_broken(self) -> bool:
        """Whether it can become no call any more."""
        return self._next is _Next.BROKEN

    def take(self, text: str, start: int) -> None:
        """Go on in a text where the JSON begins at ``start`` and of which more may be there now."""
        while start + self.size < len(text) and not (self.is_whole or self.is_broken):
            self.size = self._step(text, start) - start

    def _step(self, text: str, start: int) -> int:
        """Take the next token, or part of a string; returns where the one after it begins."""
        at = start + self.size
        match self._next:
            case _Next.STRING:
                return self._in_string(text, start)
            case _Next.ESCAPED:
                self._next = _Next.STRING if text[at] in _ESCAPED else _Next.BROKEN
                return at + 1
            case _Next.SCALAR:
                end = _run(_SCALAR, text, at)
                self._next = _Next.SCALAR if end == len(text) else _Next.AFTER
                return end
        at = _run(_SPACE, text, at)
        if at < len(text):
            self._sign(text, at, start)
            at += 1
        return at

    def _in_string(self, text: str, start: int) -> int:
        at = _run(_PLAIN, text, start + self.size)
        if at == len(text):
            return at
        if text[at] == "\\":
            self._next = _Next.ESCAPED
        elif text[at] == '"':
            self._next = _Next.COLON if self._is_key else _Next.AFTER
            if self._open in _CALL_LEVELS:
                self._note(text[start + self._begin : at + 1])
        else:
            self._next = _Next.BROKEN
        return at + 1

    def _sign(self, text: str, at: int, start: int) -> None:
        """What a character outside strings and scalars means."""
        sign = text[at]
        match self._next, sign:
            case (_Next.FIRST_KEY, "}") | (_Next.FIRST_VALUE, "]") | (_Next.AFTER, "}" | "]"):
                self._close(text, at, start)
            case ((_Next.KEY | _Next.FIRST_KEY), '"'):
                self._begin_string(at - start, is_key=True)
            case _Next.COLON, ":":
                self._next = _Next.VALUE
            case _Next.AFTER, ",":
                self._next = _Next.KEY if self._open[-1] == "{" else _Next.VALUE
            case ((_Next.VALUE | _Next.FIRST_VALUE), _) if self._may_begin(sign):
                self._value(sign, at - start)
            case _:
                self._next = _Next.BROKEN

    def _may_begin(self, sign: str) -> bool:
        """Whether a value may begin so here, as far as calls say more about it than JSON."""
        if not self._open:
            return sign in "{["
        if self._open in _CALL_LEVELS:
            return sign == ("{" if self._key in _ARGUMENTS else '"')
        return self._open != ["["] or sign == "{"

    def _value(self, sign: str, at: int) -> None:
        if sign in _CLOSED_BY:
            if self._open in _CALL_LEVELS:
                self._begin = at
            self._open.append(sign)
            self._next = _Next.FIRST_KEY if sign == "{" else _Next.FIRST_VALUE
        elif sign == '"':
            self._begin_string(at, is_key=False)
        else:
            self._next = _Next.SCALAR if sign in _SCALAR_BEGINS else _Next.BROKEN

    def _begin_string(self, at: int, *, is_key: bool) -> None:
        self._is_key = is_key
        self._next = _Next.STRING
        if self._open in _CALL_LEVELS:
            self._begin = at

    def _close(self, text: str, at: int, start: int) -> None:
        was_call = self._open in _CALL_LEVELS
        if _CLOSED_BY[self._open.pop()] != text[at]:
            self._next = _Next.BROKEN
            return
        self._next = _Next.AFTER if self._open else _Next.NOTHING
        if was_call:
            self._end_call(at + 1 - start)
        elif self._open in _CALL_LEVELS:
            self._note(text[start + self._begin : at + 1])
        elif not self.calls and not self._open:  # an array of nothing
            self._next = _Next.BROKEN

    def _note(self, written: str) -> None:
        """Take a key or a value of a call."""
        value = _parsed(written)
        if self._is_key and self._next is _Next.COLON:
            key = "arguments" if value in _ARGUMENTS else str(value)
            is_known = key in _KEYS and key not in self._fields
            self._key = key
        else:
            is_known = value in self._names if self._key == "name" else value is not None
            self._fields[self._key] = str(value) if self._key == "name" else written
        if not is_known:
            self._next = _Next.BROKEN

    def _end_call(self, end: int) -> None:
        name, arguments = self._fields.get("name"), self._fields.get("arguments")
        if name is None or arguments is None:
            self._next = _Next.BROKEN
            return
        self.calls.append(CallText(name, arguments, end))
        self._fields = {}


def _run(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _parsed(written: str) -> object:
    """The value of some JSON; None, which no key, name or arguments have, if it is not quite JSON."""
    try:
        return json.loads(written, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
