"""Asks single processes whether they are there: gRPC health, HTTP, Redis, the key file."""

import asyncio
import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock_cli.doctor.facts import KeysCheck, Kind, Process, RedisCheck
from penstock_core.auth import KeyRing
from penstock_core.channels import channel
from penstock_core.errors import PenstockError
from penstock_core.registry import RedisRegistry
from penstock_core.tls import PLAIN, Tls, client_context
from penstock_core.version import UNIX_MS_KEY, VERSION_KEY

# The Date header counts whole seconds.
_DATE_DOUBT_S = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """How a process is called."""

    timeout_s: float
    tls: Tls = PLAIN


async def ask_grpc(kind: Kind, name: str, address: str, how: Call) -> Process:
    """A gRPC server's health, version and clock."""
    request = health_pb2.HealthCheckRequest()
    async with channel(address, how.tls) as to:
        sent = time.time()
        call = health_pb2_grpc.HealthStub(to).Check(request, timeout=how.timeout_s)
        try:
            headers = {key: str(value) for key, value in await call.initial_metadata() or ()}
            answer = await call
        except grpc.aio.AioRpcError as error:
            return Process(kind, name, address, error=_told(error))
        doubt = (time.time() - sent) / 2
    unix_ms = headers.get(UNIX_MS_KEY)
    return Process(
        kind,
        name,
        address,
        is_ready=answer.status == health_pb2.HealthCheckResponse.SERVING,
        version=headers.get(VERSION_KEY, ""),
        skew_s=int(unix_ms) / 1000 - (sent + doubt) if unix_ms else None,
        doubt_s=doubt,
    )


async def ask_gateway(address: str, how: Call) -> Process:
    """The gateway's probes."""
    sent = time.time()
    try:
        _, _, body = await asyncio.to_thread(_get, f"{_base(address)}/healthz", how)
        doubt = (time.time() - sent) / 2
        told = json.loads(body)
        status, _, _ = await asyncio.to_thread(_get, f"{_base(address)}/readyz", how)
    except (OSError, HTTPException, ValueError) as error:
        return Process(Kind.GATEWAY, "gateway", address, error=str(error))
    unix_ms = told.get("unix_ms")
    return Process(
        Kind.GATEWAY,
        "gateway",
        address,
        is_ready=status == 200,
        version=str(told.get("version", "")),
        skew_s=unix_ms / 1000 - (sent + doubt) if unix_ms else None,
        doubt_s=doubt,
    )


async def ask_metrics(name: str, address: str, how: Call) -> Process:
    """A process that only has a scrape endpoint: its version is in ``target_info``."""
    sent = time.time()
    try:
        _, date, body = await asyncio.to_thread(_get, f"{_base(address)}/metrics", how)
    except (OSError, HTTPException, ValueError) as error:
        return Process(Kind.METRICS, name, address, error=str(error))
    found = re.search(r'^target_info\{.*service_version="([^"]*)"', body, re.MULTILINE)
    skew = parsedate_to_datetime(date).timestamp() - sent if date else None
    version = found[1] if found else ""
    return Process(Kind.METRICS, name, address, "", True, version, skew, _DATE_DOUBT_S)


async def ask_redis(url: str) -> RedisCheck:
    """Redis' settings and the workers that are announced there."""
    parts = urlsplit(url)
    is_local = parts.scheme == "unix"
    # Never the URL itself: it may hold a password.
    address = parts.path if is_local else f"{parts.hostname}:{parts.port or 6379}"
    try:
        async with RedisRegistry(url) as registry:
            sent = time.time()
            facts = await registry.server()
            middle = (sent + time.time()) / 2
            entries = tuple(await registry.workers())
    except (PenstockError, ValueError) as error:
        return RedisCheck(address, is_local, error=str(error))
    return RedisCheck(address, is_local, "", facts, facts.unix_s - middle, entries)


def read_keys(path: str) -> KeysCheck:
    """The key file as router and batch service would read it."""
    try:
        ring = KeyRing.load(Path(path))
    except (OSError, ValueError) as error:
        return KeysCheck(path, error=str(error))
    owners = ring.by_digest.values()
    return KeysCheck(path, "", len(owners), any(owner.is_service for owner in owners))


def _base(address: str) -> str:
    """``https://`` must be said, plain HTTP need not."""
    return address if address.startswith(("http://", "https://")) else f"http://{address}"


def _get(url: str, how: Call) -> tuple[int, str, str]:
    """Status, Date header and body. Raises OSError, HTTPException or ValueError."""
    context = client_context(how.tls) if url.startswith("https://") else None
    try:
        with urllib.request.urlopen(  # noqa: S310 - http and https only
            url, timeout=how.timeout_s, context=context
        ) as answer:
            return answer.status, answer.headers.get("date", ""), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, "", ""


def _told(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
