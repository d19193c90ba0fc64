"""TLS and mutual TLS from PEM files: credentials of gRPC channels and servers, contexts of HTTP servers.

Servers read their files again at a handshake after they changed, so that certificates rotate under
running processes. gRPC reads a channel's files once, when the channel is made.
"""

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

logger = logging.getLogger(__name__)

SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files; empty ones are not used.

    Attributes:
        cert: our certificate with its chain, shown by servers, and by channels under mutual TLS.
        key: its private key.
        ca: whom we trust: makes channels use TLS. ``system`` trusts the usual authorities.
        server_name: name that servers' certificates must hold, where it is not the address'.
        client_auth: whether servers admit only clients with a certificate of ``ca``.
    """

    cert: str = ""
    key: str = ""
    ca: str = ""
    server_name: str = ""
    client_auth: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """What ``PENSTOCK_TLS_CA``, ``_CERT``, ``_KEY`` and ``_SERVER_NAME`` say, for callers."""

        def told(name: str) -> str:
            return environ.get(f"PENSTOCK_TLS_{name}", "")

        return cls(told("CERT"), told("KEY"), told("CA"), told("SERVER_NAME"))

    @property
    def serves(self) -> bool:
        """Whether servers use TLS."""
        return bool(self.cert)

    @property
    def dials(self) -> bool:
        """Whether channels use TLS."""
        return bool(self.ca)

    def check(self) -> None:
        """Raise ValueError unless the files are there and belong together."""
        if bool(self.cert) != bool(self.key):
            raise ValueError("a certificate and its key must be given together")
        if self.client_auth and not (self.cert and self.ca and self.ca != SYSTEM):
            raise ValueError("client certificates need a certificate of our own and a file of CAs")
        try:
            if self.cert:
                ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                    self.cert, self.key
                )
            if self.ca and self.ca != SYSTEM:
                ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"cannot use the TLS files: {error}") from error


PLAIN = Tls()


def is_local(target: str) -> bool:
    """Whether a target is a unix socket: its folder's permissions guard it, so it stays plain."""
    return target.startswith("unix:")


def channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """What a channel shows and whom it trusts. Raises OSError if a file cannot be read."""
    roots = None if tls.ca == SYSTEM else Path(tls.ca).read_bytes()
    if not tls.cert:
        return grpc.ssl_channel_credentials(roots)
    key, chain = Path(tls.key).read_bytes(), Path(tls.cert).read_bytes()
    return grpc.ssl_channel_credentials(roots, key, chain)


def channel_options(tls: Tls) -> tuple[tuple[str, str], ...]:
    """Options of a channel with these credentials."""
    return (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """What a server shows, read again when the files change. Raises OSError if one cannot be read."""
    files = _ServerFiles(tls)
    return grpc.dynamic_ssl_server_credentials(
        files.configuration(),
        files.changed,  # type: ignore[arg-type]  # None is how gRPC is told of no change
        require_client_authentication=tls.client_auth,
    )


class _ServerFiles:
    """A gRPC server's files as last read."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._paths = [Path(p) for p in (tls.cert, tls.key, tls.ca) if p and p != SYSTEM]
        self._stamps = stamps(self._paths)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """As the files are now."""
        pair = (Path(self._tls.key).read_bytes(), Path(self._tls.cert).read_bytes())
        roots = Path(self._tls.ca).read_bytes() if self._tls.client_auth else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration if there is one; asked by gRPC at each handshake."""
        try:
            found = stamps(self._paths)
            if found == self._stamps:
                return None
            # A key beside another's certificate would end every handshake until the next change.
            self._tls.check()
            configuration = self.configuration()
        except (OSError, ValueError) as error:
            logger.warning("going on with the TLS files as they were: %s", error)
            return None
        self._stamps = found
        logger.info("read the TLS files again")
        return configuration


def client_context(tls: Tls) -> ssl.SSLContext:
    """What an HTTPS client shows and whom it trusts. Raises OSError if a file cannot be read."""
    context = ssl.create_default_context(cafile=None if tls.ca in ("", SYSTEM) else tls.ca)
    if tls.cert:
        context.load_cert_chain(tls.cert, tls.key)
    return context


class HttpTls:
    """An HTTP server's TLS context; ``refresh`` makes it read files that changed."""

    def __init__(self, tls: Tls) -> None:
        tls.check()
        self._tls = tls
        self._paths = [Path(p) for p in (tls.cert, tls.key) if p]
        self._stamps = stamps(self._paths)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.load_cert_chain(tls.cert, tls.key)
        if tls.client_auth:
            self.context.load_verify_locations(tls.ca)
            self.context.verify_mode = ssl.CERT_REQUIRED

    def refresh(self) -> bool:
        """Show new handshakes the files as they are now; whether they had changed."""
        try:
            found = stamps(self._paths)
            if found == self._stamps:
                return False
            self._tls.check()
            self.context.load_cert_chain(self._tls.cert, self._tls.key)
        except (OSError, ValueError) as error:
            logger.warning("going on with the TLS files as they were: %s", error)
            return False
        self._stamps = found
        logger.info("read the TLS files again")
        return True


Stamp = tuple[int, int, int]


def stamps(paths: list[Path]) -> list[Stamp]:
    """What changes when a file does: inode, time, size. Raises OSError if one is gone."""
    found = [path.stat() for path in paths]
    return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in found]
