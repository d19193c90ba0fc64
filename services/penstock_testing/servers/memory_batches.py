"""A BatchService that keeps everything in memory and ends a batch when it is next looked at.

A real gRPC server with the true contract; only the work is pretended.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import grpc

from penstock.batch.v1 import batch_pb2, batch_service_pb2, batch_service_pb2_grpc
from penstock.common.v1 import usage_pb2
from penstock_core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from penstock_core.rpc.interceptors import ServerInterceptor
from penstock_core.rpc.server import RpcServer
from penstock_core.security.auth import KeyRing

SERVICE = batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"].full_name
CREATED_UNIX_S = 1_700_000_000
_DEFAULT_FILES = 10_000
_DEFAULT_BATCHES = 20
_PIECE_BYTES = 64 * 1024

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Item = TypeVar("_Item", batch_pb2.File, batch_pb2.Batch)


@dataclass
class Stored:
    """What the service holds, oldest first, and what it was told."""

    files: dict[str, batch_pb2.File] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, batch_pb2.Batch] = field(default_factory=dict)
    created: list[batch_service_pb2.CreateBatchRequest] = field(default_factory=list)
    largest_piece: int = 0
    download_ended: asyncio.Event = field(default_factory=asyncio.Event)
    fail_download_at: int | None = None


class MemoryBatches(batch_service_pb2_grpc.BatchServiceServicer):
    """Files and batches of one test."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored

    async def UploadFile(  # noqa: N802 - gRPC's names
        self, request: AsyncIterator[batch_service_pb2.UploadFileRequest], context: _Context
    ) -> batch_service_pb2.UploadFileResponse:
        """Store a file once it is complete."""
        description, content = batch_service_pb2.FileDescription(), bytearray()
        async for part in request:
            if part.HasField("description"):
                description = part.description
            content += part.data
            self._stored.largest_piece = max(self._stored.largest_piece, len(part.data))
        if description.purpose != "batch":
            raise InvalidRequest("purpose must be batch", field="description.purpose")
        # For a moment a cancelled call looks like an ended stream: its cancellation comes here.
        await asyncio.sleep(0.02)
        file = self._store(description.filename, "batch", bytes(content))
        return batch_service_pb2.UploadFileResponse(file=file)

    async def DownloadFile(  # noqa: N802
        self, request: batch_service_pb2.DownloadFileRequest, context: _Context
    ) -> AsyncIterator[batch_service_pb2.DownloadFileResponse]:
        """Stream a file."""
        stored = self._stored
        content = stored.contents[self._file(request.file_id).id]
        try:
            for start in range(request.offset, len(content), _PIECE_BYTES):
                if stored.fail_download_at is not None and start > stored.fail_download_at:
                    raise Unavailable("the store is gone")
                yield batch_service_pb2.DownloadFileResponse(
                    data=content[start : start + _PIECE_BYTES]
                )
        finally:
            stored.download_ended.set()

    async def GetFile(  # noqa: N802
        self, request: batch_service_pb2.GetFileRequest, context: _Context
    ) -> batch_service_pb2.GetFileResponse:
        """Describe a file."""
        return batch_service_pb2.GetFileResponse(file=self._file(request.file_id))

    async def ListFiles(  # noqa: N802
        self, request: batch_service_pb2.ListFilesRequest, context: _Context
    ) -> batch_service_pb2.ListFilesResponse:
        """A page of files."""
        wanted = [f for f in self._stored.files.values() if request.purpose in ("", f.purpose)]
        page, has_more = _page(wanted, request.after, request.limit or _DEFAULT_FILES)
        return batch_service_pb2.ListFilesResponse(files=page, has_more=has_more)

    async def DeleteFile(  # noqa: N802
        self, request: batch_service_pb2.DeleteFileRequest, context: _Context
    ) -> batch_service_pb2.DeleteFileResponse:
        """Forget a file."""
        del self._stored.files[self._file(request.file_id).id]
        return batch_service_pb2.DeleteFileResponse()

    async def CreateBatch(  # noqa: N802
        self, request: batch_service_pb2.CreateBatchRequest, context: _Context
    ) -> batch_service_pb2.CreateBatchResponse:
        """A batch that validates."""
        self._stored.created.append(request)
        self._file(request.input_file_id)
        batch = batch_pb2.Batch(
            id=f"batch_{len(self._stored.batches)}",
            endpoint=request.endpoint,
            status=batch_pb2.BATCH_STATUS_VALIDATING,
            input_file_id=request.input_file_id,
            completion_window_s=request.completion_window_s,
            metadata=request.metadata,
        )
        batch.times.created = CREATED_UNIX_S
        batch.times.expires = CREATED_UNIX_S + request.completion_window_s
        self._stored.batches[batch.id] = batch
        return batch_service_pb2.CreateBatchResponse(batch=batch)

    async def GetBatch(  # noqa: N802
        self, request: batch_service_pb2.GetBatchRequest, context: _Context
    ) -> batch_service_pb2.GetBatchResponse:
        """The batch, which has ended meanwhile."""
        batch = self._batch(request.batch_id)
        if batch.status == batch_pb2.BATCH_STATUS_VALIDATING:
            self._end(batch)
        return batch_service_pb2.GetBatchResponse(batch=batch)

    async def ListBatches(  # noqa: N802
        self, request: batch_service_pb2.ListBatchesRequest, context: _Context
    ) -> batch_service_pb2.ListBatchesResponse:
        """A page of batches."""
        batches = list(self._stored.batches.values())
        page, has_more = _page(batches, request.after, request.limit or _DEFAULT_BATCHES)
        return batch_service_pb2.ListBatchesResponse(batches=page, has_more=has_more)

    async def CancelBatch(  # noqa: N802
        self, request: batch_service_pb2.CancelBatchRequest, context: _Context
    ) -> batch_service_pb2.CancelBatchResponse:
        """Cancel a batch that has not ended."""
        batch = self._batch(request.batch_id)
        if batch.status != batch_pb2.BATCH_STATUS_VALIDATING:
            raise Conflict("the batch has ended")
        batch.status = batch_pb2.BATCH_STATUS_CANCELLING
        batch.times.cancelling = CREATED_UNIX_S + 1
        return batch_service_pb2.CancelBatchResponse(batch=batch)

    async def WatchBatch(  # noqa: N802
        self, request: batch_service_pb2.WatchBatchRequest, context: _Context
    ) -> AsyncIterator[batch_service_pb2.WatchBatchResponse]:
        """The batch as it is now."""
        yield batch_service_pb2.WatchBatchResponse(batch=self._batch(request.batch_id))

    async def StreamResults(  # noqa: N802
        self, request: batch_service_pb2.StreamResultsRequest, context: _Context
    ) -> AsyncIterator[batch_service_pb2.StreamResultsResponse]:
        """The output file's lines."""
        output = self._stored.contents[self._batch(request.batch_id).output_file_id]
        for number, line in enumerate(output.decode().splitlines(), start=1):
            yield batch_service_pb2.StreamResultsResponse(line=number, json=line)

    def _file(self, file_id: str) -> batch_pb2.File:
        if file_id not in self._stored.files:
            raise NotFound(f"no file {file_id!r}")
        return self._stored.files[file_id]

    def _batch(self, batch_id: str) -> batch_pb2.Batch:
        if batch_id not in self._stored.batches:
            raise NotFound(f"no batch {batch_id!r}")
        return self._stored.batches[batch_id]

    def _store(self, filename: str, purpose: str, content: bytes) -> batch_pb2.File:
        file = batch_pb2.File(
            id=f"file-{len(self._stored.contents)}",
            filename=filename,
            purpose=purpose,
            size_bytes=len(content),
            created_unix_s=CREATED_UNIX_S,
            sha256=hashlib.sha256(content).hexdigest(),
        )
        self._stored.files[file.id] = file
        self._stored.contents[file.id] = content
        return file

    def _end(self, batch: batch_pb2.Batch) -> None:
        """Answer each line with itself, or fail the batch on the first that is no JSON."""
        answers = []
        lines = self._stored.contents[batch.input_file_id].splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                answers.append(json.dumps({"custom_id": json.loads(line)["custom_id"]}))
            except ValueError:
                batch.errors.add(code="invalid_json_line", message="no JSON", line=number)
                batch.status = batch_pb2.BATCH_STATUS_FAILED
                batch.times.failed = CREATED_UNIX_S + 2
                return
        output = self._store("output.jsonl", "batch_output", "\n".join(answers).encode())
        batch.output_file_id = output.id
        batch.status = batch_pb2.BATCH_STATUS_COMPLETED
        batch.times.completed = CREATED_UNIX_S + 2
        batch.counts.total = batch.counts.completed = len(answers)
        batch.usage.CopyFrom(
            usage_pb2.Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4)
        )


def _page(items: Sequence[_Item], after: str, limit: int) -> tuple[list[_Item], bool]:
    newest_first = list(reversed(items))
    ids = [item.id for item in newest_first]
    start = ids.index(after) + 1 if after in ids else 0
    return newest_first[start : start + limit], start + limit < len(newest_first)


@asynccontextmanager
async def running_batches(stored: Stored, keys: KeyRing | None = None) -> AsyncIterator[str]:
    """Serve what is stored; yields the address."""
    server = RpcServer(
        ServerInterceptor(keys or KeyRing.open_to_all()),
        [
            lambda s: batch_service_pb2_grpc.add_BatchServiceServicer_to_server(
                MemoryBatches(stored), s
            )
        ],
        [SERVICE],
    )
    port = server.bind("127.0.0.1:0")
    await server.start()
    await server.serve()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
