"""Workers that were not measured yet are foretold by those of their kind."""

import pytest

from penstock_router.frames import PrefillDone, WorkerFacts
from penstock_router.kinds import Kinds
from penstock_router.load import WorkerLoad


def measure(load: WorkerLoad, tokens_per_s: float, count: int) -> None:
    for n in range(count):
        tokens = 100 * (1 + n % 9)
        seconds = tokens / tokens_per_s
        load.apply(PrefillDone(str(n), 0, tokens, 0.0, seconds, seconds), 0.0)


def worker(kinds: Kinds, worker_id: str, device: str = "cpu") -> WorkerLoad:
    load = WorkerLoad()
    load.kind = kinds.of(WorkerFacts(worker_id, "epoch", "there", device=device))
    return load


def test_a_new_worker_looks_as_fast_as_its_kind() -> None:
    kinds = Kinds()
    old, new = worker(kinds, "old"), worker(kinds, "new")
    measure(old, 20_000, 30)

    assert new.prefill_line() == old.prefill_line()
    assert new.prefill_line()[1] == pytest.approx(1 / 20_000, rel=0.1)


def test_its_own_measurements_count_as_soon_as_there_are_enough() -> None:
    kinds = Kinds()
    old, slow = worker(kinds, "old"), worker(kinds, "slow")
    measure(old, 20_000, 30)
    measure(slow, 1_000, 4)
    assert slow.speed is slow.kind
    measure(slow, 1_000, 30)

    assert slow.prefill_line()[1] == pytest.approx(1 / 1_000, rel=0.1)


def test_another_kind_says_nothing() -> None:
    kinds = Kinds()
    measure(worker(kinds, "gpu", "cuda"), 100_000, 30)

    assert worker(kinds, "cpu").prefill_line() == WorkerLoad().prefill_line()


def test_kinds_are_bounded() -> None:
    kinds = Kinds()
    first = kinds.of(WorkerFacts("w", "epoch", "there", device="first"))
    for number in range(1000):
        kinds.of(WorkerFacts("w", "epoch", "there", device=str(number)))

    assert kinds.of(WorkerFacts("w", "epoch", "there", device="first")) is not first
