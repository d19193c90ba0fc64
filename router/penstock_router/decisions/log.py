"""Decisions and outcomes in a file, as JSON lines: appended off the event loop, and read."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from penstock.routing.v1 import routing_service_pb2
from penstock_core.errors import InvalidRequest
from penstock_router.decisions import wire
from penstock_router.decisions.book import DecisionBook, DecisionRecord, Entry

_BATCH = 128


async def write_decisions(book: DecisionBook, path: Path) -> None:
    """Write what the book publishes until cancelled; what is queued then is written too.

    Raises:
        OSError: the file cannot be written.
    """
    loop = asyncio.get_running_loop()
    # One thread, so that lines keep their order and the last write is behind all others.
    with book.watch() as queue, ThreadPoolExecutor(1, "decision-log") as writer:
        try:
            while True:
                batch = [await queue.get()]
                while not queue.empty() and len(batch) < _BATCH:
                    batch.append(queue.get_nowait())
                await asyncio.shield(loop.run_in_executor(writer, _append, path, batch))
        finally:
            rest = [queue.get_nowait() for _ in range(queue.qsize())]
            await loop.run_in_executor(writer, _append, path, rest)


def read_decisions(path: Path) -> Iterator[routing_service_pb2.WatchDecisionsResponse]:
    """What was written, in its order.

    Raises:
        InvalidRequest: a line is no record; says which.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            entry = routing_service_pb2.WatchDecisionsResponse()
            try:
                Parse(line, entry)
            except ParseError as error:
                raise InvalidRequest(f"line {number} is no record: {error}", field="log") from error
            yield entry


def _append(path: Path, entries: list[Entry]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(_line(entry) for entry in entries)


def _line(entry: Entry) -> str:
    message = routing_service_pb2.WatchDecisionsResponse()
    if isinstance(entry, DecisionRecord):
        message.decision.CopyFrom(wire.decision_message(entry))
    else:
        message.outcome.CopyFrom(wire.outcome_message(entry))
    return MessageToJson(message, indent=None, preserving_proto_field_name=True) + "\n"
