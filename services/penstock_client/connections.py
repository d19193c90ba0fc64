"""Channels to workers: bounded, shared by requests, the longest unused closed first."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from penstock_core.rpc.channels import channel
from penstock_core.security.tls import PLAIN, Tls

MAX_CHANNELS = 64
CONNECT_TIMEOUT_S = 2.0
UNREACHABLE_FOR_S = 10.0


class Unreachable(Exception):
    """No connection to a worker; the router may have one. Never leaves the client."""


@dataclass(slots=True)
class _Entry:
    channel: grpc.aio.Channel
    users: int = 0


class Connections:
    """Channels by endpoint. One that could not be reached is not tried again for a while."""

    def __init__(self, limit: int = MAX_CHANNELS, tls: Tls = PLAIN) -> None:
        self._tls = tls
        self._limit = limit
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._unreachable_until: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Channels that are open."""
        return len(self._entries)

    @asynccontextmanager
    async def use(self, endpoint: str) -> AsyncIterator[grpc.aio.Channel]:
        """A connected channel, kept open while it is used.

        Raises:
            Unreachable: no connection within ``CONNECT_TIMEOUT_S``, or none a moment ago.
        """
        if time.monotonic() < self._unreachable_until.get(endpoint, 0.0):
            raise Unreachable(endpoint)
        entry = self._entries.get(endpoint)
        if entry is None:
            entry = self._entries[endpoint] = _Entry(channel(endpoint, self._tls))
        self._entries.move_to_end(endpoint)
        entry.users += 1
        try:
            if not await _connected(entry.channel):
                await self._give_up(endpoint, entry)
                raise Unreachable(endpoint)
            yield entry.channel
        finally:
            entry.users -= 1
            await self._trim()

    async def close(self) -> None:
        """Close every channel; calls that still run are cancelled."""
        entries, self._entries = list(self._entries.values()), OrderedDict()
        for entry in entries:
            await entry.channel.close()

    async def _give_up(self, endpoint: str, entry: _Entry) -> None:
        self._unreachable_until[endpoint] = time.monotonic() + UNREACHABLE_FOR_S
        self._unreachable_until.move_to_end(endpoint)
        while len(self._unreachable_until) > self._limit:
            self._unreachable_until.popitem(last=False)
        if self._entries.get(endpoint) is entry:
            # A new channel connects at once; this one would wait out gRPC's backing off.
            del self._entries[endpoint]
            await entry.channel.close()

    async def _trim(self) -> None:
        spare = len(self._entries) - self._limit
        idle = [endpoint for endpoint, entry in self._entries.items() if not entry.users]
        for endpoint in idle[: max(spare, 0)]:
            await self._entries.pop(endpoint).channel.close()


async def _connected(to: grpc.aio.Channel) -> bool:
    """Whether the channel has, or gets in time, a connection; a refused one answers at once."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            while (state := to.get_state(try_to_connect=True)) != grpc.ChannelConnectivity.READY:
                if state == grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    return False
                await to.wait_for_state_change(state)
    except TimeoutError:
        return False
    return True
