"""Reads a forced tool call from an output as it comes: first the name, then the arguments.

Owns what of ``{"name": ..., "arguments": {...}}`` is passed on when. Pure.
"""

import json
import re
import secrets
import string
from dataclasses import dataclass, field

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
# What may still turn out to be the end of the call around the arguments.
_TAIL = re.compile(r"[\s}]*$")


_ID_LETTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """An id that every chat template takes back: Mistral's want nine letters and digits."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(9))


@dataclass(slots=True)
class CallReader:
    """One call. ``name`` is None until it is known."""

    id: str = field(default_factory=new_call_id)
    name: str | None = None
    _unread: str = ""
    _has_begun: bool = False

    def read(self, text: str) -> str:
        """Take more of the output; returns what of the arguments is new and certain."""
        self._unread += text
        if self.name is None:
            head = _HEAD.match(self._unread)
            if head is None:
                return ""
            self.name = str(json.loads(head[1]))
            self._unread = self._unread[head.end() :]
        if not self._has_begun:  # white space in front may come in pieces
            self._unread = self._unread.lstrip()
        tail = _TAIL.search(self._unread)
        end = tail.start() if tail else len(self._unread)
        certain, self._unread = self._unread[:end], self._unread[end:]
        self._has_begun = self._has_begun or bool(certain)
        return certain

    def end(self, *, is_whole: bool) -> str:
        """The rest of the arguments, without the brace that closes a whole call around them."""
        rest, self._unread = self._unread, ""
        if self.name is None:
            return ""
        return rest.rstrip().removesuffix("}").rstrip() if is_whole else rest
