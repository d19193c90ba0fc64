"""Certificates for compose: the operator's, or some of our own making with ``openssl``.

``/certs`` may hold ``ca.pem``, ``server.crt``, ``server.key``, ``client.crt`` and ``client.key``; if it
holds no ``ca.pem`` they are made, with an authority whose key is thrown away. The server's pair is
what our processes show to callers and to one another; the client's is Prometheus', and for callers.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = (
    "router", "router-1", "router-2", "worker-1", "worker-2", "worker-trtllm", "batch", "batch-worker",
    "gateway", "redis", "localhost",
)  # fmt: skip
FILES = ("ca.pem", "server.crt", "server.key", "client.crt", "client.key")
CLIENT_FILES = ("ca.pem", "client.crt", "client.key")
DAYS = 365
_RENEW_BEFORE_S = 30 * 24 * 3600
_EXTENSIONS = """\
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = {usage}
subjectAltName = {names}
"""


def bring(given: Path, kept: Path) -> None:
    """Make ``kept`` hold certificates that are valid: the given ones, those of before, or new ones.

    Raises:
        SystemExit: the operator's folder lacks a file.
    """
    kept.mkdir(exist_ok=True)
    if (given / "ca.pem").exists():
        missing = [name for name in FILES if not (given / name).exists()]
        if missing:
            raise SystemExit(f"the folder of certificates lacks {', '.join(missing)}")
        for name in FILES:
            _replace(given / name, kept / name)
    elif not _lasts(kept):
        with tempfile.TemporaryDirectory() as draft:
            make(Path(draft))
            for name in FILES:
                _replace(Path(draft) / name, kept / name)


def make(folder: Path) -> None:
    """A new authority and two pairs. Raises CalledProcessError."""
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-days", str(DAYS), "-subj", "/CN=Penstock compose", "-keyout", str(folder / "ca.key"),
        "-out", str(folder / "ca.pem"), "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    names = ", ".join([*(f"DNS:{name}" for name in NAMES), "IP:127.0.0.1"])
    # Our processes call one another with the certificate that they serve with.
    _issue(folder, "server", "serverAuth, clientAuth", names)
    _issue(folder, "client", "clientAuth", "DNS:client")
    (folder / "ca.key").unlink()


def _issue(folder: Path, name: str, usage: str, names: str) -> None:
    extensions, request = folder / f"{name}.ext", folder / f"{name}.csr"
    extensions.write_text(_EXTENSIONS.format(usage=usage, names=names), encoding="utf-8")
    _openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-subj", f"/CN=penstock {name}", "-keyout", str(folder / f"{name}.key"), "-out", str(request),
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-in", str(request), "-CA", str(folder / "ca.pem"),
        "-CAkey", str(folder / "ca.key"), "-CAcreateserial", "-days", str(DAYS),
        "-extfile", str(extensions), "-out", str(folder / f"{name}.crt"),
    )  # fmt: skip


def _lasts(folder: Path) -> bool:
    if not all((folder / name).exists() for name in FILES):
        return False
    command = ["openssl", "x509", "-checkend", str(_RENEW_BEFORE_S), "-noout", "-in"]
    done = subprocess.run([*command, folder / "server.crt"], capture_output=True, check=False)  # noqa: S603
    return done.returncode == 0


def _replace(source: Path, target: Path) -> None:
    """At once: processes read the files when they change."""
    draft = target.with_suffix(".draft")
    shutil.copyfile(source, draft)
    draft.replace(target)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], capture_output=True, check=True)  # noqa: S603, S607 - our own arguments
