"""Which processes make up the platform, and the settings through which they find one another."""

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock_cli.supervisor.keys import Keys
from penstock_cli.supervisor.probes import Probe, grpc_serving, http_ok
from penstock_cli.supervisor.processes import Spec
from penstock_core.cost.pricing import NO_PRICE, Price

_DEMO_START_S = 120.0
# Another model may first have to be downloaded.
_MODEL_START_S = 1800.0
_GRACE_S = 5
_COST_CLASS = "local"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything listens, as ``host:port``.

    ``metrics`` are the scrape endpoints by process; the gateway serves its own. ``api_key`` is a
    caller's key, empty where none is needed or none is known.
    """

    gateway: str
    router: str
    batch: str
    workers: tuple[str, ...]
    metrics: Mapping[str, str]
    redis_socket: str
    api_key: str


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """How workers compute.

    Attributes:
        speculation: ``none``, ``ngram``, ``draft`` or ``auto``.
        draft_model: what drafts; empty for the one that the model brings.
        quantization: of the weights: ``none`` or ``int8``.
        adapters: directory of LoRA adapters; empty for none.
    """

    speculation: str = "auto"
    draft_model: str = ""
    quantization: str = "none"
    adapters: str = ""


@dataclass(frozen=True, slots=True)
class Site:
    """What the processes' settings are made from."""

    model: str
    data_dir: Path
    addresses: Addresses
    keys: Keys
    engine: EngineChoice = EngineChoice()
    price: Price = NO_PRICE

    @property
    def redis_url(self) -> str:
        """Where Redis is, for processes."""
        return f"unix://{self.addresses.redis_socket}"

    @property
    def start_s(self) -> float:
        """Seconds that a process which loads the model may take to get ready."""
        return _DEMO_START_S if self.model == "demo" else _MODEL_START_S


def metered_names(workers: int) -> list[str]:
    """Processes with a scrape endpoint of their own."""
    return [*(f"worker-{n}" for n in range(workers)), "router", "batch", "batch-worker"]


def platform_specs(site: Site) -> list[Spec]:
    """In the order of starting; they are stopped the other way round, edges first."""
    lease_secret = secrets.token_hex(32)
    workers = [_worker(site, number, lease_secret) for number in range(len(site.addresses.workers))]
    return [*workers, _router(site, lease_secret), *_batch(site), _gateway(site)]


def _worker(site: Site, number: int, lease_secret: str) -> Spec:
    name, addresses = f"worker-{number}", site.addresses
    threads = max(1, (os.cpu_count() or 1) // len(addresses.workers))
    environment = {
        "LISTEN": addresses.workers[number],
        "ID": name,
        "MODEL": site.model,
        "SPECULATION": site.engine.speculation,
        "DRAFT_MODEL": site.engine.draft_model,
        "QUANTIZATION": site.engine.quantization,
        "ADAPTERS": site.engine.adapters,
        "COST_CLASS": _COST_CLASS,
        "PRICES": f"{_COST_CLASS}={site.price.per_hour!r}",
        "CURRENCY": site.price.currency,
        "REGISTRY_URL": site.redis_url,
        "LEASE_SECRET": lease_secret,
        "METRICS_LISTEN": addresses.metrics[name],
        "THREADS": str(threads),
    }
    ready = grpc_serving(addresses.workers[number])
    return _spec(name, ("penstock_worker",), ready, environment, site.start_s)


def _router(site: Site, lease_secret: str) -> Spec:
    addresses = site.addresses
    environment = {
        "LISTEN": addresses.router,
        "REGISTRY_URL": site.redis_url,
        "LEASE_SECRET": lease_secret,
        "CACHE_SECRET": secrets.token_hex(32),
        "KEYS_FILE": site.keys.file,
        "METRICS_LISTEN": addresses.metrics["router"],
    }
    ready = grpc_serving(addresses.router)
    return _spec("router", ("penstock_router",), ready, environment, site.start_s)


def _batch(site: Site) -> list[Spec]:
    addresses = site.addresses
    store = site.data_dir / "batches"
    store.mkdir(parents=True, exist_ok=True)
    environment = {
        "LISTEN": addresses.batch,
        "STORE_URL": store.as_uri(),
        "REDIS_URL": site.redis_url,
        "ROUTER": addresses.router,
        "SERVICE_KEY": site.keys.service,
        "KEYS_FILE": site.keys.file,
    }
    # Celery's consumer has no health of its own; what it is sent before it is there waits in Redis.
    roles = {
        "batch": ("serve", grpc_serving(addresses.batch)),
        "batch-worker": ("work", _scraped(addresses.metrics["batch-worker"])),
    }
    return [
        _spec(
            name,
            ("penstock_batch", role),
            ready,
            {**environment, "METRICS_LISTEN": addresses.metrics[name]},
        )
        for name, (role, ready) in roles.items()
    ]


def _gateway(site: Site) -> Spec:
    addresses = site.addresses
    host, _, port = addresses.gateway.rpartition(":")
    environment = {
        "LISTEN": addresses.gateway,
        "ROUTER": addresses.router,
        "BATCH": addresses.batch,
        "KEYS_FILE": site.keys.file,
    }
    ready = http_ok(host, int(port), "/readyz")
    return _spec("gateway", ("penstock_gateway",), ready, environment)


def _scraped(address: str) -> Probe:
    host, _, port = address.rpartition(":")
    return http_ok(host, int(port), "/metrics")


def _spec(
    name: str,
    module: tuple[str, ...],
    is_ready: Probe,
    settings: Mapping[str, str],
    start_s: float = _DEMO_START_S,
) -> Spec:
    prefix = f"{module[0].upper()}_"
    environment = {prefix + key: value for key, value in settings.items()}
    environment[f"{prefix}GRACE_S"] = str(_GRACE_S)
    argv = (sys.executable, "-m", *module)
    return Spec(name, argv, is_ready, environment, start_s, grace_s=2 * _GRACE_S)
