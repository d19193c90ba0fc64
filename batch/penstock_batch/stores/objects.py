"""The object store as the rest sees it: bytes by name, atomic, put-if-absent; obstore behind it.

A directory by default; S3, GCS and Azure by URL. Knows neither facts nor files.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from penstock_core.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Objects:
    """Bytes under names. Every method raises Unavailable if the store does not answer."""

    _store: "ObjectStore"

    @classmethod
    def open(cls, url: str) -> "Objects":
        """Open a store: ``file:///dir`` (made if missing), ``s3://``, ``gs://``, ``az://``.

        Raises:
            ValueError: the URL names no store.
        """
        try:
            store = from_url(url, mkdir=True) if url.startswith("file:") else from_url(url)
        except (BaseError, ValueError) as error:
            raise ValueError(f"{url} cannot be opened as a store: {_brief(error)}") from error
        return cls(store)

    async def put_new(self, name: str, data: bytes) -> bool:
        """Store bytes if nothing has the name; whether the name now stands for these bytes."""
        async with _translated(name):
            try:
                await obstore.put_async(self._store, name, data, mode="create")
            except AlreadyExistsError:
                # A remote store's put may be retried after its answer was lost, and find itself.
                return await self.get(name) == data
            return True

    async def put(self, name: str, data: bytes) -> None:
        """Store bytes, whatever was there."""
        async with _translated(name):
            await obstore.put_async(self._store, name, data)

    async def put_stream(self, name: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a stream; nothing is there until it ended well."""
        # A named writer, since errors of an iterator given to put_async lose their class.
        async with _translated(name), obstore.open_writer_async(self._store, name) as writer:
            async for chunk in chunks:
                await writer.write(chunk)

    async def get(self, name: str) -> bytes:
        """An object's bytes. Raises NotFound."""
        async with _translated(name):
            result = await obstore.get_async(self._store, name)
            return bytes(await result.bytes_async())

    async def stream(self, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        """An object's bytes from an offset, in pieces. Raises NotFound."""
        async with _translated(name):
            size = (await obstore.head_async(self._store, name))["size"]
            if offset >= size:
                return
            result = await obstore.get_async(
                self._store, name, options={"range": {"offset": offset}}
            )
            async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                data = bytes(chunk)
                for start in range(0, len(data), CHUNK_BYTES):
                    yield data[start : start + CHUNK_BYTES]

    async def exists(self, name: str) -> bool:
        """Whether something has the name."""
        async with _translated(name):
            try:
                await obstore.head_async(self._store, name)
            except FileNotFoundError:
                return False
            return True

    async def delete(self, name: str) -> None:
        """Remove an object; it need not exist."""
        async with _translated(name):
            try:
                await obstore.delete_async(self._store, name)
            except FileNotFoundError:
                return

    async def names(self, folder: str) -> list[str]:
        """Sorted names of everything under a folder, without the folder's own name."""
        async with _translated(folder):
            found = [
                str(entry["path"]).removeprefix(f"{folder}/")
                async for page in obstore.list(self._store, prefix=folder)
                for entry in page
            ]
        return sorted(found)


@asynccontextmanager
async def _translated(name: str) -> AsyncIterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"there is no object {name}") from error
    except BaseError as error:
        raise Unavailable(f"the object store failed on {name}: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """The first line: obstore appends a page of debug output."""
    return str(error).partition("\n")[0]
