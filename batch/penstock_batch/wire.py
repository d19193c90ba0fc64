"""Batches and files as wire messages: the service's edge."""

from penstock.batch.v1 import batch_pb2, batch_service_pb2
from penstock.common.v1 import usage_pb2
from penstock_batch.planning.records import Answer, to_json
from penstock_batch.state.facts import Costs
from penstock_batch.state.fold import Batch, Status
from penstock_batch.stores.files import StoredFile
from penstock_core.cost.pricing import to_micros

_STATUS = {s: batch_pb2.BatchStatus.Value(f"BATCH_STATUS_{s.name}") for s in Status}
# The field of BatchTimes that tells when each final state was entered.
_ENDED_FIELD = {s: s.value for s in Status if s.final}


def batch_message(batch: Batch) -> batch_pb2.Batch:
    """A batch on the wire."""
    used = batch.usage
    message = batch_pb2.Batch(
        id=batch.id,
        endpoint=batch.endpoint,
        status=_STATUS[batch.status],
        input_file_id=batch.input_file_id,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        completion_window_s=batch.window_s,
        errors=[
            batch_pb2.BatchError(code=p.code, message=p.message, param=p.param, line=p.line)
            for p in batch.problems
        ],
        counts=batch_pb2.RequestCounts(
            total=batch.counts.total, completed=batch.counts.completed, failed=batch.counts.failed
        ),
        times=_times(batch),
        metadata=batch.metadata,
        model=batch.model,
        usage=usage_pb2.Usage(
            prompt_tokens=used.prompt,
            completion_tokens=used.completion,
            cached_tokens=used.cached,
            drafted_tokens=used.drafted,
            accepted_draft_tokens=used.accepted,
        ),
        deduplicated_lines=batch.deduplicated,
        shards=batch.shards,
        shards_done=batch.shards_done,
    )
    if batch.cost.currency:
        message.cost.CopyFrom(cost_message(batch.cost))
    return message


def cost_message(cost: Costs) -> usage_pb2.Cost:
    """A cost on the wire."""
    return usage_pb2.Cost(
        amount=cost.amount,
        micros=to_micros(cost.amount),
        currency=cost.currency,
        prefill_s=cost.prefill_s,
        decode_s=cost.decode_s,
    )


def file_message(file: StoredFile) -> batch_pb2.File:
    """A file's description on the wire."""
    return batch_pb2.File(
        id=file.id,
        filename=file.filename,
        purpose=file.purpose,
        size_bytes=file.size,
        created_unix_s=file.created,
        sha256=file.sha256,
    )


def result_message(answer: Answer) -> batch_service_pb2.StreamResultsResponse:
    """A result line on the wire."""
    return batch_service_pb2.StreamResultsResponse(
        line=answer.number,
        custom_id=answer.custom_id,
        json=to_json(answer.result).decode(),
        is_error=answer.is_error,
    )


def _times(batch: Batch) -> batch_pb2.BatchTimes:
    times = batch.times
    message = batch_pb2.BatchTimes(created=int(times.created), expires=int(times.expires))
    for name, at in (
        ("in_progress", times.in_progress),
        ("finalizing", times.finalizing),
        ("cancelling", times.cancelling),
        (_ENDED_FIELD.get(batch.status, ""), times.ended),
    ):
        if name and at is not None:
            setattr(message, name, int(at))
    return message
