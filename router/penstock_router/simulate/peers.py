"""The rules of other routers, as far as their sources and papers tell, for comparison.

Each sees what it sees in its own system, without error, which flatters it: events come at once and
are never lost, no count is split over replicas. What a router scrapes is as old as its scrapes are.
All route at once and draw lots among equals.
"""

from collections.abc import Sequence

from penstock_router.simulate.board import AtOnce
from penstock_router.simulate.engine import EngineModel
from penstock_router.simulate.trace import TraceRequest


class RoundRobin(AtOnce):
    """One after the other."""

    _next = -1

    def choose(self, request: TraceRequest, now: float) -> int:
        """The next one."""
        self._next = (self._next + 1) % self.size
        return self._next


class Chance(AtOnce):
    """Any worker."""

    def choose(self, request: TraceRequest, now: float) -> int:
        """Any."""
        return self.random.randrange(self.size)


class LeastLoaded(AtOnce):
    """Fewest requests in flight."""

    def choose(self, request: TraceRequest, now: float) -> int:
        """The one with the fewest."""
        return self.least(self.in_flight)


class PowerOfTwo(AtOnce):
    """The less loaded of two drawn by chance."""

    def choose(self, request: TraceRequest, now: float) -> int:
        """Of two."""
        pair = self.random.sample(range(self.size), min(2, self.size))
        return min(pair, key=lambda worker: self.in_flight[worker])


class SmgEvents(AtOnce):
    """SMG's cache_aware fed by KV events: overlap first, then load, unless the fleet is unbalanced.

    Source: lightseekorg/smg, model_gateway/src/policies/cache_aware.rs, defaults of its CLI.
    """

    _ABSOLUTE = 64
    _RELATIVE = 1.5

    def choose(self, request: TraceRequest, now: float) -> int:
        """The deepest overlap, or the shortest queue for all."""
        if self._is_unbalanced():
            return self.least(self.in_flight)
        depths = self.depths(request)
        return self.least([-d * 1e6 + load for d, load in zip(depths, self.in_flight, strict=True)])

    def _is_unbalanced(self) -> bool:
        most, least = max(self.in_flight), min(self.in_flight)
        return most - least > self._ABSOLUTE and most > self._RELATIVE * least


class SmgApproximate(SmgEvents):
    """The same with a tree of what was routed where: affinity above a share of the prompt."""

    _MATCH_RATE = 0.3

    def choose(self, request: TraceRequest, now: float) -> int:
        """The best match if it is good enough, else the shortest queue."""
        if not self._is_unbalanced():
            depths = self.depths(request)
            best = max(depths)
            if best * self.models[0].block_tokens > self._MATCH_RATE * request.prompt_tokens:
                return self.least([-d for d in depths])
        return self.least(self.in_flight)


class Dynamo(AtOnce):
    """NVIDIA Dynamo's cost: prefill blocks to be computed there plus blocks in use there.

    Source: ai-dynamo/dynamo, lib/kv-router/src/scheduling/selector.rs, default weights.
    """

    def choose(self, request: TraceRequest, now: float) -> int:
        """The least sum."""
        size = self.models[0].block_tokens
        scores = []
        for worker, uncached in enumerate(self.uncached(request)):
            used = self.used_blocks[worker]
            decode = len(used) + sum(key not in used for key in request.blocks)
            scores.append((self.pending_tokens[worker] + uncached) / size + decode)
        return self.least(scores)


class LlmdScorers(AtOnce):
    """llm-d's weighted scorers: prefix 3, queue 2, KV use 2; with KV events if not optimistic.

    Queue and KV use are the engines' metrics, scraped every 50 ms.

    Source: llm-d/llm-d-inference-scheduler, pkg/epp/config/loader/defaults.go.
    """

    _SCRAPE_S = 0.05

    def __init__(self, models: Sequence[EngineModel], seed: int, *, optimistic: bool) -> None:
        super().__init__(models, seed, optimistic=optimistic)
        self._scraped_at = -1.0
        self._queues: list[int] = []
        self._free: list[float] = []

    def choose(self, request: TraceRequest, now: float) -> int:
        """The greatest weighted sum."""
        self._scrape(now)
        queues = self._queues
        most, least = max(queues), min(queues)
        blocks = max(len(request.blocks), 1)
        scores = []
        for worker, depth in enumerate(self.depths(request)):
            queue = (most - queues[worker]) / (most - least) if most > least else 1.0
            scores.append(-(3 * depth / blocks + 2 * queue + 2 * self._free[worker]))
        return self.least(scores)

    def _scrape(self, now: float) -> None:
        if self._scraped_at >= 0 and now - self._scraped_at < self._SCRAPE_S:
            return
        self._scraped_at = now
        self._queues = list(self.waiting)
        used = zip(self.used_blocks, self.models, strict=True)
        self._free = [max(1 - len(blocks) / m.cache_blocks, 0.0) for blocks, m in used]


class LlmdSticky(AtOnce):
    """llm-d's newer rule: stay with workers that hold 80 % until another is 18 s sooner.

    Source: llm-d/llm-d-router, prefix-cache-affinity-filter and token-load-scorer.
    """

    _STICKY_SHARE = 0.8
    _BREAK_S = 18.0
    _EXPLORE = 0.01

    def choose(self, request: TraceRequest, now: float) -> int:
        """The least uncached tokens in flight, among the sticky ones while they keep up."""
        uncached = self.uncached(request)
        times = [self.pending_tokens[w] / self.models[w].prefill_rate for w in range(self.size)]
        limit = (1 - self._STICKY_SHARE) * request.prompt_tokens
        sticky = [w for w in range(self.size) if uncached[w] <= limit]
        others = [w for w in range(self.size) if uncached[w] > limit]
        pool: Sequence[int] = range(self.size)
        if sticky and self.random.random() >= self._EXPLORE:
            gain = min(times[w] for w in sticky) - min((times[w] for w in others), default=1e9)
            pool = sticky if gain <= self._BREAK_S else pool
        return pool[self.least([times[w] for w in pool])]


class LMetric(AtOnce):
    """Tokens this request would have to compute, times the batch: no parameter.

    Source: arXiv 2603.15202.
    """

    def choose(self, request: TraceRequest, now: float) -> int:
        """The least product."""
        uncached = self.uncached(request)
        return self.least([tokens * n for tokens, n in zip(uncached, self.in_flight, strict=True)])


class LeastPrefillWork(AtOnce):
    """Least prefill work left, this request's included: TTFT if all worked at one rate."""

    def choose(self, request: TraceRequest, now: float) -> int:
        """The least sum."""
        uncached = self.uncached(request)
        return self.least([self.pending_tokens[w] + uncached[w] for w in range(self.size)])


class Oracle(AtOnce):
    """Least true time to first token: knows the engines' rates, queues and caches to come."""

    def __init__(self, models: Sequence[EngineModel], seed: int, *, optimistic: bool) -> None:
        super().__init__(models, seed, optimistic=optimistic)
        self._free_at = [0.0] * self.size

    def choose(self, request: TraceRequest, now: float) -> int:
        """The soonest."""
        ends = []
        for worker, uncached in enumerate(self.uncached(request)):
            work_s = self.models[worker].prefill_s(uncached, request.prompt_tokens - uncached)
            ends.append(max(self._free_at[worker], now) + work_s)
        best = self.least(ends)
        self._free_at[best] = ends[best]
        return best
