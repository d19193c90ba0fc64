"""Judges a deployment's facts: what is wrong, and what to do about it. Pure.

Each check says at least one sentence about what it looked at, so that silence means "not looked at".
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

from penstock_cli.doctor.facts import Facts, Finding, Followed, Kind, Level
from penstock_cli.doctor.redis_checks import check_redis, check_registry

Check = Callable[[Facts], Iterator[Finding]]

# Leases live 10 s and announcements as long; a clock that is off by more refuses good ones.
MAX_SKEW_S = 2.0

_STATE_FIXES = {
    "COLD": "the router has not reached it yet: look at its logs and at the network between them",
    "SYNCING": "wait; if it stays so, the router's logs say why its snapshots fail",
    "STALE": "the worker sends no heartbeat: is it overloaded, stopped (SIGSTOP), or cut off?",
    "DEAD": "start the worker again, or take it out of the registry or PENSTOCK_ROUTER_WORKERS",
}


def examine(facts: Facts) -> list[Finding]:
    """Every finding, the worst first within the order of the checks."""
    return [finding for check in _CHECKS for finding in check(facts)]


def worst(findings: list[Finding]) -> Level:
    """The worst level among them."""
    order = list(Level)
    return max((f.level for f in findings), key=order.index, default=Level.OK)


def _reachable(facts: Facts) -> Iterator[Finding]:
    name = "reachability"
    for process in facts.processes:
        if process.error:
            yield Finding(
                name, Level.PROBLEM, f"{process.name} does not answer: {process.error}",
                f"is it running, and is {process.address} right as seen from here?",
            )  # fmt: skip
        elif not process.is_ready:
            yield Finding(
                name, Level.PROBLEM, f"{process.name} answers and is not ready",
                _NOT_READY.get(process.kind, "look at its logs"),
            )  # fmt: skip
    good = sum(not p.error and p.is_ready for p in facts.processes)
    yield Finding(
        name, Level.OK, f"{good} of {len(facts.processes)} processes answer and are ready"
    )


_NOT_READY = {
    Kind.GATEWAY: "it is ready once a router serves a model: see what is said of routers and workers",
    Kind.WORKER: "it is still loading its model, drains, or its engine failed: look at its logs",
    Kind.ROUTER: "it drains: if nobody stops it, look at its logs",
}


def _clocks(facts: Facts) -> Iterator[Finding]:
    told = [(p.name, p.skew_s, p.doubt_s) for p in facts.processes if p.skew_s is not None]
    if facts.redis is not None and facts.redis.facts is not None:
        told.append(("Redis", facts.redis.skew_s, 0.0))
    if not told:
        return
    offs = sorted((skew, name, doubt) for name, skew, doubt in told)
    (low, first, doubt_a), (high, last, doubt_b) = offs[0], offs[-1]
    apart = high - low - doubt_a - doubt_b
    if apart > MAX_SKEW_S:
        yield Finding(
            "clocks", Level.PROBLEM, f"the clocks of {last} and {first} are {apart:.1f} s apart",
            "run NTP (chrony) on both: leases and batch windows go by the clock",
        )  # fmt: skip
    else:
        yield Finding("clocks", Level.OK, f"{len(told)} clocks agree within {MAX_SKEW_S:g} s")


def _versions(facts: Facts) -> Iterator[Finding]:
    by_version: dict[str, list[str]] = defaultdict(list)
    for process in facts.processes:
        if process.version:
            by_version[process.version].append(process.name)
    if len(by_version) > 1:
        told = "; ".join(f"{v}: {', '.join(sorted(n))}" for v, n in sorted(by_version.items()))
        yield Finding(
            "versions", Level.PROBLEM, f"several versions run ({told})",
            "finish the rolling update: workers first, then routers, batch and gateway",
        )  # fmt: skip
    elif by_version:
        (version,) = by_version
        if version != facts.own_version:
            yield Finding(
                "versions", Level.WARNING, f"all run {version}, this doctor is {facts.own_version}",
                "use the doctor of the version that runs",
            )  # fmt: skip
        else:
            yield Finding("versions", Level.OK, f"all run {version}")


def _credentials(facts: Facts) -> Iterator[Finding]:
    for router, message in facts.refusals:
        yield Finding(
            "API keys", Level.PROBLEM, f"{router} does not let this doctor look: {message}",
            "give a key with --api-key or PENSTOCK_API_KEY; do all routers read the same key file?",
        )  # fmt: skip
    keys = facts.keys
    if keys is None:
        return
    if keys.error:
        yield Finding(
            "API keys", Level.PROBLEM, f"the key file cannot be read: {keys.error}",
            f"make {keys.path} a readable key file (PENSTOCK_*_KEYS_FILE of router and batch)",
        )  # fmt: skip
    elif not keys.has_service:
        yield Finding(
            "API keys", Level.PROBLEM, f"{keys.path} holds no service key: batches cannot run",
            "add a key with service=true and give it to the batch worker (PENSTOCK_BATCH_SERVICE_KEY)",
        )  # fmt: skip
    else:
        yield Finding("API keys", Level.OK, f"{keys.path} is readable and holds {keys.keys} keys")


def _fleet(facts: Facts) -> Iterator[Finding]:
    routers = [p.name for p in facts.processes if p.kind is Kind.ROUTER and not p.error]
    refused = {router for router, _ in facts.refusals}
    for router in routers:
        mine = [f for f in facts.followed if f.router == router]
        if not any(f.state == "LIVE" for f in mine) and router not in refused:
            yield Finding(
                "workers", Level.PROBLEM, f"{router} follows no live worker",
                "start workers, with the registry that the routers read (PENSTOCK_WORKER_REGISTRY_URL)",
            )  # fmt: skip
        yield from _followed(mine)
    live = sum(f.state == "LIVE" for f in facts.followed)
    yield Finding("workers", Level.OK, f"{live} of {len(facts.followed)} followed workers are live")


def _followed(mine: list[Followed]) -> Iterator[Finding]:
    for seen in mine:
        if seen.state != "LIVE":
            yield Finding(
                "workers", Level.PROBLEM,
                f"{seen.router} knows worker {seen.worker_id or seen.endpoint} as {seen.state}",
                _STATE_FIXES.get(seen.state, "look at its logs"),
            )  # fmt: skip
        elif seen.is_shunned:
            yield Finding(
                "workers", Level.PROBLEM, f"{seen.router} sends nothing to worker {seen.worker_id}",
                "its breaker is open after failures: the worker's logs say of what kind",
            )  # fmt: skip


def _models(facts: Facts) -> Iterator[Finding]:
    by_model: dict[str, dict[tuple[str, str], set[str]]] = defaultdict(lambda: defaultdict(set))
    for seen in facts.followed:
        for model in seen.models:
            by_model[model][seen.revision, seen.tokenizer].add(seen.worker_id)
    for model, kinds in sorted(by_model.items()):
        if len(kinds) > 1:
            told = " and ".join(", ".join(sorted(ids)) for ids in kinds.values())
            yield Finding(
                "models", Level.WARNING, f"{model} is not the same thing on {told}",
                "streams cannot move between them: give every worker the same weights and tokenizer",
            )  # fmt: skip
        else:
            count = len(next(iter(kinds.values())))
            yield Finding("models", Level.OK, f"{model} is the same on all {count} workers")


def _indexes(facts: Facts) -> Iterator[Finding]:
    equal = 0
    for check in facts.indexes:
        pair = f"{check.router}'s index of worker {check.worker_id}"
        if check.indexed is None or check.actual is None:
            yield Finding(
                "index", Level.OK, f"{pair} {check.why}; the router compares it every second itself"
            )
        elif check.indexed != check.actual:
            yield Finding(
                "index", Level.PROBLEM,
                f"{pair} holds {check.indexed[0]} blocks, the worker {check.actual[0]}, and they differ",
                "it heals at the next heartbeat; if it does not, restart the router and keep its logs",
            )  # fmt: skip
        else:
            equal += 1
    if equal:
        yield Finding("index", Level.OK, f"{equal} indexes equal what their workers hold")
    for seen in facts.followed:
        if seen.divergences:
            yield Finding(
                "index", Level.WARNING,
                f"{seen.router}'s index of worker {seen.worker_id} diverged {seen.divergences} times",
                "watch penstock_router_index_divergences; predictions are worse until it heals",
            )  # fmt: skip


def _leases(facts: Facts) -> Iterator[Finding]:
    bad = [check for check in facts.leases if check.error]
    for check in bad:
        yield Finding(
            "secrets", Level.PROBLEM,
            f"worker {check.worker_id} refuses the lease of {check.router}: {check.message}",
            "PENSTOCK_ROUTER_LEASE_SECRET and PENSTOCK_WORKER_LEASE_SECRET must be equal everywhere"
            if check.error == "lease_invalid"
            else "compare their clocks; has the worker just restarted?"
            if check.error == "lease_stale"
            else "see the worker's logs",
        )  # fmt: skip
    if len(facts.leases) > len(bad):
        good = len(facts.leases) - len(bad)
        yield Finding("secrets", Level.OK, f"{good} leases were accepted by their workers")
    salts = {check.router: check.salt for check in facts.leases if check.salt is not None}
    if len(set(salts.values())) > 1:
        yield Finding(
            "secrets", Level.PROBLEM, f"{', '.join(sorted(salts))} salt the same tenant differently",
            "PENSTOCK_ROUTER_CACHE_SECRET must be equal, or they share no cached prefix",
        )  # fmt: skip
    for door in facts.doors:
        if door.is_open:
            yield Finding(
                "secrets", Level.WARNING, f"worker {door.worker_id} serves whoever reaches it",
                "set PENSTOCK_WORKER_LEASE_SECRET unless its network is closed to all but routers",
            )  # fmt: skip


_CHECKS: tuple[Check, ...] = (
    _reachable,
    _clocks,
    _versions,
    _credentials,
    check_redis,
    check_registry,
    _fleet,
    _models,
    _indexes,
    _leases,
)
