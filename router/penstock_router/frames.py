"""What a worker says about itself, as plain values; ``translate`` makes them from the wire.

``Frame`` is one message of the state stream, ``LedgerEvent`` one line of the worker's own account
of its requests; what comes with each request is a named tuple, which is made in less time. Block hashes
stay packed as on the wire, 8 bytes each, little-endian.
"""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """Who a worker is; constant within an epoch. Fields as in ``penstock.worker.v1.WorkerInfo``."""

    worker_id: str
    epoch: str
    endpoint: str
    models: tuple[str, ...] = ()
    model_revision: str = ""
    tokenizer_digest: str = ""
    tokenizer_source: str = ""
    engine: str = ""
    device: str = ""
    block_tokens: int = 32
    capacity_blocks: int = 0
    max_context_tokens: int = 0
    max_batch: int = 0
    vocab_size: int = 0
    adapters: tuple[str, ...] = ()
    zone: str = ""
    pool: str = ""
    speculation: str = ""
    version: str = ""
    started_unix_s: int = 0
    stores_per_chunk: bool = True
    embedding_dimensions: int = 0
    max_embed_tokens: int = 0
    relays: bool = False


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a worker does now. Fields as in ``penstock.worker.v1.WorkerLoad``."""

    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    queued_batch_tokens: int = 0
    context_tokens: int = 0
    used_blocks: int = 0
    cached_blocks: int = 0
    capacity_blocks: int = 0
    step_s: float = 0.0
    tokens_per_step: float = 1.0
    prefill_tokens_per_s: float = 0.0
    serving: bool = True
    draining: bool = False
    preemptions: int = 0
    loaded_adapters: tuple[str, ...] = ()
    adapter_load_s: float = 0.0


class Admitted(NamedTuple):
    """A request got its place and its prefix was looked up."""

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    is_batch: bool = False


class PrefillDone(NamedTuple):
    """A request's first token is there."""

    request_id: str
    cached_tokens: int
    computed_tokens: int
    queue_s: float
    prefill_s: float
    ttft_s: float


class Finished(NamedTuple):
    """A request ended."""

    request_id: str
    output_tokens: int
    aborted: bool = False


class Progress(NamedTuple):
    """How the worker is doing."""

    load: LoadReport


LedgerEvent = Admitted | PrefillDone | Finished | Progress


@dataclass(frozen=True, slots=True)
class SnapshotBegin:
    """A snapshot as of ``seq`` begins; ``num_blocks`` blocks follow."""

    epoch: str
    seq: int
    num_blocks: int
    facts: WorkerFacts


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Blocks with the distance back to each one's parent; a root has 0 and the next root parent.

    ``first_index`` blocks of the snapshot come before these.
    """

    epoch: str
    first_index: int
    hashes: bytes
    distances: tuple[int, ...]
    root_parents: tuple[int, ...]
    on_device: bool = True


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """The snapshot is complete; ``ledger`` tells of the requests that run."""

    epoch: str
    digest: int
    ledger: tuple[LedgerEvent, ...]


class Stored(NamedTuple):
    """A run of new blocks; the first hangs on ``parent``."""

    parent: bytes
    hashes: bytes
    on_device: bool = True


class Moved(NamedTuple):
    """Blocks that changed between the device's memory and a lower tier."""

    hashes: bytes
    to_device: bool


class Delta(NamedTuple):
    """Changes number ``seq``: removals first, then stores, then moves, then the ledger."""

    epoch: str
    seq: int
    removed: tuple[bytes, ...] = ()
    stored: tuple[Stored, ...] = ()
    moved: tuple[Moved, ...] = ()
    ledger: tuple[LedgerEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker lives; its state after delta ``seq`` in two numbers."""

    epoch: str
    seq: int
    num_blocks: int
    digest: int
    load: LoadReport


Frame = SnapshotBegin | SnapshotChunk | SnapshotEnd | Delta | Heartbeat
