"""Asks the router for one prompt or some vectors, with deadline, retries and back-off.

A refusal before work began (no capacity, no worker, router away) never fails a line: an offline
batch waits until its window closes. Work that was begun and lost is tried again a few times.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc

from penstock.common.v1 import sampling_pb2
from penstock.inference.v1 import (
    generate_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
)
from penstock_batch.running.pressure import Gate
from penstock_core import errors as e
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.auth import TENANT_KEY
from penstock_core.telemetry.tracing import Metadata, outgoing

Result = TypeVar("Result")

_ABORTED = generate_pb2.FINISH_REASON_ABORTED
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0
_LONGEST_TOLD_S = 60.0


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Deadline of one attempt in seconds, attempts at begun work, and our credentials."""

    timeout_s: float
    attempts: int
    service_key: str = ""


class LineCaller:
    """Runs lines' requests against ``InferenceService``."""

    def __init__(self, channel: grpc.aio.Channel, gate: Gate, options: CallOptions) -> None:
        self._stub: inference_service_pb2_grpc.InferenceServiceAsyncStub = (
            inference_service_pb2_grpc.InferenceServiceStub(channel)
        )
        self._gate = gate
        self._options = options

    async def generate(
        self, tenant: str, request: generate_pb2.GenerateRequest
    ) -> list[generate_pb2.GenerateResponse]:
        """Every event of the attempt that succeeded; the request's id gets a suffix for each one.

        Raises:
            PenstockError: it cannot be answered; Unauthenticated and PermissionDenied are about
                our own key, not about the line.
        """
        request.priority = sampling_pb2.PRIORITY_CLASS_BATCH
        name = request.request_id

        async def attempt(number: int) -> list[generate_pb2.GenerateResponse]:
            request.request_id = f"{name}.{number}"
            return await self._attempt(tenant, request)

        return await self._persist(attempt)

    async def embed(
        self, tenant: str, request: inference_service_pb2.EmbedRequest
    ) -> inference_service_pb2.EmbedResponse:
        """The vectors of a line. Retries and errors as ``generate``."""
        request.priority = sampling_pb2.PRIORITY_CLASS_BATCH
        name = request.request_id

        async def attempt(number: int) -> inference_service_pb2.EmbedResponse:
            request.request_id = f"{name}.{number}"
            try:
                return await self._stub.Embed(
                    request, timeout=self._options.timeout_s, metadata=self._metadata(tenant)
                )
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error

        return await self._persist(attempt)

    async def _persist(self, attempt: Callable[[int], Awaitable[Result]]) -> Result:
        """Try until there is an answer, or enough work was lost; attempts are numbered from 0."""
        refusals, losses = 0, 0
        while True:
            try:
                async with self._gate.pass_through():
                    result = await attempt(refusals + losses)
                self._gate.succeeded()
            except e.Rejected as refused:
                if not isinstance(refused, e.BudgetSpent):  # no reason to ask less for others
                    self._gate.pushed_back()
                refusals += 1
                await asyncio.sleep(_wait_s(refusals, refused.retry_after_s))
            except (e.Evicted, e.DeadlineExceeded, e.InternalError):
                losses += 1
                if losses >= self._options.attempts:
                    raise
                await asyncio.sleep(_wait_s(losses, None))
            else:
                return result

    async def _attempt(
        self, tenant: str, request: generate_pb2.GenerateRequest
    ) -> list[generate_pb2.GenerateResponse]:
        async with self._events(tenant, request) as stream:
            events = [event async for event in stream]
        check_whole(events)
        return events

    @asynccontextmanager
    async def _events(
        self, tenant: str, request: generate_pb2.GenerateRequest
    ) -> AsyncIterator[AsyncIterator[generate_pb2.GenerateResponse]]:
        """The events of a call; leaving early cancels it, so that its worker stops."""
        call = self._stub.Generate(
            request, timeout=self._options.timeout_s, metadata=self._metadata(tenant)
        )
        try:
            yield aiter(call)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def _metadata(self, tenant: str) -> Metadata:
        pairs = [(TENANT_KEY, tenant)]
        if self._options.service_key:
            pairs.append(("authorization", f"Bearer {self._options.service_key}"))
        return outgoing(*pairs)


def check_whole(events: Sequence[generate_pb2.GenerateResponse]) -> None:
    """Raise Evicted or WorkerLost unless the generation came to its own end."""
    if any(event.finished.reason == _ABORTED for event in events):
        raise e.Evicted("the generation was aborted by the server")
    if not events or not events[-1].HasField("completed"):
        raise e.WorkerLost("the stream ended before the generation did")


def _wait_s(tries: int, told_s: float | None) -> float:
    """Full-jitter exponential back-off, as long as the server asked for up to a minute."""
    longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(tries, 10))
    # A budget may be raised long before its period ends, so no wait is that long.
    return max(min(told_s or 0.0, _LONGEST_TOLD_S), longest * (0.5 + random.random() / 2))
