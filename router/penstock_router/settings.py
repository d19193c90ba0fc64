"""The router's settings, from the environment."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from penstock_core.settings import TlsSettings
from penstock_router.admission.ticket import AdmissionParams, Bounds
from penstock_router.policy.cost import CostParams
from penstock_router.routing import Policies


class RouterSettings(TlsSettings):
    """Variables with the prefix ``PENSTOCK_ROUTER_``."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_ROUTER_", frozen=True, extra="forbid")

    listen: str = Field("127.0.0.1:50051", description="host:port or unix:path of the gRPC server")
    registry_url: str = Field("", description="redis:// or unix:// url where workers announce")
    workers: str = Field(
        "", description="fixed workers, host:port with commas; instead of a registry"
    )
    lease_secret: str = Field(
        "", repr=False, description="signs leases; must equal the workers' one; empty = unsigned"
    )
    cache_secret: str = Field(
        "",
        repr=False,
        description="keys the tenants' cache salts; routers must share it; empty = random",
    )
    keys_file: str = Field(
        "", description="files of API keys, by comma; read again when they change"
    )
    keys_url: str = Field(
        "", repr=False, description="Redis that holds API keys; without either all are admitted"
    )
    metrics_listen: str = Field(
        "", description="host:port of the Prometheus endpoint; empty = none"
    )
    decision_log: str = Field(
        "", description="file to append decisions to, as JSON lines; empty = none"
    )
    processes: int = Field(
        1, ge=1, le=64, description="routers that share the port; their metrics' ports count up"
    )
    shares_port: bool = Field(
        False, description="whether other routers may listen on the port as well"
    )
    policy: str = Field(
        "", description="parameters of the cost that differ, as name=value with commas"
    )
    shadow_policy: str = Field(
        "", description="a policy, in the same form, that decides beside the live one; empty = none"
    )
    max_queued: int = Field(4096, ge=1, description="requests that may wait for a worker")
    max_queued_tokens: int = Field(64_000_000, ge=1, description="prompt tokens that may wait")
    max_queued_bytes: int = Field(1 << 30, ge=1, description="bytes of requests that may wait")
    tenant_max_queued: int = Field(2048, ge=1, description="requests of one tenant that may wait")
    tenant_max_queued_tokens: int = Field(
        32_000_000, ge=1, description="prompt tokens of one tenant that may wait"
    )
    grace_s: float = Field(30.0, ge=0, description="seconds that running requests get on SIGTERM")
    linger_s: float = Field(
        0.0, ge=0, description="seconds on SIGTERM of not being ready and still taking requests"
    )
    catalog: str = Field(
        "", description="JSON file of aliases, canaries, pools and fall-backs; empty = none"
    )
    zone: str = Field("", description="zone the router stands in; empty = all are equally near")
    zone_penalty_s: float = Field(
        0.05, ge=0, description="seconds that a worker of another zone must be faster by"
    )
    stall_s: float = Field(
        5.0,
        gt=0,
        description="least silence of a stream, beside 10 times its pace, that moves it elsewhere",
    )
    messages_per_s: float = Field(
        500.0,
        gt=0,
        description="messages a second of all forwarded streams, beyond which tokens share them",
    )
    max_delay_ms: int = Field(
        200, ge=10, le=1000, description="longest that a forwarded token waits to share a message"
    )
    relay: bool = Field(
        True, description="whether all streams from a worker share one call, which costs less"
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    def policies(self) -> Policies:
        """How it decides. Raises ValueError for a malformed policy."""
        bounds = Bounds(
            self.max_queued,
            self.max_queued_tokens,
            self.max_queued_bytes,
            self.tenant_max_queued,
            self.tenant_max_queued_tokens,
        )
        return Policies(
            cost=CostParams.parse(self.policy),
            admission=AdmissionParams(bounds=bounds),
            shadow=CostParams.parse(self.shadow_policy) if self.shadow_policy else None,
        )

    def endpoints(self) -> list[str]:
        """The fixed workers."""
        return [part.strip() for part in self.workers.split(",") if part.strip()]
