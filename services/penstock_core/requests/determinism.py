"""Which requests must give the same answer again, so that a kept one may be given instead."""

from penstock.inference.v1 import generate_pb2

_KEEPING = (generate_pb2.RESPONSE_CACHE_MODE_USE, generate_pb2.RESPONSE_CACHE_MODE_REFRESH)


def is_greedy(request: generate_pb2.GenerateRequest) -> bool:
    """Whether the likeliest token is always taken, whatever the seed."""
    return request.sampling.HasField("temperature") and request.sampling.temperature == 0


def keeps_response(request: generate_pb2.GenerateRequest) -> bool:
    """Whether its answer may be kept: it asks for that, and greed or a seed fixes every token.

    A continued attempt never: it is a part of an answer.
    """
    is_fixed = is_greedy(request) or request.sampling.HasField("seed")
    is_first = not request.HasField("resume")
    return request.response_cache in _KEEPING and is_fixed and is_first


def settle_response_cache(request: generate_pb2.GenerateRequest) -> None:
    """Switch the cache off where it cannot be had. Before a seed is drawn: then all look seeded."""
    if not keeps_response(request):
        request.response_cache = generate_pb2.RESPONSE_CACHE_MODE_UNSPECIFIED
