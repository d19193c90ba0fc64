"""A process that is ready does not look through its modules for garbage again."""

import gc
from collections.abc import Iterator

import pytest

from penstock_core import lifecycle


@pytest.fixture
def collector() -> Iterator[None]:
    """The collector as it was, afterwards."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
def test_what_a_process_was_started_with_is_not_looked_at_again() -> None:
    started_with = [object(), []]

    lifecycle.settle()

    assert gc.get_freeze_count() > 0
    assert not any(each is started_with for each in gc.get_objects())
    assert gc.get_threshold()[0] > 700, "requests free what they made by themselves"
    assert gc.isenabled()
