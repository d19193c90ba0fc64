"""Traces in Mooncake's format: when requests came, how long they were, which blocks they shared.

One JSON object a line: ``timestamp`` (ms), ``input_length``, ``output_length`` (tokens) and
``hash_ids``, one for each block of the prompt, the last of which may be partial. An id stands for
its block and everything before it.

Source: "Mooncake: Trading More Storage for Less Computation", FAST '25, artifact description.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock_core.blocks import pack_hashes, reusable_blocks
from penstock_core.errors import InvalidRequest
from penstock_router.admission.ticket import PriorityClass


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        arrival_s: seconds from the start.
        blocks: hashes of the blocks that a cache may serve; the last prompt token is never in one.
        chain: the same, packed.
        tenant, priority: whose it is and of which class; traces without them have one of each.
        deadline_s: seconds after arrival by which the first token must come; infinite for none.
    """

    request_id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    tenant: str = "default"
    priority: str = "standard"
    deadline_s: float = float("inf")
    chain: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Pack once what is looked up often."""
        object.__setattr__(self, "chain", pack_hashes(self.blocks))


def read_trace(path: Path, block_tokens: int, speedup: float = 1.0) -> list[TraceRequest]:
    """All requests of a file, in the order of their arrival, which ``speedup`` compresses.

    Raises:
        InvalidRequest: a line is no request; says which.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8") as lines:
        found = list(_parsed(lines, block_tokens, speedup))
    if not found:
        raise InvalidRequest(f"{path} holds no request", field="trace")
    return sorted(found, key=lambda request: request.arrival_s)


def _parsed(lines: Iterable[str], block_tokens: int, speedup: float) -> Iterator[TraceRequest]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _request(json.loads(line), number, block_tokens, speedup)
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRequest(
                f"line {number} is no request of a trace: {_said(error)}", field="trace"
            ) from error


def _request(entry: dict[str, object], number: int, size: int, speedup: float) -> TraceRequest:
    prompt, output = _count(entry["input_length"]), _count(entry["output_length"])
    ids = entry["hash_ids"]
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise ValueError("hash_ids must be a list of integers")
    arrival_s = float(str(entry["timestamp"])) / 1000 / speedup
    if not math.isfinite(arrival_s):
        raise ValueError("timestamp must be finite")
    priority = str(entry.get("priority", "standard"))
    if priority.upper() not in PriorityClass.__members__:
        raise ValueError(f"{priority!r} is no class of requests")
    deadline_s = float(str(entry.get("deadline_s", "inf")))
    if math.isnan(deadline_s):
        raise ValueError("deadline_s must be a number")
    return TraceRequest(
        request_id=f"r{number}",
        arrival_s=arrival_s,
        prompt_tokens=max(prompt, 1),
        output_tokens=max(output, 1),
        blocks=_hashes(ids, reusable_blocks(prompt, size)),
        tenant=str(entry.get("tenant", "default")),
        priority=priority,
        deadline_s=deadline_s,
    )


def _said(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _count(value: object) -> int:
    if not isinstance(value, int | float) or value < 0:
        raise ValueError(f"{value!r} is no number of tokens")
    return int(value)


def _hashes(ids: Sequence[int], usable: int) -> tuple[int, ...]:
    # Zero is taken for the chain's start by convention of this package.
    return tuple(i + 1 for i in ids[:usable])
