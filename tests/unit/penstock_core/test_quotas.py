"""What one process counts of limits, and how it takes the word of all."""

import pytest

from penstock_core.auth import Limits, Principal
from penstock_core.errors import Conflict, QuotaExceeded
from penstock_core.quotas import Claim, Quotas, Verdict

MINUTE_S = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def caller(
    requests: int | None = None, tokens: int | None = None, most: int | None = None
) -> Principal:
    return Principal("acme", account="key_1", limits=Limits(requests, tokens, most))


def claimed(quotas: Quotas, who: Principal, request_id: str, tokens: int = 0) -> Claim:
    claim = quotas.admit(who, request_id, tokens)
    assert claim is not None
    return claim


def refusal(quotas: Quotas, who: Principal) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as told:
        quotas.check(who)
    return told.value


def test_a_bucket_holds_a_minute_and_refills_evenly() -> None:
    clock, who = Clock(), caller(requests=2)
    quotas = Quotas(clock)
    for name in ("a", "b"):
        quotas.admit(who, name, 0)
    refused = refusal(quotas, who)
    clock.now = MINUTE_S / 2
    quotas.admit(who, "c", 0)

    assert refused.subject == "requests_per_minute"
    assert refused.retry_after_s == pytest.approx(30.0)
    assert refusal(quotas, who).retry_after_s == pytest.approx(30.0)


def test_tokens_may_go_into_debt_which_is_waited_out() -> None:
    clock, who = Clock(), caller(tokens=60)
    quotas = Quotas(clock)
    quotas.admit(who, "a", 50)
    quotas.used("a", 40)

    refused = refusal(quotas, who)
    clock.now = 31.0
    quotas.check(who)

    assert refused.subject == "tokens_per_minute"
    assert refused.retry_after_s == pytest.approx(31.0)


def test_another_attempt_is_charged_nothing_and_another_caller_refused() -> None:
    quotas, who = Quotas(Clock()), caller(requests=1)
    first, second = quotas.admit(who, "a", 0), quotas.admit(who, "a", 0)
    with pytest.raises(Conflict):
        quotas.admit(Principal("rival", account="key_2", limits=Limits(9)), "a", 0)

    assert (first is None, second is None) == (False, True)


def test_a_limit_of_nothing_lets_nothing_in() -> None:
    assert refusal(Quotas(Clock()), caller(requests=0)).retry_after_s == MINUTE_S
    assert refusal(Quotas(Clock()), caller(tokens=0)).subject == "tokens_per_minute"


def test_what_all_refuse_was_never_open_here_and_is_refused_at_once_from_then_on() -> None:
    quotas, who = Quotas(Clock(), tells=True), caller(requests=100, tokens=100)
    claim = claimed(quotas, who, "a", 1)
    with pytest.raises(QuotaExceeded) as told:
        quotas.agree(claim, Verdict("tokens_per_minute", requests=50.0, tokens=-9.0))

    assert told.value.retry_after_s == pytest.approx(6.0)
    assert len(quotas) == 0
    assert not quotas.tell()
    assert refusal(quotas, who).subject == "tokens_per_minute"


def test_levels_that_all_tell_count_here_less_what_they_do_not_know_yet() -> None:
    quotas, who = Quotas(Clock(), tells=True), caller(tokens=100)
    quotas.agree(claimed(quotas, who, "a"), Verdict(tokens=100.0))
    quotas.used("a", 30)
    quotas.agree(claimed(quotas, who, "b"), Verdict(tokens=31.0))
    quotas.check(who)
    quotas.used("b", 1)

    assert refusal(quotas, who).subject == "tokens_per_minute"
    assert quotas.tell().tokens == {"key_1": 31}


def test_tokens_of_a_request_that_another_process_pays_for_are_not_told_twice() -> None:
    quotas, who = Quotas(Clock(), tells=True), caller(tokens=100)
    quotas.agree(claimed(quotas, who, "a"), Verdict(is_known=True, tokens=50.0))
    quotas.began("a", 40)
    quotas.finish("a")
    quotas.used("a", 40)
    told = quotas.tell()

    assert (told.tokens, told.ended) == ({}, {"key_1": ["a"]})


def test_tokens_that_were_not_heard_of_are_told_again() -> None:
    quotas, who = Quotas(Clock(), tells=True), caller(tokens=100)
    quotas.admit(who, "a", 0)
    quotas.used("a", 5)
    quotas.untell(quotas.tell())
    quotas.used("a", 2)

    assert quotas.tell().tokens == {"key_1": 7}
    assert not quotas.tell()


def test_a_process_alone_keeps_nothing_to_tell() -> None:
    quotas, who = Quotas(Clock()), caller(tokens=100)
    quotas.admit(who, "a", 0)
    quotas.used("a", 5)
    quotas.finish("a")

    assert not quotas.tell()
