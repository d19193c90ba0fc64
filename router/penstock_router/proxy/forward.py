"""Proxied generation: the worker's bytes to the client, unparsed while all goes well.

Before the first delta a failed attempt is repeated on another worker and the client sees nothing of
it; ``started`` is held back until then, so that it comes once. After it the request goes on where
the lost worker stopped, on whichever worker is cheapest given prompt and emitted tokens.
"""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from opentelemetry import trace

from penstock.common.v1 import sampling_pb2, usage_pb2
from penstock_core.errors import NoWorker, PenstockError, Rejected, WorkerLost
from penstock_core.rpc.attempts import PATIENCE_S, Attempts
from penstock_core.rpc.stalls import STALL_FLOOR_S
from penstock_core.telemetry import semconv
from penstock_core.telemetry.tracing import Metadata, outgoing
from penstock_router.fleet.fleet import Fleet
from penstock_router.metrics import RouterMetrics
from penstock_router.prompts import PreparedRequest, Preparer
from penstock_router.proxy.emitted import STARTED_TAG, Emitted
from penstock_router.proxy.leg import Call, Leg, Moves
from penstock_router.proxy.pace import Pace
from penstock_router.relay.frames import FrameStream, Wanted
from penstock_router.routing import Attempt, Routed, Router

_RESERVED_S = 3600.0
_NO_DEADLINE_S = 1e9
_LOOK_AGAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every forwarded stream uses."""

    preparer: Preparer
    router: Router
    fleet: Fleet
    metrics: RouterMetrics
    clock: Callable[[], float]
    pace: Pace
    stall_s: float = STALL_FLOOR_S
    tracer: trace.Tracer = field(default_factory=lambda: trace.get_tracer("penstock.router"))


class Forwarder:
    """Streams of workers to clients."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._with = surroundings

    async def generate(
        self, prepared: PreparedRequest, timeout_s: float | None
    ) -> AsyncGenerator[bytes, None]:
        """Serialized ``GenerateResponse`` events of one request.

        Args:
            prepared: the request.
            timeout_s: what the client's deadline leaves; None for no deadline.

        Raises:
            NoWorker: nobody can take it, and no attempt failed otherwise.
            WorkerLost: the worker went away, and nobody could go on with the request.
            PenstockError: what the worker answered.
        """
        stream = _Stream(self._with, prepared, timeout_s)
        emitted, pace = stream.emitted, self._with.pace
        pace.open += 1
        try:
            while not emitted.is_completed:
                leg, head = await stream.next_leg()
                try:
                    for frame in head:
                        emitted.add(frame)
                        yield frame
                    while (raw := await leg.read()) is not None:
                        new = emitted.admit(raw) if stream.replays else raw
                        if new is not None:
                            emitted.add(new)
                            yield new
                    stream.check_end(leg)
                except PenstockError as error:
                    stream.failed(leg, error)
                finally:
                    leg.close()
        finally:
            pace.open -= 1


