"""``POST /v1/completions``."""

from starlette.requests import Request
from starlette.types import ASGIApp

from penstock_gateway.body import read_json
from penstock_gateway.caller import priority_of, response_cache_of
from penstock_gateway.inference import Inference
from penstock_openai.generations import completion_generation
from penstock_openai.schemas import CompletionBody


class CompletionEndpoint:
    """Text completions of one or several prompts, streamed or not."""

    def __init__(self, inference: Inference, max_body_bytes: int) -> None:
        self._inference = inference
        self._max_body_bytes = max_body_bytes

    async def create(self, request: Request) -> ASGIApp:
        """Continue the prompts."""
        body = await read_json(request, CompletionBody, self._max_body_bytes)
        generation = completion_generation(body)
        priority = priority_of(request)
        for wire in generation.requests:
            wire.priority = priority
            wire.response_cache = response_cache_of(request, wire.response_cache)
        if not body.stream:
            return await self._inference.whole(request, generation)
        options = body.stream_options
        usage = bool(options and options.include_usage)
        return self._inference.stream(request, generation, usage=usage)
