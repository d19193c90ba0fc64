"""The batch processes' settings; environment variables with the prefix ``PENSTOCK_BATCH_``."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from penstock_batch.planning.planner import MAX_SHARD_LINES, MIN_SHARD_LINES
from penstock_batch.stores.files import MAX_FILE_BYTES
from penstock_core.settings import TlsSettings


class BatchSettings(TlsSettings):
    """Settings of ``serve`` and ``work``; both read the same."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_BATCH_", frozen=True, extra="forbid")

    listen: str = Field("127.0.0.1:50052", description="host:port to serve BatchService on")
    store_url: str = Field(
        description="object store of facts and files: file:///dir, s3://, gs:// or az://"
    )
    redis_url: str = Field(
        repr=False, description="queue and leases: redis://, rediss:// or unix://"
    )
    redis_prefix: str = Field("penstock", description="prefix of every key in Redis")
    router: str = Field("127.0.0.1:50051", description="host:port of the router")
    service_key: str = Field(
        "",
        repr=False,
        description="API key with service=true to act for tenants; empty if keys are not used",
    )
    keys_file: str = Field(
        "", description="files of API keys, by comma; read again when they change"
    )
    keys_url: str = Field(
        "", repr=False, description="Redis that holds API keys; without either all are admitted"
    )
    metrics_listen: str = Field("", description="host:port of the scrape endpoint; empty for none")
    max_file_bytes: int = Field(MAX_FILE_BYTES, gt=0, description="largest upload in bytes")
    shard_lines: int = Field(
        64,
        ge=MIN_SHARD_LINES,
        le=MAX_SHARD_LINES,
        description="most requests in a shard; 32 to 256 is sensible",
    )
    concurrency: int = Field(2, ge=1, le=64, description="shards a work process runs at once")
    line_concurrency: int = Field(
        32, ge=1, le=1024, description="most lines a work process has at the router at once"
    )
    line_timeout_s: float = Field(600.0, gt=0, description="deadline of one attempt at a line")
    line_attempts: int = Field(
        4, ge=1, description="attempts at a line whose work was begun and failed"
    )
    visibility_timeout_s: float = Field(
        300.0, gt=0, description="after how many seconds Celery gives an unfinished task to another"
    )
    restore_interval_s: int = Field(
        5, ge=1, description="seconds between Celery's looks for such tasks"
    )
    lease_s: float = Field(15.0, gt=0, description="how long a silent runner keeps its shard")
    requeue_after_s: float = Field(
        60.0, gt=0, description="how long a queued step may wait before it is queued once more"
    )
    reconcile_interval_s: float = Field(
        1.0, gt=0, description="seconds between two looks at what every open batch needs"
    )
    queue_window: int = Field(256, ge=1, description="most tasks kept in Celery's queue")
    grace_s: float = Field(30.0, ge=0, description="seconds to finish running work after SIGTERM")
    linger_s: float = Field(
        0.0, ge=0, description="seconds on SIGTERM of not being ready and still taking requests"
    )
    log_level: str = Field("INFO", description="least severe level that is logged")
