"""A worker's load from its ledger: nothing counted twice, nothing left behind."""

import pytest

from penstock_router.fleet.fit import LineFit, Utilisation
from penstock_router.fleet.load import RESERVATION_TTL_S, WorkerLoad
from penstock_router.frames import (
    Admitted,
    Finished,
    LoadReport,
    PrefillDone,
    Progress,
)


def prefilled(request_id: str, computed: int = 100, seconds: float = 0.1) -> PrefillDone:
    return PrefillDone(request_id, 0, computed, 0.0, seconds, seconds)


def queued(tokens: int, waiting: int = 0) -> Progress:
    return Progress(LoadReport(queued_prefill_tokens=tokens, waiting=waiting))


def test_a_request_weighs_from_its_routing_to_its_first_token() -> None:
    load = WorkerLoad()
    load.reserve("r", 100, 0.0, RESERVATION_TTL_S)
    assert (load.backlog_tokens(), load.waiting(), load.running()) == (100, 1, 0)
    load.apply(Admitted("r", 120, 40), 0.1)
    assert (load.backlog_tokens(), load.waiting(), load.running()) == (80, 1, 0)
    load.apply(prefilled("r"), 0.2)
    assert (load.backlog_tokens(), load.waiting(), load.running()) == (0, 0, 1)
    load.apply(Finished("r", 10), 0.3)
    assert (load.backlog_tokens(), load.waiting(), load.running()) == (0, 0, 0)


def test_a_reservation_that_never_arrives_expires() -> None:
    load = WorkerLoad()
    load.reserve("r", 100, 0.0, RESERVATION_TTL_S)
    load.expire(RESERVATION_TTL_S - 0.01)
    assert load.backlog_tokens() == 100
    load.expire(RESERVATION_TTL_S)
    assert load.backlog_tokens() == 0


def test_an_admitted_request_outlives_its_reservation_and_a_release() -> None:
    load = WorkerLoad()
    load.reserve("r", 100, 0.0, RESERVATION_TTL_S)
    load.apply(Admitted("r", 100, 0), 0.1)
    load.expire(60.0)
    load.release("r")
    assert load.backlog_tokens() == 100


def test_the_workers_report_replaces_what_was_summed_up() -> None:
    load = WorkerLoad()
    load.apply(Admitted("a", 1000, 0), 0.0)
    load.apply(queued(400), 0.1)
    assert load.backlog_tokens() == 400, "most of it is computed already"
    load.reserve("b", 50, 0.11, RESERVATION_TTL_S)
    assert load.backlog_tokens() == 450, "the report cannot know what came after it"
    load.apply(queued(450), 0.3)
    assert load.backlog_tokens() == 450, "now it does"
    load.apply(Admitted("b", 50, 0), 0.31)
    assert load.backlog_tokens() == 450


def test_a_first_token_takes_from_the_backlog_only_what_is_its_own() -> None:
    load = WorkerLoad()
    load.apply(Admitted("a", 1000, 0), 0.0)
    load.apply(Admitted("b", 500, 0), 0.0)
    load.apply(queued(600), 0.1)
    load.apply(prefilled("a"), 0.2)
    assert load.backlog_tokens() == 500


def test_a_snapshot_keeps_what_is_on_its_way_and_nothing_else() -> None:
    load = WorkerLoad()
    load.apply(Admitted("old", 1000, 0), 0.0)
    load.reserve("new", 30, 0.0, RESERVATION_TTL_S)
    load.reset([Admitted("other", 200, 100), prefilled("other")], 0.1)
    assert (load.backlog_tokens(), load.running()) == (30, 1)


def test_requests_of_other_routers_show_in_the_workers_report() -> None:
    load = WorkerLoad()
    load.apply(queued(700, waiting=3), 0.0)
    assert (load.backlog_tokens(), load.waiting()) == (700, 3)


def test_trust_follows_what_was_found_and_has_a_floor() -> None:
    load = WorkerLoad()
    load.observe_hit(0, 0)
    assert load.trust_factor == 1.0
    for _ in range(200):
        load.observe_hit(100, 0)
    assert load.trust_factor == 0.3
    for _ in range(200):
        load.observe_hit(100, 100)
    assert load.trust_factor == pytest.approx(1.0, abs=0.01)


