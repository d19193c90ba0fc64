"""One embedding request: checked, read by the engine, told to metrics."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass

from opentelemetry import trace

from penstock.inference.v1 import inference_service_pb2 as pb
from penstock_core.errors import PenstockError
from penstock_core.ids import new_id
from penstock_core.requests.validation import check_embed, check_embed_fit
from penstock_core.security.auth import DEFAULT_TENANT
from penstock_core.telemetry import logs
from penstock_core.telemetry import semconv as sc
from penstock_core.telemetry.tracing import set_attributes
from penstock_engine.api import Embedded, Engine
from penstock_text.prompt import encode_inputs
from penstock_worker import translate
from penstock_worker.accounting.accounts import Accounts, Charge
from penstock_worker.accounting.metrics import RequestMetrics
from penstock_worker.intake.lease import LeaseCheck
from penstock_worker.intake.plan import ServedModel
from penstock_worker.intake.running import RequestTable


class _Reading:
    """A request that the engine reads; evicting it frees what it holds there."""

    def __init__(self, vectors: "asyncio.Task[Embedded]") -> None:
        self._vectors = vectors
        self._evicted: PenstockError | None = None

    def evict(self, error: PenstockError) -> None:
        """End it with an error."""
        self._evicted = error
        self._vectors.cancel()

    async def vectors(self) -> Embedded:
        """What the engine answers; cancelling the wait cancels the work."""
        try:
            return await self._vectors
        except asyncio.CancelledError:
            if self._evicted is not None:
                raise self._evicted from None
            raise


@dataclass(frozen=True, slots=True)
class Embedder:
    """Serves ``Embed`` of one worker."""

    engine: Engine
    model: ServedModel
    leases: LeaseCheck
    requests: RequestTable
    metrics: RequestMetrics
    accounts: Accounts

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """A vector for each input.

        Raises:
            InvalidRequest, PromptTooLong, NotSupported, ModelNotFound, LeaseInvalid, LeaseStale,
            Draining, Overloaded, EngineFailed, Evicted
        """
        began = time.perf_counter()
        self.requests.check_open()
        request_id = request.request_id or new_id("emb")
        claims = self.leases.claims(request, request_id)
        check_embed(request)
        self.model.check_name(request.model)
        logs.request_id.set(request_id)
        texts = await encode_inputs(request, self.model.tokenizer)
        check_embed_fit(texts, request, self.model.engine)
        wanted = translate.embed_request(request, request_id, texts, claims.priority)
        error: str | None = "cancelled"
        try:
            embedded = await self._read(request_id, self.engine.embed(wanted))
            error = None
        except PenstockError as failure:
            error = failure.slug
            raise
        finally:
            self._measure(request.model, sum(map(len, texts)), time.perf_counter() - began, error)
        tokens, share = sum(map(len, texts)), embedded.share
        self._describe(request_id, request.model, tokens)
        charge = Charge(claims.tenant or DEFAULT_TENANT, request.model, share, tokens)
        self.accounts.charge(charge)
        price = self.accounts.price
        return pb.EmbedResponse(
            embeddings=[pb.Embedding(values=vector) for vector in embedded.vectors],
            cost=price.cost(share.prefill_s, share.decode_s) if price.is_set else None,
            prompt_tokens=tokens,
            worker_ids=[self.model.info.worker_id],
            request_id=request_id,
        )

    async def _read(self, request_id: str, reading: Coroutine[None, None, Embedded]) -> Embedded:
        task = asyncio.create_task(reading)
        try:
            run = _Reading(task)
            with self.requests.running(request_id, run):
                return await run.vectors()
        finally:
            task.cancel()

    def _measure(self, model: str, tokens: int, seconds: float, error: str | None) -> None:
        common = {sc.OPERATION: "embeddings", sc.PROVIDER: "penstock", sc.REQUEST_MODEL: model}
        failed = {sc.ERROR_TYPE: error} if error else {}
        self.metrics.duration.record(seconds, {**common, **failed})
        self.metrics.tokens.record(tokens, {**common, sc.TOKEN_TYPE: "input"})

    def _describe(self, request_id: str, model: str, tokens: int) -> None:
        set_attributes(
            trace.get_current_span(),
            (
                (sc.REQUEST_ID, request_id),
                (sc.WORKER_ID, self.model.info.worker_id),
                (sc.REQUEST_MODEL, model),
                (sc.INPUT_TOKENS, tokens),
            ),
        )
