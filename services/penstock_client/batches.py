"""The asyncio client of the batch service: files in, batches, results out."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from penstock.batch.v1 import batch_pb2, batch_service_pb2, batch_service_pb2_grpc
from penstock_client.client import answered, credentials
from penstock_core.rpc.channels import channel
from penstock_core.rpc.client_stream import exchange
from penstock_core.rpc.status import from_rpc_error
from penstock_core.security.tls import PLAIN, Tls
from penstock_core.telemetry.tracing import Metadata, outgoing

_SERVICE = batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"].full_name
_SHORT_S = 30.0
_TRANSFER_S = 3600.0
_PIECE_BYTES = 1 << 20
_NO_METADATA: Mapping[str, str] = {}


class AsyncBatchClient:
    """Submits offline batches. Create it inside a running event loop; close it, or use ``async with``."""

    def __init__(self, target: str, *, api_key: str | None = None, tls: Tls = PLAIN) -> None:
        """Args: ``target`` is ``host:port`` or ``unix:path`` of a batch service."""
        self._credentials = credentials(api_key)
        self._channel = channel(target, tls)
        self._stub = batch_service_pb2_grpc.BatchServiceStub(self._channel)
        self._upload = self._channel.stream_stream(
            f"/{_SERVICE}/UploadFile",
            request_serializer=batch_service_pb2.UploadFileRequest.SerializeToString,
            response_deserializer=batch_service_pb2.UploadFileResponse.FromString,
        )

    async def __aenter__(self) -> Self:
        """Nothing is connected before the first call."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that still run are cancelled."""
        await self._channel.close()

    async def upload(self, path: Path, *, purpose: str = "batch") -> batch_pb2.File:
        """Store a file. Raises OSError if it cannot be read, InvalidRequest if it is refused."""
        # The disk may be slow; the caller's event loop is not to wait for it.
        file = await asyncio.to_thread(path.open, "rb")
        try:
            call = self._upload(timeout=_TRANSFER_S, metadata=self._metadata())
            pieces = _pieces(file.read, path.name, purpose)
            return (await answered(exchange(call, pieces))).file
        finally:
            file.close()

    async def create(
        self,
        input_file_id: str,
        endpoint: str,
        *,
        completion_window_s: int = 0,
        metadata: Mapping[str, str] = _NO_METADATA,
        client_request_id: str = "",
    ) -> batch_pb2.Batch:
        """Create a batch over an uploaded file; it is validated afterwards.

        Args:
            input_file_id: what ``upload`` returned.
            endpoint: /v1/completions, /v1/chat/completions or /v1/embeddings.
            completion_window_s: seconds until it expires; 0 means a day.
            metadata: the caller's notes.
            client_request_id: makes the call idempotent.

        Raises:
            NotFound: no such file.
            InvalidRequest: a field is wrong.
        """
        request = batch_service_pb2.CreateBatchRequest(
            input_file_id=input_file_id,
            endpoint=endpoint,
            completion_window_s=completion_window_s,
            metadata=metadata,
            client_request_id=client_request_id,
        )
        call = self._stub.CreateBatch(request, timeout=_SHORT_S, metadata=self._metadata())
        return (await answered(call)).batch

    async def get(self, batch_id: str) -> batch_pb2.Batch:
        """The batch as it is now. Raises NotFound."""
        request = batch_service_pb2.GetBatchRequest(batch_id=batch_id)
        call = self._stub.GetBatch(request, timeout=_SHORT_S, metadata=self._metadata())
        return (await answered(call)).batch

    async def list(
        self, *, after: str = "", limit: int = 0
    ) -> batch_service_pb2.ListBatchesResponse:
        """A page of batches, newest first."""
        request = batch_service_pb2.ListBatchesRequest(after=after, limit=limit)
        call = self._stub.ListBatches(request, timeout=_SHORT_S, metadata=self._metadata())
        return await answered(call)

    async def cancel(self, batch_id: str) -> batch_pb2.Batch:
        """Cancel a batch; what is done stays. Raises NotFound, Conflict if it had ended."""
        request = batch_service_pb2.CancelBatchRequest(batch_id=batch_id)
        call = self._stub.CancelBatch(request, timeout=_SHORT_S, metadata=self._metadata())
        return (await answered(call)).batch

    async def watch(
        self, batch_id: str, *, timeout_s: float | None = None
    ) -> AsyncGenerator[batch_pb2.Batch, None]:
        """The batch at once, then at each change, until it ended. Raises NotFound."""
        request = batch_service_pb2.WatchBatchRequest(batch_id=batch_id)
        call = self._stub.WatchBatch(request, timeout=timeout_s, metadata=self._metadata())
        try:
            async for response in call:
                yield response.batch
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def download(self, file_id: str, *, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """A file's bytes, piece by piece. Raises NotFound."""
        request = batch_service_pb2.DownloadFileRequest(file_id=file_id, offset=offset)
        call = self._stub.DownloadFile(request, timeout=_TRANSFER_S, metadata=self._metadata())
        try:
            async for response in call:
                yield response.data
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def results(
        self, batch_id: str, *, skip: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[batch_service_pb2.StreamResultsResponse, None]:
        """Result lines as they are committed, each once, until the batch ended. Raises NotFound."""
        request = batch_service_pb2.StreamResultsRequest(batch_id=batch_id, skip=skip)
        call = self._stub.StreamResults(request, timeout=timeout_s, metadata=self._metadata())
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def _metadata(self) -> Metadata:
        return outgoing(*self._credentials)


async def _pieces(
    read: Callable[[int], bytes], filename: str, purpose: str
) -> AsyncIterator[batch_service_pb2.UploadFileRequest]:
    description = batch_service_pb2.FileDescription(filename=filename, purpose=purpose)
    yield batch_service_pb2.UploadFileRequest(description=description)
    while data := await asyncio.to_thread(read, _PIECE_BYTES):
        yield batch_service_pb2.UploadFileRequest(data=data)
