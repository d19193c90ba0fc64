"""Builds and runs the serving process: BatchService and the reconciler."""

import asyncio
import contextlib
import logging
import time

from penstock.batch.v1 import batch_service_pb2
from penstock.batch.v1.batch_service_pb2_grpc import add_BatchServiceServicer_to_server
from penstock_batch.batches import Batches
from penstock_batch.metrics import BatchMetrics
from penstock_batch.queue.app import build_app
from penstock_batch.queue.dispatch import CeleryQueue
from penstock_batch.queue.reconciler import Reconciler
from penstock_batch.queue.steward import QueueOptions, Steward
from penstock_batch.servicer import BatchServicer
from penstock_batch.settings import BatchSettings
from penstock_batch.stores.board import Board
from penstock_batch.stores.files import FileStore
from penstock_batch.stores.objects import Objects
from penstock_batch.stores.store import FactStore
from penstock_core.rpc.interceptors import ServerInterceptor
from penstock_core.rpc.server import RpcServer
from penstock_core.security.live_keys import live_keys
from penstock_core.settings import SettingsError
from penstock_core.telemetry import setup as telemetry

logger = logging.getLogger(__name__)

_SERVICE = batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"].full_name


async def serve(settings: BatchSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set, then drain.

    Raises:
        SettingsError: the store or the keys cannot be opened.
        OSError: the address cannot be bound.
    """
    metrics_listen, tls = settings.metrics_listen, settings.tls()
    with telemetry.start("penstock-batch", metrics_listen=metrics_listen, tls=tls):
        await serve_batches(settings, stop)


async def serve_batches(settings: BatchSettings, stop: asyncio.Event) -> None:
    """``serve`` without telemetry of its own."""
    objects, app = open_objects(settings), build_app(settings)
    async with (
        live_keys(settings.keys_file, settings.keys_url) as keys,
        Board(settings.redis_url, settings.redis_prefix) as board,
    ):
        store, files = FactStore(objects), FileStore(objects, settings.max_file_bytes)
        queue = CeleryQueue(app, board, settings.redis_prefix)
        steward = Steward(store, board, queue, queue_options(settings), time.time)
        reconciler = Reconciler(
            store, steward, BatchMetrics(), settings.reconcile_interval_s, time.time
        )
        batches = Batches(store, files, board, steward, time.time)
        server = RpcServer(
            ServerInterceptor(keys),
            [
                lambda grpc_server: add_BatchServiceServicer_to_server(
                    BatchServicer(batches, files, time.time), grpc_server
                )
            ],
            [_SERVICE],
            tls=settings.tls(),
        )
        await _run(server, reconciler, settings, stop)
    app.close()


def queue_options(settings: BatchSettings) -> QueueOptions:
    """The steward's part of the settings."""
    return QueueOptions(settings.queue_window, settings.requeue_after_s)


def open_objects(settings: BatchSettings) -> Objects:
    """The object store. Raises SettingsError."""
    try:
        return Objects.open(settings.store_url)
    except ValueError as error:
        raise SettingsError(f"PENSTOCK_BATCH_STORE_URL: {error}") from error


async def _run(
    server: RpcServer, reconciler: Reconciler, settings: BatchSettings, stop: asyncio.Event
) -> None:
    port = server.bind(settings.listen)
    await server.start()
    reconciling = asyncio.create_task(reconciler.run())
    try:
        await server.serve()
        logger.info("serving batches on port %d", port, extra={"port": port})
        await _first(stop, reconciling)
    finally:
        reconciling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reconciling
        await server.stop(settings.grace_s, settings.linger_s)


async def _first(stop: asyncio.Event, reconciling: "asyncio.Task[None]") -> None:
    """Wait for the signal; a defect in the reconciler ends the process, loudly."""
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({waiting, reconciling}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
