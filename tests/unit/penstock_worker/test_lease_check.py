"""Which leases a worker takes."""

import hashlib
import hmac

import pytest

from penstock.common.v1 import lease_pb2
from penstock.inference.v1.generate_pb2 import GenerateRequest
from penstock_core.errors import LeaseInvalid, LeaseStale
from penstock_core.security.leases import sign
from penstock_worker.intake.lease import LeaseCheck, check_adapter

SECRET = b"shared"
NOW_S = 1_000.0


def claims(**changes: object) -> lease_pb2.LeaseClaims:
    fields = {
        "worker_id": "w",
        "epoch": "e",
        "request_id": "r",
        "cache_salt": 7,
        "expires_unix_ms": 1_000_001,
    }
    return lease_pb2.LeaseClaims(**(fields | changes))  # type: ignore[arg-type]


def check(secret: bytes) -> LeaseCheck:
    return LeaseCheck(secret, "w", "e", unix_time=lambda: NOW_S)


def test_a_good_lease_tells_its_claims() -> None:
    request = GenerateRequest(lease=sign(claims(), SECRET))

    assert check(SECRET).claims(request, "r").cache_salt == 7


def test_with_a_secret_a_lease_is_needed() -> None:
    with pytest.raises(LeaseInvalid, match="only with a router's lease"):
        check(SECRET).claims(GenerateRequest(), "r")


def test_a_forged_lease_is_refused() -> None:
    request = GenerateRequest(lease=sign(claims(), b"guessed"))

    with pytest.raises(LeaseInvalid, match="signature"):
        check(SECRET).claims(request, "r")


@pytest.mark.parametrize("secret", [SECRET, b""])
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"worker_id": "other"}, LeaseInvalid),
        ({"request_id": "other"}, LeaseInvalid),
        ({"epoch": "before the restart"}, LeaseStale),
        ({"expires_unix_ms": 999_999}, LeaseStale),
    ],
)
def test_a_lease_for_something_else_is_refused(
    secret: bytes, changes: dict[str, object], error: type[Exception]
) -> None:
    request = GenerateRequest(lease=sign(claims(**changes), secret))

    with pytest.raises(error):
        check(secret).claims(request, "r")


def test_a_lease_holds_for_its_adapter_and_an_older_routers_for_any() -> None:
    check_adapter(claims(adapter="poet"), "poet")
    check_adapter(claims(adapter=""), "")
    check_adapter(claims(), "poet")
    for leased, used in (("poet", "sql"), ("poet", ""), ("", "poet")):
        with pytest.raises(LeaseInvalid, match="adapter"):
            check_adapter(claims(adapter=leased), used)


def test_without_a_secret_leases_are_optional_and_signatures_unchecked() -> None:
    signed_elsewhere = GenerateRequest(lease=sign(claims(), b"any"))

    assert check(b"").claims(GenerateRequest(), "r") == lease_pb2.LeaseClaims()
    assert check(b"").claims(signed_elsewhere, "r").cache_salt == 7


@pytest.mark.parametrize("secret", [SECRET, b""])
def test_claims_that_cannot_be_read_are_refused(secret: bytes) -> None:
    garbage = b"\xff\xff\xff"
    signature = hmac.new(secret, garbage, hashlib.sha256).digest()
    request = GenerateRequest(lease=lease_pb2.Lease(claims=garbage, signature=signature))

    with pytest.raises(LeaseInvalid, match="cannot be read"):
        check(secret).claims(request, "r")
