"""``InferenceService`` as the router serves it: the workers' contract, over all of them."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from penstock.common.v1 import tokens_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2, inference_service_pb2_grpc
from penstock_core import blocks, logs, validation
from penstock_core.bounds import check_name
from penstock_core.errors import InvalidRequest, ModelNotFound
from penstock_core.ids import new_id
from penstock_core.interceptors import principal
from penstock_core.model_names import SEPARATOR
from penstock_core.quotas import check_model
from penstock_core.shared_quotas import SharedQuotas
from penstock_router.budgets import Budgets
from penstock_router.embedding import Embedder
from penstock_router.forward import Forwarder
from penstock_router.frames import WorkerFacts
from penstock_router.places import Places
from penstock_router.prompts import Preparer
from penstock_router.texts import ModelText, TextLibrary
from penstock_text.prompt import encode_text

# gRPC types a context by its messages; these handlers only ask it for the deadline.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_LONGEST_TIMEOUT_S = 1e8


class RouterInference(inference_service_pb2_grpc.InferenceServiceServicer):
    """Routes and forwards; tokenizes by itself."""

    def __init__(
        self,
        preparer: Preparer,
        forwarder: Forwarder,
        embedder: Embedder,
        places: Places,
        texts: TextLibrary,
        budgets: Budgets,
        quotas: SharedQuotas,
    ) -> None:
        self._budgets = budgets
        self._preparer = preparer
        self._quotas = quotas
        self._forwarder = forwarder
        self._embedder = embedder
        self._places = places
        self._texts = texts

    async def Generate(  # type: ignore[override]  # noqa: N802 - raw bytes; gRPC's name
        self, request: generate_pb2.GenerateRequest, context: _Context
    ) -> AsyncIterator[bytes]:
        """Stream tokens from the worker that was chosen."""
        caller = principal.get()
        self._budgets.check(caller.tenant, has_begun=bool(request.resume.choices))
        check_model(caller, *asked_names(request))
        self._quotas.check(caller)
        prepared = await self._preparer.prepare(request, caller)
        logs.request_id.set(request.request_id)
        async with self._quotas.held(caller, request.request_id, prepared.prefix_tokens):
            stream = self._forwarder.generate(prepared, time_left(context))
            try:
                async for raw in stream:
                    yield raw
            finally:
                await stream.aclose()

    async def Embed(  # noqa: N802
        self, request: inference_service_pb2.EmbedRequest, context: _Context
    ) -> inference_service_pb2.EmbedResponse:
        """Have workers embed the inputs, each part where it is done soonest."""
        caller = principal.get()
        self._budgets.check(caller.tenant)
        check_model(caller, request.model)
        validation.check_embed(request)
        request.request_id = request.request_id or new_id("emb")
        async with self._quotas.held(caller, request.request_id, 0):
            answer = await self._embedder.embed(request, caller, time_left(context))
            self._quotas.used(request.request_id, answer.prompt_tokens)
        return answer

    async def Tokenize(  # noqa: N802
        self, request: inference_service_pb2.TokenizeRequest, context: _Context
    ) -> inference_service_pb2.TokenizeResponse:
        """Turn text into tokens."""
        await self._count()
        text = await self._text(request.model)
        ids = await encode_text(request.text, text.tokenizer)
        return inference_service_pb2.TokenizeResponse(
            tokens=tokens_pb2.TokenIds(ids=blocks.pack_tokens(ids))
        )

    async def Detokenize(  # noqa: N802
        self, request: inference_service_pb2.DetokenizeRequest, context: _Context
    ) -> inference_service_pb2.DetokenizeResponse:
        """Turn tokens into text."""
        await self._count()
        text = await self._text(request.model)
        if len(request.tokens.ids) % blocks.TOKEN_BYTES:
            raise InvalidRequest("no whole number of uint32 token ids", field="tokens.ids")
        ids = blocks.unpack_tokens(request.tokens.ids)
        base = self._places.read(request.model).model
        validation.check_token_ids(ids, self._places.models()[base], "tokens.ids")
        return inference_service_pb2.DetokenizeResponse(text=text.tokenizer.decode(ids))

    async def ListModels(  # noqa: N802
        self, request: inference_service_pb2.ListModelsRequest, context: _Context
    ) -> inference_service_pb2.ListModelsResponse:
        """Everything that can be asked for."""
        allowed = principal.get().limits.models
        served = sorted(self._places.models().items())
        models = [(name, facts) for name, facts in served if not allowed or name in allowed]
        described = [await self._describe(name, facts) for name, facts in models]
        return inference_service_pb2.ListModelsResponse(models=described)

    async def GetModel(  # noqa: N802
        self, request: inference_service_pb2.GetModelRequest, context: _Context
    ) -> inference_service_pb2.GetModelResponse:
        """One model."""
        models = self._places.models()
        check_name(request.model)
        check_model(principal.get(), request.model)
        if request.model not in models:
            raise ModelNotFound(
                f"no model {request.model!r}; there are {', '.join(sorted(models))}"
            )
        model = await self._describe(request.model, models[request.model])
        return inference_service_pb2.GetModelResponse(model=model)

    async def _count(self) -> None:
        async with self._quotas.held(principal.get(), new_id("text"), 0):
            return

    async def _text(self, model: str) -> ModelText:
        if not model:
            raise InvalidRequest("model must be named", field="model")
        check_name(model)
        check_model(principal.get(), model)
        return await self._preparer.text_of(model)

    async def _describe(self, name: str, facts: WorkerFacts) -> inference_service_pb2.Model:
        text = await self._texts.get(facts)
        return inference_service_pb2.Model(
            name=name,
            revision=facts.model_revision,
            tokenizer_digest=facts.tokenizer_digest,
            max_context_tokens=facts.max_context_tokens,
            block_tokens=facts.block_tokens,
            vocab_size=facts.vocab_size,
            has_chat_template=isinstance(text, ModelText) and text.template is not None,
            created_unix_s=facts.started_unix_s,
            adapters=facts.adapters,
            embedding_dimensions=facts.embedding_dimensions,
            max_embed_tokens=facts.max_embed_tokens,
        )


def asked_names(request: generate_pb2.GenerateRequest) -> tuple[str, ...]:
    """Names under which a key may allow what a request asks for."""
    if not request.adapter:
        return (request.model,)
    return request.adapter, f"{request.model}{SEPARATOR}{request.adapter}"


def time_left(context: _Context) -> float | None:
    """Seconds until the caller's deadline; None if it set none."""
    left = context.time_remaining()
    return None if left is None or left > _LONGEST_TIMEOUT_S else left
