"""``python -m penstock_router``: settings from the environment, nothing else."""

import asyncio
import sys

from penstock_core import lifecycle
from penstock_core.settings import SettingsError
from penstock_core.telemetry import logs
from penstock_core.telemetry import setup as telemetry
from penstock_router.group import serve_group
from penstock_router.process import serve
from penstock_router.settings import RouterSettings


def main(arguments: list[str]) -> int:
    """Run the router; returns the exit status."""
    if arguments in (["-h"], ["--help"]):
        sys.stdout.write(f"python -m penstock_router\n\n{RouterSettings.describe()}\n")
        return 0
    if arguments:
        return lifecycle.fail(
            f"unknown argument {arguments[0]}; settings come from the environment"
        )
    try:
        settings = RouterSettings.from_environment()
    except SettingsError as error:
        return lifecycle.fail(str(error))
    logs.configure("penstock-router", settings.log_level)

    async def run(stop: asyncio.Event) -> None:
        if settings.processes > 1:
            await serve_group(settings, stop)
            return
        with telemetry.start(
            "penstock-router", metrics_listen=settings.metrics_listen, tls=settings.tls()
        ):
            await serve(settings, stop)

    return lifecycle.run(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
