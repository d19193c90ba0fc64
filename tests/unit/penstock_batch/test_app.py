import pytest

from penstock_batch.queue.app import broker_url, build_app, key_prefix
from penstock_batch.settings import BatchSettings


def settings() -> BatchSettings:
    return BatchSettings(
        store_url="file:///tmp/x", redis_url="unix:///tmp/r.sock", visibility_timeout_s=77
    )


@pytest.mark.parametrize(
    ("redis", "broker"),
    [
        ("redis://h:1/2", "redis://h:1/2"),
        ("rediss://h:1", "rediss://h:1"),
        ("unix:///tmp/r.sock", "redis+socket:///tmp/r.sock"),
        ("unix:///tmp/r.sock?db=3", "redis+socket:///tmp/r.sock?virtual_host=3"),
    ],
)
def test_redis_urls_are_put_into_kombus_form(redis: str, broker: str) -> None:
    assert broker_url(redis) == broker


def test_a_killed_workers_task_is_given_back_and_soon() -> None:
    conf = build_app(settings()).conf
    assert conf.task_acks_late is True
    assert conf.task_reject_on_worker_lost is True
    assert conf.worker_prefetch_multiplier == 1
    places = (
        conf.broker_transport_options["visibility_timeout"],
        conf.result_backend_transport_options["visibility_timeout"],
        conf.visibility_timeout,
    )
    assert places == (77, 77, 77)
    assert conf.broker_transport_options["unacked_restore_throttle"] == 1


def test_messages_are_json_and_nothing_else() -> None:
    conf = build_app(settings()).conf
    assert (conf.task_serializer, conf.accept_content) == ("json", ["json"])
    assert conf.task_ignore_result is True


def test_celerys_keys_have_a_prefix() -> None:
    options = build_app(settings()).conf.broker_transport_options
    assert options["global_keyprefix"] == key_prefix("penstock")
