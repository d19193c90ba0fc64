"""Run once before everything else in compose: makes the secrets that processes share.

Each stays in its volume for good. Every process then reads them as files, called after its settings
in small letters (``PENSTOCK_SECRETS_DIR``); nobody else ever sees them. Volumes are given to the user
that the processes run as.
"""

import os
import secrets
from pathlib import Path

OWNER = 10001
SECRETS = Path("/run/penstock")
VOLUMES = ("/kernels", "/batches", "/hub", "/redis")


def wanted() -> dict[str, str]:
    """Files' texts by name."""
    lease, password = secrets.token_hex(32), secrets.token_hex(32)
    url = f"redis://:{password}@redis:6379/0"
    return {
        "penstock_router_lease_secret": lease,
        "penstock_worker_lease_secret": lease,
        "penstock_router_cache_secret": secrets.token_hex(32),
        "penstock_router_registry_url": url,
        "penstock_worker_registry_url": url,
        "penstock_batch_redis_url": url,
        "redis_password": password,
        "redis.conf": f"requirepass {password}\n",
    }


def main() -> None:
    """Make what is missing, all or nothing: secrets belong together."""
    if not (SECRETS / "redis.conf").exists():  # the last that is written
        for name, text in wanted().items():
            (SECRETS / name).write_text(text, encoding="utf-8")
    for path in (SECRETS, *SECRETS.iterdir(), *map(Path, VOLUMES)):
        os.chown(path, OWNER, OWNER)
        path.chmod(0o700 if path.is_dir() else 0o400)


if __name__ == "__main__":
    main()
