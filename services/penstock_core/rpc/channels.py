"""Builders of gRPC channels, with the limits and keepalives that servers share.

Apart from ``penstock_core.rpc.server`` so that a client needs neither health nor reflection packages.
"""

import grpc

from penstock_core.security.tls import PLAIN, Tls, channel_credentials, channel_options, is_local

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
KEEPALIVE_MS = 20_000

COMMON_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS // 2),
)
_CLIENT = (
    *COMMON_OPTIONS,
    ("grpc.keepalive_permit_without_calls", 1),
    # A restarted worker must be reachable at once, not after gRPC's default minute of backing off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Retries are ours: only the router knows whether a token was already sent.
    ("grpc.enable_retries", 0),
    # A name that stands for several servers is served by all of them, and one that comes back under
    # another address is found within seconds.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Each client owns its connections; a shared pool would outlive the channel that opened it.
    ("grpc.use_local_subchannel_pool", 1),
)


def channel(target: str, tls: Tls = PLAIN) -> grpc.aio.Channel:
    """An asyncio channel to ``host:port`` or ``unix:path``. The caller closes it.

    Raises:
        OSError: a file of ``tls`` cannot be read.
    """
    if not tls.dials or is_local(target):
        return grpc.aio.insecure_channel(target, options=_CLIENT)
    options = (*_CLIENT, *channel_options(tls))
    return grpc.aio.secure_channel(target, channel_credentials(tls), options=options)


def sync_channel(target: str, tls: Tls = PLAIN) -> grpc.Channel:
    """A blocking channel; arguments and errors as of ``channel``."""
    if not tls.dials or is_local(target):
        return grpc.insecure_channel(target, options=_CLIENT)
    options = (*_CLIENT, *channel_options(tls))
    return grpc.secure_channel(target, channel_credentials(tls), options=options)
