"""Ports for servers that cannot be told to take any."""

from penstock_core.ports import take_free_port

# Servers start some time after their port was chosen, so none is given twice.
_given: set[int] = set()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now. Raises OSError if none is found."""
    while True:
        with take_free_port("127.0.0.1") as taken:
            port = int(taken.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port
