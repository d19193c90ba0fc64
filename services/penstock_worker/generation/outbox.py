"""Decides when to send: at once while the stream is slow, in larger messages when it is fast.

A message costs a Python hop 70-140 us whatever it carries, so tokens that come within 10 ms of the
last message share the next one. A token is never more than 10 ms or 8 tokens behind, unless the request
allows more: a router that forwards many streams pays for each message as well. Of batch work nobody
watches the tokens, so what it says goes out about once a second. Streams that may wait send at the ticks of
one clock, all of them together: waking up is most of what a message costs.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from penstock.common.v1 import sampling_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.rpc.ticks import TICK_S

COALESCE_S = 0.010
COALESCE_TOKENS = 8
_MOST_DELAY_S = 1.0
_MOST_TOKENS = 64
# A tick may be this part of one late: loops count in milliseconds.
_LATENESS = 0.1


@dataclass(slots=True, weakref_slot=True)
class Bounds:
    """How far a stream may lag, in seconds and in tokens of a sample."""

    delay_s: float = COALESCE_S
    tokens: int = COALESCE_TOKENS


class Ticks:
    """One timer for all who wait for the same tick, on a clock that every process here has in common."""

    def __init__(self) -> None:
        self._due: dict[int, list[Callable[[], None]]] = {}

    def call_at(self, tick: int, call: Callable[[], None]) -> None:
        """Call this at a tick: so many times ``TICK_S`` on the event loop's clock."""
        if tick not in self._due:
            self._due[tick] = []
            asyncio.get_running_loop().call_at(tick * TICK_S, self._fire, tick)
        self._due[tick].append(call)

    def _fire(self, tick: int) -> None:
        for call in self._due.pop(tick):
            call()


class Paces:
    """The bounds of streams; those of a group share one, as long as any of them runs."""

    def __init__(self, coalesce_s: float = COALESCE_S) -> None:
        self._coalesce_s = coalesce_s
        self._groups: WeakValueDictionary[str, Bounds] = WeakValueDictionary()
        self.ticks = Ticks()

    @property
    def num_groups(self) -> int:
        """Groups of which a stream runs."""
        return len(self._groups)

    def of(self, request: generate_pb2.GenerateRequest) -> Bounds:
        """What a request allows, which from now on holds for all of its group."""
        if not request.HasField("coalescing"):
            if request.priority == sampling_pb2.PRIORITY_CLASS_BATCH:
                return Bounds(_MOST_DELAY_S, _MOST_TOKENS)
            return Bounds(self._coalesce_s)
        asked = request.coalescing
        delay_s = min(asked.max_delay_ms / 1000, _MOST_DELAY_S)
        bounds = Bounds(delay_s, min(max(asked.max_tokens, 1), _MOST_TOKENS))
        if not asked.group:
            return bounds
        shared = self._groups.setdefault(asked.group, bounds)
        shared.delay_s, shared.tokens = bounds.delay_s, bounds.tokens
        return shared


class Outbox:
    """When one request's responses are due. The responses themselves lie with their samples."""

    def __init__(self, bounds: Bounds, ticks: Ticks) -> None:
        self._bounds = bounds
        self._ticks = ticks
        self._tick = 0  # that is waited for; 0 for none
        self._waiting = asyncio.Event()
        self._due = asyncio.Event()
        self._has_tokens = False
        self._sent_at = float("-inf")  # when tokens were sent last: the first ones go at once

    def tokens(self, pending: int) -> None:
        """A sample now has this many unsent tokens."""
        self._has_tokens = True
        self._waiting.set()
        if pending >= self._bounds.tokens:
            self._due.set()

    def now(self) -> None:
        """Something happened that must not wait: admission, an end, an error."""
        self._waiting.set()
        self._due.set()

    async def ready(self) -> None:
        """Wait until there is something to send and it is time to send all there is."""
        await self._waiting.wait()
        loop = asyncio.get_running_loop()
        due_at = self._sent_at + self._bounds.delay_s
        if not self._due.is_set() and loop.time() < due_at:
            await self._wait_until(due_at)
        if self._has_tokens:
            self._sent_at = loop.time()
        self._has_tokens = False
        self._waiting.clear()
        self._due.clear()

    async def _wait_until(self, due_at: float) -> None:
        """Wait until it is due, and no longer than until then."""
        if self._bounds.delay_s >= TICK_S:
            tick = self._tick = int(due_at / TICK_S + _LATENESS)
            self._ticks.call_at(tick, lambda: self._ticked(tick))
            await self._due.wait()
            self._tick = 0
            return
        try:
            async with asyncio.timeout_at(due_at):
                await self._due.wait()
        except TimeoutError:
            pass

    def _ticked(self, tick: int) -> None:
        if self._tick == tick:  # else it was due before
            self._due.set()
