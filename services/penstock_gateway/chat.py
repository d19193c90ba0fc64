"""``POST /v1/chat/completions``."""

from starlette.requests import Request
from starlette.types import ASGIApp

from penstock_gateway.body import read_json
from penstock_gateway.caller import priority_of
from penstock_gateway.formats import ChatFormat
from penstock_gateway.inference import Generation, Inference
from penstock_gateway.responses import Shape
from penstock_gateway.schemas import ChatBody
from penstock_gateway.translate import chat_request


class ChatEndpoint:
    """Chat completions, streamed or not."""

    def __init__(self, inference: Inference, max_body_bytes: int) -> None:
        self._inference = inference
        self._max_body_bytes = max_body_bytes

    async def create(self, request: Request) -> ASGIApp:
        """Answer a conversation."""
        body = await read_json(request, ChatBody, self._max_body_bytes)
        wire = chat_request(body)
        wire.priority = priority_of(request)
        generation = Generation(
            requests=(wire,),
            form=ChatFormat(logprobs=bool(body.logprobs)),
            shape=Shape(prompts=1, samples=body.n or 1),
            model=body.model,
        )
        if not body.stream:
            return await self._inference.whole(request, generation)
        options = body.stream_options
        usage = bool(options and options.include_usage)
        return self._inference.stream(request, generation, usage=usage)
