"""The HTTP server: a bound socket, uvicorn on it, and an orderly end."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from penstock_core.tls import PLAIN, HttpTls, Tls
from penstock_gateway.gate import Gate
from penstock_gateway.protocol import Patience, bounded_http

_BACKLOG = 1024
# What is left of a request after its grace is cancelled within this time.
_CANCEL_TIMEOUT_S = 1
_ROTATE_EVERY_S = 1.0
_PATIENT = Patience()


def bind(listen: str) -> socket.socket:
    """A listening socket on ``host:port``; port 0 picks one.

    Raises:
        OSError: the address cannot be bound.
    """
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdecimal():
        raise OSError(f"{listen!r} is no host:port")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {listen}: {error}") from error


def address_of(bound: socket.socket) -> str:
    """``host:port`` of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Ending:
    """How it stops: seconds for what runs, and seconds before of not being ready but there."""

    grace_s: float
    linger_s: float = 0.0


class HttpServer:
    """Serves an application until told to stop."""

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        ending: Ending,
        patience: Patience = _PATIENT,
        https: Tls = PLAIN,
    ) -> None:
        self._tls = HttpTls(https) if https.serves else None
        self._gate = gate
        self._ending = ending
        config = uvicorn.Config(
            app,
            http=bounded_http(patience),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_CANCEL_TIMEOUT_S,
        )
        if self._tls is not None:
            context = self._tls.context
            config.ssl_context_factory = lambda _config, _default: context
        self._server = _Server(config)

    async def serve(self, bound: socket.socket, stop: asyncio.Event) -> None:
        """Serve until ``stop``; then refuse new requests, finish the running ones, and return.

        The socket stays open while requests finish, so that probes see "not ready" and no
        connection is refused before the load balancer knows.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._server.serve(sockets=[bound]))
            rotating = group.create_task(self._rotate())
            await stop.wait()
            await self._gate.drain(self._ending.grace_s, self._ending.linger_s)
            rotating.cancel()
            self._server.should_exit = True

    async def _rotate(self) -> None:
        """Show new certificates to new connections."""
        while self._tls is not None:
            await asyncio.sleep(_ROTATE_EVERY_S)
            await asyncio.to_thread(self._tls.refresh)


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: ``penstock_core.lifecycle`` owns the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
