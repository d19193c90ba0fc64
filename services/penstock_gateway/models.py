"""``/v1/models``."""

from starlette.requests import Request
from starlette.responses import JSONResponse

from penstock.inference.v1 import inference_service_pb2
from penstock_gateway.caller import Caller
from penstock_gateway.upstream import RouterClient
from penstock_openai.json_object import Json


class ModelEndpoint:
    """What is served."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    async def list(self, request: Request) -> JSONResponse:
        """All models."""
        models = await self._router.models(Caller.of(request))
        return JSONResponse({"object": "list", "data": [_rendered(model) for model in models]})

    async def get(self, request: Request) -> JSONResponse:
        """One model; a name may hold slashes, as hub ids do."""
        model = await self._router.model(request.path_params["model"], Caller.of(request))
        return JSONResponse(_rendered(model))


def _rendered(model: inference_service_pb2.Model) -> Json:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_unix_s,
        "owned_by": "penstock",
        "max_model_len": model.max_context_tokens,
        "penstock": {
            "revision": model.revision,
            "vocab_size": model.vocab_size,
            "block_tokens": model.block_tokens,
            "has_chat_template": model.has_chat_template,
            "adapters": list(model.adapters),
            "embedding_dimensions": model.embedding_dimensions,
            "max_embed_tokens": model.max_embed_tokens,
        },
    }
