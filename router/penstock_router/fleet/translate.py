"""Between the wire and plain values: a worker's frames in, its state as this router sees it out."""

from collections.abc import Iterable

from penstock.common.v1 import sampling_pb2
from penstock.routing.v1 import routing_service_pb2
from penstock.worker.v1 import state_pb2, worker_service_pb2
from penstock_core.blocks import HASH_BYTES, pack_hashes
from penstock_core.errors import MalformedMessage
from penstock_router import frames as f
from penstock_router.fleet.sync import SyncState
from penstock_router.fleet.tracked import TrackedWorker

_SCALAR_FACTS = (
    "worker_id", "epoch", "endpoint", "model_revision", "tokenizer_digest", "tokenizer_source",
    "engine", "device", "block_tokens", "capacity_blocks", "max_context_tokens", "max_batch",
    "vocab_size", "zone", "pool", "speculation", "version", "started_unix_s", "stores_per_chunk",
    "embedding_dimensions", "max_embed_tokens", "relays",
)  # fmt: skip
_LOAD_NUMBERS = (
    "running", "waiting", "queued_prefill_tokens", "queued_batch_tokens", "context_tokens", "used_blocks",
    "cached_blocks", "capacity_blocks", "step_s", "tokens_per_step", "prefill_tokens_per_s",
    "preemptions", "loaded_adapters", "adapter_load_s",
)  # fmt: skip
_SYNC_STATES = {
    SyncState.COLD: routing_service_pb2.SYNC_STATE_COLD,
    SyncState.SYNCING: routing_service_pb2.SYNC_STATE_SYNCING,
    SyncState.LIVE: routing_service_pb2.SYNC_STATE_LIVE,
    SyncState.STALE: routing_service_pb2.SYNC_STATE_STALE,
    SyncState.DEAD: routing_service_pb2.SYNC_STATE_DEAD,
}


def frame(message: worker_service_pb2.WatchStateResponse) -> f.Frame | None:
    """A frame; None for a kind that this version does not know. Raises MalformedMessage."""
    kind, epoch, seq = message.WhichOneof("frame"), message.epoch, message.seq
    try:
        if kind == "delta":
            return _delta(epoch, seq, message.delta)
        if kind == "heartbeat":
            beat = message.heartbeat
            return f.Heartbeat(epoch, seq, beat.num_blocks, beat.xor_digest, load(beat.load))
        if kind == "snapshot_begin":
            begin = message.snapshot_begin
            return f.SnapshotBegin(epoch, begin.as_of_seq, begin.num_blocks, facts(begin.info))
        if kind == "snapshot_chunk":
            chunk = message.snapshot_chunk
            return f.SnapshotChunk(
                epoch,
                chunk.first_index,
                _packed(chunk.block_hashes),
                tuple(chunk.parent_distances),
                tuple(chunk.root_parents),
                _on_device(chunk.tier),
            )
        if kind == "snapshot_end":
            end = message.snapshot_end
            return f.SnapshotEnd(epoch, end.xor_digest, _ledger(end.ledger))
    except ValueError as error:
        raise MalformedMessage(f"a worker's {kind} does not parse: {error}") from error
    return None


def _delta(epoch: str, seq: int, delta: state_pb2.Delta) -> f.Delta:
    return f.Delta(
        epoch,
        seq,
        tuple(_packed(r.block_hashes) for r in delta.removed),
        tuple(
            f.Stored(pack_hashes([s.parent_hash]), _packed(s.block_hashes), _on_device(s.tier))
            for s in delta.stored
        ),
        tuple(
            f.Moved(_packed(m.block_hashes), _on_device(m.to_tier))
            for m in delta.moved
            if _on_device(m.from_tier) != _on_device(m.to_tier)
        ),
        _ledger(delta.ledger),
    )


def _packed(hashes: bytes) -> bytes:
    if len(hashes) % HASH_BYTES:
        raise ValueError(f"{len(hashes)} bytes are no whole number of block hashes")
    return hashes


