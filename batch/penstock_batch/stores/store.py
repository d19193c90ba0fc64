"""Facts of batches in the object store, and the indexes over them.

``batches/ID/facts/NAME.json``   the facts; the state of record
``batches/ID/...``               what they point to (shards' inputs and outputs)
``tenants/T/batches/ID``         so that a tenant's batches can be listed
``tenants/T/requests/HASH``      a caller's request id -> batch id
``open/ID``                      batches that are not over, for the reconciler
"""

import hashlib
import time
from collections import OrderedDict

from penstock_batch.state import facts as f
from penstock_batch.stores.objects import Objects
from penstock_core.errors import InternalError, NotFound
from penstock_core.ids import is_safe_id, new_id

_CACHED_BATCHES = 256
_JSON = ".json"


def timed_id(prefix: str) -> str:
    """A random id that sorts by its time: 48 bits of milliseconds, 64 random bits."""
    return f"{prefix}_{int(time.time() * 1000):012x}{new_id('')[-16:]}"


def tenant_folder(tenant: str) -> str:
    """The folder of a tenant; its name may hold anything, the folder's may not."""
    plain = tenant.replace("-", "").replace("_", "")
    safe = plain.isascii() and plain.isalnum() and len(tenant) <= 64
    name = tenant if safe else f"={hashlib.sha256(tenant.encode()).hexdigest()[:32]}"
    return f"tenants/{name}"


def checked_id(what: str, text: str) -> str:
    """An id that is fit to be part of an object's name.

    Raises:
        NotFound: nothing can have this id.
    """
    if not is_safe_id(text) or not text.isascii() or "." in text:
        raise NotFound(f"there is no {what} {text[:64]!r}")
    return text


class FactStore:
    """Reads and writes facts. What was read is kept: a fact never changes."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._cache: OrderedDict[str, dict[str, f.Fact]] = OrderedDict()

    async def put(self, batch_id: str, fact: f.Fact) -> bool:
        """Write a fact unless it is there; whether this writer was the first."""
        return await self.objects.put_new(_path(batch_id, f.name_of(fact)), f.encode(fact))

    async def load(self, batch_id: str) -> f.Facts:
        """Everything known of a batch now.

        Raises:
            Unavailable: the object store does not answer.
            InternalError: what is stored is no fact.
        """
        known = self._cached(batch_id)
        folder = f"batches/{batch_id}/facts"
        for entry in await self.objects.names(folder):
            name = entry.removesuffix(_JSON)
            if name not in known:
                known[name] = await self._read(f"{folder}/{entry}")
        return f.Facts.of(list(known.values()))

    async def load_owned(self, batch_id: str, tenant: str) -> f.Facts:
        """The same for one tenant's batch.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        facts = await self.load(checked_id("batch", batch_id))
        if facts.created is None or facts.created.tenant != tenant:
            raise NotFound(f"there is no batch {batch_id!r}")
        return facts

    async def cancelled(self, batch_id: str) -> bool:
        """Whether cancelling was asked for; cheaper than loading everything."""
        return await self.objects.exists(_path(batch_id, f.CANCEL))

    async def create(self, batch_id: str, created: f.Created) -> bool:
        """Write the first fact, the indexes before it: a crash in between leaves no orphan batch."""
        await self.objects.put(f"{tenant_folder(created.tenant)}/batches/{batch_id}", b"")
        await self.objects.put(f"open/{batch_id}", b"")
        return await self.put(batch_id, created)

    async def claim_request(self, tenant: str, request_id: str, batch_id: str) -> str:
        """Tie a caller's request id to a batch id; the id that it is tied to."""
        key = hashlib.sha256(request_id.encode()).hexdigest()[:32]
        name = f"{tenant_folder(tenant)}/requests/{key}"
        if await self.objects.put_new(name, batch_id.encode()):
            return batch_id
        return (await self.objects.get(name)).decode()

    async def batches_of(self, tenant: str) -> list[str]:
        """Ids of a tenant's batches, newest first."""
        return (await self.objects.names(f"{tenant_folder(tenant)}/batches"))[::-1]

    async def open_batches(self) -> list[str]:
        """Ids of batches that are not over, oldest first."""
        return await self.objects.names("open")

    async def close_batch(self, batch_id: str) -> None:
        """Take a batch that is over off the reconciler's list."""
        await self.objects.delete(f"open/{batch_id}")

    async def _read(self, path: str) -> f.Fact:
        try:
            return f.decode(await self.objects.get(path))
        except ValueError as error:
            raise InternalError(f"{path}: {error}") from error

    def _cached(self, batch_id: str) -> dict[str, f.Fact]:
        known = self._cache.setdefault(batch_id, {})
        self._cache.move_to_end(batch_id)
        if len(self._cache) > _CACHED_BATCHES:
            self._cache.popitem(last=False)
        return known


def _path(batch_id: str, name: str) -> str:
    return f"batches/{batch_id}/facts/{name}{_JSON}"
