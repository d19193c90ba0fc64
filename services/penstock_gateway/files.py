"""``/v1/files``: content streams through in both directions, nothing is kept here."""

import logging
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.batch.v1 import batch_pb2, batch_service_pb2
from penstock_core.errors import PenstockError
from penstock_gateway.caller import Caller
from penstock_gateway.disconnect import until_disconnect
from penstock_gateway.query import check_query, limit_of
from penstock_gateway.upload import upload_parts
from penstock_gateway.upstream import BatchClient
from penstock_openai.json_object import Json

logger = logging.getLogger(__name__)

MAX_PAGE = 10_000
_QUERY = frozenset({"purpose", "after", "limit", "order"})


class FileEndpoint:
    """Files of the batch service."""

    def __init__(self, batches: BatchClient, max_upload_bytes: int) -> None:
        self._batches = batches
        self._max_upload_bytes = max_upload_bytes

    async def create(self, request: Request) -> JSONResponse:
        """Store an upload."""
        parts = upload_parts(request, self._max_upload_bytes)
        try:
            file = await self._batches.upload(parts, Caller.of(request))
        finally:
            await parts.aclose()
        return JSONResponse(_rendered(file))

    async def list(self, request: Request) -> JSONResponse:
        """A page of files, newest first."""
        check_query(request, _QUERY)
        query = request.query_params
        wire = batch_service_pb2.ListFilesRequest(
            after=query.get("after", ""),
            limit=limit_of(request, MAX_PAGE),
            purpose=query.get("purpose", ""),
        )
        stub = self._batches.stub
        page = await self._batches.call(stub.ListFiles, wire, Caller.of(request))
        return JSONResponse(
            {
                "object": "list",
                "data": [_rendered(file) for file in page.files],
                "first_id": page.files[0].id if page.files else None,
                "last_id": page.files[-1].id if page.files else None,
                "has_more": page.has_more,
            }
        )

    async def get(self, request: Request) -> JSONResponse:
        """Describe a file."""
        wire = batch_service_pb2.GetFileRequest(file_id=request.path_params["file_id"])
        stub = self._batches.stub
        answer = await self._batches.call(stub.GetFile, wire, Caller.of(request))
        return JSONResponse(_rendered(answer.file))

    async def content(self, request: Request) -> ASGIApp:
        """A file's bytes."""
        file_id = request.path_params["file_id"]
        return ByteStream(self._batches.download(file_id, Caller.of(request)))

    async def delete(self, request: Request) -> JSONResponse:
        """Remove a file."""
        file_id = request.path_params["file_id"]
        wire = batch_service_pb2.DeleteFileRequest(file_id=file_id)
        await self._batches.call(self._batches.stub.DeleteFile, wire, Caller.of(request))
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})


class ByteStream:
    """An ASGI response of bytes; a failure before the first of them keeps its status."""

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        self._pieces = pieces
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end, a failure, or the client leaves."""
        try:
            await until_disconnect(receive, self._run(send))
        except PenstockError as error:
            if not self._has_started:
                raise
            # Ending without the last chunk breaks the connection: the client sees a cut file.
            logger.warning("a download ended early: %s", error.slug)
        finally:
            await self._pieces.aclose()

    async def _run(self, send: Send) -> None:
        async for piece in self._pieces:
            await self._start(send)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._start(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, send: Send) -> None:
        if not self._has_started:
            self._has_started = True
            headers = [(b"content-type", b"application/octet-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})


def _rendered(file: batch_pb2.File) -> Json:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_unix_s,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }
