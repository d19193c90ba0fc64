"""Files of tenants: uploads and results. Bytes first, then the description that makes them visible."""

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

from penstock_batch.stores.objects import Objects
from penstock_batch.stores.store import checked_id, tenant_folder, timed_id
from penstock_core.errors import InvalidRequest, NotFound

PURPOSE_INPUT = "batch"
PURPOSE_OUTPUT = "batch_output"
MAX_FILE_BYTES = 200 * 1024 * 1024
MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's description. ``created`` is in Unix seconds."""

    id: str
    filename: str
    purpose: str
    size: int
    created: int
    sha256: str


class _Measured:
    """Passes a stream on while taking its size and digest, up to a limit."""

    def __init__(self, chunks: AsyncIterator[bytes], limit: int | None) -> None:
        self._chunks = chunks
        self._limit = limit
        self._digest = hashlib.sha256()
        self.size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self.size += len(chunk)
            if self._limit is not None and self.size > self._limit:
                raise InvalidRequest(
                    f"the file is larger than {self._limit} bytes", field="part.data"
                )
            self._digest.update(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class FileStore:
    """Every file belongs to one tenant and is invisible to others."""

    def __init__(self, objects: Objects, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._objects = objects
        self._max_bytes = max_bytes

    async def upload(
        self, tenant: str, filename: str, chunks: AsyncIterator[bytes], now: float
    ) -> StoredFile:
        """Store a batch's input.

        Raises:
            InvalidRequest: too large, or its name is.
        """
        if len(filename) > MAX_NAME_CHARS:
            raise InvalidRequest(
                f"the name is longer than {MAX_NAME_CHARS} characters", field="filename"
            )
        blank = StoredFile(timed_id("file"), filename, PURPOSE_INPUT, 0, int(now), "")
        return await self._store(tenant, blank, chunks, self._max_bytes)

    async def write_output(
        self, tenant: str, file_id: str, filename: str, chunks: AsyncIterator[bytes], now: float
    ) -> StoredFile:
        """Store a batch's result under a given id, replacing an unfinished attempt."""
        blank = StoredFile(file_id, filename, PURPOSE_OUTPUT, 0, int(now), "")
        return await self._store(tenant, blank, chunks, None)

    async def describe(self, tenant: str, file_id: str) -> StoredFile:
        """A file's description. Raises NotFound, also for another tenant's file."""
        checked_id("file", file_id)
        try:
            raw = await self._objects.get(_description(tenant, file_id))
        except NotFound as error:
            raise NotFound(f"there is no file {file_id!r}") from error
        return StoredFile(**json.loads(raw))

    async def read(self, tenant: str, file_id: str) -> bytes:
        """A file's bytes. Raises NotFound."""
        await self.describe(tenant, file_id)
        return await self._objects.get(_content(tenant, file_id))

    async def stream(self, tenant: str, file_id: str, offset: int = 0) -> AsyncIterator[bytes]:
        """A file's bytes from an offset, in pieces. Raises NotFound."""
        await self.describe(tenant, file_id)
        async for chunk in self._objects.stream(_content(tenant, file_id), offset):
            yield chunk

    async def page(self, tenant: str, after: str, limit: int, purpose: str) -> list[StoredFile]:
        """Up to ``limit`` files that follow an id, newest first; of one purpose if it is given."""
        page: list[StoredFile] = []
        for file_id in reversed(await self._objects.names(f"{tenant_folder(tenant)}/files")):
            if len(page) >= limit:
                break
            if after and file_id >= after:
                continue
            try:
                file = await self.describe(tenant, file_id)
            except NotFound:
                # Deleted since it was listed.
                continue
            if not purpose or file.purpose == purpose:
                page.append(file)
        return page

    async def delete(self, tenant: str, file_id: str) -> None:
        """Remove a file. Raises NotFound."""
        await self.describe(tenant, file_id)
        await self._objects.delete(_description(tenant, file_id))
        await self._objects.delete(_content(tenant, file_id))

    async def _store(
        self, tenant: str, blank: StoredFile, chunks: AsyncIterator[bytes], limit: int | None
    ) -> StoredFile:
        measured = _Measured(chunks, limit)
        await self._objects.put_stream(_content(tenant, blank.id), aiter(measured))
        file = StoredFile(
            blank.id,
            blank.filename,
            blank.purpose,
            measured.size,
            blank.created,
            measured.sha256,
        )
        await self._objects.put(_description(tenant, blank.id), json.dumps(asdict(file)).encode())
        return file


def _description(tenant: str, file_id: str) -> str:
    return f"{tenant_folder(tenant)}/files/{file_id}"


def _content(tenant: str, file_id: str) -> str:
    return f"{tenant_folder(tenant)}/content/{file_id}"
