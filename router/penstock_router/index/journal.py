"""Which blocks were touched lately, so that what was found out about a prompt can be kept.

A hash names all that comes before it. Of blocks that follow one another, those in a prompt are
therefore the first ones: whether the first is in it tells whether any is. Keeps no more than the
last changes; who was away for longer must look again.
"""

from collections import deque
from itertools import islice

_KEPT = 256
_ANY = b""


class Journal:
    """The last changes. ``version`` grows with each."""

    def __init__(self) -> None:
        self.version = 0
        self._keys: deque[bytes] = deque(maxlen=_KEPT)

    def note(self, key: bytes) -> None:
        """The block with this packed hash changed, and some that follow it."""
        self.version += 1
        self._keys.append(key)

    def note_any(self) -> None:
        """Any block may have changed."""
        self.note(_ANY)

    def touched(self, chain: bytes, since: int) -> bool:
        """Whether blocks of a packed chain may have changed after a version."""
        missed = self.version - since
        if missed > len(self._keys):
            return True
        # Where a hash stands by chance across two others, the chain is looked up once too often.
        return any(key in chain for key in islice(reversed(self._keys), missed))
