"""Decision logs as traces: the requests that a router served, to be played through a simulation.

A log is what ``PENSTOCK_ROUTER_DECISION_LOG`` names. When a request came, how long its prompt and
its answer were and which prefixes it shares with others stand in it; who sent it and in which class
does not.
"""

import math
from pathlib import Path

from penstock.routing.v1 import decision_pb2
from penstock_core.blocks import reusable_blocks
from penstock_core.errors import InvalidRequest
from penstock_router.decisions.log import read_decisions
from penstock_router.simulate.trace import TraceRequest, read_trace

_BEGINNINGS = ('{"decision"', '{"outcome"')


def read_requests(path: Path, block_tokens: int, speedup: float = 1.0) -> list[TraceRequest]:
    """All requests of a decision log or of a trace in Mooncake's format, in order of arrival.

    Raises:
        InvalidRequest: a line is neither, or the log cannot be played in such blocks; says which.
        OSError: the file cannot be read.
    """
    if not math.isfinite(speedup):
        raise InvalidRequest(f"arrivals cannot be {speedup} times as fast", field="speedup")
    with path.open(encoding="utf-8", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    if first.startswith(_BEGINNINGS):
        return read_log(path, block_tokens, speedup)
    return read_trace(path, block_tokens, speedup)


def read_log(path: Path, block_tokens: int, speedup: float = 1.0) -> list[TraceRequest]:
    """The requests of a decision log; of each its first attempt. Raises as ``read_requests``."""
    first: dict[str, decision_pb2.DecisionRecord] = {}
    outputs: dict[str, int] = {}
    for entry in read_decisions(path):
        if entry.HasField("decision"):
            first.setdefault(entry.decision.request_id, entry.decision)
        else:
            told = outputs.get(entry.outcome.request_id, 0)
            outputs[entry.outcome.request_id] = told + entry.outcome.output_tokens
    if not first:
        raise InvalidRequest(f"{path} holds no decision", field="trace")
    begin = min(_arrived_s(record) for record in first.values())
    found = [
        TraceRequest(
            request_id=record.request_id,
            arrival_s=(_arrived_s(record) - begin) / speedup,
            prompt_tokens=max(record.prompt_tokens, 1),
            # Without an outcome: it still ran, or the log ends before.
            output_tokens=max(outputs.get(record.request_id, record.inputs.max_tokens), 1),
            blocks=_blocks(record, block_tokens),
        )
        for record in first.values()
    ]
    return sorted(found, key=lambda request: request.arrival_s)


def _arrived_s(record: decision_pb2.DecisionRecord) -> float:
    return record.unix_time_s - record.queued_s


def _blocks(record: decision_pb2.DecisionRecord, block_tokens: int) -> tuple[int, ...]:
    step = record.prefix_hash_tokens
    if not step:
        raise InvalidRequest(
            f"decision {record.decision_id!r} does not tell what its prompt shares with others: "
            "an earlier version wrote it",
            field="trace",
        )
    if block_tokens % step:
        raise InvalidRequest(
            f"decision {record.decision_id!r} tells of every {step}th token, so blocks of "
            f"{block_tokens} tokens are not known; multiples of {step} are",
            field="block_tokens",
        )
    every = block_tokens // step
    usable = reusable_blocks(record.prompt_tokens, block_tokens)
    # Zero is taken for the chain's start, as in traces.
    return tuple(hash_ or 1 for hash_ in record.prefix_hashes[every - 1 :: every][:usable])
