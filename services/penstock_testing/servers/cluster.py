"""A real router before real workers, all in this process: fake engines unless told otherwise."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from penstock.common.v1 import tokens_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2, routing_service_pb2_grpc
from penstock_core.blocks import pack_tokens, unpack_tokens
from penstock_core.rpc import server as rpc
from penstock_engine.api import Engine
from penstock_router.process import RunningRouter, running_router
from penstock_router.settings import RouterSettings
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.worker import DEFAULT_OPTIONS, RunningWorker, running_worker
from penstock_worker.worker import Options

DEADLINE_S = 20.0
DEFAULT_SETTINGS = RouterSettings(listen="127.0.0.1:0", grace_s=0.5)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole stream, put together; ``kinds`` are its events in order."""

    started: generate_pb2.Started
    tokens: tuple[int, ...]
    text: str
    completed: generate_pb2.Completed
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A router and its workers, with stubs to the router."""

    router: RunningRouter
    workers: list[RunningWorker]
    inference: "inference_service_pb2_grpc.InferenceServiceAsyncStub"
    routing: "routing_service_pb2_grpc.RoutingServiceAsyncStub"

    def worker(self, worker_id: str) -> RunningWorker:
        """A worker by its id."""
        return next(w for w in self.workers if w.info.worker_id == worker_id)

    def engine(self, worker_id: str) -> FakeEngine:
        """The fake engine of a worker."""
        engine = self.worker(worker_id).engine
        assert isinstance(engine, FakeEngine)
        return engine

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of the router's picture. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await self.router.fleet.changes.wait(0.05)

    async def live(self, count: int) -> None:
        """Wait until this many workers are LIVE."""
        await self.until(lambda: self.router.fleet.states().get("LIVE", 0) >= count)

    async def explain(self, request_id: str) -> routing_service_pb2.ExplainDecisionResponse:
        """The latest decision about a request."""
        wanted = routing_service_pb2.ExplainDecisionRequest(request_id=request_id)
        return await self.routing.ExplainDecision(wanted, timeout=DEADLINE_S)

    async def generate(self, request: generate_pb2.GenerateRequest) -> Answer:
        """Stream through the router to the end."""
        return await collect(self.inference.Generate(request, timeout=DEADLINE_S))


def ask(
    prompt: str | Sequence[int], request_id: str = "", max_tokens: int = 4, model: str = "fake"
) -> generate_pb2.GenerateRequest:
    """A greedy request for a text or for tokens."""
    request = generate_pb2.GenerateRequest(model=model, request_id=request_id)
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.tokens.CopyFrom(tokens_pb2.TokenIds(ids=pack_tokens(prompt)))
    request.stop.max_tokens = max_tokens
    request.sampling.temperature = 0
    return request


async def collect(
    stream: "grpc.aio.UnaryStreamCall[generate_pb2.GenerateRequest, generate_pb2.GenerateResponse]",
) -> Answer:
    """Read a stream of one sample to its end; positions must be contiguous."""
    started, completed = generate_pb2.Started(), generate_pb2.Completed()
    tokens: list[int] = []
    kinds: list[str] = []
    text = ""
    async for event in stream:
        kind = event.WhichOneof("event") or ""
        kinds.append(kind)
        if kind == "started":
            started = event.started
        elif kind == "delta":
            assert event.delta.first_position == len(tokens), "tokens were lost or doubled"
            tokens += unpack_tokens(event.delta.tokens.ids)
            text += event.delta.text
        elif kind == "completed":
            completed = event.completed
    return Answer(started, tuple(tokens), text, completed, tuple(kinds))


@asynccontextmanager
async def running_cluster(
    *engines: Engine,
    lease_secret: str = "",
    settings: RouterSettings = DEFAULT_SETTINGS,
    options: Options = DEFAULT_OPTIONS,
    model: Path | None = None,
) -> AsyncIterator[Cluster]:
    """Workers ``worker-1``, ``worker-2``... with these engines, and a router that knows them all.

    ``options`` and ``model``, the directory with the tokenizer, are the workers'.
    """
    async with AsyncExitStack() as stack:
        workers = []
        for number, engine in enumerate(engines, 1):
            worker = running_worker(
                engine,
                options=options,
                worker_id=f"worker-{number}",
                lease_secret=lease_secret.encode(),
                model=model,
            )
            workers.append(await stack.enter_async_context(worker))
        chosen = settings.model_copy(
            update={
                "workers": ",".join(w.endpoint for w in workers),
                "lease_secret": lease_secret,
            }
        )
        router = await stack.enter_async_context(running_router(chosen))
        channel = await stack.enter_async_context(rpc.channel(router.endpoint))
        cluster = Cluster(
            router,
            workers,
            inference_service_pb2_grpc.InferenceServiceStub(channel),
            routing_service_pb2_grpc.RoutingServiceStub(channel),
        )
        await cluster.live(len(workers))
        yield cluster
