"""The prefix cache of the fake engine: block hashes with holders and an order of eviction, no KV.

Deliberately not the native engine's tree, so that tests against the fake check the contract and
not one implementation against itself.
"""

from collections.abc import Sequence

from penstock_engine.api import KvEvent, KvRemoved, KvStored


class FakePrefixCache:
    """At most ``capacity`` blocks; the least recently used block without child or holder goes first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.events: list[KvEvent] = []
        self._parents: dict[int, int] = {}  # in order of use, oldest first
        self._holders: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._parents)

    @property
    def hashes(self) -> frozenset[int]:
        """What is cached."""
        return frozenset(self._parents)

    @property
    def num_held(self) -> int:
        """Blocks that a running request holds."""
        return sum(count > 0 for count in self._holders.values())

    def match(self, hashes: Sequence[int]) -> int:
        """How many leading blocks are cached."""
        for depth, key in enumerate(hashes):
            if key not in self._parents:
                return depth
        return len(hashes)

    def hold(self, hashes: Sequence[int]) -> None:
        """Keep cached blocks from eviction, and mark them as just used."""
        for key in hashes:
            self._holders[key] = self._holders.get(key, 0) + 1
            self._parents[key] = self._parents.pop(key)

    def release(self, hashes: Sequence[int]) -> None:
        """Give up what ``hold`` or ``store`` held."""
        for key in hashes:
            self._holders[key] -= 1

    def store(self, parent: int, hashes: Sequence[int]) -> list[int]:
        """Cache and hold a run of blocks. Returns those that found a place, a leading part."""
        held: list[int] = []
        new: list[int] = []
        for key in hashes:
            if key not in self._parents:
                if len(self._parents) >= self.capacity and not self._evict():
                    break
                self._parents[key] = parent
                new.append(key)
            elif new:
                self._note(new)
                new = []
            self.hold([key])
            held.append(key)
            parent = key
        self._note(new)
        return held

    def clear(self) -> None:
        """Forget everything that nobody holds."""
        while self._evict():
            pass

    def take_events(self) -> list[KvEvent]:
        """Changes since the last call, in order."""
        events, self.events = self.events, []
        return events

    def _note(self, run: list[int]) -> None:
        if run:
            self.events.append(KvStored(self._parents[run[0]], tuple(run)))

    def _evict(self) -> bool:
        with_children = set(self._parents.values())
        for key in self._parents:
            if not self._holders.get(key) and key not in with_children:
                del self._parents[key]
                self._holders.pop(key, None)
                self.events.append(KvRemoved((key,)))
                return True
        return False
