"""Keys name tenants; leases cannot be forged, moved or outlived."""

from pathlib import Path

import pytest

from penstock.common.v1 import lease_pb2
from penstock_core.errors import LeaseInvalid, LeaseStale, PermissionDenied, Unauthenticated
from penstock_core.security import auth, leases

SECRET = b"shared"
NOW = 1_000.0


def ring() -> auth.KeyRing:
    return auth.KeyRing(
        {
            auth.digest("acme-key"): auth.Principal("acme"),
            auth.digest("batch-key"): auth.Principal("platform", is_service=True),
        }
    )


def test_a_ring_without_keys_admits_everybody_as_the_default_tenant() -> None:
    assert auth.KeyRing.open_to_all().authenticate({}).tenant == auth.DEFAULT_TENANT


def test_a_right_key_names_its_tenant() -> None:
    assert ring().authenticate({"authorization": "Bearer acme-key"}).tenant == "acme"


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer wrong", "Basic acme-key", "acme-key"])
def test_a_missing_or_wrong_key_is_refused(header: str) -> None:
    with pytest.raises(Unauthenticated):
        ring().authenticate({"authorization": header})


def test_only_a_service_key_may_speak_for_another_tenant() -> None:
    asked = {auth.TENANT_KEY: "acme"}

    principal = ring().authenticate({"authorization": "Bearer batch-key", **asked})
    with pytest.raises(PermissionDenied):
        ring().authenticate({"authorization": "Bearer acme-key", auth.TENANT_KEY: "other"})

    assert principal.tenant == "acme"


def test_a_key_file_holds_digests_and_loads_back(tmp_path: Path) -> None:
    key = auth.new_key()
    path = tmp_path / "keys.json"
    path.write_text(auth.key_file([(key, "acme", False)]), encoding="utf-8")

    loaded = auth.KeyRing.load(path)

    assert key not in path.read_text(encoding="utf-8")
    assert loaded.authenticate({"authorization": f"Bearer {key}"}).tenant == "acme"


@pytest.mark.parametrize("text", ["{}", "[]", '{"keys": [{}]}', '{"keys": []}', "nonsense"])
def test_a_key_file_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match="key"):
        auth.KeyRing.load(path)


def claims() -> lease_pb2.LeaseClaims:
    return lease_pb2.LeaseClaims(
        worker_id="w1", epoch="e1", request_id="r1", expires_unix_ms=int(NOW * 1000) + 2000
    )


def verifier(now: float = NOW, epoch: str = "e1", worker: str = "w1") -> leases.LeaseVerifier:
    return leases.LeaseVerifier(SECRET, worker, epoch, lambda: now)


def test_a_signed_lease_gives_its_claims_back() -> None:
    lease = leases.sign(claims(), SECRET)

    assert verifier().verify(lease, "r1") == claims()


def test_a_forged_lease_is_invalid() -> None:
    lease = leases.sign(claims(), SECRET)
    lease.claims = lease.claims.replace(b"r1", b"r2")

    with pytest.raises(LeaseInvalid):
        verifier().verify(lease, "r2")
    with pytest.raises(LeaseInvalid):
        verifier().verify(leases.sign(claims(), b"another secret"), "r1")


def test_a_lease_for_another_worker_or_request_is_invalid() -> None:
    lease = leases.sign(claims(), SECRET)

    with pytest.raises(LeaseInvalid):
        verifier(worker="w2").verify(lease, "r1")
    with pytest.raises(LeaseInvalid):
        verifier().verify(lease, "r9")


def test_an_expired_lease_and_one_from_before_a_restart_are_stale() -> None:
    lease = leases.sign(claims(), SECRET)

    with pytest.raises(LeaseStale):
        verifier(now=NOW + 3).verify(lease, "r1")
    with pytest.raises(LeaseStale):
        verifier(epoch="e2").verify(lease, "r1")
