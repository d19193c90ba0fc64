"""Names that callers use, and where they lead: aliases, canaries, pools and what to fall back on.

Owns the file's shape and the order in which places are tried. Knows no workers: ``places`` does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penstock_core.settings import SettingsError

_Weight = Annotated[float, Field(gt=0)]


class Place(BaseModel):
    """Workers of one model; an empty field does not matter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, description="name that the workers serve")
    revision: str = Field("", description="revision of the model")
    pool: str = Field("", description="workers' pool")
    zone: str = Field("", description="workers' zone")


class WeightedPlace(Place):
    """A place with its share of the requests."""

    weight: _Weight = 1.0


class Entry(BaseModel):
    """Where a name leads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    routes: tuple[WeightedPlace, ...] = Field(min_length=1, description="shared by weight")
    fallback: tuple[Place, ...] = Field((), description="tried in order, without room before")
    max_waiting: int = Field(
        32, ge=1, description="a worker with so many waiting requests has no room"
    )


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[str, Entry]


class Catalog:
    """Entries by name; a name without one is the model that workers serve under it."""

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self._entries = dict(entries or {})

    @classmethod
    def load(cls, path: Path) -> "Catalog":
        """Read the file. Raises SettingsError if it cannot be read or makes no sense."""
        try:
            return cls(_File.model_validate_json(path.read_bytes()).models)
        except (OSError, ValidationError) as error:
            raise SettingsError(f"catalog {path}: {error}") from error

    @property
    def names(self) -> list[str]:
        """Names with an entry, sorted."""
        return sorted(self._entries)

    def entry(self, name: str) -> Entry | None:
        """Where a name leads, if it has an entry."""
        return self._entries.get(name)


def in_order(entry: Entry, key: str) -> list[Place]:
    """Places in the order in which a request tries them; ``key`` decides its share of the weights.

    The same request comes to the same place however often and through whichever router it is routed.
    """
    point = xxhash.xxh3_64_intdigest(key.encode()) / 2**64 * sum(r.weight for r in entry.routes)
    first = 0
    for first, route in enumerate(entry.routes):  # noqa: B007 - where it stopped is wanted
        point -= route.weight
        if point < 0:
            break
    others = [route for index, route in enumerate(entry.routes) if index != first]
    others.sort(key=lambda route: -route.weight)
    return [entry.routes[first], *others, *entry.fallback]
