# ruff: noqa: N802 - gRPC names the methods
"""``BatchService`` over gRPC: wire types in and out, nothing else.

Errors are raised as ``PenstockError``; the server's interceptor makes statuses of them.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from penstock.batch.v1 import batch_service_pb2 as pb
from penstock.batch.v1 import batch_service_pb2_grpc
from penstock_batch import wire
from penstock_batch.batches import Batches, NewBatch
from penstock_batch.stores.files import PURPOSE_INPUT, FileStore
from penstock_batch.stores.store import checked_id
from penstock_core.errors import InvalidRequest, PermissionDenied
from penstock_core.rpc.interceptors import principal

_MAX_FILES_PAGE = 10_000
_MAX_CHUNK_BYTES = 1024 * 1024
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class BatchServicer(batch_service_pb2_grpc.BatchServiceServicer):
    """Serves one process's batches and files."""

    def __init__(self, batches: Batches, files: FileStore, clock: Callable[[], float]) -> None:
        self._batches = batches
        self._files = files
        self._clock = clock

    async def CreateBatch(
        self, request: pb.CreateBatchRequest, context: _Context
    ) -> pb.CreateBatchResponse:
        """Create a batch from an uploaded file."""
        if principal.get().limits.models:
            # Its lines would run with the platform's own key, which may use every model.
            raise PermissionDenied("a key that is limited to some models submits no batches")
        new = NewBatch(
            request.input_file_id,
            request.endpoint,
            request.completion_window_s,
            dict(request.metadata),
            request.client_request_id,
        )
        batch = await self._batches.create(_tenant(), new)
        return pb.CreateBatchResponse(batch=wire.batch_message(batch))

    async def GetBatch(self, request: pb.GetBatchRequest, context: _Context) -> pb.GetBatchResponse:
        """Return a batch."""
        batch = await self._batches.get(_tenant(), request.batch_id)
        return pb.GetBatchResponse(batch=wire.batch_message(batch))

    async def ListBatches(
        self, request: pb.ListBatchesRequest, context: _Context
    ) -> pb.ListBatchesResponse:
        """List batches, newest first."""
        page, more = await self._batches.page(_tenant(), request.after, request.limit)
        return pb.ListBatchesResponse(
            batches=[wire.batch_message(batch) for batch in page], has_more=more
        )

    async def CancelBatch(
        self, request: pb.CancelBatchRequest, context: _Context
    ) -> pb.CancelBatchResponse:
        """Ask a batch to stop."""
        batch = await self._batches.cancel(_tenant(), request.batch_id)
        return pb.CancelBatchResponse(batch=wire.batch_message(batch))

    async def WatchBatch(
        self, request: pb.WatchBatchRequest, context: _Context
    ) -> AsyncIterator[pb.WatchBatchResponse]:
        """Stream a batch at each change."""
        async for batch in self._batches.watch(_tenant(), request.batch_id):
            yield pb.WatchBatchResponse(batch=wire.batch_message(batch))

    async def StreamResults(
        self, request: pb.StreamResultsRequest, context: _Context
    ) -> AsyncIterator[pb.StreamResultsResponse]:
        """Stream result lines as they are committed."""
        async for answer in self._batches.results(_tenant(), request.batch_id, request.skip):
            yield wire.result_message(answer)

    async def UploadFile(
        self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: _Context
    ) -> pb.UploadFileResponse:
        """Store a file as it comes in."""
        parts = aiter(request_iterator)
        first = await anext(parts, None)
        if first is None or first.WhichOneof("part") != "description":
            raise InvalidRequest("the first message must hold the description", field="description")
        if first.description.purpose != PURPOSE_INPUT:
            raise InvalidRequest(f"purpose must be {PURPOSE_INPUT!r}", field="description.purpose")
        name = first.description.filename
        file = await self._files.upload(_tenant(), name, _bytes(parts), self._clock())
        return pb.UploadFileResponse(file=wire.file_message(file))

    async def DownloadFile(
        self, request: pb.DownloadFileRequest, context: _Context
    ) -> AsyncIterator[pb.DownloadFileResponse]:
        """Stream a file's bytes."""
        async for data in self._files.stream(_tenant(), request.file_id, request.offset):
            yield pb.DownloadFileResponse(data=data)

    async def GetFile(self, request: pb.GetFileRequest, context: _Context) -> pb.GetFileResponse:
        """Describe a file."""
        file = await self._files.describe(_tenant(), request.file_id)
        return pb.GetFileResponse(file=wire.file_message(file))

    async def ListFiles(
        self, request: pb.ListFilesRequest, context: _Context
    ) -> pb.ListFilesResponse:
        """List files, newest first."""
        if request.limit > _MAX_FILES_PAGE:
            raise InvalidRequest(f"limit must be at most {_MAX_FILES_PAGE}", field="limit")
        if request.after:
            checked_id("file", request.after)
        limit = request.limit or _MAX_FILES_PAGE
        page = await self._files.page(_tenant(), request.after, limit + 1, request.purpose)
        return pb.ListFilesResponse(
            files=[wire.file_message(file) for file in page[:limit]], has_more=len(page) > limit
        )

    async def DeleteFile(
        self, request: pb.DeleteFileRequest, context: _Context
    ) -> pb.DeleteFileResponse:
        """Delete a file."""
        await self._files.delete(_tenant(), request.file_id)
        return pb.DeleteFileResponse()


def _tenant() -> str:
    return principal.get().tenant


async def _bytes(parts: AsyncIterator[pb.UploadFileRequest]) -> AsyncIterator[bytes]:
    async for part in parts:
        if part.WhichOneof("part") != "data":
            raise InvalidRequest("only the first message may hold a description", field="part")
        if len(part.data) > _MAX_CHUNK_BYTES:
            raise InvalidRequest(f"a piece may hold {_MAX_CHUNK_BYTES} bytes", field="data")
        yield part.data
