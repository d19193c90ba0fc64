"""Certificates for tests: an authority, and files of ours and of a stranger's."""

from pathlib import Path

import trustme

from penstock_core.security.tls import Tls


class Authority:
    """Issues certificates for this machine into a folder."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._directory = directory
        self.file = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str, *hosts: str) -> Tls:
        """A certificate with its key, in files called after ``name``; rotates what is there."""
        leaf = self._ca.issue_cert(*(hosts or ("127.0.0.1", "localhost")))
        cert, key = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        drafts = cert.with_suffix(".crt.draft"), key.with_suffix(".key.draft")
        drafts[0].write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(drafts[1])
        drafts[1].replace(key)
        drafts[0].replace(cert)
        return Tls(str(cert), str(key), str(self.file))
