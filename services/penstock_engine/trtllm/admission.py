"""Places in the engine, and who waits for one.

TensorRT-LLM takes requests first come, first served and knows no priorities: so no more enter than it
can run at once, and the others wait here, the best class first, then by arrival.
"""

import asyncio
import heapq
from dataclasses import dataclass, field

from penstock_core.errors import Overloaded

Rank = tuple[int, int, int]
"""Priority class, arrival, choice; smaller goes first."""


@dataclass(order=True, slots=True)
class _Waiting:
    rank: Rank
    place: "asyncio.Future[bool]" = field(compare=False)


class Admission:
    """``places`` samples are in the engine at once; at most ``max_waiting`` wait."""

    def __init__(self, places: int, max_waiting: int) -> None:
        self._free = places
        self._max_waiting = max_waiting
        self._heap: list[_Waiting] = []

    @property
    def num_waiting(self) -> int:
        """Samples that wait for a place."""
        return sum(not waiting.place.done() for waiting in self._heap)

    def check_room(self) -> None:
        """Raise Overloaded if a new request would find no place and no room to wait."""
        if self._free < 1 and self.num_waiting >= self._max_waiting:
            raise Overloaded(
                f"{self.num_waiting} requests wait for the engine already", retry_after_s=1.0
            )

    def enter(self, rank: Rank) -> "asyncio.Future[bool]":
        """Ask for a place: true once it is had, false if it was given up. ``leave`` frees it."""
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, _Waiting(rank, place))
        self._assign()
        return place

    def leave(self) -> None:
        """Free a place."""
        self._free += 1
        self._assign()

    def _assign(self) -> None:
        while self._heap and (self._free > 0 or self._heap[0].place.done()):
            waiting = heapq.heappop(self._heap)
            if not waiting.place.done():
                self._free -= 1
                waiting.place.set_result(True)
