"""Finds the tool calls that a model wrote by itself, as its chat template taught it, in its output.

Owns what of an output is a call and what is text, and how much is held back until that is known.
Calls are written in one of three ways:

* ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, one or several (Hermes, Qwen);
* as the whole answer, one such object, which may say ``parameters`` (Llama 3);
* as the whole answer, an array of them (Mistral).

``<|python_tag|>`` or ``[TOOL_CALLS]``, which a tokenizer usually leaves out of the text, begin the
latter two anywhere. A whole answer begins behind the model's thoughts, which are text. White space
beside a call belongs to the notation. All that is not quite a call of one of the tools is text, to
the letter: what has another name, is no JSON, or is not whole when the output ends. Of a whole
call only ``</tool_call>`` may be missing there. Pure.
"""

import re
from collections.abc import Set
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import groupby

from penstock_openai.call_json import CallJson
from penstock_openai.tool_calls import new_call_id

_TAG, _TAG_END = "<tool_call>", "</tool_call>"
_THOUGHT, _THOUGHT_END = "<think>", "</think>"
# Each begins with the only such bracket in it.
_ANY_MARK = (_TAG, "<|python_tag|>", "[TOOL_CALLS]", _THOUGHT_END)
_NO_CALL = (_THOUGHT_END,)
_PATTERNS = {marks: re.compile("|".join(map(re.escape, marks))) for marks in (_ANY_MARK, _NO_CALL)}
_LONGEST = max(map(len, _ANY_MARK))
_VISIBLE = re.compile(r"\S")
_IS_TEXT = -1


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call with its arguments as the model wrote them, which are a JSON object."""

    name: str
    arguments: str
    id: str = field(default_factory=new_call_id)


Part = str | WrittenCall


class _Mode(Enum):
    START = auto()  # nothing but white space since the answer began
    THOUGHT = auto()
    TEXT = auto()
    CALL = auto()  # what may be one


class WrittenCalls:
    """Reads one output. ``count``: calls found so far."""

    def __init__(self, names: Set[str], *, most: int | None = None) -> None:
        """Args: ``names`` of the tools; after ``most`` calls the rest is text."""
        self.count = 0
        self._most = most
        self._names = names
        self._mode = _Mode.START
        self._held = ""
        self._at = 0  # what of it lies before is told
        self._blank = 0  # what of it lies between is white space, which may be long
        self._json = CallJson(names)
        self._begin = 0  # of the JSON
        self._is_tagged = False
        self._is_behind_call = False
        self._parts: list[Part] = []

    def read(self, text: str) -> list[Part]:
        """Take more of the output; returns what is certain now, in order."""
        self._held += text
        self._go_on(is_end=False)
        return self._told()

    def end(self) -> list[Part]:
        """The output is over; returns the rest."""
        self._go_on(is_end=True)
        if not (self._is_behind_call and self._held[self._at :].isspace()):
            self._say(len(self._held))
        return self._told()

    @property
    def _is_full(self) -> bool:
        return self._most is not None and self.count >= self._most

    def _go_on(self, *, is_end: bool) -> None:
        while self._step(is_end=is_end):
            pass

    def _step(self, *, is_end: bool) -> bool:
        """Read up to what has another mode; False if more of the output is needed for that."""
        match self._mode:
            case _Mode.START:
                return self._start()
            case _Mode.CALL:
                return self._call(is_end=is_end)
            case _:
                return self._text()

    def _start(self) -> bool:
        at = self._visible(self._at)
        if at is None:
            return False
        first = self._held[at : at + len(_THOUGHT)]
        if first == _THOUGHT:
            self._mode = _Mode.THOUGHT
        elif _THOUGHT.startswith(first):
            return False
        elif first[0] in "{[" and not self._is_full:
            self._open(at, is_tagged=False)
        else:
            self._mode = _Mode.TEXT
        return True

    def _text(self) -> bool:
        marks = _NO_CALL if self._is_full or self._mode is _Mode.THOUGHT else _ANY_MARK
        found = _PATTERNS[marks].search(self._held, max(self._at, self._blank))
        if found is None:
            self._say(self._certain(marks))
            return False
        if found[0] == _THOUGHT_END:
            self._say(found.end())
            self._mode = _Mode.START
        else:
            self._say(self._without_space(found.start()))
            self._open(found.end(), is_tagged=found[0] == _TAG)
        return True

    def _certain(self, marks: tuple[str, ...]) -> int:
        """Where what may still be the begin of a mark, or white space before one, begins."""
        begin = max(self._held.rfind("<", self._at), self._held.rfind("[", self._at))
        last = self._held[begin : begin + _LONGEST]
        is_open = begin >= 0 and any(mark.startswith(last) for mark in marks)
        return self._without_space(begin if is_open else len(self._held))

    def _without_space(self, end: int) -> int:
        visible = self._visible(self._at)
        if visible is None or visible >= end:
            return self._at
        return self._at + len(self._held[self._at : end].rstrip())

    def _visible(self, start: int) -> int | None:
        """Where behind white space something else comes."""
        found = _VISIBLE.search(self._held, max(start, self._blank))
        if found is None:
            self._blank = len(self._held)
        return None if found is None else found.start()

    def _open(self, begin: int, *, is_tagged: bool) -> None:
        self._mode, self._json = _Mode.CALL, CallJson(self._names)
        self._begin, self._is_tagged = begin, is_tagged

    def _call(self, *, is_end: bool) -> bool:
        self._json.take(self._held, self._begin)
        end = self._end_of_call(is_end=is_end)
        if end is None:
            return False
        self._mode, self._blank = _Mode.TEXT, 0
        if end != _IS_TEXT:
            self._accept(end)
        elif not self._held[self._at : self._begin].isspace():
            self._say(self._begin)  # the mark; behind it another call may begin
        return True

    def _end_of_call(self, *, is_end: bool) -> int | None:
        """Where the notation ends; None if more has to be known."""
        if self._json.is_broken:
            return _IS_TEXT
        if not self._json.is_whole:
            return None
        undecided = len(self._held) if is_end else None
        at = self._visible(self._begin + self._json.size)
        if at is None:
            return undecided
        last = self._held[at : at + len(_TAG_END)]
        if not self._is_tagged or not _TAG_END.startswith(last):
            return _IS_TEXT
        return at + len(last) if last == _TAG_END else undecided

    def _accept(self, end: int) -> None:
        calls = self._json.calls
        taken = calls if self._most is None else calls[: self._most - self.count]
        self._parts += [WrittenCall(call.name, call.arguments) for call in taken]
        self.count += len(taken)
        self._at = end if len(taken) == len(calls) else self._begin + taken[-1].end
        self._is_behind_call = True

    def _say(self, end: int) -> None:
        """What is held up to ``end`` is text."""
        if end > self._at:
            self._parts.append(self._held[self._at : end])
            self._at = end
            self._is_behind_call = False

    def _told(self) -> list[Part]:
        """The parts that are new, neighbouring texts as one."""
        parts, self._parts = self._parts, []
        self._held = self._held[self._at :]
        self._begin -= self._at
        self._blank = max(0, self._blank - self._at)
        self._at = 0
        merged: list[Part] = []
        for is_text, run in groupby(parts, key=lambda part: isinstance(part, str)):
            found = list(run)
            merged += ["".join(map(str, found))] if is_text else found
        return merged
