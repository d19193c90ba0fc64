"""Appends decisions and outcomes to a file as JSON lines, off the event loop."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google.protobuf.json_format import MessageToJson

from penstock.routing.v1 import routing_service_pb2
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
