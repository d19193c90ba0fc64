"""OpenAI's batch object and completion window. Pure."""

import re

from penstock.batch.v1 import batch_pb2
from penstock_core.errors import InvalidRequest
from penstock_openai.answer import cost_object
from penstock_openai.json_object import Json

_STATES = {
    batch_pb2.BATCH_STATUS_VALIDATING: "validating",
    batch_pb2.BATCH_STATUS_FAILED: "failed",
    batch_pb2.BATCH_STATUS_IN_PROGRESS: "in_progress",
    batch_pb2.BATCH_STATUS_FINALIZING: "finalizing",
    batch_pb2.BATCH_STATUS_COMPLETED: "completed",
    batch_pb2.BATCH_STATUS_EXPIRED: "expired",
    batch_pb2.BATCH_STATUS_CANCELLING: "cancelling",
    batch_pb2.BATCH_STATUS_CANCELLED: "cancelled",
}
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_UNIT_S = {"s": 1, "m": 60, "h": 3600}
_WINDOW = re.compile(r"([1-9][0-9]{0,6})([smh])", re.ASCII)


def parse_window(text: str) -> int:
    """Seconds of a completion window such as OpenAI's ``24h``; minutes and seconds also do.

    Raises:
        InvalidRequest: no such window.
    """
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise InvalidRequest(
            f"completion_window is {text[:32]!r}; it must be a time such as '24h'",
            field="completion_window",
        )
    return int(match[1]) * _UNIT_S[match[2]]


def format_window(seconds: int) -> str:
    """The window as it is written, in hours where it is whole hours."""
    for unit in ("h", "m"):
        if seconds and seconds % _UNIT_S[unit] == 0:
            return f"{seconds // _UNIT_S[unit]}{unit}"
    return f"{seconds}s"


def batch_object(batch: batch_pb2.Batch) -> Json:
    """A batch as OpenAI shows it; ours under ``penstock``."""
    times = batch.times
    rendered: Json = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": _errors(batch),
        "input_file_id": batch.input_file_id,
        "completion_window": format_window(batch.completion_window_s),
        "status": _STATES.get(batch.status, "validating"),
        "output_file_id": batch.output_file_id or None,
        "error_file_id": batch.error_file_id or None,
        "created_at": times.created,
        "expires_at": times.expires or None,
    }
    for name in _TIMES:
        rendered[f"{name}_at"] = getattr(times, name) if times.HasField(name) else None  # type: ignore[arg-type]
    counts = batch.counts
    return rendered | {
        "request_counts": {
            "total": counts.total,
            "completed": counts.completed,
            "failed": counts.failed,
        },
        "metadata": dict(batch.metadata) or None,
        "model": batch.model or None,
        "usage": _usage(batch),
        "penstock": _extension(batch),
    }


def _extension(batch: batch_pb2.Batch) -> Json:
    extension: Json = {
        "deduplicated_lines": batch.deduplicated_lines,
        "shards": batch.shards,
        "shards_done": batch.shards_done,
    }
    if batch.HasField("cost"):
        extension["cost"] = cost_object(batch.cost)
    return extension


def _errors(batch: batch_pb2.Batch) -> Json | None:
    if not batch.errors:
        return None
    data = [
        {
            "code": error.code,
            "message": error.message,
            "param": error.param or None,
            "line": error.line if error.HasField("line") else None,
        }
        for error in batch.errors
    ]
    return {"object": "list", "data": data}


def _usage(batch: batch_pb2.Batch) -> Json | None:
    if not batch.HasField("usage"):
        return None
    usage = batch.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
