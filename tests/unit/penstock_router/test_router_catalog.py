"""Where names lead: shares by weight, the same for the same request, fall-backs last."""

from collections import Counter
from pathlib import Path

import pytest

from penstock_core.settings import SettingsError
from penstock_router.catalog import Catalog, Entry, Place, WeightedPlace, in_order

STABLE = WeightedPlace(model="m", revision="1", weight=9)
CANARY = WeightedPlace(model="m", revision="2", weight=1)
SMALL = Place(model="small")


def test_a_canary_gets_its_share() -> None:
    entry = Entry(routes=(STABLE, CANARY))
    first = Counter(in_order(entry, f"req-{n}")[0].revision for n in range(4000))
    assert 300 < first["2"] < 500


def test_a_request_always_comes_to_the_same_place() -> None:
    entry = Entry(routes=(STABLE, CANARY), fallback=(SMALL,))
    for number in range(50):
        assert in_order(entry, f"req-{number}") == in_order(entry, f"req-{number}")


def test_the_other_revision_comes_before_the_fall_backs() -> None:
    entry = Entry(routes=(STABLE, CANARY), fallback=(SMALL,))
    for number in range(50):
        order = in_order(entry, f"req-{number}")
        assert {place.revision for place in order[:2]} == {"1", "2"}
        assert order[2:] == [SMALL]


def test_a_name_without_an_entry_is_the_models_own() -> None:
    assert Catalog().entry("m") is None


def test_the_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "catalog.json"
    file.write_text(
        '{"models": {"chat": {"routes": [{"model": "m", "pool": "gold"}],'
        ' "fallback": [{"model": "m"}], "max_waiting": 4}}}'
    )
    entry = Catalog.load(file).entry("chat")
    assert entry is not None
    assert (entry.routes[0].pool, entry.fallback[0].model, entry.max_waiting) == ("gold", "m", 4)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"models": {"a": {}}}', '{"models": {"a": {"routes": []}}}',
     '{"models": {"a": {"routes": [{"model": "m", "weight": 0}]}}}',
     '{"models": {"a": {"routes": [{"model": "m", "colour": "red"}]}}}'],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "catalog.json"
    file.write_text(text)
    with pytest.raises(SettingsError, match="catalog"):
        Catalog.load(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="catalog"):
        Catalog.load(tmp_path / "none.json")
