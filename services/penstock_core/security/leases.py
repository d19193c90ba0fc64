"""Signed leases: a router's permission to run one request on one worker.

The signature covers the claims' bytes as they travel, so no canonical form is needed.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from penstock.common.v1 import lease_pb2
from penstock_core.errors import LeaseInvalid, LeaseStale

# No claims begin like this, so a lease's signature is never a key, nor a key a signature.
_INTERNAL = b"\xffpenstock: calls of the platform itself"


def sign(claims: lease_pb2.LeaseClaims, secret: bytes) -> lease_pb2.Lease:
    """A lease for these claims."""
    raw = claims.SerializeToString()
    return lease_pb2.Lease(claims=raw, signature=_mac(raw, secret))


def internal_key(secret: bytes) -> str:
    """The bearer key of the platform's own calls to workers; whoever may sign leases knows it."""
    return f"internal-{_mac(_INTERNAL, secret).hex()}"


def internal_metadata(secret: bytes) -> tuple[tuple[str, str], ...]:
    """Metadata of the platform's own calls to workers; empty where there is no secret."""
    return (("authorization", f"Bearer {internal_key(secret)}"),) if secret else ()


@dataclass(frozen=True, slots=True)
class LeaseVerifier:
    """A worker's check of leases. ``unix_time`` is injected for tests."""

    secret: bytes
    worker_id: str
    epoch: str
    unix_time: Callable[[], float]

    def verify(self, lease: lease_pb2.Lease, request_id: str) -> lease_pb2.LeaseClaims:
        """The claims of a valid lease.

        Raises:
            LeaseInvalid: forged, or for another worker or request.
            LeaseStale: expired, or from before this worker restarted.
        """
        if not hmac.compare_digest(_mac(lease.claims, self.secret), lease.signature):
            raise LeaseInvalid("the lease's signature is wrong")
        claims = lease_pb2.LeaseClaims.FromString(lease.claims)
        if claims.worker_id != self.worker_id or claims.request_id != request_id:
            raise LeaseInvalid("the lease is for another worker or request")
        if claims.epoch != self.epoch:
            raise LeaseStale("the worker has restarted since the lease was signed")
        if claims.expires_unix_ms < self.unix_time() * 1000:
            raise LeaseStale("the lease has expired")
        return claims


def _mac(raw: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, raw, hashlib.sha256).digest()
