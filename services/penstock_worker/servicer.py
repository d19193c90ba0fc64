"""``InferenceService`` of a worker: hands each call to what does the work."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import grpc

from penstock.inference.v1 import (
    generate_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
)
from penstock_core.blocks import unpack_tokens
from penstock_core.errors import InvalidRequest
from penstock_core.requests.validation import check_token_ids
from penstock_core.telemetry import logs
from penstock_text.prompt import encode_text
from penstock_worker import translate
from penstock_worker.accounting.report import Progress
from penstock_worker.answers.memory import Memory
from penstock_worker.embedding import Embedder
from penstock_worker.generation.generation import Generation, Services
from penstock_worker.intake.plan import Intake
from penstock_worker.intake.running import RequestTable

_Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Serves one model."""

    def __init__(
        self,
        intake: Intake,
        requests: RequestTable,
        services: Services,
        embedder: Embedder,
        memory: Memory,
    ) -> None:
        self._model = services.model
        self._intake = intake
        self._requests = requests
        self._embedder = embedder
        self._memory = memory
        self._services = services

    def Generate(  # noqa: N802 - the names of RPCs are the protocol's
        self, request: generate_pb2.GenerateRequest, context: _Context
    ) -> AsyncGenerator[generate_pb2.GenerateResponse, None]:
        """Stream tokens as they are decoded."""
        return self.answer(request)

    async def answer(
        self, request: generate_pb2.GenerateRequest
    ) -> AsyncGenerator[generate_pb2.GenerateResponse, None]:
        """What ``Generate`` streams, however the request came."""
        self._requests.check_open()
        progress = Progress()
        plan = await self._intake.plan(request)
        logs.request_id.set(plan.request_id)
        answer = self._memory.recall(plan, progress)
        if answer is not None:
            for response in answer:
                yield response
            return
        recorder = self._memory.recorder(plan)
        generation = Generation(plan, self._services, progress)
        with self._requests.running(plan.request_id, generation):
            async with contextlib.aclosing(generation.responses()) as responses:
                async for response in responses:
                    if recorder is not None:
                        recorder.add(response)
                    yield response
        if recorder is not None:
            recorder.keep()

    async def Embed(  # noqa: N802
        self, request: inference_service_pb2.EmbedRequest, context: _Context
    ) -> inference_service_pb2.EmbedResponse:
        """Compute a vector for each input."""
        return await self._embedder.embed(request)

    async def Tokenize(  # noqa: N802
        self, request: inference_service_pb2.TokenizeRequest, context: _Context
    ) -> inference_service_pb2.TokenizeResponse:
        """Turn text into token ids, as a text prompt would be."""
        self._model.read_name(request.model)
        ids = await encode_text(request.text, self._model.tokenizer)
        return inference_service_pb2.TokenizeResponse(tokens=translate.token_ids(ids))

    async def Detokenize(  # noqa: N802
        self, request: inference_service_pb2.DetokenizeRequest, context: _Context
    ) -> inference_service_pb2.DetokenizeResponse:
        """Turn token ids into text, special tokens included."""
        self._model.read_name(request.model)
        try:
            ids = unpack_tokens(request.tokens.ids)
        except ValueError as error:
            raise InvalidRequest(str(error), field="tokens.ids") from error
        check_token_ids(ids, self._model.engine, "tokens.ids")
        text = self._model.tokenizer.decode(ids, keep_special=True)
        return inference_service_pb2.DetokenizeResponse(text=text)

    async def ListModels(  # noqa: N802
        self, request: inference_service_pb2.ListModelsRequest, context: _Context
    ) -> inference_service_pb2.ListModelsResponse:
        """List the names that the model is served under."""
        models = [self._describe(name) for name in sorted(self._model.info.models)]
        return inference_service_pb2.ListModelsResponse(models=models)

    async def GetModel(  # noqa: N802
        self, request: inference_service_pb2.GetModelRequest, context: _Context
    ) -> inference_service_pb2.GetModelResponse:
        """Describe one model."""
        self._model.check_name(request.model)
        return inference_service_pb2.GetModelResponse(model=self._describe(request.model))

    def _describe(self, name: str) -> inference_service_pb2.Model:
        info = self._model.info
        return inference_service_pb2.Model(
            name=name,
            revision=info.model_revision,
            tokenizer_digest=info.tokenizer_digest,
            max_context_tokens=info.max_context_tokens,
            block_tokens=info.block_tokens,
            vocab_size=info.vocab_size,
            has_chat_template=self._model.template is not None,
            created_unix_s=info.started_unix_s,
            adapters=info.adapters,
            embedding_dimensions=info.embedding_dimensions,
            max_embed_tokens=info.max_embed_tokens,
        )
