"""From wire requests to an HTTP answer: the part that chat and text completions share."""

import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse

from penstock.inference.v1 import generate_pb2
from penstock_gateway.caller import CACHE_HEADER, Caller
from penstock_gateway.disconnect import until_disconnect
from penstock_gateway.generation import generate
from penstock_gateway.sse import Emit, EventStream
from penstock_gateway.upstream import RouterClient
from penstock_openai.generations import Generation
from penstock_openai.responses import Chunks, Collector, Head


class Inference:
    """Answers HTTP requests with the router's events."""

    def __init__(self, router: RouterClient, clock: Callable[[], float] = time.time) -> None:
        self._router = router
        self._clock = clock

    async def whole(self, request: Request, generation: Generation) -> JSONResponse:
        """The answer as one object. The calls end with the client's connection."""
        head = Head.new(generation.form, generation.model, self._clock())
        collector = Collector(generation.form, generation.shape)
        caller = Caller.of(request)

        async def take(prompt: int, event: generate_pb2.GenerateResponse) -> None:
            collector.add(prompt, event)

        work = generate(self._router, generation.requests, caller, take)
        await until_disconnect(request.receive, work)
        headers = {}
        if generation.requests[0].response_cache:
            headers[CACHE_HEADER] = "hit" if collector.is_kept else "miss"
        return JSONResponse(collector.answer(head), headers=headers)

    def stream(self, request: Request, generation: Generation, *, usage: bool) -> EventStream:
        """The answer as a stream of chunks, with a last one for the usage if wanted."""
        head = Head.new(generation.form, generation.model, self._clock())
        chunks = Chunks(generation.form, generation.shape, head, usage=usage)
        caller = Caller.of(request)

        async def produce(emit: Emit) -> None:
            async def take(prompt: int, event: generate_pb2.GenerateResponse) -> None:
                await emit(chunks.render(prompt, event))

            await generate(self._router, generation.requests, caller, take)
            await emit(chunks.closing())

        return EventStream(produce)
