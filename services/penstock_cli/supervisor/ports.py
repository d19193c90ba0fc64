"""TCP ports on this machine."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from penstock_cli.failures import CommandFailed
from penstock_core.ports import take_free_port


@dataclass(frozen=True, slots=True)
class PortWish:
    """A port that somebody wants; 0 takes a free one. ``option`` is what chooses another."""

    port: int
    purpose: str
    option: str


def settle_ports(host: str, wishes: Sequence[PortWish]) -> list[int]:
    """The ports, all different, in the order of the wishes.

    Raises:
        CommandFailed: one is taken, or the host's address is not ours.
    """
    with ExitStack() as held:
        return [_settle(host, wish, held) for wish in wishes]


def _settle(host: str, wish: PortWish, held: ExitStack) -> int:
    try:
        probe = held.enter_context(_bound(host, wish.port))
    except OSError as error:
        raise CommandFailed(
            f"cannot listen on {host}:{wish.port} for the {wish.purpose} ({error.strerror}); "
            f"choose another with {wish.option} (0 takes a free one)"
        ) from error
    return int(probe.getsockname()[1])


def _bound(host: str, port: int) -> socket.socket:
    if not port:
        return take_free_port(host)
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # As servers do: a port whose old connections are still dying counts as free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except OSError:
        probe.close()
        raise
    return probe
