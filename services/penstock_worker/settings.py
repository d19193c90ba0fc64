"""The worker's settings, from ``PENSTOCK_WORKER_*`` variables."""

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from penstock_core.cost.pricing import Price, parse_prices
from penstock_core.settings import SettingsError, TlsSettings


class WorkerSettings(TlsSettings):
    """What a worker process is told."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_WORKER_")

    listen: str = Field("127.0.0.1:50061", description="host:port or unix:path to serve on")
    advertise: str = Field("", description="address that others reach it at; empty: as bound")
    id: str = Field("", description="id in the fleet; empty: worker-<random>")
    engine: Literal["native", "trtllm"] = Field("native", description="engine to run")
    config: str = Field("", description="YAML file with the settings of the engine trtllm")
    trtllm: str = Field(
        "", description="settings that override that file's, as YAML: {kv_cache: {dtype: fp8}}"
    )
    model: str = Field("demo", description="demo, a model directory or a Hugging Face hub id")
    served_names: str = Field("", description="names to serve it under, by comma; empty: its own")
    registry_url: str = Field("", description="redis:// or unix:// URL to announce at; empty: none")
    lease_secret: str = Field(
        "", repr=False, description="secret of routers' leases and calls; empty: everybody may call"
    )
    metrics_listen: str = Field("", description="host:port of the Prometheus scrape; empty: none")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16")
    quantization: Literal["none", "int8"] = Field("none", description="of the weights on loading")
    kernel: Literal["auto", "fused", "eager"] = Field("auto", description="what computes on a CPU")
    device: str = Field("auto", description="auto, cpu or cuda[:N]")
    kv_memory_mib: int = Field(512, ge=1, description="MiB for the KV cache")
    max_batch: int = Field(32, ge=1, description="most requests in one step")
    max_batched_tokens: int = Field(512, ge=1, description="most tokens computed in one step")
    max_waiting: int = Field(256, ge=1, description="most requests that wait for a place")
    max_context_tokens: int = Field(0, ge=0, description="most tokens of a request; 0: the model's")
    max_embed_tokens: int = Field(
        2048, ge=0, description="most tokens of one text to embed; 0 computes no embeddings"
    )
    speculation: Literal["none", "ngram", "draft", "auto"] = Field(
        "auto", description="drafts to check: none, ngram, draft or auto (what is measured to pay)"
    )
    draft_model: str = Field("", description="model that drafts; empty: the one the model brings")
    max_draft_tokens: int = Field(7, ge=1, le=64, description="most tokens drafted at once")
    adapters: str = Field("", description="directory of LoRA adapters, as PEFT saves them")
    max_adapters: int = Field(16, ge=1, description="most LoRA adapters in memory at once")
    max_adapter_rank: int = Field(256, ge=1, description="largest rank that an adapter may have")
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0: by CPUs")
    response_cache_mib: int = Field(
        64, ge=0, description="MiB of answers kept for requests that ask for it; 0: none"
    )
    response_cache_ttl_s: float = Field(3600.0, gt=0, description="seconds that they are kept")
    cost_class: str = Field(
        "", description="class of this machine in the price list, e.g. cpu or h100; empty: no price"
    )
    prices: str = Field(
        "", description="price of a worker-hour by class, as cpu=0.04,h100=2.5; unlisted: no price"
    )
    currency: str = Field("USD", description="ISO 4217 code of the prices; one for the whole fleet")
    metered_tenants: int = Field(
        100, ge=1, description="tenants with costs of their own in metrics; the others are summed"
    )
    grace_s: float = Field(30.0, ge=0, description="seconds that running requests get at the end")
    zone: str = Field("", description="availability zone")
    pool: str = Field("", description="pool it belongs to")

    def price(self) -> Price:
        """What an hour of this worker costs.

        Raises:
            SettingsError: the price list is malformed.
        """
        try:
            prices = parse_prices(self.prices)
        except ValueError as error:
            raise SettingsError(f"PENSTOCK_WORKER_PRICES: {error}") from error
        return Price(prices.get(self.cost_class, 0.0), self.currency)

    def names(self, default: str) -> tuple[str, ...]:
        """Names to serve the model under, the first its own."""
        names = tuple(name.strip() for name in self.served_names.split(",") if name.strip())
        return names or (default,)
