"""``/v1/embeddings``: a body as a wire request, and its vectors as OpenAI's answer. Pure."""

import base64
import struct
from collections.abc import Sequence

from penstock.common.v1 import tokens_pb2
from penstock.inference.v1 import inference_service_pb2 as pb
from penstock_core.blocks import pack_tokens
from penstock_core.errors import InvalidRequest
from penstock_openai.answer import cost_object
from penstock_openai.bodies import validated
from penstock_openai.json_object import Json
from penstock_openai.schemas import EmbeddingBody

EMBEDDINGS = "/v1/embeddings"
_POOLINGS = {
    None: pb.POOLING_UNSPECIFIED,
    "last": pb.POOLING_LAST,
    "mean": pb.POOLING_MEAN,
}


def embedding_body(value: object) -> EmbeddingBody:
    """Parsed JSON as a body. Raises InvalidRequest."""
    return validated(value, EmbeddingBody)


def embed_request(body: EmbeddingBody) -> pb.EmbedRequest:
    """What a body asks for. Raises InvalidRequest."""
    request = pb.EmbedRequest(model=body.model, pooling=_POOLINGS[body.pooling])
    if body.dimensions is not None:
        request.dimensions = body.dimensions
    given = body.input
    if isinstance(given, str):
        request.texts.append(given)
    elif not given:
        raise InvalidRequest("the input is empty", field="input")
    elif isinstance(given[0], int):
        request.token_inputs.append(_tokens([t for t in given if isinstance(t, int)]))
    else:
        request.texts.extend(text for text in given if isinstance(text, str))
        request.token_inputs.extend(_tokens(ids) for ids in given if isinstance(ids, list))
    return request


def embedding_answer(body: EmbeddingBody, response: pb.EmbedResponse) -> Json:
    """The whole answer, vectors as numbers or as base64 of little-endian float32."""
    data: list[Json] = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _rendered(embedding.values, body.encoding_format),
        }
        for index, embedding in enumerate(response.embeddings)
    ]
    tokens = response.prompt_tokens
    return {
        "object": "list",
        "data": data,
        "model": body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "penstock": _extension(response),
    }


def _extension(response: pb.EmbedResponse) -> Json:
    extension: Json = {
        "request_id": response.request_id,
        "workers": list(response.worker_ids),
    }
    if response.HasField("cost"):
        extension["cost"] = cost_object(response.cost)
    return extension


def _tokens(ids: Sequence[int]) -> tokens_pb2.TokenIds:
    return tokens_pb2.TokenIds(ids=pack_tokens(ids))


def _rendered(values: Sequence[float], encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode("ascii")
    return list(values)
