"""What a request may call a model: its name, ``base:adapter``, or an adapter's own name.

Owns the one rule by which router and worker read such names and the gateway lists them. Knows no
wire types.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from penstock_core.errors import InvalidRequest, NotFound

SEPARATOR = ":"


@dataclass(frozen=True, slots=True)
class Named:
    """A model, and a LoRA adapter of it; empty for the model itself."""

    model: str
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """A model somewhere: its names, its own first, the revision of its weights, its adapters."""

    names: Sequence[str]
    revision: str
    adapters: Sequence[str] = ()


class Catalogue:
    """Everything that can be asked for."""

    def __init__(self, served: Iterable[Served]) -> None:
        self._adapters: dict[str, set[str]] = {}
        self._owners: dict[str, dict[str, str]] = {}
        for model in served:
            for name in model.names:
                self._adapters.setdefault(name, set()).update(model.adapters)
            for adapter in model.adapters if model.names else ():
                self._owners.setdefault(adapter, {}).setdefault(model.revision, model.names[0])

    def read(self, name: str, adapter: str = "") -> Named:
        """What a request means by its model and its adapter, empty for none.

        A name that no model and no adapter has comes back as it is.

        Raises:
            NotFound: the model has no such adapter.
            InvalidRequest: it names two adapters, or one that several models have.
        """
        named = self._split(name)
        if not adapter:
            return named
        if named.adapter not in {"", adapter}:
            message = f"model {name!r} and adapter {adapter!r} are two adapters"
            raise InvalidRequest(message, field="adapter")
        return self._checked(Named(named.model, adapter))

    def adapters(self) -> dict[str, Named]:
        """Every adapter by the shortest name that means it alone, sorted."""
        listed = {}
        for adapter, owners in self._owners.items():
            for model in owners.values():
                is_alone = len(owners) == 1 and adapter not in self._adapters
                listed[adapter if is_alone else f"{model}{SEPARATOR}{adapter}"] = Named(
                    model, adapter
                )
        return dict(sorted(listed.items()))

    def _split(self, name: str) -> Named:
        if name in self._adapters:
            return Named(name)
        owners = sorted(self._owners.get(name, {}).values())
        if len(owners) == 1:
            return Named(owners[0], name)
        if owners:
            choices = ", ".join(f"{owner}{SEPARATOR}{name}" for owner in owners)
            raise InvalidRequest(
                f"several models have an adapter {name!r}: {choices}", field="model"
            )
        base, separator, adapter = name.rpartition(SEPARATOR)
        if separator and base in self._adapters:
            return self._checked(Named(base, adapter))
        return Named(name)

    def _checked(self, named: Named) -> Named:
        known = self._adapters.get(named.model)
        if known is not None and named.adapter not in known:
            raise NotFound(f"{named.model!r} has no adapter {named.adapter!r}")
        return named
