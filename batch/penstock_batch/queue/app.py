"""Celery as we use it: JSON messages with ids only, late acknowledgement, no results, no chords.

Every setting is here for a measured reason: the defaults lose tasks when a worker is killed, or
give them back only after an hour. A task that is lost anyway is enqueued again by the reconciler.
"""

from celery import Celery

from penstock_batch.settings import BatchSettings
from penstock_batch.state.steps import LEVELS

QUEUE = "shards"
TASK_NAMES = {
    "plan": "penstock.batch.plan",
    "shard": "penstock.batch.run_shard",
    "finalize": "penstock.batch.finalize",
}
PREFIX_SEPARATOR = "\x06\x16"
_SOCKET_TIMEOUT_S = 10.0


def key_prefix(redis_prefix: str) -> str:
    """Prefix of Celery's own keys."""
    return f"{redis_prefix}:celery:"


def broker_url(redis_url: str) -> str:
    """A Redis URL in the form that kombu reads."""
    if not redis_url.startswith("unix://"):
        return redis_url
    path, _, query = redis_url.removeprefix("unix://").partition("?")
    options = query.replace("db=", "virtual_host=")
    return f"redis+socket://{path}?{options}" if options else f"redis+socket://{path}"


def build_app(settings: BatchSettings) -> Celery:
    """A Celery app without tasks; it connects at its first use."""
    app = Celery("penstock", broker=broker_url(settings.redis_url), set_as_current=False)
    transport = {
        "visibility_timeout": settings.visibility_timeout_s,
        # Kombu's default looks for dead workers' tasks every 100 s.
        "unacked_restore_interval": settings.restore_interval_s,
        "unacked_restore_throttle": 1,
        "global_keyprefix": key_prefix(settings.redis_prefix),
        "queue_order_strategy": "priority",
        "priority_steps": list(LEVELS),
        "sep": PREFIX_SEPARATOR,
        # Without it, a publish on a dead connection waits for ever.
        "socket_timeout": _SOCKET_TIMEOUT_S,
        "socket_connect_timeout": _SOCKET_TIMEOUT_S,
        "socket_keepalive": not settings.redis_url.startswith("unix:"),
        "retry_on_timeout": True,
    }
    app.conf.update(
        broker_transport_options=transport,
        # Kombu reads it in three places; the shortest would win.
        result_backend_transport_options={"visibility_timeout": settings.visibility_timeout_s},
        visibility_timeout=settings.visibility_timeout_s,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_default_queue=QUEUE,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        enable_utc=True,
    )
    return app
