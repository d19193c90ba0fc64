"""What a worker tells of its engine's load."""

from penstock.worker.v1 import state_pb2
from penstock_engine.api import EngineState
from penstock_worker.translate import MAX_TOLD_ADAPTERS, load


def test_figures_from_elsewhere_come_with_their_age_and_own_counts_with_none() -> None:
    health = state_pb2.WORKER_HEALTH_SERVING

    told = load(EngineState(figures_age_s=0.0, cache_losses=2), 8, health)
    own = load(EngineState(), 8, health)

    assert told.HasField("figures_age_s")
    assert (told.figures_age_s, told.cache_losses) == (0.0, 2)
    assert not own.HasField("figures_age_s")


def test_adapters_in_memory_are_told_and_their_number_is_bounded() -> None:
    names = tuple(f"a{number:03d}" for number in range(MAX_TOLD_ADAPTERS + 5))
    told = load(EngineState(adapters=names, adapter_load_s=0.4), 8, state_pb2.WORKER_HEALTH_SERVING)

    assert tuple(told.loaded_adapters) == names[:MAX_TOLD_ADAPTERS]
    assert told.adapter_load_s == 0.4
