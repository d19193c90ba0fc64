"""Asks routers about their workers, and tries each pair: a lease, and the index against the cache."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from penstock.common.v1 import lease_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2_grpc
from penstock.routing.v1 import routing_service_pb2 as pb
from penstock.routing.v1 import routing_service_pb2_grpc
from penstock.worker.v1 import worker_service_pb2, worker_service_pb2_grpc
from penstock_cli.doctor.facts import Followed, IndexCheck, LeaseCheck, OpenDoor
from penstock_core.errors import LeaseInvalid, PenstockError, PermissionDenied, Unauthenticated
from penstock_core.ids import new_id
from penstock_core.rpc.channels import channel
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.tls import PLAIN, Tls
from penstock_core.telemetry.tracing import Metadata

_BEATS = 3
_LIVE = pb.SYNC_STATE_LIVE


@dataclass(frozen=True, slots=True)
class RouterPort:
    """One router: its name, a channel to it, and what calls to it and to its workers carry."""

    name: str
    channel: grpc.aio.Channel
    credentials: Metadata
    timeout_s: float
    tls: Tls = PLAIN
    to_workers: Metadata = ()

    async def workers(self) -> Sequence[pb.WorkerStatus]:
        """The workers it follows. Raises PenstockError."""
        stub = routing_service_pb2_grpc.RoutingServiceStub(self.channel)
        try:
            answer = await stub.ListWorkers(
                pb.ListWorkersRequest(), timeout=self.timeout_s, metadata=self.credentials
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return list(answer.workers)


def followed(router: str, status: pb.WorkerStatus) -> Followed:
    """A router's view of a worker as values."""
    info = status.info
    return Followed(
        router=router,
        worker_id=info.worker_id,
        endpoint=info.endpoint,
        state=pb.SyncState.Name(status.sync_state).removeprefix("SYNC_STATE_"),
        divergences=status.divergences,
        is_shunned=status.breaker_open,
        models=tuple(info.models),
        revision=info.model_revision,
        tokenizer=info.tokenizer_digest,
    )


async def try_lease(
    router: RouterPort, status: pb.WorkerStatus, others: Sequence[str]
) -> LeaseCheck:
    """Have a router lease one token on this worker, and the worker make it."""
    worker_id = status.info.worker_id
    request = _one_token(status)
    wanted = pb.RouteRequest(request=request, excluded_worker_ids=others)
    stub = routing_service_pb2_grpc.RoutingServiceStub(router.channel)
    salt = None
    try:
        route = await stub.Route(wanted, timeout=router.timeout_s, metadata=router.credentials)
        salt = lease_pb2.LeaseClaims.FromString(route.lease.claims).cache_salt
        request.request_id = route.request_id
        request.tokens.CopyFrom(route.prompt_tokens)
        request.lease.CopyFrom(route.lease)
        await _generate(router, route.endpoint, request)
    except (grpc.aio.AioRpcError, PenstockError) as error:
        failure = from_rpc_error(error) if isinstance(error, grpc.aio.AioRpcError) else error
        return LeaseCheck(router.name, worker_id, failure.slug, failure.message, salt)
    return LeaseCheck(router.name, worker_id, "", salt=salt)


async def try_door(router: RouterPort, status: pb.WorkerStatus) -> OpenDoor:
    """Ask a worker for a token without any lease."""
    request = _one_token(status)
    request.tokens.ids = bytes(8)
    request.request_id = new_id("doctor")
    try:
        await _generate(router, status.info.endpoint, request)
    except grpc.aio.AioRpcError as error:
        # Anything but this refusal came from behind the door, or from no door at all.
        is_lost = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        refused = isinstance(from_rpc_error(error), LeaseInvalid) or is_lost
        return OpenDoor(status.info.worker_id, not refused)
    return OpenDoor(status.info.worker_id, is_open=True)


async def compare_index(router: RouterPort, status: pb.WorkerStatus) -> IndexCheck:
    """The router's index of a worker beside the worker's own count and digest, at the same delta."""
    worker_id = status.info.worker_id
    seen: dict[tuple[str, int], tuple[int, int]] = {}
    why = "moves too fast to compare"
    try:
        async with asyncio.timeout(router.timeout_s):
            async with aclosing(_beats(router, status)) as beats:
                async for key, actual in beats:
                    for now in await router.workers():
                        if now.info.worker_id == worker_id and now.sync_state == _LIVE:
                            told = now.indexed_blocks, now.index_digest
                            seen[now.info.epoch, now.seq] = told
                    if key in seen:
                        return IndexCheck(router.name, worker_id, seen[key], actual)
    except grpc.aio.AioRpcError as error:
        if isinstance(from_rpc_error(error), Unauthenticated | PermissionDenied):
            why = "is not compared without the lease secret (PENSTOCK_DOCTOR_LEASE_SECRET)"
    except (TimeoutError, PenstockError):
        pass
    return IndexCheck(router.name, worker_id, None, None, why)


async def _beats(
    router: RouterPort,
    status: pb.WorkerStatus,
) -> AsyncGenerator[tuple[tuple[str, int], tuple[int, int]], None]:
    """(epoch, sequence) and (blocks, digest) of a worker's heartbeats, from where the router is."""
    wanted = worker_service_pb2.WatchStateRequest(
        subscriber_id="doctor", epoch=status.info.epoch, resume_after_seq=status.seq
    )
    async with channel(status.info.endpoint, router.tls) as to:
        stub = worker_service_pb2_grpc.WorkerServiceStub(to)
        call = stub.WatchState(wanted, metadata=router.to_workers)
        count = 0
        try:
            async for frame in call:
                if frame.HasField("heartbeat"):
                    beat, count = frame.heartbeat, count + 1
                    yield (frame.epoch, frame.seq), (beat.num_blocks, beat.xor_digest)
                if count == _BEATS:
                    break
        finally:
            call.cancel()


async def _generate(
    router: RouterPort, endpoint: str, request: generate_pb2.GenerateRequest
) -> None:
    async with channel(endpoint, router.tls) as to:
        stub = inference_service_pb2_grpc.InferenceServiceStub(to)
        async for _ in stub.Generate(request, timeout=router.timeout_s):
            pass


def _one_token(status: pb.WorkerStatus) -> generate_pb2.GenerateRequest:
    request = generate_pb2.GenerateRequest(model=status.info.models[0], text="doctor")
    request.stop.max_tokens = 1
    return request
