"""Judges Redis: its settings, and whether its registry names what is there. Pure."""

import re
from collections import Counter
from collections.abc import Iterator

from penstock_cli.doctor.facts import Facts, Finding, Kind, Level, RedisCheck

_REDIS = "Redis"
_REGISTRY = "registry"
# What Celery's transport needs.
_LEAST = (6, 2, 0)
# First of each line without CVE-2025-49844 (a script can run code in the server).
_PATCHED = {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2}
_NEWEST_LINE = (8, 2)


def check_redis(facts: Facts) -> Iterator[Finding]:
    """Whether it keeps what it is given, and is none with known holes."""
    redis = facts.redis
    if redis is None:
        return
    if redis.facts is None:
        yield Finding(
            _REDIS, Level.PROBLEM, f"Redis at {redis.address} does not answer: {redis.error}",
            "start it; are host, port, password and TLS of the URL right?",
        )  # fmt: skip
        return
    told = redis.facts
    if told.eviction != "noeviction":
        yield Finding(
            _REDIS, Level.PROBLEM, f"maxmemory-policy is {told.eviction}: it may forget queued work",
            "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        )  # fmt: skip
    if not told.has_aof:
        yield Finding(
            _REDIS, Level.WARNING, "appendonly is off: a restart forgets queue, leases and progress",
            "CONFIG SET appendonly yes, and the same in redis.conf (the reconciler rebuilds meanwhile)",
        )  # fmt: skip
    yield from _version(told.version, redis)
    if told.eviction == "noeviction":
        yield Finding(_REDIS, Level.OK, f"Redis {told.version} answers and evicts nothing")


def _version(version: str, redis: RedisCheck) -> Iterator[Finding]:
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    if len(numbers) < 3:
        return
    if numbers < _LEAST:
        yield Finding(
            _REDIS, Level.PROBLEM, f"Redis {version} is older than 6.2, which Celery needs",
            "run Redis 7.4.6 or newer",
        )  # fmt: skip
        return
    line = numbers[0], numbers[1]
    patched = line > _NEWEST_LINE or numbers[2] >= _PATCHED.get(line, 1000)
    # On a unix socket only this machine's own processes reach it.
    if not patched and not redis.is_local:
        yield Finding(
            _REDIS, Level.WARNING, f"Redis {version} has known holes (CVE-2025-49844)",
            "run 7.4.6, 8.2.2 or newer, or your distribution's patched build",
        )  # fmt: skip


def check_registry(facts: Facts) -> Iterator[Finding]:
    """Whether it names exactly the workers that answer and that routers follow."""
    redis = facts.redis
    if redis is None or redis.facts is None:
        return
    entries = {entry.worker_id: entry.endpoint for entry in redis.entries}
    found = list(_entries(facts, entries))
    doubled = [e for e, count in Counter(entries.values()).items() if count > 1]
    for endpoint in doubled:
        ids = ", ".join(sorted(i for i, e in entries.items() if e == endpoint))
        found.append(Finding(
            _REGISTRY, Level.PROBLEM, f"{ids} are all announced at {endpoint}",
            "give each worker a PENSTOCK_WORKER_ADVERTISE that only it can be reached at",
        ))  # fmt: skip
    yield from found
    if not found:
        yield Finding(
            _REGISTRY, Level.OK, f"{len(entries)} announced workers are there and followed"
        )


def _entries(facts: Facts, entries: dict[str, str]) -> Iterator[Finding]:
    dead = {p.address: p.error for p in facts.processes if p.kind is Kind.WORKER and p.error}
    refused = {router for router, _ in facts.refusals}
    routers = [p.name for p in facts.processes if p.kind is Kind.ROUTER and not p.error]
    for worker_id, endpoint in sorted(entries.items()):
        if endpoint in dead:
            yield Finding(
                _REGISTRY, Level.PROBLEM, f"worker {worker_id} is announced at {endpoint}: {dead[endpoint]}",
                "it died a moment ago, or its PENSTOCK_WORKER_ADVERTISE is wrong",
            )  # fmt: skip
            continue
        for router in routers:
            known = {f.worker_id for f in facts.followed if f.router == router}
            if worker_id not in known and router not in refused:
                yield Finding(
                    _REGISTRY, Level.PROBLEM, f"{router} does not know worker {worker_id}",
                    "does it read this registry (PENSTOCK_ROUTER_REGISTRY_URL), or a fixed list?",
                )  # fmt: skip
    for seen in facts.followed:
        if seen.worker_id not in entries and seen.state == "LIVE":
            yield Finding(
                _REGISTRY, Level.WARNING,
                f"{seen.router} follows worker {seen.worker_id}, which this registry does not name",
                "a worker without PENSTOCK_WORKER_REGISTRY_URL, a fixed list, or another Redis",
            )  # fmt: skip
