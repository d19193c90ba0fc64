"""The workers as a router sees them."""

from collections.abc import Sequence

from rich.table import Table

from penstock.routing.v1.routing_service_pb2 import SyncState, WorkerStatus
from penstock.worker.v1.state_pb2 import WorkerHealth
from penstock_cli.views.amounts import duration, share

_STYLES = {"LIVE": "green", "SERVING": "green", "STALE": "yellow", "DEAD": "red", "FAILED": "red"}


def fleet_table(workers: Sequence[WorkerStatus]) -> Table:
    """One row a worker."""
    table = Table(title=f"{len(workers)} workers")
    for name in ("worker", "endpoint", "model", "device", "state", "health"):
        table.add_column(name)
    for name in ("running", "waiting", "KV used", "KV cached", "indexed", "step", "trust", "seen"):
        table.add_column(name, justify="right")
    for worker in workers:
        table.add_row(*_row(worker))
    return table


def _row(worker: WorkerStatus) -> tuple[str, ...]:
    info, load = worker.info, worker.load
    state = SyncState.Name(worker.sync_state).removeprefix("SYNC_STATE_")
    health = WorkerHealth.Name(load.health).removeprefix("WORKER_HEALTH_")
    return (
        info.worker_id,
        info.endpoint,
        ", ".join(info.models),
        info.device,
        _styled(state) + (" [red]breaker open[/]" if worker.breaker_open else ""),
        _styled(health),
        str(load.running),
        str(load.waiting),
        share(load.used_blocks, load.capacity_blocks),
        share(load.cached_blocks, load.capacity_blocks),
        str(worker.indexed_blocks),
        duration(load.step_s),
        f"{worker.trust:.2f}",
        f"{duration(worker.last_frame_age_s)} ago",
    )


def _styled(word: str) -> str:
    style = _STYLES.get(word)
    return f"[{style}]{word.lower()}[/]" if style else word.lower()
