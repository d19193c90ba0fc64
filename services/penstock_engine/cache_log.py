"""The log of cache events between the step thread and whoever reads them.

Owns order and completeness from the start within bounded memory: when nobody reads, changes
that cancel out are dropped, so the log never outgrows a small multiple of the cache. It knows
nothing of threads; its owner guards it. Pure Python.
"""

from collections.abc import Sequence

from penstock_engine.api import KvEvent, KvMoved, KvRemoved, KvStored


class KvEventLog:
    """Cache events not yet read; replaying them gives the resident set."""

    def __init__(self, capacity_blocks: int) -> None:
        self._limit = 4 * capacity_blocks + 1024
        self._events: list[KvEvent] = []
        self._num_hashes = 0

    def __len__(self) -> int:
        return len(self._events)

    def append(self, events: Sequence[KvEvent]) -> None:
        """Add what happened, in order."""
        self._events.extend(events)
        self._num_hashes += sum(len(event.hashes) for event in events)
        if self._num_hashes > self._limit:
            self._events = net_effect(self._events)
            self._num_hashes = sum(len(event.hashes) for event in self._events)

    def take(self) -> list[KvEvent]:
        """Everything not yet read."""
        events, self._events, self._num_hashes = self._events, [], 0
        return events


def net_effect(events: Sequence[KvEvent]) -> list[KvEvent]:
    """Fewer events with the same outcome: removals of what was there before, then what is new.

    A block's first event tells whether it was resident before, its last whether it is after. The
    order of last events keeps children before parents in removals and after them in stores.
    """
    first: dict[int, bool] = {}
    last: dict[int, int | None] = {}
    for event in events:
        if isinstance(event, KvMoved):
            continue
        parent = event.parent if isinstance(event, KvStored) else None
        for key in event.hashes:
            first.setdefault(key, isinstance(event, KvStored))
            last.pop(key, None)
            last[key] = parent
            parent = key if parent is not None else None
    removed = tuple(key for key, parent in last.items() if parent is None and not first[key])
    stored = [
        KvStored(parent, (key,))
        for key, parent in last.items()
        if parent is not None and first[key]
    ]
    return [KvRemoved(removed), *stored] if removed else list(stored)
