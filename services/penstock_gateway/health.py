"""Probes and metrics."""

import asyncio
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from penstock_core.errors import Draining
from penstock_core.telemetry import METRICS_CONTENT_TYPE, scrape
from penstock_core.version import VERSION
from penstock_gateway.gate import Gate
from penstock_gateway.upstream import RouterClient


class HealthEndpoint:
    """What orchestrators and Prometheus ask."""

    def __init__(self, router: RouterClient, gate: Gate) -> None:
        self._router = router
        self._gate = gate

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

    async def metrics(self, _request: Request) -> Response:
        """Prometheus' text format."""
        # Collectors read /proc, which must not hold the event loop up.
        return Response(await asyncio.to_thread(scrape), media_type=METRICS_CONTENT_TYPE)
