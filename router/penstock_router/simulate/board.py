"""What a router without Penstock's ledger can know: its own counts, and the engines' KV events."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from penstock_core.blocks import pack_hashes
from penstock_router.index.index import PrefixIndex
from penstock_router.simulate.engine import EngineModel, Job
from penstock_router.simulate.trace import TraceRequest

_ROOT = pack_hashes([0])


class Board:
    """Per worker: requests in flight, prompts not yet computed, blocks in use, blocks cached."""

    def __init__(self, models: Sequence[EngineModel], seed: int, *, optimistic: bool) -> None:
        self.models = models
        self.random = random.Random(seed)
        self.size = len(models)
        self.in_flight = [0] * self.size
        self.waiting = [0] * self.size
        self.pending_tokens = [0] * self.size
        self.used_blocks: list[Counter[int]] = [Counter() for _ in models]
        self.index = PrefixIndex()
        for _ in models:
            self.index.acquire()
        # Whether a routed block counts as cached at once, and the engines' events are not heard.
        self._optimistic = optimistic
        self._charged: dict[str, int] = {}

    def depths(self, request: TraceRequest) -> list[int]:
        """Leading blocks that each worker is thought to hold."""
        depths: list[int] = self.index.match(request.chain).tolist()
        return depths[: self.size]

    def uncached(self, request: TraceRequest) -> list[int]:
        """Prompt tokens that each worker would have to compute."""
        size = self.models[0].block_tokens
        return [request.prompt_tokens - depth * size for depth in self.depths(request)]

    def route(self, job: Job, worker: int, uncached: int) -> None:
        """A request goes there."""
        self.in_flight[worker] += 1
        self.waiting[worker] += 1
        self.pending_tokens[worker] += uncached
        self._charged[job.request.request_id] = uncached
        self.used_blocks[worker].update(job.request.blocks)
        if self._optimistic:
            self.index.store(worker, _ROOT, job.request.chain)

    def least(self, scores: Sequence[float]) -> int:
        """The worker with the least score; one of them by chance if there are several."""
        best = min(scores)
        equals = [worker for worker, score in enumerate(scores) if score == best]
        return equals[0] if len(equals) == 1 else self.random.choice(equals)

    def admitted(self, job: Job, now: float) -> None:
        """A prefill begins."""
        self.waiting[job.worker] -= 1

    def stored(self, worker: int, parent: int, blocks: Sequence[int]) -> None:
        """An engine's event."""
        if not self._optimistic:
            self.index.store(worker, pack_hashes([parent]), pack_hashes(blocks))

    def removed(self, worker: int, blocks: Sequence[int]) -> None:
        """An engine's event."""
        self.index.remove(worker, pack_hashes(blocks))

    def prefill_done(self, job: Job, now: float) -> None:
        """A first token came by."""
        self.pending_tokens[job.worker] -= self._charged.pop(job.request.request_id)

    def finished(self, job: Job, now: float) -> None:
        """A last token came by."""
        self.in_flight[job.worker] -= 1
        used = self.used_blocks[job.worker]
        for key in job.request.blocks:
            used[key] -= 1
            if not used[key]:
                del used[key]


class AtOnce(Board):
    """A policy that routes each request as it comes, by ``choose``."""

    def __init__(self, models: Sequence[EngineModel], seed: int, *, optimistic: bool) -> None:
        super().__init__(models, seed, optimistic=optimistic)
        self._new: list[Job] = []

    def choose(self, request: TraceRequest, now: float) -> int:
        """The worker for a request."""
        raise NotImplementedError

    def arrive(self, job: Job, now: float) -> None:
        """It is routed in this very moment."""
        self._new.append(job)

    def placements(self, now: float) -> Iterator[tuple[Job, int]]:
        """All that came."""
        coming, self._new = self._new, []
        for job in coming:
            worker = self.choose(job.request, now)
            self.route(job, worker, self.uncached(job.request)[worker])
            yield job, worker

    def wake_at(self, now: float) -> float:
        """Nothing ever waits."""
        return float("inf")
