"""The asyncio client of a router."""

from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

import grpc

from penstock.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2, routing_service_pb2_grpc
from penstock_client.connections import Connections
from penstock_client.deadlines import Deadline
from penstock_client.options import DEFAULTS, GenerateOptions, Inputs, Pooling, Prompt
from penstock_client.results import Collector, Embeddings, Generation, StreamEvent
from penstock_client.streaming import Mode, Streamer, Way
from penstock_client.translate import (
    from_embed_response,
    to_embed_request,
    to_request,
    to_tokens,
)
from penstock_core.blocks import unpack_tokens
from penstock_core.errors import InvalidRequest, ModelNotFound, NoWorker
from penstock_core.rpc.channels import channel
from penstock_core.rpc.stalls import STALL_FLOOR_S
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.tls import PLAIN, Tls
from penstock_core.telemetry.tracing import Metadata, outgoing

T = TypeVar("T")

TIMEOUT_S = 600.0
_SHORT_S = 30.0


class AsyncClient:
    """Generates through a router. Create it inside a running event loop; close it, or use ``async with``.

    In ``lookaside`` mode the router only chooses; tokens stream straight from the worker. Where no
    worker can be reached from here the router forwards them, which ``proxy`` always asks for.
    """

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        mode: Mode = "lookaside",
        timeout_s: float = TIMEOUT_S,
        stall_s: float = STALL_FLOOR_S,
        tls: Tls = PLAIN,
    ) -> None:
        """Take a router's address.

        Args:
            target: ``host:port`` or ``unix:path`` of a router.
            api_key: the caller's key, where routers ask for one.
            mode: the way of the tokens.
            timeout_s: bounds a request.
            stall_s: least silence of a worker, beside 10 times its pace, after which another goes on.
            tls: certificates, for the router and for workers that are streamed from.
        """
        self._timeout_s = timeout_s
        self._credentials = credentials(api_key)
        self._channel = channel(target, tls)
        self._workers = Connections(tls=tls)
        way = Way(mode, stall_s)
        self._streamer = Streamer(self._channel, self._workers, self._credentials, way)
        self._inference = inference_service_pb2_grpc.InferenceServiceStub(self._channel)
        self._routing = routing_service_pb2_grpc.RoutingServiceStub(self._channel)
        self._only_model = ""

    async def __aenter__(self) -> Self:
        """Nothing is connected before the first call."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; requests that still run are cancelled."""
        await self._workers.close()
        await self._channel.close()

    async def generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        options: GenerateOptions = DEFAULTS,
        timeout_s: float | None = None,
    ) -> Generation:
        """Continue a prompt and return the whole. Arguments and errors as ``stream``."""
        collector = Collector()
        merged = _merged(options, max_tokens, temperature)
        events = self.stream(prompt, model=model, options=merged, timeout_s=timeout_s)
        async with aclosing(events):
            async for event in events:
                collector.add(event)
        return collector.result()

    async def stream(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        options: GenerateOptions = DEFAULTS,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Continue a prompt: Started, deltas, finished for each sample, completed.

        Closing the iterator (``contextlib.aclosing``) ends the request on the worker.

        Args:
            prompt: text, token ids, or a conversation of ``Message``.
            model: name it is served under; None takes the only one there is.
            max_tokens: short for the option of this name.
            temperature: short for the option of this name.
            options: everything else.
            timeout_s: seconds that all of it may take; None takes the client's.

        Raises:
            InvalidRequest: with the field's path in ``field``.
            ModelNotFound: nobody serves the model.
            Unauthenticated: the API key is missing or wrong.
            Rejected: refused before work began; ``retry_after_s`` may say when to come back.
            WorkerLost: the worker went away, and no other could go on.
            DeadlineExceeded: ``timeout_s`` passed.
        """
        deadline = Deadline.after(self._timeout_s if timeout_s is None else timeout_s)
        name = model or await self._default_model(deadline)
        request = to_request(name, prompt, _merged(options, max_tokens, temperature))
        events = self._streamer.stream(request, deadline)
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
        except ModelNotFound:
            self._only_model = ""
            raise

    async def embed(
        self,
        inputs: Inputs,
        *,
        model: str | None = None,
        pooling: Pooling | None = None,
        dimensions: int | None = None,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Vectors of texts or of token ids, in order; the router spreads them over the workers.

        Args:
            inputs: one text, several, or the token ids of several.
            model: name it is served under; None takes the only one there is.
            pooling: how the tokens' vectors become one; None takes the model's own way.
            dimensions: leading components to keep; None for all.
            timeout_s: seconds that all of it may take; None takes the client's.

        Raises:
            PromptTooLong: an input has more tokens than the model embeds.
            NotSupported: the model computes no embeddings.
            PenstockError: as of ``stream``.
        """
        deadline = Deadline.after(self._timeout_s if timeout_s is None else timeout_s)
        name = model or await self._default_model(deadline)
        call = self._inference.Embed(
            to_embed_request(name, inputs, pooling, dimensions),
            timeout=deadline.remaining_s(),
            metadata=self._metadata(),
        )
        return from_embed_response(await answered(call))

    async def models(self) -> list[inference_service_pb2.Model]:
        """The models that can be asked for, sorted by name."""
        return await self._models(Deadline.after(_SHORT_S))

    async def tokenize(self, text: str, *, model: str | None = None) -> list[int]:
        """Token ids of a text. Raises ModelNotFound."""
        deadline = Deadline.after(_SHORT_S)
        request = inference_service_pb2.TokenizeRequest(
            model=model or await self._default_model(deadline), text=text
        )
        call = self._inference.Tokenize(
            request, timeout=deadline.remaining_s(), metadata=self._metadata()
        )
        return unpack_tokens((await answered(call)).tokens.ids)

    async def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        """Text of token ids. Raises ModelNotFound."""
        deadline = Deadline.after(_SHORT_S)
        request = inference_service_pb2.DetokenizeRequest(
            model=model or await self._default_model(deadline),
            tokens=to_tokens(token_ids, "tokens.ids"),
        )
        call = self._inference.Detokenize(
            request, timeout=deadline.remaining_s(), metadata=self._metadata()
        )
        return (await answered(call)).text

    async def workers(self, model: str = "") -> list[routing_service_pb2.WorkerStatus]:
        """The workers as the router sees them, sorted by id; only those of one model if named."""
        request = routing_service_pb2.ListWorkersRequest(model=model)
        call = self._routing.ListWorkers(request, timeout=_SHORT_S, metadata=self._metadata())
        return list((await answered(call)).workers)

    async def watch_workers(
        self, timeout_s: float | None = None
    ) -> AsyncGenerator[list[routing_service_pb2.WorkerStatus], None]:
        """The same at once, then at each change and at least each second, until closed."""
        call = self._routing.WatchFleet(
            routing_service_pb2.WatchFleetRequest(), timeout=timeout_s, metadata=self._metadata()
        )
        try:
            async for response in call:
                yield list(response.workers)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def explain(
        self, *, decision_id: str = "", request_id: str = ""
    ) -> routing_service_pb2.ExplainDecisionResponse:
        """Why a request went where it went, and what then happened. Name one of the two.

        Raises:
            NotFound: the router knows no such decision (any more).
        """
        request = routing_service_pb2.ExplainDecisionRequest()
        if decision_id:
            request.decision_id = decision_id
        else:
            request.request_id = request_id
        call = self._routing.ExplainDecision(request, timeout=_SHORT_S, metadata=self._metadata())
        return await answered(call)

    async def costs(
        self, first_day: str = "", last_day: str = "", *, tenant: str = "", model: str = ""
    ) -> routing_service_pb2.ListCostsResponse:
        """What tenants took of workers, by UTC day (2026-01-31; empty is today), tenant and model.

        Raises:
            PermissionDenied: another tenant's are asked for without a service key.
            NotSupported: the router keeps none.
        """
        request = routing_service_pb2.ListCostsRequest(
            first_day=first_day, last_day=last_day, tenant=tenant, model=model
        )
        call = self._routing.ListCosts(request, timeout=_SHORT_S, metadata=self._metadata())
        return await answered(call)

    def _metadata(self) -> Metadata:
        return outgoing(*self._credentials)

    async def _models(self, deadline: Deadline) -> list[inference_service_pb2.Model]:
        call = self._inference.ListModels(
            inference_service_pb2.ListModelsRequest(),
            timeout=deadline.remaining_s(),
            metadata=self._metadata(),
        )
        return list((await answered(call)).models)

    async def _default_model(self, deadline: Deadline) -> str:
        if not self._only_model:
            names = [model.name for model in await self._models(deadline)]
            if not names:
                raise NoWorker("no model is served yet")
            if len(names) > 1:
                raise InvalidRequest(
                    f"name a model; there are {', '.join(sorted(names))}", field="model"
                )
            self._only_model = names[0]
        return self._only_model


def credentials(api_key: str | None) -> Metadata:
    """The metadata that carries an API key."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


async def answered(call: Awaitable[T]) -> T:
    """The answer to a unary call. Raises the PenstockError that a failed one stands for."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def _merged(
    options: GenerateOptions, max_tokens: int | None, temperature: float | None
) -> GenerateOptions:
    if max_tokens is not None:
        options = replace(options, max_tokens=max_tokens)
    return options if temperature is None else replace(options, temperature=temperature)
