"""A scripted fleet for tests of clients: workers that answer as told, a router that picks the first.

Real servers over real sockets; only what they decide is written down beforehand.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import grpc

from penstock.common.v1 import lease_pb2, tokens_pb2, usage_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import decision_pb2, routing_service_pb2, routing_service_pb2_grpc
from penstock_core.blocks import TOKEN_BYTES, pack_tokens
from penstock_core.errors import ModelNotFound, NotFound, NotSupported, PenstockError
from penstock_core.rpc.interceptors import ServerInterceptor
from penstock_core.rpc.server import RpcServer
from penstock_core.security.auth import KeyRing, Principal, digest

API_KEY = "pk-good"
Response = generate_pb2.GenerateResponse
# gRPC types a context by its messages; these servicers look at none.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass
class Script:
    """What a server does with Generate: events before failing, and the failure."""

    tokens: int = 3
    error: PenstockError | None = None
    error_after: int = 0
    hangs: bool = False
    requests: list[generate_pb2.GenerateRequest] = field(default_factory=list)
    embeds: list[inference_service_pb2.EmbedRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class ScriptedInference(inference_service_pb2_grpc.InferenceServiceServicer):
    """Serves Generate by its script; text is tokenized a byte a token."""

    def __init__(self, name: str, script: Script, models: Sequence[str]) -> None:
        self.name, self.script, self.models = name, script, models

    async def Generate(  # noqa: N802 - gRPC's name
        self, request: generate_pb2.GenerateRequest, context: _Context
    ) -> AsyncIterator[Response]:
        """As scripted."""
        script = self.script
        script.requests.append(request)
        script.metadata.append({k: str(v) for k, v in context.invocation_metadata() or ()})
        try:
            if request.model not in self.models:
                raise ModelNotFound(f"no model {request.model!r}")
            started = generate_pb2.Started(
                request_id=request.request_id or "req_1", worker_id=self.name, prompt_tokens=4
            )
            yield Response(started=started)
            had = sum(len(choice.emitted.ids) for choice in request.resume.choices) // TOKEN_BYTES
            for position in range(had, script.tokens):
                if script.error is not None and position == script.error_after:
                    raise script.error
                tokens = tokens_pb2.TokenIds(ids=pack_tokens([position]))
                delta = generate_pb2.Delta(
                    first_position=position, tokens=tokens, text=f"{position} "
                )
                yield Response(delta=delta)
            if script.hangs:
                await asyncio.Event().wait()
            yield Response(
                finished=generate_pb2.Finished(
                    reason=generate_pb2.FINISH_REASON_LENGTH, completion_tokens=3
                )
            )
            usage = usage_pb2.Usage(prompt_tokens=4, completion_tokens=3, cached_tokens=2)
            timing = usage_pb2.Timing(ttft_s=0.5)
            yield Response(completed=generate_pb2.Completed(usage=usage, timing=timing))
        finally:
            script.ended.set()

    async def Embed(  # noqa: N802 - gRPC's name
        self, request: inference_service_pb2.EmbedRequest, context: _Context
    ) -> inference_service_pb2.EmbedResponse:
        """A vector for each input: ``(1, number of the input)``, cut to the dimensions."""
        self.script.embeds.append(request)
        count = len(request.texts) + len(request.token_inputs)
        kept = request.dimensions or 2
        return inference_service_pb2.EmbedResponse(
            embeddings=[
                inference_service_pb2.Embedding(values=(1.0, float(number))[:kept])
                for number in range(count)
            ],
            prompt_tokens=3 * count,
            worker_ids=["w0"],
            request_id="emb_1",
        )

    async def GetModel(  # noqa: N802 - gRPC's name
        self, request: inference_service_pb2.GetModelRequest, context: _Context
    ) -> inference_service_pb2.GetModelResponse:
        """Not scripted."""
        raise NotSupported("not scripted")

    async def ListModels(  # noqa: N802 - gRPC's name
        self, request: inference_service_pb2.ListModelsRequest, context: _Context
    ) -> inference_service_pb2.ListModelsResponse:
        """As scripted."""
        models = [inference_service_pb2.Model(name=name) for name in self.models]
        return inference_service_pb2.ListModelsResponse(models=models)

    async def Tokenize(  # noqa: N802 - gRPC's name
        self, request: inference_service_pb2.TokenizeRequest, context: _Context
    ) -> inference_service_pb2.TokenizeResponse:
        """As scripted."""
        ids = pack_tokens(list(request.text.encode()))
        return inference_service_pb2.TokenizeResponse(tokens=tokens_pb2.TokenIds(ids=ids))

    async def Detokenize(  # noqa: N802 - gRPC's name
        self, request: inference_service_pb2.DetokenizeRequest, context: _Context
    ) -> inference_service_pb2.DetokenizeResponse:
        """As scripted."""
        return inference_service_pb2.DetokenizeResponse(text=f"{len(request.tokens.ids) // 4}")


class ScriptedRouting(routing_service_pb2_grpc.RoutingServiceServicer):
    """Routes to the first worker that is not excluded."""

    def __init__(self, endpoints: dict[str, str]) -> None:
        self.endpoints = endpoints
        self.calls: list[routing_service_pb2.RouteRequest] = []

    async def Route(  # noqa: N802 - gRPC's name
        self, request: routing_service_pb2.RouteRequest, context: _Context
    ) -> routing_service_pb2.RouteResponse:
        """As scripted."""
        self.calls.append(request)
        free = [w for w in self.endpoints if w not in request.excluded_worker_ids]
        return routing_service_pb2.RouteResponse(
            worker_id=free[0],
            endpoint=self.endpoints[free[0]],
            lease=lease_pb2.Lease(claims=b"claims", signature=b"signature"),
            prompt_tokens=tokens_pb2.TokenIds(ids=pack_tokens([7, 8, 9])),
            decision_id="dec_1",
            request_id="req_routed",
        )

    async def ListCosts(  # noqa: N802 - gRPC's name
        self, request: routing_service_pb2.ListCostsRequest, context: _Context
    ) -> routing_service_pb2.ListCostsResponse:
        """Nothing was spent."""
        return routing_service_pb2.ListCostsResponse()

    async def ListWorkers(  # noqa: N802 - gRPC's name
        self, request: routing_service_pb2.ListWorkersRequest, context: _Context
    ) -> routing_service_pb2.ListWorkersResponse:
        """As scripted."""
        workers = [routing_service_pb2.WorkerStatus(seq=1)]
        return routing_service_pb2.ListWorkersResponse(workers=workers)

    async def WatchFleet(  # noqa: N802 - gRPC's name
        self, request: routing_service_pb2.WatchFleetRequest, context: _Context
    ) -> AsyncIterator[routing_service_pb2.WatchFleetResponse]:
        """As scripted."""
        for seq in (1, 2):
            workers = [routing_service_pb2.WorkerStatus(seq=seq)]
            yield routing_service_pb2.WatchFleetResponse(workers=workers)
        await asyncio.Event().wait()

    async def WatchDecisions(  # noqa: N802 - gRPC's name
        self, request: routing_service_pb2.WatchDecisionsRequest, context: _Context
    ) -> AsyncIterator[routing_service_pb2.WatchDecisionsResponse]:
        """Not scripted."""
        raise NotSupported("not scripted")
        yield

    async def ExplainDecision(  # noqa: N802 - gRPC's name
        self, request: routing_service_pb2.ExplainDecisionRequest, context: _Context
    ) -> routing_service_pb2.ExplainDecisionResponse:
        """As scripted."""
        if request.decision_id != "dec_1":
            raise NotFound("no such decision")
        decision = decision_pb2.DecisionRecord(decision_id="dec_1")
        return routing_service_pb2.ExplainDecisionResponse(decision=decision)


@dataclass
class Fleet:
    """A running fleet. ``proxied`` is what the router's own Generate does."""

    target: str
    routing: ScriptedRouting
    workers: list[Script]
    proxied: Script
    models: list[str]

    def rename(self, model: str) -> None:
        """Serve the model under another name from now on."""
        self.models[:] = [model]


