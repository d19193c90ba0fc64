"""A whole gateway in this process, on a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from penstock_core.telemetry.exposition import ExemplarReader, Exposition
from penstock_gateway.__main__ import serve
from penstock_gateway.settings import GatewaySettings

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """Where it listens; setting ``stop`` begins its orderly end."""

    url: str
    stop: asyncio.Event
    serving: asyncio.Task[None]

    @property
    def api(self) -> str:
        """The base URL that an OpenAI SDK takes."""
        return f"{self.url}/v1"


@asynccontextmanager
async def running_gateway(
    router: str, batch: str = "", **settings: object
) -> AsyncIterator[RunningGateway]:
    """Serve in front of a router and a batch service; settings by their names."""
    values = {
        "listen": "127.0.0.1:0",
        "router": router,
        "batch": batch,
        "grace_s": 5.0,
        "router_patience_s": 0.5,
        **settings,
    }
    stop = asyncio.Event()
    bound: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings_model = GatewaySettings.model_validate(values)
    registry = CollectorRegistry()
    exposition = Exposition(registry, ExemplarReader(registry))
    serving = asyncio.create_task(serve(settings_model, stop, bound.set_result, exposition))
    # An error before it is bound must come out here and not as a timeout.
    serving.add_done_callback(lambda _: bound.cancel())
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            address = await bound
        yield RunningGateway(f"http://{address}", stop, serving)
    finally:
        stop.set()
        await asyncio.wait_for(serving, _STOP_TIMEOUT_S)
