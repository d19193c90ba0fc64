"""``/v1/batches``."""

from starlette.requests import Request
from starlette.responses import JSONResponse

from penstock.batch.v1 import batch_service_pb2
from penstock_core import ids
from penstock_core.errors import InvalidRequest, NotSupported
from penstock_gateway.body import read_json
from penstock_gateway.caller import Caller
from penstock_gateway.query import check_query, limit_of
from penstock_gateway.upstream import BatchClient
from penstock_openai.batch_objects import batch_object, parse_window
from penstock_openai.schemas import BatchBody

MAX_PAGE = 100
IDEMPOTENCY_HEADER = "idempotency-key"
_QUERY = frozenset({"after", "limit"})


class BatchEndpoint:
    """Offline batches."""

    def __init__(self, batches: BatchClient, max_body_bytes: int) -> None:
        self._batches = batches
        self._max_body_bytes = max_body_bytes

    async def create(self, request: Request) -> JSONResponse:
        """Start a batch over an uploaded file."""
        body = await read_json(request, BatchBody, self._max_body_bytes)
        if body.output_expires_after is not None:
            raise NotSupported(
                "output_expires_after is not supported: files stay until deleted",
                field="output_expires_after",
            )
        key = request.headers.get(IDEMPOTENCY_HEADER, "")
        if key and not ids.is_safe_id(key):
            raise InvalidRequest(
                f"{IDEMPOTENCY_HEADER} must be 1 to {ids.MAX_ID_LENGTH} letters, digits, "
                "'-', '_', '.' or ':'",
                field=IDEMPOTENCY_HEADER,
            )
        wire = batch_service_pb2.CreateBatchRequest(
            input_file_id=body.input_file_id,
            endpoint=body.endpoint,
            completion_window_s=parse_window(body.completion_window),
            metadata=body.metadata,
            client_request_id=key,
        )
        stub = self._batches.stub
        answer = await self._batches.call(stub.CreateBatch, wire, Caller.of(request))
        return JSONResponse(batch_object(answer.batch))

    async def get(self, request: Request) -> JSONResponse:
        """Describe a batch."""
        wire = batch_service_pb2.GetBatchRequest(batch_id=request.path_params["batch_id"])
        stub = self._batches.stub
        answer = await self._batches.call(stub.GetBatch, wire, Caller.of(request))
        return JSONResponse(batch_object(answer.batch))

    async def list(self, request: Request) -> JSONResponse:
        """A page of batches, newest first."""
        check_query(request, _QUERY)
        wire = batch_service_pb2.ListBatchesRequest(
            after=request.query_params.get("after", ""), limit=limit_of(request, MAX_PAGE)
        )
        stub = self._batches.stub
        page = await self._batches.call(stub.ListBatches, wire, Caller.of(request))
        return JSONResponse(
            {
                "object": "list",
                "data": [batch_object(batch) for batch in page.batches],
                "first_id": page.batches[0].id if page.batches else None,
                "last_id": page.batches[-1].id if page.batches else None,
                "has_more": page.has_more,
            }
        )

    async def cancel(self, request: Request) -> JSONResponse:
        """End a batch; what is done stays."""
        wire = batch_service_pb2.CancelBatchRequest(batch_id=request.path_params["batch_id"])
        stub = self._batches.stub
        answer = await self._batches.call(stub.CancelBatch, wire, Caller.of(request))
        return JSONResponse(batch_object(answer.batch))
