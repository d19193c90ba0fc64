"""Run once before everything else in compose: makes the secrets that processes share.

``keys.json`` holds the batch service's own key and one for callers, which lies in ``api_key``; set
PENSTOCK_KEYS_FILE=/run/penstock/keys.json to ask callers for keys. Each stays in its volume for good. Every process then reads them as files, called after its settings
in small letters (``PENSTOCK_SECRETS_DIR``); nobody else ever sees them. Volumes are given to the user
that the processes run as. With PENSTOCK_TLS (``compose.tls.yaml``) there are certificates too, and
Redis speaks TLS alone.
"""

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path

OWNER = 10001
SECRETS = Path("/run/penstock")
CERTIFICATES = SECRETS / "tls"
GIVEN = Path("/certs")
SCRAPE = Path("/scrape")
VOLUMES = ("/kernels", "/batches", "/hub", "/redis")
LAST_MADE = "redis_password"


def digest(key: str) -> str:
    """How a key is stored."""
    return hashlib.sha256(key.encode()).hexdigest()


def wanted() -> dict[str, str]:
    """Texts of the files that are made once, by name."""
    lease = secrets.token_hex(32)
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
        LAST_MADE: secrets.token_hex(32),
    }


def redis_files(password: str, *, tls: bool) -> dict[str, str]:
    """What follows from Redis' password: its configuration, and how others reach it."""
    url, configuration = f"redis://:{password}@redis:6379/0", f"requirepass {password}\n"
    if tls:
        url = f"rediss://:{password}@redis:6379/0?ssl_ca_certs={CERTIFICATES}/ca.pem"
        configuration += (
            f"port 0\ntls-port 6379\ntls-auth-clients no\ntls-ca-cert-file {CERTIFICATES}/ca.pem\n"
            f"tls-cert-file {CERTIFICATES}/server.crt\ntls-key-file {CERTIFICATES}/server.key\n"
        )
    names = ("router_registry_url", "worker_registry_url", "batch_redis_url")
    return {"redis.conf": configuration} | {f"penstock_{name}": url for name in names}


def write(files: dict[str, str]) -> None:
    """Into the volume of secrets."""
    for name, text in files.items():
        (SECRETS / name).write_text(text, encoding="utf-8")


def hand_over(*folders: Path) -> None:
    """Give what is there to the processes' user."""
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, OWNER, OWNER)
            path.chmod(0o700 if path.is_dir() else 0o400)


def share(names: tuple[str, ...]) -> None:
    """Certificates for Prometheus, which runs as a user of its own; the volume is mounted there only."""
    for name in names:
        shutil.copyfile(CERTIFICATES / name, SCRAPE / name)
        (SCRAPE / name).chmod(0o444)
    SCRAPE.chmod(0o755)


def main() -> None:
    """Make what is missing, all or nothing: secrets belong together."""
    tls = bool(os.environ.get("PENSTOCK_TLS"))
    if not (SECRETS / LAST_MADE).exists():  # the last that is written
        write(wanted())
    password = (SECRETS / LAST_MADE).read_text(encoding="utf-8")
    write(redis_files(password, tls=tls))
    if tls:
        import certificates  # noqa: PLC0415 - beside this file only where it is wanted

        certificates.bring(GIVEN, CERTIFICATES)
        share(certificates.CLIENT_FILES)
    hand_over(SECRETS)
    for volume in map(Path, VOLUMES):
        os.chown(volume, OWNER, OWNER)
        volume.chmod(0o700)


if __name__ == "__main__":
    main()
