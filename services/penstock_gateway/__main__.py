"""``python -m penstock_gateway``: builds the process and runs it until a signal."""

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack

from penstock_core import lifecycle, logs, telemetry
from penstock_core.channels import channel
from penstock_core.exposition import Exposition
from penstock_core.live_keys import live_keys
from penstock_core.settings import SettingsError
from penstock_gateway.app import Upstreams, build_app
from penstock_gateway.gate import Gate
from penstock_gateway.server import Ending, HttpServer, address_of, bind
from penstock_gateway.settings import GatewaySettings
from penstock_gateway.upstream import BatchClient, RouterClient

logger = logging.getLogger(__name__)

SERVICE = "penstock-gateway"


async def serve(
    settings: GatewaySettings,
    stop: asyncio.Event,
    bound: Callable[[str], None],
    exposition: Exposition | None = None,
) -> None:
    """Serve until ``stop``, then drain. ``bound`` is told the address as soon as it is taken."""
    async with AsyncExitStack() as stack:
        https, tls = settings.https(), settings.tls()
        listener = stack.enter_context(bind(settings.listen))
        keys = await stack.enter_async_context(live_keys(settings.keys_file, settings.keys_url))
        router = await stack.enter_async_context(channel(settings.router, tls))
        batches = None
        if settings.batch:
            batch_channel = await stack.enter_async_context(channel(settings.batch, tls))
            batches = BatchClient(batch_channel, settings.request_timeout_s)
        gate = Gate(settings.max_requests)
        routers = RouterClient(router, settings.request_timeout_s, settings.router_patience_s)
        upstreams = Upstreams(routers, batches, exposition)
        app = build_app(upstreams, gate, settings, keys if keys.asks else None)
        bound(address_of(listener))
        ending = Ending(settings.grace_s, settings.linger_s)
        server = HttpServer(app, gate, ending, settings.patience(), https)
        await server.serve(listener, stop)


def main(arguments: list[str]) -> int:
    """Run the process; returns its exit status."""
    if arguments in (["-h"], ["--help"]):
        sys.stdout.write(f"{__doc__}\n\nSettings:\n{GatewaySettings.describe()}\n")
        return 0
    if arguments:
        return lifecycle.fail(f"unexpected arguments {arguments}; see --help")
    try:
        settings = GatewaySettings.from_environment()
    except SettingsError as error:
        return lifecycle.fail(str(error))
    logs.configure(SERVICE)

    with telemetry.start(SERVICE) as measuring:

        async def run(stop: asyncio.Event) -> None:
            tell = lambda address: logger.info("listening on %s", address)  # noqa: E731
            await serve(settings, stop, tell, measuring.exposition)

        return lifecycle.run(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
