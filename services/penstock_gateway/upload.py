"""A file upload as the parts of the batch service's UploadFile call."""

from collections.abc import AsyncGenerator, Iterator

from starlette.requests import Request

from penstock.batch.v1 import batch_service_pb2
from penstock_core.errors import InvalidRequest, NotSupported
from penstock_gateway.body import check_length, require_content_type, too_large
from penstock_gateway.multipart import (
    FileBytes,
    FileStart,
    FormField,
    FormPart,
    FormReader,
    boundary_of,
)

# What a file is for if the form says so only after the file: the one purpose uploads have.
ASSUMED_PURPOSE = "batch"

Part = batch_service_pb2.UploadFileRequest


async def upload_parts(request: Request, max_bytes: int) -> AsyncGenerator[Part, None]:
    """The wire parts of the form in a request's body, as it arrives.

    Raises:
        InvalidRequest: no such form, or it lacks the file or its purpose.
        HTTPException: 413 or 415.
    """
    require_content_type(request, "multipart/form-data")
    check_length(request, max_bytes)
    reader = FormReader(boundary_of(request.headers["content-type"]))
    form = UploadForm()
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise too_large(max_bytes)
        for part in reader.feed(chunk):
            for wire in form.take(part):
                yield wire
    reader.close()
    form.check()


class UploadForm:
    """What an upload's form said so far. The purpose may come before or after the file."""

    def __init__(self) -> None:
        self._purpose: str | None = None
        self._sent_purpose: str | None = None

    def take(self, part: FormPart) -> Iterator[Part]:
        """The wire parts of a form part."""
        if isinstance(part, FileBytes):
            yield Part(data=part.data)
        elif isinstance(part, FileStart):
            yield self._description(part)
        else:
            self._note(part)

    def check(self) -> None:
        """Raise InvalidRequest unless the form was complete and the purpose as sent."""
        if self._sent_purpose is None:
            raise InvalidRequest("Missing required parameter: 'file'.", field="file")
        if self._purpose is None:
            raise InvalidRequest("Missing required parameter: 'purpose'.", field="purpose")
        if self._purpose != self._sent_purpose:
            raise InvalidRequest(
                f"purpose must be {ASSUMED_PURPOSE!r}, not {self._purpose!r}", field="purpose"
            )

    def _note(self, part: FormField) -> None:
        if part.name == "purpose":
            self._purpose = part.value
        elif part.name.startswith("expires_after"):
            raise NotSupported(
                "expires_after is not supported: files stay until deleted", field="expires_after"
            )
        else:
            raise InvalidRequest(
                f"Unrecognized request argument supplied: {part.name[:64]}", field=part.name[:64]
            )

    def _description(self, start: FileStart) -> Part:
        if start.name != "file" or self._sent_purpose is not None:
            raise InvalidRequest("the form must have one file, called 'file'", field="file")
        self._sent_purpose = self._purpose or ASSUMED_PURPOSE
        description = batch_service_pb2.FileDescription(
            filename=start.filename, purpose=self._sent_purpose
        )
        return Part(description=description)
