"""What the double's calls return: outputs that mutate, and iterators that drain and end when idle."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

from tensorrt_llm._classes import CompletionOutput
from tensorrt_llm._contract import shape


@dataclass
class Response:
    """What the engine says about one sequence; ``reason`` names why it ended, if it did."""

    tokens: list[int]
    logprobs: list[object]
    sequence: int = 0
    reason: str | None = None
    is_last: bool = False
    metrics: SimpleNamespace | None = None
    cached_tokens: int = 0
    iterations: int = 0


class RequestOutput:
    """See the contract. Made by ``LLM`` only."""

    def __init__(self, *_: object, _made_by: Any = None, **__: object) -> None:
        if _made_by is None:
            raise RuntimeError("RequestOutput is not to be constructed directly")
        request, executor = _made_by
        self.id = self.request_id = request.id
        self.prompt, self.prompt_token_ids = None, list(request.prompt)
        self.sampling_params = request.params
        self.outputs = [CompletionOutput(i) for i in range(request.params.n)]
        self.context_logits = self.mm_embedding_handle = self.disaggregated_params = None
        self.decoding_iter = self.cached_tokens = 0
        self.avg_decoded_tokens_per_iter: float | None = None
        self.metrics_dict: dict[object, float] = {}
        self.trace_headers = request.trace_headers
        self.postproc_params, self.use_trtllm_sampler = None, False
        self._request, self._executor = request, executor
        self._done = False
        try:
            self._loop = asyncio.get_running_loop()
            self.aqueue: asyncio.Queue[Response | Exception] | None = asyncio.Queue()
        except RuntimeError:
            self.aqueue = None
        self.queue: list[Response | Exception] = []
        self.abort_calls = 0

    @property
    def finished(self) -> bool:
        return self._done

    def put(self, item: Response | Exception) -> None:
        if self.aqueue is not None:
            self.aqueue.put_nowait(item)
        else:
            self.queue.append(item)

    def abort(self) -> None:
        assert not self._executor.is_shut_down, "The executor is not set for this result."
        self.abort_calls += 1
        self._executor.abort_request(self.id)

    def aborted(self) -> bool:
        return any(output.finish_reason == "cancelled" for output in self.outputs)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Self:
        if self._done:
            raise StopAsyncIteration
        assert self.aqueue is not None, "created outside of an event loop"
        assert asyncio.get_running_loop() is self._loop, "iterated on another loop"
        self._handle(await self.aqueue.get())
        return self

    async def aresult(self) -> Self:
        async for _ in self:
            pass
        return self

    def __await__(self) -> Any:
        return self.aresult().__await__()

    def result(self, timeout: float | None) -> Self:
        """``timeout`` is ignored, as in 1.2.1."""
        while not self._done:
            self._executor.step()
            for item in self.queue:
                self._handle(item)
            self.queue.clear()
        return self

    def _handle(self, item: Response | Exception) -> None:
        if isinstance(item, Exception):
            raise item  # and _done stays false
        self.cached_tokens, self.decoding_iter = item.cached_tokens, item.iterations
        output = self.outputs[item.sequence]
        output._last_token_ids_len = len(output.token_ids)
        output._last_logprobs_len = len(output.logprobs)
        output.token_ids.extend(item.tokens)
        output.logprobs.extend(item.logprobs)
        output.request_perf_metrics = item.metrics
        self._done = item.is_last
        if item.reason == "STOP_WORDS":
            output.finish_reason = "stop"
            for stop in self.sampling_params.stop_token_ids or ():
                if output.token_ids[-1:] == [stop]:
                    output.stop_reason = stop
                    output.token_ids = output.token_ids[:-1]
                    break
        elif item.reason is not None:
            output.finish_reason = item.reason
        if self._done and item.iterations:
            self.avg_decoded_tokens_per_iter = len(output.token_ids) / item.iterations


shape(RequestOutput)


class IterationResult:
    """Drains; ends after ``timeout`` idle seconds and stays ended until a request is submitted."""

    def __init__(self, fetch: Callable[[], list[object]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fetch = fetch
        self._changed = asyncio.Event()
        self._items: list[str] = []
        self._done = False
        self.timeout: float | None = 2

    def mark_undone(self) -> None:
        self._done = False

    def notify(self) -> None:
        self._changed.set()

    def get_results(self) -> list[object]:
        self._pull()
        items, self._items = self._items, []
        return [json.loads(item) for item in items]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        if self._done:
            raise StopAsyncIteration
        assert asyncio.get_running_loop() is self._loop, "read on another loop"
        try:
            async with asyncio.timeout(self.timeout):
                while not self._pull():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._done = True
            raise StopAsyncIteration from None
        return json.loads(self._items.pop(0))

    def _pull(self) -> bool:
        self._items += [json.dumps(item) for item in self._fetch()]
        return bool(self._items)


shape(IterationResult)


class NoResults:
    """What is read before any request was submitted."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        raise StopAsyncIteration
