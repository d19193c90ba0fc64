"""``/v1/models``."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse

from penstock.inference.v1 import inference_service_pb2
from penstock_core.errors import ModelNotFound
from penstock_core.requests.model_names import Catalogue, Served
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
        data = [*map(_rendered, models), *_adapters(models).values()]
        return JSONResponse({"object": "list", "data": data})

    async def get(self, request: Request) -> JSONResponse:
        """One model; a name may hold slashes, as hub ids do."""
        name, caller = request.path_params["model"], Caller.of(request)
        try:
            return JSONResponse(_rendered(await self._router.model(name, caller)))
        except ModelNotFound:
            adapters = _adapters(await self._router.models(caller))
            if name not in adapters:
                raise
            return JSONResponse(adapters[name])


def _adapters(models: Sequence[inference_service_pb2.Model]) -> dict[str, Json]:
    """LoRA adapters as models that have a parent, by the name that requests use."""
    by_name = {model.name: model for model in models}
    catalogue = Catalogue(
        Served((model.name,), model.revision, tuple(model.adapters)) for model in models
    )
    return {
        name: _rendered(by_name[named.model])
        | {"id": name, "root": named.adapter, "parent": named.model}
        for name, named in catalogue.adapters().items()
    }


def _rendered(model: inference_service_pb2.Model) -> Json:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_unix_s,
        "owned_by": "penstock",
        "root": model.name,
        "parent": None,
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
