"""The builder of gRPC servers, with health, reflection and limits. Channels: ``penstock_core.rpc.channels``."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from penstock_core.rpc.channels import COMMON_OPTIONS, KEEPALIVE_MS, channel, sync_channel
from penstock_core.rpc.interceptors import ServerInterceptor
from penstock_core.security.tls import PLAIN, Tls, is_local, server_credentials
from penstock_core.version import UNIX_MS_KEY, VERSION, VERSION_KEY

__all__ = ["RpcServer", "channel", "sync_channel"]

MAX_CONCURRENT_STREAMS = 1024
SERVER_OPTIONS = (
    *COMMON_OPTIONS,
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.keepalive_permit_without_calls", 1),
)


class _Health(HealthServicer):  # type: ignore[misc]
    """Health that also says, as metadata, which version answers and what time it is there."""

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        now_ms = str(int(time.time() * 1000))
        await context.send_initial_metadata(((VERSION_KEY, VERSION), (UNIX_MS_KEY, now_ms)))
        return await super().Check(request, context)


class RpcServer:
    """A gRPC server with health and reflection.

    Health says NOT_SERVING until ``serve`` and again from ``drain`` on, so that nobody sends to a
    server that is not ready or about to go.
    """

    def __init__(
        self,
        interceptor: ServerInterceptor,
        register: Iterable[Callable[[grpc.aio.Server], None]],
        service_names: Iterable[str],
        *,
        shares_port: bool = False,
        tls: Tls = PLAIN,
    ) -> None:
        """Take what it serves.

        Args:
            interceptor: what each call goes through.
            register: adds the services.
            service_names: full names, for health and reflection.
            shares_port: lets other processes listen on the port as well (SO_REUSEPORT).
            tls: encrypts all but unix sockets if it has a certificate.
        """
        self._tls = tls
        # Two servers on one port each get some of the calls: refuse to start unless that is wanted.
        options = (*SERVER_OPTIONS, ("grpc.so_reuseport", int(shares_port)))
        self._server = grpc.aio.server(options=options, interceptors=[interceptor])
        self._health = _Health()
        self._names = tuple(service_names)
        for add in register:
            add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection(
            (*self._names, health_name, reflection.SERVICE_NAME), self._server
        )

    def bind(self, listen: str) -> int:
        """Listen on ``host:port`` (port 0 picks one) or ``unix:path``; return the port, 0 for a path.

        Raises:
            OSError: the address cannot be bound.
        """
        try:
            if self._tls.serves and not is_local(listen):
                port = self._server.add_secure_port(listen, server_credentials(self._tls))
            else:
                port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {listen}: {error}") from error
        return 0 if listen.startswith("unix:") else port

    async def start(self) -> None:
        """Accept connections; health stays NOT_SERVING."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def serve(self) -> None:
        """Tell the world that calls are welcome."""
        await self._set(health_pb2.HealthCheckResponse.SERVING)

    async def not_serving(self) -> None:
        """Tell the world to go elsewhere; calls are still answered."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float, linger_s: float = 0.0) -> None:
        """Refuse new calls, give running ones ``grace_s`` seconds, then cancel them.

        For ``linger_s`` before that calls are still taken while health says otherwise, so that
        balancers have looked before anybody is refused.
        """
        await self.not_serving()
        await asyncio.sleep(linger_s)
        await self._server.stop(grace_s)

    async def _set(self, status: Any) -> None:
        for name in ("", *self._names):
            await self._health.set(name, status)