async def _serve(stack: AsyncExitStack, *register: Callable[[grpc.aio.Server], None]) -> str:
    keys = KeyRing({digest(API_KEY): Principal("acme")}) if len(register) > 1 else None
    server = RpcServer(ServerInterceptor(keys or KeyRing.open_to_all()), register, ())
    port = server.bind("127.0.0.1:0")
    await server.start()
    await server.serve()
    stack.push_async_callback(server.stop, 0)
    return f"127.0.0.1:{port}"


def _inference(servicer: ScriptedInference) -> Callable[[grpc.aio.Server], None]:
    return lambda server: inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(
        servicer, server
    )


class FleetFactory(Protocol):
    """Starts fleets that end with the test."""

    async def __call__(self, *scripts: Script | None, models: Sequence[str] = ("demo",)) -> Fleet:
        """A fleet of the given workers; a script of None is a worker nobody can reach."""
        ...


@asynccontextmanager
async def scripted_fleets() -> AsyncIterator[FleetFactory]:
    """A factory of fleets; all of them end with the context."""
    async with AsyncExitStack() as stack:

        async def start(*scripts: Script | None, models: Sequence[str] = ("demo",)) -> Fleet:
            return await _start(stack, scripts, list(models))

        yield start


async def _start(
    stack: AsyncExitStack, scripts: Sequence[Script | None], served: list[str]
) -> Fleet:
    endpoints: dict[str, str] = {}
    for number, script in enumerate(scripts):
        name = f"w{number}"
        if script is None:
            endpoints[name] = "127.0.0.1:1"
            continue
        endpoints[name] = await _serve(stack, _inference(ScriptedInference(name, script, served)))
    routing, proxied = ScriptedRouting(endpoints), Script()
    target = await _serve(
        stack,
        _inference(ScriptedInference("through-router", proxied, served)),
        lambda s: routing_service_pb2_grpc.add_RoutingServiceServicer_to_server(routing, s),
    )
    return Fleet(target, routing, [s for s in scripts if s is not None], proxied, served)