class _Stream:
    """One request on its way over as many workers as it takes."""

    def __init__(
        self, surroundings: Surroundings, prepared: PreparedRequest, timeout_s: float | None
    ) -> None:
        self._with = surroundings
        self._prepared = prepared
        self._began = surroundings.clock()
        self._deadline = self._began + (_NO_DEADLINE_S if timeout_s is None else timeout_s)
        self._attempts = Attempts(surroundings.clock)
        # Workers themselves let batch work's tokens wait for longer than any stream of a router's.
        is_batch = prepared.request.priority == sampling_pb2.PRIORITY_CLASS_BATCH
        self._sets_pace = not (is_batch or prepared.request.HasField("coalescing"))
        self._failure: PenstockError | None = None
        self._ttft_s = 0.0
        self._revision = prepared.request.resume.model_revision
        self.emitted = Emitted(prepared.request)

    @property
    def replays(self) -> bool:
        """Whether the attempt gives again what the client has."""
        return self._attempts.number > 0 and self.emitted.replays

    async def next_leg(self) -> tuple[Leg, list[bytes]]:
        """An attempt that has given more than ``started``, and what of it the client has not had."""
        while True:
            leg = await self._resumed() if self.emitted.has_begun else await self._first()
            try:
                return leg, self._new(await leg.head())
            except PenstockError as error:
                leg.close()
                self.failed(leg, error)
            except BaseException:
                leg.close()
                raise

    def failed(self, leg: Leg, error: PenstockError) -> None:
        """An attempt ended. Raises the error unless another one makes sense."""
        if self.emitted.is_completed:
            return  # the client has everything
        has_begun = self.emitted.has_begun
        self._attempts.failed(leg.worker_id, self.emitted.num_tokens if has_begun else 0)
        again = self._attempts.may_resume if has_begun else self._attempts.may_repeat
        if not again(error):
            raise error
        self._failure = error
        self._with.metrics.retried(error.slug, has_begun=has_begun)

    def check_end(self, leg: Leg) -> None:
        """Raise WorkerLost if a stream ended before the generation did."""
        if not self.emitted.is_completed:
            raise WorkerLost(f"worker {leg.worker_id} ended before the generation did")
        leg.ended_well()

    async def _first(self) -> Leg:
        try:
            if self._failure is not None:
                tried = self._attempts.excluded(has_begun=False)
                self._prepared = await self._with.preparer.elsewhere(self._prepared, tried)
            return await self._open(self._prepared)
        except NoWorker as error:
            if self._failure is not None:
                raise self._failure from None
            if not self._prepared.asked:
                raise
            self._failure = error  # its place has lost its workers just now: another may do
            return await self._first()

    async def _resumed(self) -> Leg:
        """Go on elsewhere; wait for a worker that can, since tokens are at stake."""
        clock = self._with.clock
        now = clock()
        give_up_at = min(now + PATIENCE_S, self._deadline)
        elapsed = usage_pb2.Timing(ttft_s=self._ttft_s, total_s=now - self._began)
        state = self.emitted.resume(self._attempts.number, elapsed)
        state.model_revision = self._revision
        while True:
            try:
                return await self._open(await self._with.preparer.resumed(self._prepared, state))
            except Rejected:
                if clock() >= give_up_at and self._failure is not None:
                    raise self._failure from None
            await self._with.fleet.changes.wait(_LOOK_AGAIN_S)

    def _new(self, head: list[bytes]) -> list[bytes]:
        """A later attempt may give ``started`` and what is replayed again."""
        if not self.emitted.has_begun:
            self._ttft_s = self._with.clock() - self._began
            return head
        admitted = (self.emitted.admit(frame) for frame in head if frame[0] != STARTED_TAG)
        return [frame for frame in admitted if frame is not None]

    async def _open(self, prepared: PreparedRequest) -> Leg:
        attempts = self._attempts
        excluded = attempts.excluded(has_begun=self.emitted.has_begun)
        attempt = Attempt(attempts.number, excluded, _RESERVED_S, self._deadline)
        routed, _ = await self._with.router.route(prepared, attempt)
        facts = routed.worker.facts
        self._revision = self._revision or (facts.model_revision if facts else "")
        span = self._span(routed)
        try:
            call = self._call(prepared, routed, outgoing(span=span))
        except PenstockError:
            span.end()
            self._with.router.release(routed, status=NoWorker.slug)
            raise

        def may_move() -> bool:
            now, here = self._with.clock(), routed.worker
            return any(w is not here and not w.why_not(now) for w in prepared.workers)

        moves = Moves(may_move, self._with.stall_s)
        return Leg(self._with.router, routed, Call(call, span), self._with.clock, moves)

    def _span(self, routed: Routed) -> trace.Span:
        """From here to the last frame; the worker's own hang beneath it."""
        record = routed.record
        return self._with.tracer.start_span(
            semconv.SPAN_FORWARD,
            attributes={
                semconv.WORKER_ID: record.worker_id,
                semconv.DECISION_ID: record.decision_id,
                semconv.ATTEMPT: record.attempt,
            },
        )

    def _call(self, prepared: PreparedRequest, routed: Routed, metadata: Metadata) -> FrameStream:
        request = prepared.request
        request.tokens.ids = prepared.prompt
        request.lease.CopyFrom(routed.lease)
        if self._sets_pace:
            request.coalescing.CopyFrom(self._with.pace.coalescing())
        if not request.sampling.HasField("seed"):
            request.sampling.seed = routed.record.inputs.seed
        left = self._deadline - self._with.clock()
        timeout = None if left > _NO_DEADLINE_S / 2 else max(left, 0.0)
        worker = routed.worker
        wanted = Wanted(f"worker {worker.worker_id}", request, metadata, timeout)
        knows_relays = worker.facts is not None and worker.facts.relays
        return self._with.fleet.line(worker).open(wanted, relayed=knows_relays)
