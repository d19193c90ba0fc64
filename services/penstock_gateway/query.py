"""Query parameters of list endpoints."""

from starlette.requests import Request

from penstock_core.errors import InvalidRequest, NotSupported


def limit_of(request: Request, largest: int) -> int:
    """``limit``, or 0 for the service's default. Raises InvalidRequest outside [1, largest]."""
    text = request.query_params.get("limit", "")
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:10]) <= largest:
        raise InvalidRequest(f"limit must be a number from 1 to {largest}", field="limit")
    return int(text)


def check_query(request: Request, known: frozenset[str]) -> None:
    """Refuse parameters that would silently do nothing, and an order that is not kept."""
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(f"Unrecognized request argument supplied: {name}", field=name)
    if request.query_params.get("order", "desc") != "desc":
        raise NotSupported("order: only 'desc', newest first, is supported", field="order")
