"""Answers from memory: what a request is known by, how its answer is kept and given again.

The worker's, because it alone sees every answer in both modes (in lookaside none crosses the router)
and holds the whole key; the router's affinity brings equal prompts back to the same worker.
"""

import hashlib
import time
from collections.abc import Callable, Iterator

from opentelemetry import trace

from penstock.common.v1 import usage_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core.blocks import pack_tokens
from penstock_core.requests.determinism import is_greedy, keeps_response
from penstock_core.telemetry import semconv as sc
from penstock_worker.accounting.metrics import ResponseCacheMetrics
from penstock_worker.accounting.report import Outcome, Progress, Reporter
from penstock_worker.answers.cache import Kept, ResponseCache
from penstock_worker.intake.plan import Plan, ServedModel

_Response = generate_pb2.GenerateResponse
# What of a request has no part in its answer, or is in the key in another form.
_BESIDE_THE_ANSWER = (
    *("request_id", "model", "lease", "priority", "speculation", "response_cache"),
    *("tokens", "chat", "adapter", "coalescing"),
)
_WHOLE = (
    generate_pb2.FINISH_REASON_STOP,
    generate_pb2.FINISH_REASON_LENGTH,
    generate_pb2.FINISH_REASON_TOOL_CALLS,
)


class Recorder:
    """Collects an answer while it is sent; ``keep`` is called at its orderly end only."""

    def __init__(self, memory: "Memory", key: bytes, max_bytes: int) -> None:
        self._memory = memory
        self._key = key
        self._room = max_bytes
        self._frames: list[bytes] = []
        self._is_whole = True

    def add(self, response: _Response) -> None:
        """Take the next message; more of them than can be kept are let go at once."""
        if response.HasField("started") or self._room < 0:
            return
        if response.HasField("finished") and response.finished.reason not in _WHOLE:
            self._is_whole = False
        frame = response.SerializeToString()
        self._room -= len(frame)
        self._frames.append(frame)
        if self._room < 0:
            self._frames.clear()

    def keep(self) -> None:
        """Keep the answer, unless it was cut short by something that may not happen again."""
        if self._frames and self._is_whole:
            self._memory.put(self._key, self._frames)


class Memory:
    """Kept answers of one worker's model."""

    def __init__(
        self,
        cache: ResponseCache,
        model: ServedModel,
        reporter: Reporter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._model = model
        self._reporter = reporter
        self._clock = clock
        self._metrics = ResponseCacheMetrics(lambda: cache.num_bytes, lambda: len(cache))

    def recall(self, plan: Plan, progress: Progress) -> Iterator[_Response] | None:
        """The kept answer, if the request wants it and there is one."""
        if not keeps_response(plan.request):
            return None
        if plan.request.response_cache == generate_pb2.RESPONSE_CACHE_MODE_REFRESH:
            self._metrics.looked_up("refresh")
            return None
        kept = self._cache.get(self._key(plan), self._clock())
        outcome = "miss" if kept is None else "hit"
        self._metrics.looked_up(outcome)
        trace.get_current_span().set_attribute(sc.RESPONSE_CACHE, outcome)
        return None if kept is None else self._again(plan, progress, kept)

    def recorder(self, plan: Plan) -> Recorder | None:
        """What keeps the answer that is now computed; None if it may not be kept."""
        if not keeps_response(plan.request):
            return None
        return Recorder(self, self._key(plan), self._cache.max_entry_bytes)

    def put(self, key: bytes, frames: list[bytes]) -> None:
        """Keep an answer's messages."""
        self._cache.put(key, frames, self._clock())

    def _again(self, plan: Plan, progress: Progress, kept: Kept) -> Iterator[_Response]:
        yield _Response(started=self._started(plan))
        names: list[str] = []
        for frame in kept.frames:
            response = _Response.FromString(frame)
            if response.HasField("finished"):
                name = generate_pb2.FinishReason.Name(response.finished.reason)
                names.append(name.removeprefix("FINISH_REASON_").lower())
            if response.HasField("delta"):
                response.delta.ClearField("spent")
            if response.HasField("completed"):
                done, now_s = response.completed, progress.now_s()
                done.from_response_cache = True
                done.response_age_s = self._clock() - kept.at
                done.timing.CopyFrom(usage_pb2.Timing(ttft_s=now_s, total_s=now_s))
                if done.HasField("cost"):  # nothing was computed
                    done.cost.CopyFrom(usage_pb2.Cost(currency=done.cost.currency))
                outcome = Outcome(_undrafted(done.usage), done.timing, tuple(names), None)
                self._reporter.ended(plan, progress, outcome)
            yield response

    def _started(self, plan: Plan) -> generate_pb2.Started:
        prompt, info = plan.engine_request.prompt, self._model.info
        return generate_pb2.Started(
            request_id=plan.request_id,
            worker_id=info.worker_id,
            epoch=info.epoch,
            decision_id=plan.claims.decision_id,
            model=plan.request.model,
            prompt_tokens=len(prompt),
            cached_tokens=len(prompt),
            seed=plan.engine_request.sampling.seed,
        )

    def _key(self, plan: Plan) -> bytes:
        """Tenant, model and all of the request that has a part in the answer."""
        asked = generate_pb2.GenerateRequest()
        asked.CopyFrom(plan.request)
        for name in _BESIDE_THE_ANSWER:
            asked.ClearField(name)  # type: ignore[arg-type]
        if not asked.output.echo:
            asked.ClearField("text")
        if is_greedy(asked):
            asked.sampling.ClearField("seed")
        asked.stop.max_tokens = plan.engine_request.max_tokens
        claims, info = plan.claims, self._model.info
        parts = (
            claims.tenant.encode(),
            claims.cache_salt.to_bytes(8, "little"),
            info.model_revision.encode(),
            info.tokenizer_digest.encode(),
            plan.engine_request.adapter.encode(),
            pack_tokens(plan.engine_request.prompt),
            asked.SerializeToString(deterministic=True),
        )
        digest = hashlib.sha256()
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.digest()


def _undrafted(usage: usage_pb2.Usage) -> usage_pb2.Usage:
    """What it took to have the answer, for telemetry: its drafts were counted when they were made."""
    used = usage_pb2.Usage()
    used.CopyFrom(usage)
    used.drafted_tokens = used.accepted_draft_tokens = 0
    return used
