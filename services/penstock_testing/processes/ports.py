"""Ports for servers that cannot be told to take any."""

import random
import socket

# Below the ports that systems give to connections by themselves (32768 and up on Linux, 49152 on
# macOS): nobody is given the port between now and the server's start.
_CHOSEN = range(12_000, 32_768)
_TRIES = 100
_chance = random.SystemRandom()  # the shared one is seeded alike in tests side by side


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now. Raises OSError if none is found."""
    for _ in range(_TRIES):
        port = _chance.choice(_CHOSEN)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise OSError("no free port on the loopback interface")
