"""Embeddings over all workers: a request in parts, each where it is done soonest.

A vector depends on its own text alone and is computed anew without harm, so a part that failed goes
to another worker, whatever had been done of it. All parts go to workers of one model revision:
vectors of two cannot be compared.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import grpc

from penstock.common.v1 import tokens_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock.inference.v1 import inference_service_pb2 as pb
from penstock_core import blocks
from penstock_core.cost.pricing import add_costs
from penstock_core.errors import NotSupported, NoWorker, PenstockError, Unavailable, WorkerLost
from penstock_core.ids import new_id
from penstock_core.requests import validation
from penstock_core.rpc.attempts import Attempts, call_failure
from penstock_core.security.auth import Principal
from penstock_core.side_by_side import side_by_side
from penstock_core.telemetry import logs
from penstock_core.telemetry.tracing import Metadata, outgoing
from penstock_router.fleet.fleet import RETRY_AFTER_S, Fleet
from penstock_router.fleet.tracked import TrackedWorker
from penstock_router.metrics import RouterMetrics
from penstock_router.prompts import PreparedRequest, Preparer
from penstock_router.routing import Attempt, Routed, Router
from penstock_text.prompt import encode_inputs

MAX_PART_INPUTS = 64
MAX_PART_TOKENS = 8192
MAX_PARTS_AT_ONCE = 8
_LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class _Whole:
    """A checked request: its inputs as packed token ids, and who may read them."""

    request: pb.EmbedRequest
    inputs: tuple[bytes, ...]
    principal: Principal
    cache_salt: int
    workers: tuple[TrackedWorker, ...]
    excluded: dict[str, str]


class Embedder:
    """Divides, routes, retries, joins."""

    def __init__(
        self,
        preparer: Preparer,
        router: Router,
        fleet: Fleet,
        metrics: RouterMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._preparer = preparer
        self._router = router
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock

    async def embed(
        self, request: pb.EmbedRequest, principal: Principal, timeout_s: float | None
    ) -> pb.EmbedResponse:
        """A vector for each input, in order.

        Raises:
            InvalidRequest: with the field that is wrong.
            NotSupported: the model computes no embeddings.
            ModelNotFound, NoWorker: nobody serves it.
            PenstockError: what the workers answered.
        """
        longest = _LONGEST_S if timeout_s is None else min(timeout_s, _LONGEST_S)
        deadline = self._clock() + longest
        whole = await self._prepare(request, principal)
        parts = list(_divided(whole.inputs))

        async def embedded(number: int, inputs: Sequence[bytes]) -> pb.EmbedResponse:
            name = f"{request.request_id}-{number}" if number else request.request_id
            return await self._part(whole, name, inputs, deadline)

        answers = await side_by_side(parts, embedded, MAX_PARTS_AT_ONCE)
        return _joined(request.request_id, answers)

    async def _prepare(self, request: pb.EmbedRequest, principal: Principal) -> _Whole:
        validation.check_embed(request)
        request.request_id = request.request_id or new_id("emb")
        logs.request_id.set(request.request_id)
        found = self._preparer.place_of(request.model, request.request_id)
        if found.adapter:
            raise NotSupported(
                f"{request.model!r}: adapters embed nothing; ask for {found.model!r}"
            )
        request.model, workers = found.model, _one_revision(found.workers)
        roomiest = max(
            (w.facts for w in workers if w.facts is not None), key=lambda f: f.max_embed_tokens
        )
        if request.token_inputs:
            ids = [blocks.unpack_tokens(tokens.ids) for tokens in request.token_inputs]
        else:
            text = await self._preparer.text_of(request.model)
            ids = await encode_inputs(request, text.tokenizer)
        validation.check_embed_fit(ids, request, roomiest)
        return _Whole(
            request=request,
            inputs=tuple(map(blocks.pack_tokens, ids)),
            principal=principal,
            cache_salt=self._preparer.cache_salt(principal),
            workers=tuple(workers),
            excluded=_unfit(workers, max(map(len, ids))),
        )

    async def _part(
        self, whole: _Whole, name: str, inputs: Sequence[bytes], deadline: float
    ) -> pb.EmbedResponse:
        """Try worker after worker until one answers."""
        prepared = _as_prompt(whole, name, inputs)
        attempts = Attempts(self._clock)
        failure: PenstockError | None = None
        while True:
            left = max(deadline - self._clock(), 0.0)
            attempt = Attempt(attempts.number, attempts.excluded(has_begun=False), left, deadline)
            try:
                routed, span = await self._router.route(prepared, attempt)
            except NoWorker:
                if failure is not None:
                    raise failure from None
                raise
            wanted = _wire(whole.request, prepared, routed, inputs)
            try:
                return await self._ask(wanted, routed, outgoing(span=span), left)
            except PenstockError as error:
                attempts.failed(routed.worker.worker_id, 0)
                if not attempts.may_repeat(error):
                    raise
                failure = error
                self._metrics.retried(error.slug, has_begun=False)

    async def _ask(
        self, wanted: pb.EmbedRequest, routed: Routed, metadata: Metadata, timeout_s: float
    ) -> pb.EmbedResponse:
        status = "cancelled"
        try:
            channel = self._fleet.channel(routed.worker)
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            answer: pb.EmbedResponse = await stub.Embed(
                wanted, timeout=timeout_s, metadata=metadata
            )
            status = ""
        except grpc.aio.AioRpcError as error:
            failure = call_failure(error, f"worker {routed.worker.worker_id}", has_begun=False)
            status = failure.slug
            if isinstance(failure, WorkerLost) or type(failure) is Unavailable:
                routed.worker.breaker.failed(self._clock())
            raise failure from error
        finally:
            self._router.release(routed, status=status)
        return answer


def _divided(inputs: Sequence[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    tokens = 0
    for each in inputs:
        size = len(each) // blocks.TOKEN_BYTES
        if part and (len(part) == MAX_PART_INPUTS or tokens + size > MAX_PART_TOKENS):
            yield part
            part, tokens = [], 0
        part.append(each)
        tokens += size
    yield part


def _one_revision(workers: Sequence[TrackedWorker]) -> list[TrackedWorker]:
    """Those with the revision that most of them have."""
    counts = Counter(w.facts.model_revision for w in workers if w.facts is not None)
    if not counts:
        raise NoWorker("no worker is known well enough yet", retry_after_s=RETRY_AFTER_S)
    chosen = max(counts, key=lambda revision: (counts[revision], revision))
    return [w for w in workers if w.facts is not None and w.facts.model_revision == chosen]


def _unfit(workers: Sequence[TrackedWorker], longest: int) -> dict[str, str]:
    limits = {w.worker_id: w.facts.max_embed_tokens for w in workers if w.facts is not None}
    return {
        worker_id: f"it embeds at most {limit} tokens" if limit else "it computes no embeddings"
        for worker_id, limit in limits.items()
        if limit < longest
    }


def _as_prompt(whole: _Whole, name: str, inputs: Sequence[bytes]) -> PreparedRequest:
    """A part as decisions see it: a prompt of so many tokens, none of which is cached anywhere."""
    facts = [w.facts for w in whole.workers if w.facts is not None]
    wanted = whole.request
    return PreparedRequest(
        request=generate_pb2.GenerateRequest(
            request_id=name, model=wanted.model, priority=wanted.priority
        ),
        prompt=b"",
        prefix=b"".join(inputs),
        max_tokens=0,
        principal=whole.principal,
        cache_salt=whole.cache_salt,
        workers=whole.workers,
        excluded=whole.excluded,
        chains={(f.model_revision, f.block_tokens): b"" for f in facts},
    )


def _wire(
    request: pb.EmbedRequest, prepared: PreparedRequest, routed: Routed, inputs: Sequence[bytes]
) -> pb.EmbedRequest:
    wanted = pb.EmbedRequest(
        request_id=prepared.request.request_id,
        model=request.model,
        token_inputs=[tokens_pb2.TokenIds(ids=each) for each in inputs],
        pooling=request.pooling,
        priority=prepared.priority,
        lease=routed.lease,
    )
    if request.HasField("dimensions"):
        wanted.dimensions = request.dimensions
    return wanted


def _joined(request_id: str, parts: Sequence[pb.EmbedResponse]) -> pb.EmbedResponse:
    costs = [part.cost for part in parts if part.HasField("cost")]
    return pb.EmbedResponse(
        cost=reduce(add_costs, costs) if costs else None,
        embeddings=[embedding for part in parts for embedding in part.embeddings],
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        worker_ids=sorted({worker for part in parts for worker in part.worker_ids}),
        request_id=request_id,
    )
