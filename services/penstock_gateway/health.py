"""Probes and metrics."""

import asyncio
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from penstock_core.errors import Draining, NotFound
from penstock_core.telemetry.exposition import Exposition
from penstock_core.version import VERSION
from penstock_gateway.gate import Gate
from penstock_gateway.upstream import RouterClient


class HealthEndpoint:
    """What orchestrators and Prometheus ask."""

    def __init__(self, router: RouterClient, gate: Gate, exposition: Exposition | None) -> None:
        self._router = router
        self._gate = gate
        self._exposition = exposition

    async def alive(self, _request: Request) -> JSONResponse:
        """The process runs."""
        now_ms = int(time.time() * 1000)
        return JSONResponse({"status": "ok", "version": VERSION, "unix_ms": now_ms})

    async def ready(self, _request: Request) -> JSONResponse:
        """Requests are welcome: the router answers, serves a model, and this process stays."""
        if self._gate.is_leaving:
            raise Draining("the gateway is shutting down")
        await self._router.check_ready()
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """What Prometheus scrapes, in the format that it asks for."""
        if self._exposition is None:
            raise NotFound("this process measures nothing")
        # Collectors read /proc, which must not hold the event loop up.
        accept = request.headers.get("accept", "")
        body, content_type = await asyncio.to_thread(self._exposition.render, accept)
        return Response(body, media_type=content_type)
