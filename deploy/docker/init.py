"""Run once before everything else in compose: makes the secrets that processes share.

``keys.json`` holds the batch service's own key and one for callers, which lies in ``api_key``; set
PENSTOCK_KEYS_FILE=/run/penstock/keys.json to ask callers for keys. Each stays in its volume for good. Every process then reads them as files, called after its settings
in small letters (``PENSTOCK_SECRETS_DIR``); nobody else ever sees them. Volumes are given to the user
that the processes run as.
"""

import hashlib
import json
import os
import secrets
from pathlib import Path

OWNER = 10001
SECRETS = Path("/run/penstock")
VOLUMES = ("/kernels", "/batches", "/hub", "/redis")


def digest(key: str) -> str:
    """How a key is stored."""
    return hashlib.sha256(key.encode()).hexdigest()


def wanted() -> dict[str, str]:
    """Files' texts by name."""
    lease, password = secrets.token_hex(32), secrets.token_hex(32)
    url = f"redis://:{password}@redis:6379/0"
    service, callers = (f"pk-{secrets.token_urlsafe(24)}" for _ in range(2))
    keys = [
        {"id": "key_batch", "sha256": digest(service), "tenant": "penstock-batch", "service": True},
        {"id": "key_callers", "sha256": digest(callers), "tenant": "default"},
    ]
    return {
        "keys.json": json.dumps({"keys": keys}, indent=2),
        "api_key": callers,
        "penstock_batch_service_key": service,
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
