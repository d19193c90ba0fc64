"""Who may call a worker: the platform itself; others only what a router's lease permits.

A worker stands behind routers. It knows no API keys: with a lease secret every call must show the
key that is derived from it, save those that carry a lease, which their handlers check.
"""

import hmac
from collections.abc import Mapping

from penstock.inference.v1 import inference_service_pb2
from penstock_core.errors import Unauthenticated
from penstock_core.security.auth import DEFAULT_TENANT, Principal, bearer
from penstock_core.security.leases import internal_key

_SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
LEASED = frozenset({f"/{_SERVICE}/Generate", f"/{_SERVICE}/Embed"})
_PLATFORM = Principal(DEFAULT_TENANT, is_service=True)
_LEASEHOLDER = Principal(DEFAULT_TENANT)


class WorkerAccess:
    """The way in. Without a secret nobody can be told from anybody: everybody may do everything."""

    def __init__(self, lease_secret: bytes) -> None:
        self._key = internal_key(lease_secret).encode() if lease_secret else b""

    def authenticate(self, headers: Mapping[str, str], method: str = "") -> Principal:
        """See ``penstock_core.security.auth.Authenticator``."""
        if not self._key:
            return _PLATFORM
        if method in LEASED:
            return _LEASEHOLDER
        shown = bearer(headers.get("authorization", ""))
        if not hmac.compare_digest(shown.encode(), self._key):
            raise Unauthenticated("this call is the platform's own; its key comes of LEASE_SECRET")
        return _PLATFORM
