"""Several router processes on one port: the kernel shares the connections out among them.

The parent routes nothing. It reserves the port, starts the others, starts anew whichever ends, and
passes on the signal to end. The processes share nothing but the port: each follows all workers.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator

from penstock_core.settings import SettingsError
from penstock_router.settings import RouterSettings

logger = logging.getLogger(__name__)

_PREFIX = "PENSTOCK_ROUTER_"
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_STABLE_S = 30.0
# Beyond the processes' own grace, before they are ended by force.
_LAST_S = 10.0


async def serve_group(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Run ``settings.processes`` routers until ``stop`` is set, then let them drain.

    Raises:
        SettingsError: the address is none that can be shared.
        OSError: the port is taken.
    """
    with _reserved(settings.listen) as (host, port):
        logger.info("%d routers share %s:%d", settings.processes, host, port)
        async with asyncio.TaskGroup() as group:
            members = [
                group.create_task(_member(settings, f"{host}:{port}", number))
                for number in range(settings.processes)
            ]
            await stop.wait()
            for member in members:
                member.cancel()


async def _member(settings: RouterSettings, listen: str, number: int) -> None:
    """One process after the other in one place."""
    pause_s = _FIRST_PAUSE_S
    clock = asyncio.get_running_loop().time
    while True:
        began = clock()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "penstock_router", env=_environment(settings, listen, number)
        )
        try:
            status = await process.wait()
        finally:
            await _end(process, settings.grace_s + _LAST_S)
        pause_s = _FIRST_PAUSE_S if clock() - began > _STABLE_S else pause_s
        logger.warning("router %d ended with %d; another starts in %.1f s", number, status, pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment(settings: RouterSettings, listen: str, number: int) -> dict[str, str]:
    own = {"LISTEN": listen, "PROCESSES": "1", "SHARES_PORT": "true"}
    if settings.metrics_listen:
        host, _, port = settings.metrics_listen.rpartition(":")
        own["METRICS_LISTEN"] = f"{host}:{int(port) + number if int(port) else 0}"
    if settings.decision_log:
        own["DECISION_LOG"] = f"{settings.decision_log}.{number}"
    return {**os.environ, **{_PREFIX + name: value for name, value in own.items()}}


@contextlib.contextmanager
def _reserved(listen: str) -> Iterator[tuple[str, int]]:
    """Hold a port without listening on it, so that it is ours while all processes are down."""
    host, _, port = listen.rpartition(":")
    if listen.startswith("unix:") or not host:
        raise SettingsError(f"{listen!r} cannot be shared: several processes need host:port")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host.strip("[]"), int(port)))
        yield host, held.getsockname()[1]