def test_the_workers_own_rate_serves_until_enough_was_measured() -> None:
    load = WorkerLoad()
    load.take_report(LoadReport(prefill_tokens_per_s=500.0), 0.0)
    assert load.prefill_line()[1] == pytest.approx(1 / 500)
    for n in range(60):
        load.apply(prefilled(str(n), 100 * (1 + n % 9), 0.01 + 0.1 * (1 + n % 9)), 0.0)
    base, slope = load.prefill_line()
    assert slope == pytest.approx(1 / 1000, rel=0.05)
    assert base == pytest.approx(0.01, rel=0.3)


def test_every_change_makes_a_new_version() -> None:
    load = WorkerLoad()
    versions = [load.version]
    load.reserve("r", 1, 0.0, 1.0)
    versions.append(load.version)
    load.apply(queued(5), 0.0)
    versions.append(load.version)
    load.expire(2.0)
    versions.append(load.version)
    assert sorted(set(versions)) == versions


def test_a_line_is_found_among_its_points() -> None:
    fit = LineFit(0.0, 1.0)
    for n in range(300):
        fit.add(10 + n % 50, 0.5 + 0.01 * (10 + n % 50))
    assert fit.predict(100) == pytest.approx(1.5, rel=0.02)
    assert fit.predict(0) == 0.0


@pytest.mark.parametrize("seconds", [0.0, 0.2, 5.0])
def test_samples_of_one_size_keep_the_prediction_at_that_size(seconds: float) -> None:
    fit = LineFit(0.002, 1 / 4000)
    for _ in range(2000):
        fit.add(100, seconds)
    assert fit.predict(100) == pytest.approx(seconds, abs=1e-3)
    assert fit.base_s >= 0
    assert fit.slope_s >= 0


def test_utilisation_is_the_busy_share_and_fades() -> None:
    busy = Utilisation(10.0)
    for n in range(1000):
        busy.add(0.05, n * 0.1)
    assert busy.value(100.0) == pytest.approx(0.5, rel=0.05)
    assert busy.value(200.0) < 0.001


def test_batch_work_is_in_the_way_of_batch_only() -> None:
    load = WorkerLoad()
    load.reserve("offline", 100, 0.0, RESERVATION_TTL_S, is_batch=True)
    load.reserve("online", 30, 0.0, RESERVATION_TTL_S)
    assert (load.backlog_tokens(for_batch=False), load.backlog_tokens()) == (30, 130)
    assert (load.waiting(for_batch=False), load.waiting()) == (1, 2)
    load.apply(Admitted("offline", 100, 0, is_batch=True), 0.1)
    load.apply(Admitted("online", 30, 0), 0.1)
    load.take_report(LoadReport(queued_prefill_tokens=120, queued_batch_tokens=95, waiting=2), 0.2)
    assert (load.backlog_tokens(for_batch=False), load.backlog_tokens()) == (25, 120)
    load.apply(prefilled("online"), 0.3)
    load.apply(prefilled("offline"), 0.4)
    assert (load.backlog_tokens(for_batch=False), load.backlog_tokens()) == (0, 0)


def test_time_works_on_the_online_prompt_first() -> None:
    load = WorkerLoad()
    load.take_report(LoadReport(prefill_tokens_per_s=1000.0), 0.0)
    load.reserve("offline", 100, 0.0, RESERVATION_TTL_S, is_batch=True)
    assert load.left_tokens(0.05) == 50
    load.reserve("online", 30, 0.05, RESERVATION_TTL_S)
    assert load.left_tokens(0.06, for_batch=False) == 20
    assert load.left_tokens(0.06) == 120


def serve(load: WorkerLoad, request_id: str, seconds: float, *, is_batch: bool) -> None:
    load.apply(Admitted(request_id, 100, 0, is_batch=is_batch), 0.0)
    load.apply(prefilled(request_id, seconds=seconds), seconds)


def test_prompts_of_batch_that_sat_out_do_not_make_a_worker_look_slow() -> None:
    alone, beside = WorkerLoad(), WorkerLoad()
    for number in range(20):
        for load in (alone, beside):
            serve(load, f"online {number}", 0.1, is_batch=False)
        serve(beside, f"offline {number}", 2.0, is_batch=True)

    assert beside.prefill_line() == alone.prefill_line()
    assert beside.utilisation(2.0) == alone.utilisation(2.0)


def test_where_nothing_else_is_served_prompts_of_batch_tell_how_fast_a_worker_is() -> None:
    load = WorkerLoad()
    before = load.prefill_line()
    for number in range(20):
        serve(load, f"offline {number}", 2.0, is_batch=True)

    assert load.prefill_line() > before
