"""``POST /v1/embeddings``."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse

from penstock_gateway.body import read_json
from penstock_gateway.caller import Caller, priority_of
from penstock_gateway.disconnect import until_disconnect
from penstock_gateway.upstream import RouterClient
from penstock_openai.embeddings import embed_request, embedding_answer
from penstock_openai.schemas import EmbeddingBody


class EmbeddingEndpoint:
    """Vectors of texts."""

    def __init__(self, router: RouterClient, max_body_bytes: int) -> None:
        self._router = router
        self._max_body_bytes = max_body_bytes

    async def create(self, request: Request) -> JSONResponse:
        """Embed the inputs. The work ends with the client's connection."""
        body = await read_json(request, EmbeddingBody, self._max_body_bytes)
        wanted = embed_request(body)
        wanted.priority = priority_of(request)
        caller = Caller.of(request)
        wanted.request_id = caller.request_id
        response = await until_disconnect(request.receive, self._router.embed(wanted, caller))
        # Some millions of numbers take longer to write than an event loop may stand still.
        return await asyncio.to_thread(lambda: JSONResponse(embedding_answer(body, response)))
