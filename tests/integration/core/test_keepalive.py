"""Keepalive pings of idle connections are welcome: a server that takes them for abuse hangs up."""

import asyncio

import grpc
import pytest

from penstock_core.rpc.channels import KEEPALIVE_MS
from penstock_core.rpc.server import SERVER_OPTIONS

TOLERANCE = "grpc.http2.min_ping_interval_without_data_ms"
# gRPC sends at most one ping a second; the third is the second that comes too early.
WATCH_S = 3.5
PINGING = (
    ("grpc.keepalive_time_ms", 50),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


async def stays_connected(server_options: dict[str, int]) -> bool:
    """Whether an idle connection outlives a few pings."""
    server = grpc.aio.server(options=[*server_options.items(), ("grpc.http2.max_ping_strikes", 1)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=PINGING) as channel:
            await asyncio.wait_for(channel.channel_ready(), 5)
            async with asyncio.timeout(WATCH_S):
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
    except TimeoutError:
        return True
    finally:
        await server.stop(0)
    return False


def test_server_tolerates_twice_the_pings_that_clients_send() -> None:
    assert dict(SERVER_OPTIONS)[TOLERANCE] == KEEPALIVE_MS // 2


@pytest.mark.parametrize("tolerance_ms", [10, None])
async def test_it_is_this_option_that_makes_a_server_tolerant(tolerance_ms: int | None) -> None:
    options = dict(SERVER_OPTIONS)
    del options[TOLERANCE]
    if tolerance_ms is not None:
        options[TOLERANCE] = tolerance_ms

    assert await stays_connected(options) is (tolerance_ms is not None)
