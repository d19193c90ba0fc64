"""The doctor's judgement, fact by fact."""

from dataclasses import replace

import pytest

from penstock_cli.doctor.checks import examine, worst
from penstock_cli.doctor.facts import (
    Facts,
    Finding,
    Followed,
    IndexCheck,
    KeysCheck,
    Kind,
    LeaseCheck,
    Level,
    Process,
    RedisCheck,
)
from penstock_core.registry import RedisFacts, WorkerEntry

ROUTER = Process(Kind.ROUTER, "router", "r:1", is_ready=True, version="1", skew_s=0.0)
WORKER = Process(Kind.WORKER, "worker w", "w:1", is_ready=True, version="1", skew_s=0.1)
SEEN = Followed("router", "w", "w:1", "LIVE", 0, False, ("m",), "rev", "tok")
SERVER = RedisFacts("7.4.6", "noeviction", True, 0.0)
REDIS = RedisCheck("redis:6379", False, "", SERVER, 0.0, (WorkerEntry("w:1", "w"),))
GOOD = Facts(
    processes=(ROUTER, WORKER),
    followed=(SEEN,),
    indexes=(IndexCheck("router", "w", (3, 7), (3, 7)),),
    leases=(LeaseCheck("router", "w", "", salt=5),),
    redis=REDIS,
    keys=KeysCheck("keys.json", "", 2, True),
    own_version="1",
)


def bad(facts: Facts) -> list[Finding]:
    found = [finding for finding in examine(facts) if finding.level is not Level.OK]
    assert all(finding.fix for finding in found)
    return found


def test_all_good_is_all_ok() -> None:
    assert bad(GOOD) == []
    assert worst(examine(GOOD)) is Level.OK


CASES: dict[str, tuple[Facts, str, Level]] = {
    "not ready": (
        replace(GOOD, processes=(ROUTER, replace(WORKER, is_ready=False))),
        "reachability",
        Level.PROBLEM,
    ),
    "clock": (
        replace(GOOD, processes=(ROUTER, replace(WORKER, skew_s=-9.0))),
        "clocks",
        Level.PROBLEM,
    ),
    "Redis' clock": (replace(GOOD, redis=replace(REDIS, skew_s=60.0)), "clocks", Level.PROBLEM),
    "versions": (
        replace(GOOD, processes=(ROUTER, replace(WORKER, version="2"))),
        "versions",
        Level.PROBLEM,
    ),
    "own version": (replace(GOOD, own_version="2"), "versions", Level.WARNING),
    "no key": (
        replace(GOOD, refusals=(("router", "an API key is needed"),)),
        "API keys",
        Level.PROBLEM,
    ),
    "no service key": (
        replace(GOOD, keys=KeysCheck("keys.json", "", 2, False)),
        "API keys",
        Level.PROBLEM,
    ),
    "Redis away": (replace(GOOD, redis=RedisCheck("r", False, "refused")), "Redis", Level.PROBLEM),
    "old Redis": (
        replace(GOOD, redis=replace(REDIS, facts=replace(SERVER, version="5.0.7"))),
        "Redis",
        Level.PROBLEM,
    ),
    "holes in Redis": (
        replace(GOOD, redis=replace(REDIS, facts=replace(SERVER, version="7.2.10"))),
        "Redis",
        Level.WARNING,
    ),
    "two workers, one address": (
        replace(
            GOOD,
            redis=replace(REDIS, entries=(WorkerEntry("w:1", "w"), WorkerEntry("w:1", "w2"))),
            followed=(SEEN, replace(SEEN, worker_id="w2")),
        ),
        "registry",
        Level.PROBLEM,
    ),
    "announced and unknown": (
        replace(GOOD, redis=replace(REDIS, entries=(*REDIS.entries, WorkerEntry("x:1", "x")))),
        "registry",
        Level.PROBLEM,
    ),
    "followed and not announced": (
        replace(GOOD, redis=replace(REDIS, entries=())),
        "registry",
        Level.WARNING,
    ),
    "breaker": (
        replace(GOOD, followed=(replace(SEEN, is_shunned=True),)),
        "workers",
        Level.PROBLEM,
    ),
    "other weights": (
        replace(
            GOOD,
            redis=None,
            followed=(SEEN, replace(SEEN, worker_id="w2", revision="other")),
        ),
        "models",
        Level.WARNING,
    ),
    "index differs": (
        replace(GOOD, indexes=(IndexCheck("router", "w", (3, 7), (4, 7)),)),
        "index",
        Level.PROBLEM,
    ),
    "index diverged": (
        replace(GOOD, followed=(replace(SEEN, divergences=2),)),
        "index",
        Level.WARNING,
    ),
    "stale lease": (
        replace(GOOD, leases=(LeaseCheck("router", "w", "lease_stale", "expired"),)),
        "secrets",
        Level.PROBLEM,
    ),
    "salts": (
        replace(GOOD, leases=(*GOOD.leases, LeaseCheck("router 2", "w", "", salt=6))),
        "secrets",
        Level.PROBLEM,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_found_by_its_check_alone(name: str) -> None:
    facts, check, level = CASES[name]

    assert [(finding.check, finding.level) for finding in bad(facts)] == [(check, level)]


def test_a_local_redis_with_holes_is_let_pass_and_an_index_in_motion_too() -> None:
    local = replace(REDIS, is_local=True, facts=replace(SERVER, version="6.2.14"))
    moving = (IndexCheck("router", "w", None, None, "moves too fast to compare"),)

    assert bad(replace(GOOD, redis=local, indexes=moving)) == []


def test_a_skew_within_its_doubt_is_none() -> None:
    doubtful = replace(WORKER, skew_s=2.5, doubt_s=1.0)

    assert bad(replace(GOOD, processes=(ROUTER, doubtful))) == []
