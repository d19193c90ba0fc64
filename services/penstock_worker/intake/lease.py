"""Whether a request may run here: the worker's check of router-signed leases."""

import time
from collections import OrderedDict
from collections.abc import Callable

from google.protobuf.message import DecodeError

from penstock.common.v1 import lease_pb2
from penstock.inference.v1 import generate_pb2, inference_service_pb2
from penstock_core.errors import LeaseInvalid
from penstock_core.security.leases import LeaseVerifier, sign


class LeaseCheck:
    """With a secret every request needs a lease signed with it.

    Without one nobody can be told from anybody: leases are optional, and of one that is shown only
    worker, epoch, request and expiry are checked, so that a restarted worker still refuses old work.
    """

    def __init__(
        self,
        secret: bytes,
        worker_id: str,
        epoch: str,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._secret = secret
        self._verifier = LeaseVerifier(secret, worker_id, epoch, unix_time)
        self._unix_time = unix_time
        # Signatures of leases that were used and have not expired, with when they will.
        self._used: OrderedDict[bytes, int] = OrderedDict()

    def claims(
        self,
        request: generate_pb2.GenerateRequest | inference_service_pb2.EmbedRequest,
        request_id: str,
    ) -> lease_pb2.LeaseClaims:
        """What the request's lease says; empty claims if it needs none and has none.

        Raises:
            LeaseInvalid: missing, forged, unreadable, used, or for another worker or request.
            LeaseStale: expired, or from before this worker restarted.
        """
        if not request.HasField("lease"):
            if self._secret:
                raise LeaseInvalid("this worker takes requests only with a router's lease")
            return lease_pb2.LeaseClaims()
        try:
            claims = self._verifier.verify(self._signed(request.lease), request_id)
        except DecodeError as error:
            raise LeaseInvalid("the lease's claims cannot be read") from error
        if self._secret:
            self._use(request.lease.signature, claims.expires_unix_ms)
        return claims

    def _use(self, signature: bytes, expires_unix_ms: int) -> None:
        """Take a lease for good: what it permits was charged once."""
        now = self._unix_time() * 1000
        while self._used and next(iter(self._used.values())) < now:
            self._used.popitem(last=False)
        if signature in self._used:
            raise LeaseInvalid("the lease was used already")
        self._used[signature] = expires_unix_ms

    def _signed(self, lease: lease_pb2.Lease) -> lease_pb2.Lease:
        if self._secret:
            return lease
        return sign(lease_pb2.LeaseClaims.FromString(lease.claims), b"")


def check_adapter(claims: lease_pb2.LeaseClaims, adapter: str) -> None:
    """Raise LeaseInvalid where a request wants another adapter than its lease is for.

    The router looked whether the caller's key allows what it asked for; here nobody knows the key.
    """
    if claims.HasField("adapter") and claims.adapter != adapter:
        raise LeaseInvalid("the lease is for another adapter")