def _on_device(tier: state_pb2.KvTier.ValueType) -> bool:
    return tier in (state_pb2.KV_TIER_DEVICE, state_pb2.KV_TIER_UNSPECIFIED)


def _ledger(events: Iterable[state_pb2.LedgerEvent]) -> tuple[f.LedgerEvent, ...]:
    found = (_ledger_event(event) for event in events)
    return tuple(event for event in found if event is not None)


def _ledger_event(event: state_pb2.LedgerEvent) -> f.LedgerEvent | None:
    kind = event.WhichOneof("event")
    if kind == "admitted":
        a = event.admitted
        is_batch = a.priority == sampling_pb2.PRIORITY_CLASS_BATCH
        return f.Admitted(a.request_id, a.prompt_tokens, a.cached_tokens, is_batch)
    if kind == "prefill_done":
        p = event.prefill_done
        return f.PrefillDone(
            p.request_id, p.cached_tokens, p.computed_tokens, p.queue_s, p.prefill_s, p.ttft_s
        )
    if kind == "progress":
        return f.Progress(load(event.progress.load))
    if kind == "finished":
        done = event.finished
        return f.Finished(done.request_id, done.output_tokens, done.aborted)
    return None


def load(message: state_pb2.WorkerLoad) -> f.LoadReport:
    """What a worker does now."""
    return f.LoadReport(
        running=message.running,
        waiting=message.waiting,
        queued_prefill_tokens=message.queued_prefill_tokens,
        queued_batch_tokens=message.queued_batch_tokens,
        context_tokens=message.context_tokens,
        used_blocks=message.used_blocks,
        cached_blocks=message.cached_blocks,
        capacity_blocks=message.capacity_blocks,
        step_s=message.step_s,
        tokens_per_step=message.tokens_per_step,
        prefill_tokens_per_s=message.prefill_tokens_per_s,
        serving=message.health != state_pb2.WORKER_HEALTH_FAILED,
        draining=message.health == state_pb2.WORKER_HEALTH_DRAINING,
        preemptions=message.preemptions,
        loaded_adapters=tuple(message.loaded_adapters),
        adapter_load_s=message.adapter_load_s,
    )


def facts(info: state_pb2.WorkerInfo) -> f.WorkerFacts:
    """Who a worker is."""
    return f.WorkerFacts(
        **{name: getattr(info, name) for name in _SCALAR_FACTS},
        models=tuple(info.models),
        adapters=tuple(info.adapters),
    )


def info_message(known: f.WorkerFacts) -> state_pb2.WorkerInfo:
    """The wire form of who a worker is."""
    scalars = {name: getattr(known, name) for name in _SCALAR_FACTS}
    return state_pb2.WorkerInfo(**scalars, models=known.models, adapters=known.adapters)


def load_message(report: f.LoadReport) -> state_pb2.WorkerLoad:
    """The wire form of what a worker does."""
    health = state_pb2.WORKER_HEALTH_SERVING
    if report.draining:
        health = state_pb2.WORKER_HEALTH_DRAINING
    if not report.serving:
        health = state_pb2.WORKER_HEALTH_FAILED
    numbers = {name: getattr(report, name) for name in _LOAD_NUMBERS}
    return state_pb2.WorkerLoad(**numbers, health=health)


def worker_status(worker: TrackedWorker, now: float) -> routing_service_pb2.WorkerStatus:
    """One worker as this router sees it."""
    known = worker.facts or f.WorkerFacts(worker.worker_id, "", worker.endpoint)
    silence = worker.sync.silence_s(now)
    return routing_service_pb2.WorkerStatus(
        info=info_message(known),
        load=load_message(worker.load.report),
        sync_state=_SYNC_STATES[worker.sync.state(now)],
        seq=worker.sync.seq,
        indexed_blocks=worker.sync.indexed_blocks(),
        divergences=worker.sync.divergences,
        trust=worker.load.trust_factor,
        breaker_open=worker.breaker.is_open(now),
        last_frame_age_s=max(silence, 0.0) if silence != float("inf") else 0.0,
        index_digest=worker.sync.digest(),
    )
