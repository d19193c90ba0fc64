"""What was decided and what came of it: a bounded book, joined by request, open to watchers.

The outcome comes from the worker's own ledger, so it is the same for proxied streams and for those
that never crossed the router. A stream that failed is closed by whoever saw it fail.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from penstock_core.errors import Overloaded
from penstock_router.frames import Finished, LedgerEvent, PrefillDone
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import explain, rank
from penstock_router.policy.facts import Decision, Explanation, Ranking, RoutingRequest, WorkerView

_MAX_DECISIONS = 2048
_MAX_WATCHER_BACKLOG = 256
_MAX_WATCHERS = 64
# As public traces have it (Mooncake's blocks), so that a log can be played like one.
PREFIX_TOKENS = 512


class Inputs(NamedTuple):
    """What ``decide`` was called with: it gives the same decision again."""

    now: float
    params: CostParams
    views: tuple[WorkerView, ...]
    request: RoutingRequest
    seed: int


class Prefix(NamedTuple):
    """What a prompt shares with others: packed chain hashes, one for every ``step_tokens`` tokens.

    The hash of a block stands for all tokens before it too, so few are enough: a long prompt's take
    bytes, not kilobytes. No step means that it was not recorded.
    """

    hashes: bytes = b""
    step_tokens: int = 0

    @classmethod
    def of(cls, chain: bytes, block_tokens: int) -> Self:
        """Every so manieth of a prompt's packed hashes."""
        every = max(PREFIX_TOKENS // block_tokens, 1)
        blocks = memoryview(chain).cast("Q")
        return cls(blocks[every - 1 :: every].tobytes(), every * block_tokens)


class DecisionRecord(NamedTuple):
    """One decision with everything it was made from. Fields as in ``penstock.routing.v1``.

    Its reasons are worked out when somebody asks for them: few are ever read.
    """

    decision_id: str
    request_id: str
    attempt: int
    unix_time_s: float
    model: str
    policy_digest: str
    inputs: Inputs
    decision: Decision
    decision_us: int
    trace_id: str = ""
    queued_s: float = 0.0
    shadow_worker_id: str = ""
    shadow_digest: str = ""
    tenant: str = ""
    prefix: Prefix = Prefix()

    @property
    def worker_id(self) -> str:
        """The chosen worker; empty if there was none."""
        return self.decision.chosen.worker_id if self.decision.chosen else ""

    def explain(self) -> Explanation:
        """Why it was decided so, from the same inputs."""
        at = self.inputs
        return explain(at.views, at.request, at.now, at.seed, at.params)

    def rank(self) -> Ranking:
        """Who stood where, and why; what ``explain`` tells without its counterfactual."""
        at = self.inputs
        return rank(at.views, at.request, at.now, self.decision, at.params)

    @property
    def predicted_cached_tokens(self) -> int:
        """Prompt tokens expected in the chosen worker's cache."""
        return self.decision.chosen.matched_tokens if self.decision.chosen else 0


class Outcome(NamedTuple):
    """What a decision led to. Fields as in ``penstock.routing.v1.OutcomeRecord``."""

    decision_id: str
    request_id: str
    worker_id: str
    predicted_cached_tokens: int
    predicted_ttft_s: float
    actual_cached_tokens: int = 0
    actual_ttft_s: float = 0.0
    output_tokens: int = 0
    status: str = ""
    tenant: str = ""


Entry = DecisionRecord | Outcome


@dataclass(slots=True)
class _Page:
    record: DecisionRecord
    outcome: Outcome
    # The stream is over, so the outcome is due.
    is_over: bool = False
    is_settled: asyncio.Event = field(default_factory=asyncio.Event)


class DecisionBook:
    """The latest decisions, by decision and by request."""

    def __init__(self, capacity: int = _MAX_DECISIONS) -> None:
        self._capacity = capacity
        self._pages: OrderedDict[str, _Page] = OrderedDict()
        self._by_request: dict[str, str] = {}
        self._watchers: set[asyncio.Queue[Entry]] = set()

    def add(self, record: DecisionRecord) -> None:
        """A decision was made."""
        chosen = record.decision.chosen
        outcome = Outcome(
            record.decision_id,
            record.request_id,
            record.worker_id,
            record.predicted_cached_tokens,
            chosen.ttft_s if chosen else 0.0,
            tenant=record.tenant,
        )
        self._pages[record.decision_id] = _Page(record, outcome)
        self._by_request[record.request_id] = record.decision_id
        while len(self._pages) > self._capacity:
            decision_id, page = self._pages.popitem(last=False)
            if self._by_request.get(page.record.request_id) == decision_id:
                del self._by_request[page.record.request_id]
        self._publish(record)

    def find(self, decision_id: str = "", request_id: str = "") -> DecisionRecord | None:
        """A decision, or the latest one of a request."""
        page = self._page(decision_id or self._by_request.get(request_id, ""))
        return page.record if page else None

    async def outcome(self, decision_id: str, timeout_s: float) -> Outcome | None:
        """What came of it; None while it runs.

        Where the stream is over already, the worker's account of it is awaited for ``timeout_s``.
        """
        page = self._page(decision_id)
        if page is None:
            return None
        if page.is_over and not page.is_settled.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await page.is_settled.wait()
            except TimeoutError:
                return None
        return page.outcome if page.is_settled.is_set() else None

    def on_ledger(self, worker_id: str, event: LedgerEvent) -> Outcome | None:
        """A line of a worker's ledger; the outcome so far if it belongs to one of our decisions."""
        if not isinstance(event, PrefillDone | Finished):
            return None
        page = self._page(self._by_request.get(event.request_id, ""))
        if page is None or page.record.worker_id != worker_id or page.is_settled.is_set():
            return None
        if isinstance(event, PrefillDone):
            page.outcome = page.outcome._replace(
                actual_cached_tokens=event.cached_tokens, actual_ttft_s=event.ttft_s
            )
        else:
            status = "aborted" if event.aborted else "OK"
            self._settle(page, page.outcome._replace(output_tokens=event.output_tokens), status)
        return page.outcome

    def stream_over(self, decision_id: str, status: str = "") -> None:
        """The stream ended. A ``status`` other than OK settles it; else the ledger will."""
        page = self._page(decision_id)
        if page is None or page.is_settled.is_set():
            return
        page.is_over = True
        if status:
            self._settle(page, page.outcome, status)

    @contextmanager
    def watch(self) -> Iterator[asyncio.Queue[Entry]]:
        """Everything from now on; a watcher that is too slow misses the oldest.

        Raises:
            Overloaded: too many watch already.
        """
        if len(self._watchers) >= _MAX_WATCHERS:
            raise Overloaded(f"{_MAX_WATCHERS} watch already", retry_after_s=1.0)
        queue: asyncio.Queue[Entry] = asyncio.Queue(_MAX_WATCHER_BACKLOG)
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)

    def _page(self, decision_id: str) -> _Page | None:
        return self._pages.get(decision_id)

    def _settle(self, page: _Page, outcome: Outcome, status: str) -> None:
        page.outcome = outcome._replace(status=status)
        page.is_settled.set()
        self._publish(page.outcome)

    def _publish(self, entry: Entry) -> None:
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(entry)
