"""The client for code without an event loop: the asyncio one on a thread of its own."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from penstock.inference.v1 import inference_service_pb2
from penstock.routing.v1 import routing_service_pb2
from penstock_client.client import TIMEOUT_S, AsyncClient
from penstock_client.options import DEFAULTS, GenerateOptions, Inputs, Pooling, Prompt
from penstock_client.results import Embeddings, Generation, StreamEvent
from penstock_client.streaming import Mode
from penstock_core.security.tls import PLAIN, Tls

T = TypeVar("T")

_CANCEL_TIMEOUT_S = 5.0


class LoopThread:
    """An event loop on a daemon thread; the caller's trace context comes along."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="penstock-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; an interrupted wait (Ctrl-C) cancels it and sees it end."""
        ended = threading.Event()

        async def tracked() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(tracked(), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            ended.wait(_CANCEL_TIMEOUT_S)
            raise

    def iterate(self, events: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """Its items; closing the iterator closes the generator."""
        reader = _Reader(events)
        try:
            while True:
                try:
                    item = self.run(reader.next())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self.run(reader.close())

    def close(self) -> None:
        """End the loop and its thread."""
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Client:
    """As ``AsyncClient``, blocking. Safe to share between threads; close it, or use ``with``."""

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        mode: Mode = "lookaside",
        timeout_s: float = TIMEOUT_S,
        tls: Tls = PLAIN,
    ) -> None:
        """Args as of ``AsyncClient``."""
        self._loop = LoopThread()

        async def connect() -> AsyncClient:
            return AsyncClient(target, api_key=api_key, mode=mode, timeout_s=timeout_s, tls=tls)

        self._client = self._loop.run(connect())

    def __enter__(self) -> Self:
        """Nothing is connected before the first call."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections; requests that still run are cancelled."""
        self._loop.run(self._client.close())
        self._loop.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        options: GenerateOptions = DEFAULTS,
        timeout_s: float | None = None,
    ) -> Generation:
        """Continue a prompt and return the whole; see ``AsyncClient.stream``."""
        return self._loop.run(
            self._client.generate(
                prompt,
                model=model,
                max_tokens=max_tokens,
                temperature=temperature,
                options=options,
                timeout_s=timeout_s,
            )
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        options: GenerateOptions = DEFAULTS,
        timeout_s: float | None = None,
    ) -> Generator[StreamEvent, None, None]:
        """Continue a prompt, event by event; see ``AsyncClient.stream``."""
        return self._loop.iterate(
            self._client.stream(
                prompt,
                model=model,
                max_tokens=max_tokens,
                temperature=temperature,
                options=options,
                timeout_s=timeout_s,
            )
        )

    def embed(
        self,
        inputs: Inputs,
        *,
        model: str | None = None,
        pooling: Pooling | None = None,
        dimensions: int | None = None,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Vectors of texts; see ``AsyncClient.embed``."""
        return self._loop.run(
            self._client.embed(
                inputs, model=model, pooling=pooling, dimensions=dimensions, timeout_s=timeout_s
            )
        )

    def models(self) -> list[inference_service_pb2.Model]:
        """The models that can be asked for, sorted by name."""
        return self._loop.run(self._client.models())

    def tokenize(self, text: str, *, model: str | None = None) -> list[int]:
        """Token ids of a text. Raises ModelNotFound."""
        return self._loop.run(self._client.tokenize(text, model=model))

    def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        """Text of token ids. Raises ModelNotFound."""
        return self._loop.run(self._client.detokenize(token_ids, model=model))

    def workers(self, model: str = "") -> list[routing_service_pb2.WorkerStatus]:
        """The workers as the router sees them, sorted by id."""
        return self._loop.run(self._client.workers(model))

    def explain(
        self, *, decision_id: str = "", request_id: str = ""
    ) -> routing_service_pb2.ExplainDecisionResponse:
        """Why a request went where it went, and what then happened. Raises NotFound."""
        return self._loop.run(self._client.explain(decision_id=decision_id, request_id=request_id))


class _Reader(Generic[T]):
    """Reads a generator in its event loop and closes it there.

    Ctrl-C may reach the other thread before it knows what it waits for, so that nobody has cancelled
    the read; and a generator can only be closed once nobody runs in it any more.
    """

    def __init__(self, events: AsyncGenerator[T, None]) -> None:
        self._events = events
        self._reading: asyncio.Task[Any] | None = None

    async def next(self) -> T:
        """The next item. Raises StopAsyncIteration after the last one."""
        self._reading = asyncio.current_task()
        return await anext(self._events)

    async def close(self) -> None:
        """Cancel a read that still waits, and close the generator."""
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.wait([self._reading])
        await self._events.aclose()
