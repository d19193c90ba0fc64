"""The engine's cache events as ours, for whoever follows this engine.

Owns the mirror and the salts. After a gap in the events the mirror is emptied and every new request
gets a new salt: what the engine still holds under the old one could be hit but never be predicted,
so it is left to age out.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence

from penstock_core.blocks import chain, pack_tokens, reusable_blocks
from penstock_core.errors import EngineFailed
from penstock_engine.api import KvEvent
from penstock_engine.cache_log import KvEventLog
from penstock_engine.trtllm.cache_events import parse_events
from penstock_engine.trtllm.mirror import KvMirror, Tainted
from penstock_engine.trtllm.roots import Claim, Known, Roots

logger = logging.getLogger(__name__)

_UNREAD_BLOCKS = 1 << 20  # of events that nobody reads, after which only their net effect is kept


class CacheFeed:
    """What the engine's cache holds, in our block names."""

    def __init__(self, block_tokens: int) -> None:
        self.taints = 0
        """Times that events were lost."""
        self.block_tokens = block_tokens
        self._roots = Roots(block_tokens)
        self.mirror = KvMirror(block_tokens, self._roots)
        self._log = KvEventLog(_UNREAD_BLOCKS)
        self._changed = asyncio.Event()
        self._told_capacity = asyncio.Event()
        self._failure: str | None = None
        self._has_ended = False

    def salt(self, chain_start: int) -> str:
        """What keeps a chain's blocks apart in the engine, and from those before the last gap."""
        return f"{chain_start:016x}-{self.taints}"

    def expect(self, known: Known, chain_start: int) -> Claim:
        """A request is submitted; what it stores first will be known as its own.

        ``known`` gives its prompt and output so far.
        """
        return self._roots.expect(known, chain_start)

    def depth(self, tokens: Sequence[int], chain_start: int, rank: int | None = None) -> int:
        """Full blocks of a prompt that are cached, on one rank if it is named."""
        usable = reusable_blocks(len(tokens), self.block_tokens)
        hashes = chain(pack_tokens(tokens), chain_start, self.block_tokens, usable)
        return self.mirror.depth(hashes, rank)

    def take(self, item: object) -> None:
        """Follow one item of the engine's event stream. Raises ValueError if it is no event."""
        for event in parse_events(item):
            try:
                changes = self.mirror.apply(event)
            except Tainted as gap:
                changes = [*self._taint(str(gap)), *self.mirror.apply(event)]
            self._append(changes)
        self._roots.sweep(time.monotonic())
        if self.mirror.capacity_blocks is not None:
            self._told_capacity.set()

    def lose(self, error: Exception) -> None:
        """The stream broke: what it said meanwhile is not known."""
        self._append(self._taint(f"the event stream broke: {error!r}"))

    async def capacity(self, timeout_s: float) -> int | None:
        """Blocks of the engine's pool, once it told; None if it does not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._told_capacity.wait()
        except TimeoutError:
            return None
        return self.mirror.capacity_blocks

    async def events(self) -> AsyncIterator[Sequence[KvEvent]]:
        """Changes in order, complete from the start, until the engine is closed.

        Raises:
            EngineFailed: the engine failed.
        """
        while True:
            if len(self._log):
                yield self._log.take()
            elif self._failure is not None:
                raise EngineFailed(self._failure)
            elif self._has_ended:
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    def end(self, failure: str | None = None) -> None:
        """Nothing more will come, because the engine failed if that is told."""
        self._has_ended, self._failure = True, failure
        self._changed.set()

    def _taint(self, why: str) -> list[KvEvent]:
        self.taints += 1
        self._roots.clear()
        logger.warning(
            "the picture of the KV cache is lost and begins anew: %s (%d times so far); "
            "kv_cache.event_buffer is how many events the engine keeps", why, self.taints,
        )  # fmt: skip
        return self.mirror.clear()

    def _append(self, changes: Sequence[KvEvent]) -> None:
        if changes:
            self._log.append(changes)
            self._changed.set()
