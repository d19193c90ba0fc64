"""Where the parts of a deployment are, as told on the command line or by a running ``penstock up``."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from penstock_cli.failures import CommandFailed
from penstock_core.security.tls import PLAIN, Tls


@dataclass(frozen=True, slots=True)
class Site:
    """Addresses as ``host:port``; empty where there is none, or it is not to be looked at.

    ``lease_secret`` is what routers and workers share; without it workers do not tell their caches.
    ``metrics`` are scrape endpoints by name: of processes that serve nothing else, as Celery's.
    """

    routers: tuple[str, ...]
    batch: str = ""
    gateway: str = ""
    redis_url: str = ""
    metrics: tuple[tuple[str, str], ...] = ()
    keys_file: str = ""
    api_key: str = ""
    timeout_s: float = 5.0
    lease_secret: str = field(default="", repr=False)
    tls: Tls = PLAIN


def of_data_dir(data_dir: Path, *, keys_file: str, api_key: str, timeout_s: float) -> Site:
    """The site of the ``penstock up`` that runs in a data folder. Raises CommandFailed."""
    path = data_dir / "platform.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandFailed(f"no `penstock up` runs in {data_dir} ({path}: {error})") from error
    celery = told["metrics"].get("batch-worker", "")
    return Site(
        routers=(told["router"],),
        batch=told["batch"],
        gateway=told["gateway"],
        redis_url=f"unix://{told['redis_socket']}",
        metrics=(("batch-worker", celery),) if celery else (),
        keys_file=keys_file,
        api_key=api_key,
        timeout_s=timeout_s,
    )
