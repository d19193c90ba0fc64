"""An InferenceService that says the prompt back, with a hook before each answer.

For tests of whatever sits before it: they know every answer beforehand, count the calls by
prompt, and make single calls wait or fail.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc

from penstock.common.v1 import usage_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2, inference_service_pb2_grpc
from penstock_core.blocks import unpack_tokens
from penstock_core.cost.pricing import Price
from penstock_core.errors import NotSupported
from penstock_core.requests.validation import check_embed, check_request
from penstock_core.rpc.interceptors import ServerInterceptor, principal
from penstock_core.rpc.server import RpcServer
from penstock_core.security.auth import KeyRing

SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
# What every answer is said to have taken, at a dollar a second.
PREFILL_S, DECODE_S = 0.25, 0.5
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Event = generate_pb2.GenerateResponse


class EchoRouter(inference_service_pb2_grpc.InferenceServiceServicer):
    """Answers ``echo PROMPT``.

    Attributes:
        before: awaited with each request before it is answered; may raise or wait.
        calls: how often each prompt was asked for.
        answers: how many answers were sent to their end.
        tenants: in whose name the calls came.
        most_at_once: most calls that were open at the same time.
    """

    def __init__(self) -> None:
        self.before: Callable[[generate_pb2.GenerateRequest], Awaitable[None]] | None = None
        self.calls: Counter[str] = Counter()
        self.tenants: set[str] = set()
        self.requests: list[generate_pb2.GenerateRequest] = []
        self.embeds: list[inference_service_pb2.EmbedRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.most_at_once = 0
        self.answers = 0
        self._open = 0
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[["EchoRouter"], bool], timeout_s: float = 30) -> None:
        """Wait until something is true of it. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                await self._changed.wait()

    async def Generate(  # noqa: N802 - gRPC's name
        self, request: generate_pb2.GenerateRequest, context: _Context
    ) -> AsyncIterator[generate_pb2.GenerateResponse]:
        """Say the prompt back."""
        check_request(request)
        prompt = _prompt(request)
        self._count(prompt, request, context)
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            if self.before is not None:
                await self.before(request)
            for event in _events(request, prompt):
                yield event
            self.answers += 1
        finally:
            self._open -= 1
            self._poke()

    async def ListModels(  # noqa: N802
        self, request: inference_service_pb2.ListModelsRequest, context: _Context
    ) -> inference_service_pb2.ListModelsResponse:
        """No model in particular: every name is answered."""
        return inference_service_pb2.ListModelsResponse()

    async def GetModel(  # noqa: N802
        self, request: inference_service_pb2.GetModelRequest, context: _Context
    ) -> inference_service_pb2.GetModelResponse:
        """Whatever was asked for."""
        model = inference_service_pb2.Model(name=request.model)
        return inference_service_pb2.GetModelResponse(model=model)

    async def Embed(  # noqa: N802
        self, request: inference_service_pb2.EmbedRequest, context: _Context
    ) -> inference_service_pb2.EmbedResponse:
        """A vector for each input that counts its characters or tokens: ``(count, 1)``."""
        check_embed(request)
        if request.model == "no-vectors":
            raise NotSupported("no-vectors computes no embeddings", field="model")
        self.embeds.append(request)
        self.tenants.add(principal.get().tenant)
        tokens = (unpack_tokens(each.ids) for each in request.token_inputs)
        sizes = [len(each) for each in (*request.texts, *tokens)]
        kept = request.dimensions or 2
        return inference_service_pb2.EmbedResponse(
            embeddings=[
                inference_service_pb2.Embedding(values=(size, 1.0)[:kept]) for size in sizes
            ],
            prompt_tokens=sum(sizes),
            worker_ids=["worker-1"],
            request_id=request.request_id,
        )

    async def Tokenize(  # noqa: N802
        self, request: inference_service_pb2.TokenizeRequest, context: _Context
    ) -> inference_service_pb2.TokenizeResponse:
        """Not played."""
        raise NotSupported("an echo has no tokenizer")

    async def Detokenize(  # noqa: N802
        self, request: inference_service_pb2.DetokenizeRequest, context: _Context
    ) -> inference_service_pb2.DetokenizeResponse:
        """Not played."""
        raise NotSupported("an echo has no tokenizer")

    def _count(self, prompt: str, request: generate_pb2.GenerateRequest, context: _Context) -> None:
        self.calls[prompt] += 1
        self.tenants.add(principal.get().tenant)
        self.requests.append(request)
        self.metadata.append({k: str(v) for k, v in context.invocation_metadata() or ()})
        self._poke()

    def _poke(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@asynccontextmanager
async def running_echo(router: EchoRouter, keys: KeyRing | None = None) -> AsyncIterator[str]:
    """Serve it; yields the address."""
    server = RpcServer(
        ServerInterceptor(keys or KeyRing.open_to_all()),
        [lambda s: inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(router, s)],
        [SERVICE],
    )
    port = server.bind("127.0.0.1:0")
    await server.start()
    await server.serve()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def _prompt(request: generate_pb2.GenerateRequest) -> str:
    if request.WhichOneof("prompt") == "chat":
        return request.chat.messages[-1].content
    if request.WhichOneof("prompt") == "tokens":
        return " ".join(map(str, unpack_tokens(request.tokens.ids)))
    return request.text


def _events(request: generate_pb2.GenerateRequest, prompt: str) -> list[_Event]:
    words = ["echo ", prompt]
    events = [
        _Event(
            started=generate_pb2.Started(
                request_id=request.request_id, model=request.model, prompt_tokens=len(prompt)
            )
        )
    ]
    events += [_Event(delta=generate_pb2.Delta(text=word)) for word in words]
    stopped = generate_pb2.FINISH_REASON_STOP
    events.append(_Event(finished=generate_pb2.Finished(reason=stopped, completion_tokens=2)))
    usage = usage_pb2.Usage(prompt_tokens=len(prompt), completion_tokens=2)
    completed = generate_pb2.Completed(usage=usage, cost=Price(3600.0).cost(PREFILL_S, DECODE_S))
    events.append(_Event(completed=completed))
    return events
