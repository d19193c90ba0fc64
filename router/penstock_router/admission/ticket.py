"""A request in the router's queue, and the parameters of that queue. Plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType


class PriorityClass(IntEnum):
    """Who goes first; numbered as the wire's ``PriorityClass``."""

    SYSTEM = 1
    INTERACTIVE = 2
    STANDARD = 3
    BATCH = 4


ONLINE = (PriorityClass.SYSTEM, PriorityClass.INTERACTIVE, PriorityClass.STANDARD)


def _by_class(
    system: float, interactive: float, standard: float, batch: float
) -> Mapping[int, float]:
    values = (system, interactive, standard, batch)
    return MappingProxyType(dict(zip(PriorityClass, values, strict=True)))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait at once, over all and for one tenant."""

    requests: int = 4096
    tokens: int = 64_000_000
    size_bytes: int = 1 << 30
    tenant_requests: int = 2048
    tenant_tokens: int = 32_000_000


@dataclass(frozen=True, slots=True)
class AdmissionParams:
    """How the queue works.

    Attributes:
        ahead_s: a worker with no more prefill work than this is open: the next request is sent so
            early that it does not run dry.
        slo_s: time to first token below which a class does not wait for a better moment.
        aging: seconds of predicted prefill that a second of waiting makes up for.
        weights: shares of the classes beside SYSTEM, which goes before all.
        starvation_s: a class between SYSTEM and BATCH whose oldest request waits longer goes first.
        quantum_s: work by which a tenant may run ahead of the others where its prefix is hot.
        hot_share: share of a prompt that must be cached for that.
        plan_limit: requests, in their order, that a round of placements looks at.
        full_share: KV occupancy above which a worker takes no more.
        longest_hold_s: how long blocks that another request computes are waited for.
        batch_share: share of a worker's batch, and of its KV blocks, that BATCH may fill.
    """

    ahead_s: float = 0.05
    slo_s: Mapping[int, float] = field(default_factory=lambda: _by_class(1.0, 0.25, 0.5, 0.0))
    aging: float = 1.0
    weights: Mapping[int, float] = field(default_factory=lambda: _by_class(1.0, 4.0, 2.0, 1.0))
    starvation_s: Mapping[int, float] = field(
        default_factory=lambda: _by_class(5.0, 30.0, 60.0, 120.0)
    )
    quantum_s: float = 0.5
    hot_share: float = 0.5
    plan_limit: int = 64
    full_share: float = 0.95
    longest_hold_s: float = 10.0
    batch_share: float = 0.75
    bounds: Bounds = Bounds()


@dataclass(slots=True, eq=False)
class Ticket:
    """One waiting request.

    Attributes:
        ticket_id: unique in the queue, unlike the caller's request id.
        priority: its class.
        arrived_s, deadline_s: clock times; no first token is of use after the deadline.
        work_s: predicted prefill seconds where most of it is cached.
        hit_share: share of the prompt that is cached there.
        has_begun: tokens of it are at its client already, which waits for more: it goes before all.
        expected_ttft_s: seconds to the first token from now on, as last predicted.
    """

    ticket_id: str
    tenant: str
    priority: PriorityClass
    prompt_tokens: int
    arrived_s: float
    size_bytes: int = 0
    deadline_s: float = float("inf")
    work_s: float = 0.0
    hit_share: float = 0.0
    expected_ttft_s: float = 0.0
    has_begun: bool = False
