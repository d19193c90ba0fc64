"""Who sent an HTTP request and what of its headers travels on as gRPC metadata."""

import secrets
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request

from penstock.common.v1 import sampling_pb2
from penstock.inference.v1 import generate_pb2
from penstock_core import ids
from penstock_core.errors import InvalidRequest, Unauthenticated
from penstock_core.security.auth import TENANT_KEY
from penstock_core.telemetry.tracing import Metadata, outgoing
from penstock_openai.translate import RESPONSE_CACHE_MODES

REQUEST_ID_HEADER = "x-request-id"
PRIORITY_HEADER = "x-penstock-priority"
CACHE_HEADER = "x-penstock-cache"
_MAX_CALLERS_ID = 100
_MAX_HEADER_LENGTH = 4096
_PRIORITIES = {
    "": sampling_pb2.PRIORITY_CLASS_INTERACTIVE,
    "interactive": sampling_pb2.PRIORITY_CLASS_INTERACTIVE,
    "standard": sampling_pb2.PRIORITY_CLASS_STANDARD,
    "batch": sampling_pb2.PRIORITY_CLASS_BATCH,
}


@dataclass(frozen=True, slots=True)
class RequestId:
    """The id that the HTTP client sees, and the unique one that the platform works with.

    An SDK repeats its own id when it tries again; workers must not take that for one request.
    """

    shown: str
    unique: str

    @classmethod
    def of(cls, headers: Headers) -> "RequestId":
        """The caller's id where it is a safe one, else a new one."""
        given = headers.get(REQUEST_ID_HEADER, "")
        if given.isascii() and len(given) <= _MAX_CALLERS_ID and ids.is_safe_id(given):
            return cls(given, f"{given}.{secrets.token_hex(4)}")
        fresh = ids.new_id("req")
        return cls(fresh, fresh)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of one request; credentials are passed on, never looked into."""

    request_id: str
    credentials: Metadata

    @classmethod
    def of(cls, request: Request) -> "Caller":
        """The sender of ``request``. Raises Unauthenticated if gRPC cannot carry its credentials."""
        names = ("authorization", TENANT_KEY)
        given = [(name, request.headers[name]) for name in names if name in request.headers]
        for name, value in given:
            if len(value) > _MAX_HEADER_LENGTH or not (value.isascii() and value.isprintable()):
                raise Unauthenticated(f"the {name} header is malformed")
        identity: RequestId = request.state.request_id
        return cls(identity.unique, tuple(given))

    def metadata(self) -> Metadata:
        """Metadata of a call on this caller's behalf, with the current trace."""
        return outgoing(*self.credentials)


def priority_of(request: Request) -> sampling_pb2.PriorityClass.ValueType:
    """The priority class that the headers ask for. Raises InvalidRequest if there is none such."""
    wanted = request.headers.get(PRIORITY_HEADER, "").strip().lower()
    if wanted not in _PRIORITIES:
        allowed = ", ".join(name for name in _PRIORITIES if name)
        raise InvalidRequest(f"{PRIORITY_HEADER} must be one of {allowed}", field=PRIORITY_HEADER)
    return _PRIORITIES[wanted]


def response_cache_of(
    request: Request, asked: generate_pb2.ResponseCacheMode.ValueType
) -> generate_pb2.ResponseCacheMode.ValueType:
    """The mode that the header asks for, else the body's. Raises InvalidRequest."""
    wanted = request.headers.get(CACHE_HEADER, "").strip().lower()
    if not wanted:
        return asked
    if wanted not in RESPONSE_CACHE_MODES:
        allowed = ", ".join(RESPONSE_CACHE_MODES)
        raise InvalidRequest(f"{CACHE_HEADER} must be one of {allowed}", field=CACHE_HEADER)
    return RESPONSE_CACHE_MODES[wanted]
