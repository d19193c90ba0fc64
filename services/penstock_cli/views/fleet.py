"""The workers as a router sees them."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from penstock.routing.v1.routing_service_pb2 import SyncState, WorkerStatus
from penstock.worker.v1.state_pb2 import WorkerHealth
from penstock_cli.views.amounts import duration, share

_STYLES = {"LIVE": "green", "SERVING": "green", "STALE": "yellow", "DEAD": "red", "FAILED": "red"}


def fleet_table(workers: Sequence[WorkerStatus]) -> Table:
    """Two lines a worker, so that it fits a terminal of 80 columns."""
    table = Table(
        title=f"{len(workers)} workers", box=box.SIMPLE_HEAD, show_lines=True, pad_edge=False,
        padding=(0, 0, 0, 1),
    )  # fmt: skip
    for name in ("worker\nendpoint", "model\ndevice", "state\nhealth"):
        table.add_column(name, overflow="fold")
    for name in ("running\nwaiting", "KV used\ncached", "step\nindexed", "trust\nseen"):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in workers:
        table.add_row(*_row(worker))
    return table


def _row(worker: WorkerStatus) -> tuple[str, ...]:
    info, load = worker.info, worker.load
    state = SyncState.Name(worker.sync_state).removeprefix("SYNC_STATE_")
    health = WorkerHealth.Name(load.health).removeprefix("WORKER_HEALTH_")
    breaker = "\n[red]breaker open[/]" if worker.breaker_open else ""
    used = share(load.used_blocks, load.capacity_blocks)
    cached = share(load.cached_blocks, load.capacity_blocks)
    return (
        f"{info.worker_id}\n{info.endpoint}",
        f"{', '.join(info.models)}{_adapters(len(info.adapters))}\n{info.device}",
        f"{_styled(state)}\n{_styled(health)}{breaker}",
        f"{load.running}\n{load.waiting}",
        f"{used}\n{cached}",
        f"{duration(load.step_s)}\n{worker.indexed_blocks}",
        f"{worker.trust:.2f}\n{duration(worker.last_frame_age_s)}",
    )


def _adapters(count: int) -> str:
    return f" + {count} adapter{'s' if count > 1 else ''}" if count else ""


def _styled(word: str) -> str:
    style = _STYLES.get(word)
    return f"[{style}]{word.lower()}[/]" if style else word.lower()
