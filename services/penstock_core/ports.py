"""TCP ports for servers that listen a while after their port was chosen."""

import random
import socket

# Below the ports that systems give to connections by themselves (32768 and up on Linux, 49152 on
# macOS): nobody is given the port between now and the server's start.
_CHOSEN = range(12_000, 32_768)
_TRIES = 100
_chance = random.SystemRandom()  # the shared one may be seeded alike in processes side by side


def take_free_port(host: str) -> socket.socket:
    """A socket bound to a port that nobody has; who closes it before the server starts is quick.

    Raises:
        OSError: the address is not ours, or no free port was found.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last = OSError(f"no free port on {host}")
    for _ in range(_TRIES):
        taken = socket.socket(family)
        try:
            taken.bind((host, _chance.choice(_CHOSEN)))
        except OSError as error:
            taken.close()
            last = error
        else:
            return taken
    raise last
