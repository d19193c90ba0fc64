"""How every process connects to Redis: answers as text, and no wait without an end."""

from redis.asyncio import Redis


def connect(url: str, timeout_s: float) -> Redis:
    """A client; nothing is opened before its first command.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout_s: of connecting and of each answer.
    """
    return Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        decode_responses=True,
        # Else each connection reads redis-py's version from disk, blocking the loop.
        driver_info=None,
    )
